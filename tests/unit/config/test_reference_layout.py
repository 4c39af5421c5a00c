"""The high-availability sample of the documentation, in one process and in four."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from gatehouse.common.config.resolve import load_and_resolve
from gatehouse.common.config.resolved import ListenAddress, ResolvedSettings, ServiceName
from gatehouse.common.jose.keys import derive_signing_key
from tests.support.configuration import CERTIFICATE, KEY, SECRET_TEXT, authority_pem, pem_key, write

SIGNING_KEY = base64.b64encode(pem_key(ec.SECP256R1())).decode()

SAMPLE = f"""\
grpc_insecure: true
grpc_address: ':80'

authorize_service_url: http://pomerium-authorize
databroker_service_url: http://pomerium-databroker
authenticate_service_url: https://authenticate.localhost.pomerium.io:8443

cookie_secret: {SECRET_TEXT}
shared_secret: {SECRET_TEXT}
signing_key: {SIGNING_KEY}

idp_provider: google
idp_client_id: REPLACEME
idp_client_secret: REPLACEME

routes:
  - from: https://httpbin.localhost.pomerium.io
    to: https://httpbin.org/get
    allow_any_authenticated_user: true
    pass_identity_headers: true
"""


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    (tmp_path / "cert.pem").write_bytes(CERTIFICATE)
    (tmp_path / "key.pem").write_bytes(KEY)
    (tmp_path / "ca.pem").write_bytes(authority_pem())
    return write(tmp_path, SAMPLE)


def start(sample: Path, *parts: str, **environ: str) -> tuple[ResolvedSettings, set[str]]:
    known: Mapping[str, str] = {
        "CERTIFICATE_FILE": str(sample.parent / "cert.pem"),
        "CERTIFICATE_KEY_FILE": str(sample.parent / "key.pem"),
        "CERTIFICATE_AUTHORITY_FILE": str(sample.parent / "ca.pem"),
    }
    given = {**{name: known[name] for name in parts}, **environ}
    settings, issues = load_and_resolve(sample, given, random_secret=lambda: b"r" * 32)
    return settings, {issue.key for issue in issues}


PAIR = ("CERTIFICATE_FILE", "CERTIFICATE_KEY_FILE")


def test_all_in_one(sample: Path) -> None:
    settings, issues = start(sample, *PAIR)
    assert settings.is_all_in_one
    assert issues == set()
    assert settings.grpc_address == ListenAddress("", 80)
    assert settings.address == ListenAddress("", 443)
    assert settings.authenticate_url == "https://authenticate.localhost.pomerium.io:8443"
    (route,) = settings.routes
    assert route.upstreams[0].path == "/get"
    assert route.settings.pass_identity_headers is True


def test_all_in_one_without_any_environment(sample: Path) -> None:
    settings, issues = start(sample)
    assert issues == {"certificate_file"}
    assert settings.fallback_certificate is not None


def test_four_processes(sample: Path) -> None:
    proxy, issues = start(sample, *PAIR, "CERTIFICATE_AUTHORITY_FILE", SERVICES="proxy")
    assert issues == set()
    assert proxy.authorize_urls == ("http://pomerium-authorize",)
    assert proxy.databroker_urls == ("http://pomerium-databroker",)
    assert proxy.ca_bundle_pem == authority_pem()
    assert len(proxy.certificates) == 1

    authorize, issues = start(sample, "CERTIFICATE_AUTHORITY_FILE", SERVICES="authorize")
    assert issues == set()
    assert authorize.grpc_address == ListenAddress("", 80)
    assert authorize.grpc_insecure

    authenticate, issues = start(sample, *PAIR, SERVICES="authenticate", ADDRESS=":8443")
    assert issues == set()
    assert authenticate.address == ListenAddress("", 8443)

    databroker, issues = start(sample, SERVICES="databroker")
    assert issues == set()
    assert databroker.databroker_connection == ""

    everyone = (proxy, authorize, authenticate, databroker)
    assert {settings.services for settings in everyone} == {
        frozenset({name}) for name in ServiceName
    }
    assert len({settings.routes[0].id for settings in everyone}) == 1
    assert len({settings.routes[0].checksum for settings in everyone}) == 1
    providers = {
        settings.identity_provider.id for settings in everyone if settings.identity_provider
    }
    assert len(providers) == 1
    kids = {settings.signing_keys[0].kid for settings in everyone}
    assert len(kids) == 1
    assert derive_signing_key(proxy.shared_secrets[0]).kid not in kids


def test_four_processes_on_one_host(sample: Path) -> None:
    """Addresses and URLs by environment, the file unchanged."""
    urls = {
        "AUTHORIZE_SERVICE_URL": "http://127.0.0.1:9001",
        "DATABROKER_SERVICE_URL": "http://127.0.0.1:9002",
    }
    proxy, _ = start(sample, *PAIR, SERVICES="proxy", ADDRESS="127.0.0.1:9443", **urls)
    authorize, _ = start(sample, SERVICES="authorize", GRPC_ADDRESS="127.0.0.1:9001", **urls)
    databroker, _ = start(sample, SERVICES="databroker", GRPC_ADDRESS="127.0.0.1:9002", **urls)
    assert proxy.authorize_urls == ("http://127.0.0.1:9001",)
    assert authorize.grpc_address == ListenAddress("127.0.0.1", 9001)
    assert authorize.databroker_urls == ("http://127.0.0.1:9002",)
    assert databroker.grpc_address == ListenAddress("127.0.0.1", 9002)
