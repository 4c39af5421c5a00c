"""The high-availability sample of the reference documentation boots unchanged, joined and split.

The file stays as it is; only what one host cannot share (addresses, the URLs between services, the
certificates' paths) comes from the environment, as the containers of that layout get theirs.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.localhost import localhost_client
from tests.support.pki import Authority
from tests.support.ports import free_ports
from tests.support.sign_in import query_of
from tests.support.stack import Gatehouse, secret

pytestmark = pytest.mark.e2e

ROUTE_HOST = "httpbin.localhost.pomerium.io"
AUTHENTICATE_HOST = "authenticate.localhost.pomerium.io"
Start = Callable[[str, dict[str, str]], Gatehouse]


def signing_key() -> str:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    return base64.b64encode(pem).decode()


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    authority = Authority()
    pair = authority.issue("*.localhost.pomerium.io")
    (tmp_path / "cert.pem").write_bytes(pair.certificate_pem)
    (tmp_path / "key.pem").write_bytes(pair.key_pem)
    (tmp_path / "ca.pem").write_bytes(authority.ca_pem)
    path = tmp_path / "config.yaml"
    path.write_text(
        f"""\
grpc_insecure: true
grpc_address: ':80'

authorize_service_url: http://pomerium-authorize
databroker_service_url: http://pomerium-databroker
authenticate_service_url: https://{AUTHENTICATE_HOST}:8443

cookie_secret: {secret()}
shared_secret: {secret()}
signing_key: {signing_key()}

idp_provider: google
idp_client_id: REPLACE_ME
idp_client_secret: REPLACE_ME

routes:
  - from: https://{ROUTE_HOST}
    to: https://httpbin.org/get
    allow_any_authenticated_user: true
    pass_identity_headers: true
"""
    )
    return path


@pytest.fixture
def start(sample: Path) -> Iterator[Start]:
    started: list[Gatehouse] = []

    def begin(name: str, environment: dict[str, str]) -> Gatehouse:
        (health,) = free_ports(1)
        given = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        given |= environment | {
            "HEALTH_CHECK_ADDR": f"127.0.0.1:{health}",
            "SHUTDOWN_DELAY": "0s",
        }
        given |= {
            "CERTIFICATE_FILE": str(sample.parent / "cert.pem"),
            "CERTIFICATE_KEY_FILE": str(sample.parent / "key.pem"),
            "CERTIFICATE_AUTHORITY_FILE": str(sample.parent / "ca.pem"),
        }
        log, access = sample.parent / f"{name}.log", sample.parent / f"{name}.access"
        with log.open("wb") as errors, access.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "gatehouse.cli", "serve", "--config", sample],
                env=given,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )
        one = Gatehouse(name, process, f"127.0.0.1:{health}", log, access)
        started.append(one)
        return one

    yield begin
    for one in reversed(started):
        one.stop()


def meets_sign_in(sample: Path, port: int, authenticate_port: int) -> None:
    """A stranger at the route is sent to authenticate, which answers with a page."""
    hosts = {ROUTE_HOST: port, AUTHENTICATE_HOST: authenticate_port}
    with localhost_client(sample.parent / "ca.pem", hosts=hosts) as client:
        first = client.get(f"https://{ROUTE_HOST}/")
        assert first.status_code == 302, first.text[:500]
        location = first.headers["location"]
        assert location.startswith(f"https://{AUTHENTICATE_HOST}:8443/.pomerium/sign_in?")
        assert query_of(location)["pomerium_redirect_uri"] == f"https://{ROUTE_HOST}/"
        keys = client.get(f"https://{ROUTE_HOST}/.well-known/pomerium/jwks.json").json()["keys"]
        assert len(keys) == 1
        ping = client.get(f"https://{AUTHENTICATE_HOST}:8443/ping")
        assert ping.status_code == 200
        home = client.get(f"https://{AUTHENTICATE_HOST}:8443/")
        assert home.status_code == 302


def test_all_in_one(sample: Path, start: Start) -> None:
    port, grpc_port = free_ports(2)
    one = start("all", {"ADDRESS": f"127.0.0.1:{port}", "GRPC_ADDRESS": f"127.0.0.1:{grpc_port}"})
    one.wait_ready()
    meets_sign_in(sample, port, port)


def test_four_processes_on_one_host(sample: Path, start: Start) -> None:
    port, authenticate_port, databroker, authorize, *others = free_ports(6)
    urls = {
        "DATABROKER_SERVICE_URL": f"http://127.0.0.1:{databroker}",
        "AUTHORIZE_SERVICE_URL": f"http://127.0.0.1:{authorize}",
    }
    grpc_ports = {"databroker": databroker, "authorize": authorize}
    grpc_ports |= {"authenticate": others[0], "proxy": others[1]}
    addresses = {"authenticate": authenticate_port, "proxy": port}
    started = []
    for name, grpc_port in grpc_ports.items():
        environment = urls | {"SERVICES": name, "GRPC_ADDRESS": f"127.0.0.1:{grpc_port}"}
        if name in addresses:
            environment["ADDRESS"] = f"127.0.0.1:{addresses[name]}"
        started.append(start(name, environment))
    for one in started:
        one.wait_ready()
    meets_sign_in(sample, port, authenticate_port)
