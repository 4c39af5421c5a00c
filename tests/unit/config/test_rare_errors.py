"""Mistakes that few people make, each fed through a file and its message read."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from gatehouse.common.config import load as load_module
from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.load import load_settings
from tests.support.configuration import (
    CERTIFICATE,
    LOGIN,
    SECRET_TEXT,
    pem_key,
    problems,
    warnings,
    without,
)

ENCRYPTED = ec.generate_private_key(ec.SECP256R1()).private_bytes(
    Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
)
BROKEN_LIST = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"
OTHER_KEY = pem_key(ec.SECP256R1())
CHECK = {
    "timeout": "1s",
    "interval": "5s",
    "unhealthy_threshold": 3,
    "healthy_threshold": 1,
    "tcp_health_check": {},
}
BASE: dict[str, Any] = {
    "from": "https://app.example.com",
    "to": "http://app",
    "allowed_users": ["u"],
}


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


NODE = "{id: a, grpc_address: 'http://a', raft_address: 'a:1'}"
URL_SAFE = base64.urlsafe_b64encode(b"\xff" * 32).decode()
FIRST = len(LOGIN.splitlines()) + 1


@pytest.mark.parametrize(
    ("text", "files", "message"),
    [
        (
            "certificates: [{cert: /tls/cert.pem, key: /tls/encrypted.pem}]",
            {"/tls/encrypted.pem": ENCRYPTED},
            "the key is encrypted; give it without password (a matching pair of PEM files)",
        ),
        (
            "certificates: [{cert: /tls/cert.pem, key: /tls/none.pem}]",
            {"/tls/none.pem": b"nothing"},
            "the key holds no readable PEM private key (a matching pair of PEM files)",
        ),
        (
            f"certificate: {encoded(CERTIFICATE)}\ncertificate_key: {encoded(OTHER_KEY)}",
            {},
            "certificate: bad cert base64: the key does not belong to the certificate (a matching",
        ),
        (
            "downstream_mtls: {crl_file: /lists}",
            {"/lists": BROKEN_LIST},
            "downstream_mtls.crl_file: holds a revocation list that cannot be read (PEM revocation",
        ),
        (
            "signing_key_file: /empty",
            {"/empty": b"\n"},
            "signing_key_file: the file is empty (a PEM private key)",
        ),
        ("otel_traces_sampler_arg: true", {}, "otel_traces_sampler_arg: is a boolean (a number)"),
        ("otel_traces_sampler_arg: [1]", {}, "otel_traces_sampler_arg: is a list (a number)"),
        ("timeout_read: 900000h", {}, "timeout_read: '900000h' is longer than a century ("),
        ('certificate_authority_file: "a\\0b"', {}, "the path holds a NUL character (a file path)"),
        (
            "access_log_fields: ['headers.a b']",
            {},
            "access_log_fields[0]: 'a b' is not a header name (headers.<Name>)",
        ),
        (
            "services: all\nservices.x: 1",
            {},
            "services.x: services is given as a value too (keep one of them)",
        ),
        ("? [a]\n: 1", {}, "a key is not text (a plain key)"),
        (f"shared_secret: {SECRET_TEXT.rstrip('=')}", {}, "shared_secret: is not base64 (base64 ("),
        (f"cookie_secret: {URL_SAFE}", {}, "cookie_secret: is not base64 (base64 (with padding)"),
        (
            "authenticate_internal_service_url: https://a/x",
            {},
            "authenticate_internal_service_url: holds more than scheme, host and port (https://ho",
        ),
        *(
            (
                f"{key}_urls: ['{url}']",
                {},
                f"{key}_urls[0]: bad {key.replace('_', ' ')} url '{told}' (http://host[:port] or",
            )
            for key in ("authorize_service", "databroker_service")
            for url, told in (
                ("http://", "http://"),
                ("http://a:0", "http://a:0"),
                ("http://me:hunter2@a", "http://a"),
            )
        ),
        ("autocert_trusted_ca: eA==", {}, "autocert_trusted_ca: does not decode to PEM (base64"),
        ("autocert_eab_mac_key: YQ", {}, "autocert_eab_key_id and autocert_eab_mac_key belong to"),
        (
            "autocert_eab_key_id: x\nautocert_eab_mac_key: 'YQ=='",
            {},
            "autocert_eab_mac_key: is not base64url (base64url without padding)",
        ),
        (
            f"google_cloud_serverless_authentication_service_account: {encoded(b'[1]')}",
            {},
            "is not a JSON object or its base64 (the file that Google gave)",
        ),
        (
            "downstream_mtls: {match_subject_alt_names: [{}]}",
            {},
            "downstream_mtls.match_subject_alt_names[0]: has 0 keys (exactly one key)",
        ),
        (
            "grpc_client_ca: eA==\ngrpc_client_ca_file: /tls/cert.pem",
            {},
            "grpc_client_ca_file: cannot set both grpc_client_ca and grpc_client_ca_file (keep",
        ),
        (
            "grpc_client_key_file: /tls/key.pem",
            {},
            "grpc_client_key_file: bad client certificate: its other half is missing (add grpc_cl",
        ),
        *(
            (f"dns_resolvers: ['{one}']", {}, f"dns_resolvers[0]: '{one}' is not a resolver (udp:/")
            for one in ("udp://1.1.1.1", "tcp://1.1.1.1:0", "http://1.1.1.1:53", "1.1.1.1")
        ),
        (
            f"databroker_cluster_nodes: [{NODE}, {NODE}]",
            {},
            "databroker_cluster_nodes[1].id: 'a' is another node too (unique ids)",
        ),
        *(
            (
                f"identity_providers: {{a: {{issuer: '{issuer}', audiences: [x]}}}}",
                {},
                f"identity_providers.a.issuer: '{issuer}' {why} (an absolute https URL, or kube",
            )
            for issuer, why in (
                ("", "is not https"),
                ("i.example", "is not https"),
                ("http://i.example", "is not https"),
                ("kubernetes://x", "is not https"),
                ("https://", "has no host"),
                ("https:///x", "has no host"),
            )
        ),
        (
            "identity_providers: {a: {issuer: 'https://i', audiences: [x, ' ']}}",
            {},
            "identity_providers.a.audiences: holds an empty audience (leave it out)",
        ),
        (
            "databroker_storage_type: Postgres",
            {},
            "unknown databroker storage backend type 'Postgres' (did you mean postgres? one of",
        ),
        ("a: &a 5\nb: {<<: *a}", {}, "<< does not merge a map (<<: *anchor)"),
    ],
)
def test_global_keys(tmp_path: Path, text: str, files: dict[str, bytes], message: str) -> None:
    base = without(LOGIN, *(f"{line.partition(':')[0]}:" for line in text.splitlines()))
    found = problems(tmp_path, f"{base}{text}\n", files=files)
    assert any(message in line for line in found), found
    assert found[0].partition(":")[0].isdigit()
    assert "hunter2" not in str(found)


ROUTE_ERRORS: list[tuple[dict[str, Any], str]] = [
    (
        {"health_checks": [CHECK, CHECK]},
        "health_checks[1]: is one too many: Envoy takes one for a route (keep one)",
    ),
    (
        {"health_checks": [{**CHECK, "timeout": "99999999999s"}]},
        "health_checks[0].timeout: '99999999999s' is longer than a century (seconds with the unit",
    ),
    ({"health_checks": [{**CHECK, "timeout": []}]}, "health_checks[0].timeout: is a list (sec"),
    (
        {"tls_server_name": "a" * 256},
        "is not a host name (app.example.com)",
    ),
    ({"to": "ssh://a"}, "to: ssh:// needs a from of ssh:// (ssh://host)"),
    ({"to": "http://a, http://b"}, "to: 'http://a, http://b' holds several URLs (a list: [http"),
]
ROUTE_WARNINGS: list[tuple[dict[str, Any], str]] = [
    (
        {"to": None, "redirect": {"path_redirect": "/a", "prefix_rewrite": "/b"}},
        "redirect.prefix_rewrite: has no effect beside path_redirect (keep one of them)",
    ),
    (
        {"to": None, "redirect": {"https_redirect": False, "scheme_redirect": "http"}},
        "redirect.scheme_redirect: has no effect beside https_redirect (keep one of them)",
    ),
    ({"connect_chaining": True}, "connect_chaining: has no effect on this route (leave it out)"),
]


def with_route(keys: dict[str, Any]) -> str:
    route = {name: value for name, value in {**BASE, **keys}.items() if value is not None}
    return f"{LOGIN}routes: [{json.dumps(route)}]\n"


@pytest.mark.parametrize(("keys", "message"), ROUTE_ERRORS)
def test_route_keys(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    found = problems(tmp_path, with_route(keys))
    assert any(line.startswith(f"{FIRST}: routes[0].") and message in line for line in found), found


@pytest.mark.parametrize(("keys", "message"), ROUTE_WARNINGS)
def test_route_warnings(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    found = warnings(tmp_path, with_route(keys))
    assert any(line.startswith(f"{FIRST}: routes[0].") and message in line for line in found), found


def test_plain_sign_in(tmp_path: Path) -> None:
    text = LOGIN.replace("https://authenticate", "http://authenticate")
    assert any(
        "authenticate_service_url: is plain http, but cookies need https (https://)" in line
        for line in warnings(tmp_path, text)
    )


def test_an_authorize_without_a_provider_is_told(tmp_path: Path) -> None:
    text = without(LOGIN, "idp_") + "services: authorize\n"
    text += "routes: [{from: 'https://a', to: 'http://b', allowed_users: [u]}]\n"
    assert any(
        "idp_provider: is not set, so sign-in URLs and" in line for line in warnings(tmp_path, text)
    )


def test_a_huge_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "MAX_FILE_BYTES", 10)
    path = tmp_path / "config.yaml"
    path.write_text("address: ':443'\n")
    with pytest.raises(ConfigError, match=r"the file is too large \(10 bytes at most\)"):
        load_settings(path, {})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"a":' * 200 + "1" + "}" * 200, "nested too deeply"),
        ("a.json", f'{{"a": {"9" * 5000}}}', "not JSON: a number has too many digits"),
        ("a.toml", f"a = {'9' * 5000}\n", "not TOML: a number has too many digits"),
        ("a.yaml", "a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    ],
)
def test_hostile_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path, {})
    assert message in str(caught.value)
