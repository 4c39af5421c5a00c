"""`gatehouse health --grpc` asks real servers: plaintext, TLS, client certificates."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health as health_servicer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gatehouse.cli.health import PLAINTEXT, Tls, health
from gatehouse.cli.local_authority import LocalAuthority, Scope
from gatehouse.common.clock import SystemClock
from tests.support.rpc import replica


@pytest.fixture
def authority(tmp_path: Path) -> LocalAuthority:
    scope = Scope(("databroker",))
    return LocalAuthority(tmp_path / "ca", name="test", scope=scope, now_s=SystemClock().now_s())


@contextmanager
def demanding_server(authority: LocalAuthority) -> Iterator[int]:
    """A gRPC server that talks to nobody without a certificate of the authority."""
    leaf = authority.leaf("services", ["databroker"], client=True)
    servicer = health_servicer.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    credentials = grpc.ssl_server_credentials(
        [(leaf.key.read_bytes(), leaf.certificate.read_bytes())],
        root_certificates=authority.path.read_bytes(),
        require_client_auth=True,
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait(5)


def ask(port: int, tls: Tls = PLAINTEXT) -> int:
    return health(
        "", grpc_address=f"127.0.0.1:{port}", service="", exclude=(), verbose=False, tls=tls
    )


async def test_plaintext(capsys: pytest.CaptureFixture[str]) -> None:
    async with replica(1) as one:
        assert await asyncio.to_thread(ask, one.port) == 0
        one.serving(False)
        assert await asyncio.to_thread(ask, one.port) == 1
    said = capsys.readouterr().out.splitlines()
    assert said == ["all services: SERVING", "all services: NOT_SERVING"]


def test_tls_with_a_client_certificate(
    authority: LocalAuthority, capsys: pytest.CaptureFixture[str]
) -> None:
    leaf = authority.leaf("services", ["databroker"], client=True)
    whole = Tls(authority.path, leaf.certificate, leaf.key, "databroker")
    with demanding_server(authority) as port:
        assert ask(port, whole) == 0
        assert ask(port, Tls(authority.path, name="databroker")) == 1, "no certificate shown"
        assert ask(port, Tls(authority.path, leaf.certificate, leaf.key)) == 1, "another name"
        assert ask(port) == 1, "plaintext"
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 3


@pytest.mark.parametrize(
    ("tls", "grpc_address", "said"),
    [
        (Tls(Path("ca"), Path("c")), "h:1", "belong together"),
        (Tls(None, Path("c"), Path("k")), "h:1", "need --tls-ca"),
        (Tls(None, name="n"), "h:1", "need --tls-ca"),
        (Tls(Path("ca")), "", "are for --grpc"),
        (Tls(Path("/nonexistent/ca.pem")), "h:1", "/nonexistent/ca.pem"),
    ],
)
def test_options_that_cannot_be_used(
    tls: Tls, grpc_address: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = health("", grpc_address=grpc_address, service="", exclude=(), verbose=False, tls=tls)
    assert status == 2
    assert said in capsys.readouterr().err
