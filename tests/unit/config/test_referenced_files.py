"""Files that settings name: each is followed, and an empty one is no way to leave a key out."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from gatehouse.common.config.shape import Kind
from tests.support.client_pki import Issued
from tests.support.configuration import (
    CERTIFICATE,
    KEY,
    LOGIN,
    SECRET_TEXT,
    authority_pem,
    pem_key,
    problems,
    resolved,
    without,
)
from tests.unit.config.test_every_key import GLOBAL, INNER

METRICS = "metrics_address: ':9902'\n"
METRICS_CERTIFICATE = f"{METRICS}metrics_certificate_file: /tls/cert.pem\n"
METRICS_KEY = f"{METRICS}metrics_certificate_key_file: /tls/key.pem\n"
METRICS_PAIR = METRICS_CERTIFICATE + METRICS_KEY.removeprefix(METRICS)
AUTHORITY = authority_pem()
SIGNING = pem_key(ec.SECP256R1())
ROOT = Issued.root("root")

# Key -> the rest of the file, and what the file /f holds
FOLLOWED: dict[str, tuple[str, bytes]] = {
    "shared_secret_file": ("", SECRET_TEXT.encode()),
    "cookie_secret_file": ("", SECRET_TEXT.encode()),
    "signing_key_file": ("", SIGNING),
    "idp_client_secret_file": ("", b"secret"),
    "certificate_authority_file": ("", AUTHORITY),
    "certificate_file": ("certificate_key_file: /tls/key.pem\n", CERTIFICATE),
    "certificate_key_file": ("certificate_file: /tls/cert.pem\n", KEY),
    "certificates.0.cert": ("", CERTIFICATE),
    "certificates.0.key": ("", KEY),
    "autocert_trusted_ca_file": ("", AUTHORITY),
    "downstream_mtls.ca_file": ("", AUTHORITY),
    "downstream_mtls.crl_file": ("", ROOT.revoke().encode()),
    "metrics_certificate_file": (METRICS_KEY, CERTIFICATE),
    "metrics_certificate_key_file": (METRICS_CERTIFICATE, KEY),
    "metrics_client_ca_file": (METRICS_PAIR, AUTHORITY),
    "databroker_storage_connection_string_file": ("databroker_storage_type: file\n", b"/srv/x"),
    "grpc_client_ca_file": ("grpc_insecure: false\n", AUTHORITY),
    "routes.0.tls_custom_ca_file": ("", AUTHORITY),
    "routes.0.tls_downstream_client_ca_file": ("", AUTHORITY),
    "routes.0.tls_client_cert_file": ("", CERTIFICATE),
    "routes.0.tls_client_key_file": ("", KEY),
    "routes.0.kubernetes_service_account_token_file": ("", b"token"),
}
# In test_grpc_client_certificates (a certificate of another kind), test_ssh_checks (not served),
# and a directory that is no file.
ELSEWHERE = {
    *("grpc_client_certificate_file", "grpc_client_key_file", "autocert_dir"),
    *("ssh_host_key_files", "ssh_user_ca_key_file"),
}
# A key that does not belong to a certificate is told of the certificate.
TOLD_OF = {
    "certificate_key_file": "certificate_file",
    "certificates.0.key": "certificates[0].cert",
    "metrics_certificate_key_file": "metrics_certificate_file",
    "routes.0.tls_client_key_file": "routes[0].tls_client_cert_file",
}


def text_with(key: str, name: str) -> str:
    rest = FOLLOWED[key][0]
    top, *inner = key.split(".")
    value: Any = name
    if top == "certificates":
        value = [{"cert": "/tls/cert.pem", "key": "/tls/key.pem", inner[1]: name}]
    elif top == "downstream_mtls":
        value = {inner[0]: name}
    elif top == "routes":
        route = {"from": "https://a", "to": "https://b", "allowed_users": ["u"], inner[1]: name}
        if inner[1] == "tls_client_cert_file":
            route["tls_client_key_file"] = "/tls/key.pem"
        elif inner[1] == "tls_client_key_file":
            route["tls_client_cert_file"] = "/tls/cert.pem"
        value = [route]
    given = [line.partition(":")[0] + ":" for line in rest.splitlines()]
    return without(LOGIN, f"{top}:", *given) + f"{rest}{top}: {json.dumps(value)}\n"


def test_every_key_that_names_a_file_is_here() -> None:
    paths = {Kind.PATH, Kind.PATHS}
    keys = {key.name for key in GLOBAL if key.shape.kind in paths} | {
        ".".join(map(str, (*path, key.name)))
        for path, key in INNER
        if key.shape.kind in paths and path[0] != "policy"
    }
    assert keys == FOLLOWED.keys() | ELSEWHERE


@pytest.mark.parametrize("key", FOLLOWED)
def test_the_file_is_followed_and_its_contents_count(tmp_path: Path, key: str) -> None:
    text, contents = text_with(key, "/f"), FOLLOWED[key][1]
    settings, _ = resolved(tmp_path, text, files={"/f": contents})
    assert Path("/f") in settings.watched_files
    changed, _ = resolved(tmp_path, text, files={"/f": contents + b"\n"})
    assert changed.generation != settings.generation


@pytest.mark.parametrize("key", FOLLOWED)
@pytest.mark.parametrize("contents", [None, b"", b"\n"], ids=["missing", "empty", "blank"])
def test_a_file_without_contents_is_an_error_of_its_key(
    tmp_path: Path, key: str, contents: bytes | None
) -> None:
    files = {} if contents is None else {"/f": contents}
    found = problems(tmp_path, text_with(key, "/f"), files=files)
    names = {key.replace(".0", "[0]")}
    if contents is not None and key in TOLD_OF:
        names = {TOLD_OF[key]}
    assert {line.split(": ")[1] for line in found} == names, found


def test_the_file_of_the_connection_string_wins(tmp_path: Path) -> None:
    name = "databroker_storage_connection_string"
    text = f"{LOGIN}databroker_storage_type: file\n{name}: /inline\n{name}_file: /f\n"
    assert resolved(tmp_path, text, files={"/f": b" /srv/x\n"})[0].databroker_connection == "/srv/x"


@pytest.mark.parametrize("as_base64", [False, True])
@pytest.mark.parametrize("in_file", [False, True])
def test_a_signing_key_is_pem_or_its_base64_in_either_form(
    tmp_path: Path, *, as_base64: bool, in_file: bool
) -> None:
    text = base64.b64encode(SIGNING).decode() if as_base64 else SIGNING.decode()
    value = "/f" if in_file else text
    key = "signing_key_file" if in_file else "signing_key"
    written = f"{LOGIN}{key}: {json.dumps(value)}\n"
    settings, _ = resolved(tmp_path, written, files={"/f": f"\n{text}\n".encode()})
    plain, _ = resolved(tmp_path, f"{LOGIN}signing_key_file: /g\n", files={"/g": SIGNING})
    assert settings.signing_keys[0].kid == plain.signing_keys[0].kid
