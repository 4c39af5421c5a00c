"""What is not built yet, every mistake at once, and the identity of routes and settings."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.load import load_settings
from gatehouse.common.config.model import Settings
from gatehouse.common.config.resolve import (
    PROVIDERS,
    UnresolvedError,
    load_and_resolve,
    resolve,
)
from tests.support.configuration import (
    CERTIFICATE,
    KEY,
    LOGIN,
    PRIVATE,
    PUBLIC,
    RANDOM,
    pem_key,
    pem_pair,
    problems,
    resolved,
    warnings,
    without,
    write,
)


@pytest.mark.parametrize(
    "text",
    [
        "autocert: true",
        "ssh_address: ':22'",
        "databroker_cluster_nodes: [{id: a, grpc_address: 'http://a', raft_address: 'a:1'}]",
        "databroker_raft_bind_address: ':1'",
        "blob_storage: {bucket_uri: x}",
        "pomerium_zero_token: x",
    ],
)
def test_unavailable_keys_say_so(tmp_path: Path, text: str) -> None:
    found = problems(tmp_path, f"{LOGIN}{text}\n")
    assert any(f"{text.partition(':')[0]}: not available yet" in line for line in found), found


@pytest.mark.parametrize("kind", PROVIDERS)
def test_every_provider_is_served(tmp_path: Path, kind: str) -> None:
    text = without(LOGIN, "idp_provider:") + f"idp_provider: {kind}\n"
    assert problems(tmp_path, text) == []


@pytest.mark.parametrize(
    ("kind", "key"),
    [("github", "idp_request_params: {prompt: login}"), ("onelogin", "idp_scopes: [openid]")],
)
def test_what_a_provider_takes_no_notice_of(tmp_path: Path, kind: str, key: str) -> None:
    text = without(LOGIN, "idp_provider:") + f"idp_provider: {kind}\n{key}\n"
    name = key.partition(":")[0]
    found = warnings(tmp_path, text)
    assert any(f"{name}: has no effect with idp_provider {kind}" in line for line in found), found
    assert not any("has no effect with" in line for line in warnings(tmp_path, f"{LOGIN}{key}\n"))


@pytest.mark.parametrize(
    "text",
    ["databroker_internal_service_url: https://a", "mcp_allowed_client_id_domains: [a.example]"],
)
def test_what_only_watches_is_warned_about(tmp_path: Path, text: str) -> None:
    found = warnings(tmp_path, f"{LOGIN}{text}\n")
    assert any(f"{text.partition(':')[0]}: has no effect yet" in line for line in found)


def test_mistakes_of_every_step_come_at_once(tmp_path: Path) -> None:
    text = """\
services: proxy
timeout_read: 30
shared_secret: x
certificate_file: /none
certificate_key_file: /none
authenticate_service_url: nowhere
routes:
  - from: https://a
    timeout: 5
  - from: https://b
  - from: https://c
    to: http://c
    policy: {alow: {}}
"""
    with pytest.raises(ConfigError) as caught:
        load_and_resolve(write(tmp_path, text), {}, random_secret=lambda: RANDOM)
    found = {(issue.line, issue.key) for issue in caught.value.issues}
    assert found == {
        (2, "timeout_read"),
        (3, "shared_secret"),
        (None, "cookie_secret"),
        (4, "certificate_file"),
        (5, "certificate_key_file"),
        (6, "authenticate_service_url"),
        (8, "routes[0].from"),  # it leads nowhere, besides
        (9, "routes[0].timeout"),
        (10, "routes[1].from"),
        (13, "routes[2].policy.alow"),
    }


def test_wrong_services_stop_before_what_depends_on_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_and_resolve(
            write(tmp_path, "services: []\ntimeout_read: 3\n"), {}, random_secret=lambda: RANDOM
        )
    assert {issue.key for issue in caught.value.issues} == {"services", "timeout_read"}


def test_a_refused_configuration_names_its_files(tmp_path: Path) -> None:
    path = write(tmp_path, LOGIN.replace("/tls", str(tmp_path)))
    (tmp_path / "cert.pem").write_bytes(CERTIFICATE)
    with pytest.raises(UnresolvedError) as caught:
        load_and_resolve(path, {}, random_secret=lambda: RANDOM)
    assert set(caught.value.watched_files) == {path, tmp_path / "cert.pem", tmp_path / "key.pem"}
    assert caught.value.file_digests[tmp_path / "key.pem"] == b""
    (tmp_path / "key.pem").write_bytes(KEY)
    settings, _ = load_and_resolve(path, {}, random_secret=lambda: RANDOM)
    assert set(settings.file_digests) == {path, tmp_path / "cert.pem", tmp_path / "key.pem"}


# -- identity of routes and of the whole -------------------------------------------------------


def checksum(folder: Path, text: str, **files: bytes) -> int:
    return resolved(folder, text, files=files)[0].routes[0].checksum


def test_proxy_and_authorize_compute_the_same_checksum(tmp_path: Path) -> None:
    text = f"{LOGIN}databroker_service_url: http://d\nauthorize_service_url: http://z\n{PRIVATE}"
    sums = {
        checksum(tmp_path, f"services: {services}\naddress: ':{port}'\n{text}")
        for port, services in enumerate(("all", "proxy", "authorize", "authenticate"), 8000)
    }
    assert len(sums) == 1


@pytest.mark.parametrize(
    "text",
    [
        "jwt_claims_headers: [email]\n",
        "pass_identity_headers: true\n",
        "cookie_name: other\n",
        "idp_access_token_allowed_audiences: [a]\n",
        "jwt_issuer_format: uri\n",
        "idp_client_id: other\n",
        "authenticate_service_url: https://other.example.com\n",
        "downstream_mtls: {enforcement: policy}\n",
        "downstream_mtls: {max_verify_depth: 4}\n",
        "runtime_flags: {mcp: false}\n",
        "xff_num_trusted_hops: 1\n",
        "skip_xff_append: true\n",
        f"shared_secret: {base64.b64encode(b'z' * 32).decode()}\n",
        f"signing_key: {base64.b64encode(pem_key(ec.SECP256R1())).decode()}\n",
    ],
)
def test_what_shapes_decisions_shapes_the_checksum(tmp_path: Path, text: str) -> None:
    base = without(LOGIN, text.partition(":")[0])
    assert checksum(tmp_path, base + text + PRIVATE) != checksum(tmp_path, LOGIN + PRIVATE)


def test_what_does_not_shape_decisions_leaves_the_checksum(tmp_path: Path) -> None:
    same = f"{LOGIN}log_level: debug\ntimeout_idle: 9s\nset_response_headers: {{a: b}}\n{PRIVATE}"
    assert checksum(tmp_path, same) == checksum(tmp_path, LOGIN + PRIVATE)


def test_a_policy_edit_changes_the_checksum_and_not_the_id(tmp_path: Path) -> None:
    def route(policy: object) -> str:
        keys = {"from": "https://a", "to": "http://b", "policy": policy}
        return f"{LOGIN}\nroutes: {json.dumps([keys])}\n"

    one = resolved(tmp_path, route({"allow": {"and": [{"email": {"is": "a@b"}}]}}))[0].routes[0]
    two = resolved(tmp_path, route({"allow": {"and": [{"email": {"is": "c@b"}}]}}))[0].routes[0]
    assert one.id == two.id
    assert one.checksum != two.checksum


def test_generations_follow_every_change(tmp_path: Path) -> None:
    def generation(text: str, files: dict[str, bytes] | None = None) -> str:
        return resolved(tmp_path, text, files=files)[0].generation

    base = generation(LOGIN + PRIVATE)
    assert generation(LOGIN + PRIVATE) == base
    other = pem_pair("*.example.org")
    changed = {
        generation(LOGIN + PUBLIC),
        generation(LOGIN.replace("client-secret", "other-secret") + PRIVATE),
        generation(LOGIN + PRIVATE, {"/tls/cert.pem": other[0], "/tls/key.pem": other[1]}),
        generation(f"{LOGIN}log_level: debug\n{PRIVATE}"),
    }
    assert len(changed | {base}) == 5
    assert len(base) == 12


SECRET_KEYS = [
    name for name, info in Settings.model_fields.items() if "Secret" in str(info.annotation)
]


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_no_message_of_any_step_holds_a_secret(tmp_path: Path, key: str) -> None:
    text = without(LOGIN, f"{key}:") + f"{key}: hunter2-sentinel\n"
    path = write(tmp_path, text.replace("/tls/", f"{tmp_path}/"))
    try:
        settings, issues = load_and_resolve(path, {}, random_secret=lambda: RANDOM)
    except ConfigError as error:
        said = str(error) + repr(error.issues)
    else:
        said = str(issues) + repr(settings) + repr(settings.identity_provider)
    assert "hunter2" not in said


@pytest.mark.parametrize(
    "route",
    [
        {"tls_client_cert": "eA==", "tls_client_key": "hunter2"},
        {"kubernetes_service_account_token": "hunter2"},
        {"idp_client_secret": "hunter2"},
        {"to": "http://me:hunter2@a:b"},
        {"to": "http://me:hunter2@"},
        {"from": "https://me:hunter2@a"},
    ],
)
def test_no_message_about_a_route_holds_a_secret(tmp_path: Path, route: dict[str, str]) -> None:
    keys = {"from": "https://a", "to": "http://b", "timeout": "1", **route}
    path = write(tmp_path, f"{LOGIN}\nroutes: {json.dumps([keys, {**keys, 'timeout': '1s'}])}\n")
    with pytest.raises(ConfigError) as caught:
        load_and_resolve(path, {}, random_secret=lambda: RANDOM)
    assert "hunter2" not in str(caught.value)


def test_files_are_read_once(tmp_path: Path) -> None:
    reads: list[Path] = []

    def read_file(path: Path) -> bytes:
        reads.append(path)
        return {"/tls/cert.pem": CERTIFICATE, "/tls/key.pem": KEY}[str(path)]

    text = LOGIN + "certificates: [{cert: /tls/cert.pem, key: /tls/key.pem}]\n"
    resolve(
        load_settings(write(tmp_path, text), {}),
        read_file=read_file,
        environ={},
        random_secret=lambda: RANDOM,
    )
    assert sorted(map(str, reads)) == ["/tls/cert.pem", "/tls/key.pem"]
