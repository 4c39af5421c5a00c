"""What fails or is slow: nothing passes undecided. And what is reachable at all."""

from __future__ import annotations

import base64
import contextlib
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import jwt
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gatehouse.common.extauthz_context import DECISION_ALLOW, DECISION_FIELD
from tests.e2e.conftest import ADA, GRACE, World
from tests.e2e.test_security_paths import (
    handle_of,
    http1,
)
from tests.support.envoy_processes import envoy_of
from tests.support.postgres import OwnServer
from tests.support.stack import Stack
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

Make = Callable[..., tuple[Stack, EchoUpstream]]
CheckResponse = external_auth_pb2.CheckResponse


def wait_for(check: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# -- an authorize that misbehaves


@dataclass
class FakeAuthorize(external_auth_pb2_grpc.AuthorizationServicer):  # type: ignore[misc]  # untyped base
    """Answers checks as it is told; healthy whatever happens."""

    answer: Callable[[Any], Any] = lambda _context: CheckResponse()
    asked: int = 0

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        del request
        self.asked += 1
        return self.answer(context)


class AlwaysHealthy(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # untyped base
    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        del request, context
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


@contextlib.contextmanager
def fake_authorize(port: int) -> Iterator[FakeAuthorize]:
    servicer = FakeAuthorize()
    server = grpc.server(futures.ThreadPoolExecutor(8))
    external_auth_pb2_grpc.add_AuthorizationServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(AlwaysHealthy(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield servicer
    finally:
        server.stop(0).wait(5)


@contextlib.contextmanager
def proxy_alone(make: Make, provider: str) -> Iterator[World]:
    """A split proxy whose authorize is at `grpc_ports["authorize"]`, whoever that is."""
    stack, upstream = make(split=True, environment={"GRPC_CLIENT_TIMEOUT": "1s"})
    world = World(stack, upstream, provider)
    stack.spawn("proxy")
    wait_for(lambda: _answers(world), 40.0)
    yield world


def _answers(world: World) -> bool:
    try:
        return http1(world, "/ping").status == 200
    except OSError:
        return False


def allow(**headers: str) -> Any:
    response = CheckResponse()
    response.ok_response.SetInParent()
    response.dynamic_metadata[DECISION_FIELD] = DECISION_ALLOW
    for name, value in headers.items():
        response.ok_response.headers.append(
            base_pb2.HeaderValueOption(header=base_pb2.HeaderValue(key=name, value=value))
        )
    return response


def test_r50_an_authorize_that_misbehaves_opens_nothing(fresh_stack: Make, provider: str) -> None:
    with proxy_alone(fresh_stack, provider) as world:
        port = world.stack.grpc_ports["authorize"]
        assert http1(world).status == 503  # nobody is there
        with fake_authorize(port) as authorize:
            authorize.answer = lambda _context: allow()
            wait_for(lambda: http1(world).status == 200)
            before = len(world.upstream.requests)

            def slow(_context: Any) -> Any:
                time.sleep(2.5)
                return allow()

            def aborting(code: grpc.StatusCode) -> Callable[[Any], Any]:
                return lambda context: context.abort(code, "no")

            def denied(code: int, status: int = 0) -> Any:
                response = CheckResponse()
                response.status.code = code
                if status:
                    response.denied_response.status.code = status
                return response

            def crash(_context: Any) -> Any:
                raise RuntimeError("a bug")

            # In an order that leaves the one authorize in rotation: five failures in a row (a check
            # is tried three times) would eject it, and nothing after that would be asked.
            answers: dict[str, tuple[Callable[[Any], Any], set[int]]] = {
                "slow": (slow, {503}),
                "denied-only": (lambda _c: denied(7), {403}),
                "internal": (aborting(grpc.StatusCode.INTERNAL), {503}),
                "denied": (aborting(grpc.StatusCode.PERMISSION_DENIED), {503}),
                "unimplemented": (aborting(grpc.StatusCode.UNIMPLEMENTED), {503}),
                "unauthenticated": (aborting(grpc.StatusCode.UNAUTHENTICATED), {503}),
                "crash": (crash, {503}),
                "denied-as-200": (lambda _c: denied(7, 200), {200}),
                "10-mib": (lambda _c: allow(x_big="x" * (10 << 20)), {503}),
                "unknown-code": (lambda _c: denied(99), {403}),
                "bad-header-name": (lambda _c: allow(**{"x a\r\n": "1"}), {500, 503}),
                "bad-header-value": (lambda _c: allow(x="1\r\nx-b: 2"), {500, 503}),
                "unavailable": (aborting(grpc.StatusCode.UNAVAILABLE), {503}),
            }
            for name, (answer, statuses) in answers.items():
                authorize.answer = answer
                asked = authorize.asked
                status = http1(world).status
                assert status in statuses, (name, status)
                assert authorize.asked > asked, name
                assert len(world.upstream.requests) == before, name
        wait_for(lambda: http1(world).status == 503)  # and gone again
        assert len(world.upstream.requests) == before


class BadListener:
    """Accepts connections at a port and does something unhelpful with each."""

    def __init__(self, port: int, behave: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self._behave = behave
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        for connection in self._held:
            connection.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._held.append(connection)
                with contextlib.suppress(OSError):
                    self._behave(connection)


def _silent(_connection: socket.socket) -> None:
    """Half-open: connected, and never a byte."""


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _http1(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def _settings_then_nothing(connection: socket.socket) -> None:
    connection.sendall(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")


def test_r50_something_else_at_authorizes_address_opens_nothing(
    fresh_stack: Make, provider: str
) -> None:
    with proxy_alone(fresh_stack, provider) as world:
        for behave in (_silent, _reset, _http1, _settings_then_nothing):
            with BadListener(world.stack.grpc_ports["authorize"], behave):
                for _ in range(3):
                    for path in ("/", "/private/x", "/.pomerium/"):
                        assert http1(world, path).status == 503, (behave.__name__, path)
        assert world.upstream.requests == []
        assert http1(world, "/ping").status == 200  # a balancer's probe does not fall with it


def test_r51_without_a_databroker_nobody_is_sent_in_circles(
    fresh_stack: Make, provider: str
) -> None:
    stack, upstream = fresh_stack(split=True)
    stack.start()
    world = World(stack, upstream, provider)
    known = handle_of(world, GRACE)
    cookie = [f"Cookie: _pomerium={known}"]
    assert http1(world, host="app.localhost", lines=cookie).status == 200
    assert stack.processes.pop("databroker").stop() == 0
    assert http1(world, host="app.localhost", lines=cookie).status == 200
    before = len(upstream.requests)
    claims = jwt.decode(known, options={"verify_signature": False})
    newer = claims | {
        "jti": "not-seen-yet",
        "databroker_record_version": claims["databroker_record_version"] + 1000,
    }
    key = base64.b64decode(stack.shared_secret)
    unknown = jwt.encode(newer, key, algorithm="HS256")
    answer = http1(world, host="app.localhost", lines=[f"Cookie: _pomerium={unknown}"])
    assert answer.status == 503
    away = http1(world, host="app.localhost")
    assert away.status == 302
    with world.client() as client:
        page = client.get(away.location, headers={"accept": "text/html"})
        assert page.status_code == 503
        assert "location" not in page.headers
        # Signing out cannot be done, and says so instead of pretending.
        leaving = client.get(stack.url("app.localhost", "/.pomerium/sign_out"))
        client.cookies.set("_pomerium_authenticate", known, domain="authenticate.localhost")
        assert client.get(leaving.headers["location"]).status_code in (302, 503)
    assert len(upstream.requests) == before


def test_r51_while_postgresql_is_away_nobody_is_sent_in_circles(
    fresh_stack: Make, provider: str
) -> None:
    """Who is known goes on, who is not is told 503, and nobody need sign in again after it."""
    server = OwnServer()
    try:
        stack, upstream = fresh_stack(
            postgres=server.dsn, environment={"GRPC_CLIENT_TIMEOUT": "6s"}
        )
        stack.start()
        world = World(stack, upstream, provider)
        known = handle_of(world, GRACE)
        cookie = [f"Cookie: _pomerium={known}"]
        assert http1(world, host="app.localhost", lines=cookie).status == 200
        server.crash()
        claims = jwt.decode(known, options={"verify_signature": False})
        newer = claims | {
            "jti": "not-seen-yet",
            "databroker_record_version": claims["databroker_record_version"] + 1000,
        }
        key = base64.b64decode(stack.shared_secret)
        unknown = [f"Cookie: _pomerium={jwt.encode(newer, key, algorithm='HS256')}"]
        assert http1(world, host="app.localhost", lines=cookie).status == 200
        assert http1(world, host="app.localhost", lines=unknown).status == 503
        away = http1(world, host="app.localhost")
        assert away.status == 302
        with world.client() as client:
            page = client.get(away.location, headers={"accept": "text/html"})
            assert page.status_code == 503
            assert "location" not in page.headers
        server.start()

        def is_back() -> bool:
            return http1(world, host="app.localhost", lines=unknown).status == 302

        wait_for(is_back, 60)
        assert http1(world, host="app.localhost", lines=cookie).status == 200
        assert all(process.process.poll() is None for process in stack.processes.values())
        stack.stop()
    finally:
        server.close()


# -- what is reachable at all


def listening(pids: set[int]) -> tuple[set[tuple[str, int]], set[str]]:
    """TCP addresses and Unix socket paths on which these processes listen."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(entry.readlink())
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            parts = line.split()
            if parts[3] == "0A" and parts[9] in inodes:
                raw, _, port = parts[1].rpartition(":")
                raw = raw.removeprefix("0000000000000000FFFF0000")  # IPv4-mapped
                host = socket.inet_ntoa(struct.pack("<I", int(raw, 16))) if len(raw) == 8 else raw
                addresses.add((host, int(port, 16)))
    paths = set()
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        parts = line.split(maxsplit=7)
        if len(parts) == 8 and parts[6] in inodes and parts[3] == "00010000":
            paths.add(parts[7])
    return addresses, paths


def test_r59_r60_only_the_configured_addresses_are_listened_on(world: World) -> None:
    """No admin, metrics or debug port in any mode; the sockets inside are their owner's only."""
    stack = world.stack
    for name, process in stack.processes.items():
        pids = {process.process.pid}
        if name == "proxy":
            pids.add(envoy_of(stack))
        addresses, paths = listening(pids)
        expected = {
            ("127.0.0.1", stack.grpc_ports[name]),
            ("127.0.0.1", stack.health_ports[name]),
        }
        if name == "proxy":
            expected.add(("127.0.0.1", stack.port))
        if stack.split and name == "authenticate":
            expected.add(("127.0.0.1", stack.authenticate_port))
        assert addresses <= expected, name
        for path in paths:
            directory = Path(path).parent
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700, path
            assert stat.S_IMODE(Path(path).stat().st_mode) & 0o077 == 0, path
        if name == "proxy":
            assert paths


def test_r11_r39_r47_grpc_ports_want_a_credential_for_every_method(world: World) -> None:
    """Also with a path that has no leading slash, and with tokens of the wrong kind."""
    handle = handle_of(world, ADA)
    expired = jwt.encode({"exp": 1}, base64.b64decode(world.stack.shared_secret), "HS256")
    services = world.stack.grpc_ports
    names = services if world.stack.split else {"proxy": services["proxy"]}
    for name in names:
        with grpc.insecure_channel(f"127.0.0.1:{services[name]}") as channel:
            for method in (
                "/databroker.DataBrokerService/Get",
                "/databroker.DataBrokerService/Put",
                "/databroker.DataBrokerService/NoSuch",
                "/envoy.service.auth.v3.Authorization/Check",
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
                "databroker.DataBrokerService/Get",
                "//databroker.DataBrokerService/Get",
            ):
                for metadata in ((), (("jwt", handle),), (("jwt", expired),), (("jwt", "x"),)):
                    call: Any = channel.unary_unary(method)
                    with pytest.raises(grpc.RpcError) as refused:
                        call(b"", metadata=metadata, timeout=30)
                    code = refused.value.code()
                    assert code in (
                        grpc.StatusCode.UNAUTHENTICATED,
                        grpc.StatusCode.UNIMPLEMENTED,
                        grpc.StatusCode.UNAVAILABLE,
                    ), (name, method, code)
