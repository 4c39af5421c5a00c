"""Secrets, keys, certificates, URLs and storage: what is derived and what is refused."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from gatehouse.common.config.derive import main_address
from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.resolved import ListenAddress, ServiceName
from gatehouse.common.jose.keys import derive_signing_key
from gatehouse.common.session.idp_id import idp_id
from tests.support.configuration import (
    LOGIN,
    PRIVATE,
    PUBLIC,
    RANDOM,
    SECRET,
    SECRET_TEXT,
    load,
    pem_key,
    problems,
    resolved,
    warnings,
    without,
)


def test_login_configuration_is_sound(tmp_path: Path) -> None:
    settings, found = resolved(tmp_path, LOGIN + PRIVATE)
    assert found == ()
    assert settings.is_all_in_one
    assert settings.shared_secrets == settings.cookie_secrets == (SECRET,)
    assert settings.certificates[0].source == "/tls/cert.pem"
    assert settings.fallback_certificate is None
    assert settings.authenticate_url == "https://authenticate.example.com"
    assert settings.authenticate_internal_url == settings.authenticate_url
    assert settings.databroker_connection == ""
    assert settings.watched_files == (Path("/tls/cert.pem"), Path("/tls/key.pem"))


# -- services ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", set(ServiceName)),
        ("ALL", set(ServiceName)),
        ("proxy, Authorize", {ServiceName.PROXY, ServiceName.AUTHORIZE}),
        ("cache", {ServiceName.DATABROKER}),
        ("proxy,authorize,authenticate,databroker", set(ServiceName)),
    ],
)
def test_services(tmp_path: Path, text: str, expected: set[ServiceName]) -> None:
    settings, _ = resolved(tmp_path, f"services: {text}\n{LOGIN}{PRIVATE}")
    assert settings.services == expected
    assert settings.is_all_in_one == (expected == set(ServiceName))


@pytest.mark.parametrize("text", ["''", "console", "proxy,", "proxy;authorize"])
def test_bad_services(tmp_path: Path, text: str) -> None:
    error = problems(tmp_path, f"services: {text}\n")[0]
    assert "is an invalid service type" in error


def test_other_mistakes_are_told_beside_bad_services(tmp_path: Path) -> None:
    found = problems(tmp_path, "services: proxy,authorise\ncookie_name: 'a b'\n")
    assert "did you mean authorize?" in found[0]
    assert any("cookie_name: is not a cookie name" in line for line in found)
    assert not any("idp_provider" in line for line in found)  # authenticate's, and that is not here


# -- secrets -----------------------------------------------------------------------------------


def test_an_all_in_one_makes_its_secrets(tmp_path: Path) -> None:
    settings, found = resolved(tmp_path, PUBLIC)
    assert settings.shared_secrets == settings.cookie_secrets == (RANDOM,)
    assert any(issue.key == "cookie_secret" for issue in found)


@pytest.mark.parametrize(
    ("services", "needed"),
    [
        ("proxy", {"shared_secret", "cookie_secret"}),
        ("authorize", {"shared_secret"}),
        ("authenticate", {"shared_secret", "cookie_secret"}),
        ("databroker", {"shared_secret"}),
        ("authorize,databroker", {"shared_secret"}),
    ],
)
def test_secrets_required_apart(tmp_path: Path, services: str, needed: set[str]) -> None:
    text = without(LOGIN, "shared_secret", "cookie_secret") + f"services: {services}\n"
    found = problems(tmp_path, text)
    assert {line.split(": ")[0] for line in found} == needed
    assert all("is required" in line for line in found)


def test_a_secret_list_verifies_with_all(tmp_path: Path) -> None:
    old = base64.b64encode(b"o" * 32).decode()
    text = without(LOGIN, "shared_secret") + f"shared_secret: {SECRET_TEXT},{old}\n"
    assert resolved(tmp_path, text)[0].shared_secrets == (SECRET, b"o" * 32)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("'%%%'", "is not base64"),
        (base64.b64encode(b"short").decode(), "decodes to 5 bytes"),
        (f"'{SECRET_TEXT} '", "holds white space"),
        (f'"{SECRET_TEXT}\\n"', "holds white space"),
        (f"'{SECRET_TEXT},'", "decodes to 0 bytes"),
    ],
)
@pytest.mark.parametrize("key", ["shared_secret", "cookie_secret"])
def test_bad_secrets(tmp_path: Path, key: str, value: str, message: str) -> None:
    (error,) = problems(tmp_path, without(LOGIN, key) + f"{key}: {value}\n")
    assert message in error
    assert SECRET_TEXT not in error


def test_a_secret_file_wins_and_is_watched(tmp_path: Path) -> None:
    other = base64.b64encode(b"f" * 32)
    text = LOGIN + "shared_secret_file: /run/shared\ncookie_secret_file: /run/cookie\n"
    files = {"/run/shared": other, "/run/cookie": other + b"\n"}
    settings, _ = resolved(tmp_path, text, files=files)
    assert settings.shared_secrets == settings.cookie_secrets == (b"f" * 32,)
    assert {Path("/run/shared"), Path("/run/cookie")} <= set(settings.watched_files)


@pytest.mark.parametrize(("ending", "ok"), [(b"\n", True), (b"\r\n", True), (b" \n", False)])
def test_a_secret_file_may_end_with_a_line_break(tmp_path: Path, ending: bytes, ok: bool) -> None:
    text = without(LOGIN, "shared_secret") + "shared_secret_file: /run/shared\n"
    found = problems(tmp_path, text, files={"/run/shared": SECRET_TEXT.encode() + ending})
    assert (found == []) is ok
    assert ok or "shared_secret_file: holds white space" in found[0]


@pytest.mark.parametrize("contents", [None, b""])
def test_a_missing_or_empty_secret_file(tmp_path: Path, contents: bytes | None) -> None:
    text = without(LOGIN, "shared_secret") + "shared_secret_file: /run/shared\n"
    files = {} if contents is None else {"/run/shared": contents}
    (error,) = problems(tmp_path, text, files=files)
    assert "shared_secret_file: " in error
    assert ("cannot be read" in error) == (contents is None)


# -- signing keys ------------------------------------------------------------------------------


def test_the_signing_key_is_derived_or_given(tmp_path: Path) -> None:
    assert resolved(tmp_path, LOGIN)[0].signing_keys[0].kid == derive_signing_key(SECRET).kid
    pem = pem_key(ec.SECP256R1())
    inline = f"signing_key: {base64.b64encode(pem).decode()}\n"
    kid = resolved(tmp_path, LOGIN + inline)[0].signing_keys[0].kid
    assert kid != derive_signing_key(SECRET).kid
    text = f"{LOGIN}{inline}signing_key_file: /run/key\n"
    other = pem_key(ec.SECP256R1())
    keys = resolved(tmp_path, text, files={"/run/key": b"\n" + other + pem + b"\n"})[0].signing_keys
    assert [key.kid for key in keys][1] == kid


@pytest.mark.parametrize("pem", [b"x", pem_key(ec.SECP384R1())])
def test_bad_signing_keys(tmp_path: Path, pem: bytes) -> None:
    text = LOGIN + "signing_key_file: /run/key\n"
    (error,) = problems(tmp_path, text, files={"/run/key": pem})
    assert "signing_key_file: signing key" in error


# -- identity provider -------------------------------------------------------------------------


def test_the_provider_and_a_routes_own_client(tmp_path: Path) -> None:
    text = f"""{LOGIN}
idp_client_secret_file: /run/idp
idp_scopes: [openid, email]
routes:
- from: https://a.example.com
  to: http://a
- from: https://b.example.com
  to: http://b
  idp_client_id: other
  idp_client_secret: other-secret
"""
    settings, _ = resolved(tmp_path, text, files={"/run/idp": b"from-file\n"})
    provider = settings.identity_provider
    assert provider is not None
    assert (provider.client_secret, provider.scopes) == ("from-file", ("openid", "email"))

    def expected(client: str) -> str:
        return idp_id(
            type="oidc",
            url="https://idp.example.com",
            client_id=client,
            authenticate_service_url="https://authenticate.example.com",
        )

    assert provider.id == expected("client")
    first, second = settings.routes
    assert first.identity_provider is provider
    assert second.identity_provider is not None
    assert second.identity_provider.client_secret == "other-secret"
    assert second.identity_provider.id == expected("other")
    assert "secret" not in repr(settings) + repr(second) + repr(provider)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("idp_provider: keycloak\n", "unknown provider 'keycloak'"),
        ("idp_provider: hosted\n", "which is not offered"),
        ("idp_provider: okta\nidp_provider_url: ''\n", "is required with idp_provider okta"),
    ],
)
def test_bad_providers(tmp_path: Path, text: str, message: str) -> None:
    base = without(LOGIN, "idp_provider", "idp_provider_url")
    assert any(message in line for line in problems(tmp_path, base + text))


def test_authenticate_needs_a_provider_when_somebody_logs_in(tmp_path: Path) -> None:
    base = without(LOGIN, "idp_")
    found = {line.split(": ")[-2] for line in problems(tmp_path, base + PRIVATE)}
    assert found == {"idp_provider", "idp_client_id", "idp_client_secret"}
    without_login = without(base, "authenticate_service_url")
    assert problems(tmp_path, without_login + PUBLIC) == []


# -- addresses and URLs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "grpc", "insecure"),
    [
        ("", ListenAddress("", 5443), True),
        ("address: ':5443'\n", ListenAddress("", 5444), True),
        ("grpc_address: 127.0.0.1:9\n", ListenAddress("127.0.0.1", 9), True),
        ("services: authorize\n", ListenAddress("", 443), False),
        ("services: databroker\ngrpc_insecure: true\n", ListenAddress("", 443), True),
        ("services: authenticate\n", ListenAddress("", 5443), True),
        ("grpc_insecure: false\n", ListenAddress("", 5443), False),
    ],
)
def test_grpc_listener(tmp_path: Path, text: str, grpc: ListenAddress, insecure: bool) -> None:
    settings, _ = resolved(tmp_path, LOGIN + text)
    assert (settings.grpc_address, settings.grpc_insecure) == (grpc, insecure)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ListenAddress("", 443)),
        ("address: 127.0.0.1:8443\n", ListenAddress("127.0.0.1", 8443)),
        ("address: '[::1]:1'\n", ListenAddress("::1", 1)),
        ("address: host\n", ListenAddress("host", 443)),
        ("address: 'host:x'\n", ListenAddress("host", 443)),
        ("address: host\ninsecure_server: true\n", ListenAddress("host", 80)),
    ],
)
def test_main_address(tmp_path: Path, text: str, expected: ListenAddress) -> None:
    assert main_address(load(tmp_path, LOGIN + text).settings) == expected


def test_a_bad_grpc_address(tmp_path: Path) -> None:
    (error,) = problems(tmp_path, LOGIN + "grpc_address: nowhere\n")
    assert "grpc_address: is not an address" in error


def test_service_urls(tmp_path: Path) -> None:
    text = f"""{LOGIN}services: proxy
authorize_service_url: http://z1
authorize_service_urls: [http://z2, "", http://z1]
databroker_service_urls: [http://d1, http://d2]
"""
    settings, found = resolved(tmp_path, text)
    assert settings.authorize_urls == ("http://z1", "http://z2")
    assert settings.databroker_urls == ("http://d1", "http://d2")
    assert found == ()
    internal = text + "authorize_internal_service_url: http://zi\n"
    assert resolved(tmp_path, internal)[0].authorize_urls == ("http://zi",)


def test_unset_service_urls_are_loopback_with_a_warning(tmp_path: Path) -> None:
    settings, found = resolved(tmp_path, LOGIN + "services: proxy\n")
    assert settings.authorize_urls == settings.databroker_urls == ("http://127.0.0.1:5443",)
    assert {issue.key for issue in found} == {"authorize_service_url", "databroker_service_url"}
    assert warnings(tmp_path, LOGIN) == []


def test_an_all_in_one_ignores_service_urls(tmp_path: Path) -> None:
    text = LOGIN + "authorize_service_url: http://z\ndatabroker_service_url: http://d\n"
    settings, _ = resolved(tmp_path, text)
    assert settings.authorize_urls == settings.databroker_urls == ("http://127.0.0.1:5443",)


@pytest.mark.parametrize("key", ["authorize_service_urls", "databroker_service_urls"])
def test_bad_service_urls(tmp_path: Path, key: str) -> None:
    (error,) = problems(tmp_path, f"{LOGIN}services: proxy\n{key}: [http://a, 'grpc://b']\n")
    assert f"{key}[1]: bad {key.partition('_')[0]} service url" in error


@pytest.mark.parametrize(
    ("services", "routes", "ok"),
    [
        ("all", PUBLIC, True),
        ("all", PRIVATE, False),
        (
            "all",
            PRIVATE.replace(
                "allow_any_authenticated_user: true", "policy: {allow: {or: [{accept: true}]}}"
            ),
            True,
        ),
        ("proxy", PUBLIC, False),
        ("authorize", PUBLIC, False),
        ("authenticate", "", False),
        ("databroker", "", True),
    ],
)
def test_the_authenticate_url_is_needed(
    tmp_path: Path, services: str, routes: str, ok: bool
) -> None:
    text = without(LOGIN, "authenticate_service_url") + f"services: {services}\n{routes}"
    found = [line for line in problems(tmp_path, text) if "authenticate_service_url" in line]
    assert (found == []) is ok


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://authenticate.pomerium.app", "stateless flow, which is not offered"),
        ("https://Authenticate.Pomerium.App.", "stateless flow, which is not offered"),
        ("https://authenticate.staging.pomerium.app", "stateless flow, which is not offered"),
        ("https://a.example.com/x", "holds more than scheme, host and port"),
        ("a.example.com", "has no scheme"),
    ],
)
def test_bad_authenticate_urls(tmp_path: Path, url: str, message: str) -> None:
    text = without(LOGIN, "authenticate_service_url") + f"authenticate_service_url: {url}\n"
    with pytest.raises(ConfigError, match=message):
        resolved(tmp_path, text)


# -- storage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_single_instance_storage_with_several_urls_is_refused(tmp_path: Path, kind: str) -> None:
    urls = "databroker_service_url: http://a\ndatabroker_service_urls: [http://b]\n"
    text = f"{LOGIN}databroker_storage_type: {kind}\n{urls}"
    (error,) = problems(tmp_path, text)
    assert f"{kind} storage serves one instance, but 2 databroker URLs are set" in error
    assert problems(tmp_path, text + "services: proxy\n") == []
    same = text.replace("http://b", "http://a")
    assert problems(tmp_path, same) == []


def test_storage_connections(tmp_path: Path) -> None:
    def connection(text: str, environ: dict[str, str] | None = None) -> str:
        files = {"/run/dsn": b" postgresql://me:hunter2@db/x \n"}
        return resolved(tmp_path, LOGIN + text, environ, files)[0].databroker_connection

    postgres = "databroker_storage_type: postgres\n"
    key = "databroker_storage_connection_string"
    assert connection(f"{postgres}{key}: postgresql://db\n") == "postgresql://db"
    assert connection(f"{postgres}{key}_file: /run/dsn\n") == "postgresql://me:hunter2@db/x"
    file = "databroker_storage_type: file\n"
    assert connection(file, {"XDG_DATA_HOME": "/data"}) == "file:///data/pomerium/databroker"
    assert connection(file, {"HOME": "/h"}) == "file:///h/.local/share/pomerium/databroker"
    assert connection(f"{file}{key}: file:///srv/db\n") == "file:///srv/db"
    assert connection(f"{file}{key}: /srv/db\n") == "/srv/db"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("databroker_storage_type: postgres\n", "is required with postgres"),
        (
            "databroker_storage_type: file\ndatabroker_storage_connection_string: hunter2\n",
            "names no directory",
        ),
    ],
)
def test_bad_storage(tmp_path: Path, text: str, message: str) -> None:
    (error,) = problems(tmp_path, LOGIN + text)
    assert message in error
    assert "hunter2" not in error
