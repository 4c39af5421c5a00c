"""Streams: WebSocket, server-sent events, gRPC, large bodies, HTTP/2 on either side."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import re
import ssl
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import serve

from tests.support.traffic import DOMAIN, Product, eventually, https
from tests.support.traffic_grpc import TRAILERS, grpc_client, grpc_upstream, method
from tests.support.traffic_upstreams import Application, Background, Http2Application, Switcher

pytestmark = pytest.mark.e2e

MIB = 1 << 20
LARGE = 64 * MIB
ENDLESS = {"timeout": "0s", "idle_timeout": "0s"}


@pytest.fixture(scope="module")
def talker() -> Iterator[str]:
    """Echoes; `bye` closes with a code of its own."""

    def echo(socket: Any) -> None:
        for message in socket:
            if message == "bye":
                socket.close(4321, "as you wish")
                return
            wants_headers = message == "headers"
            headers = json.dumps(list(socket.request.headers.raw_items()))
            socket.send(headers if wants_headers else message)

    with serve(echo, "127.0.0.1", 0, subprotocols=["beta"], max_size=4 * MIB) as server:  # type: ignore[list-item]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join(5)


@pytest.fixture(scope="module")
def second(background: Background) -> Iterator[Http2Application]:
    with Http2Application(background).running() as running:
        yield running


@pytest.fixture(scope="module")
def world(
    shared: Product, application: Application, second: Http2Application, talker: str
) -> Iterator[Product]:
    leaf = shared.authority.leaf("grpc.internal", stem="grpc")
    trusted = {
        "tls_custom_ca_file": str(shared.authority.path),
        "tls_upstream_server_name": "grpc.internal",
    }
    with grpc_upstream() as clear, grpc_upstream(leaf) as secure:
        routes = [
            https("app", to=application.url, **ENDLESS),
            https("ws", to=talker, allow_websockets=True),
            https("no-ws", to=talker),
            https("second", to=second.url),
            https("grpc", to=f"h2c://127.0.0.1:{clear}", **ENDLESS),
            https("grpcs", to=f"https://127.0.0.1:{secure}", **ENDLESS, **trusted),
            https("grpc-down", to="h2c://127.0.0.1:1"),
            https("grpc-slow", to=f"h2c://127.0.0.1:{clear}", timeout="0.5s"),
        ]
        shared.reload(routes)
        yield shared


# -- WebSocket


@contextlib.contextmanager
def websocket(world: Product, host: str, **options: Any) -> Iterator[ClientConnection]:
    options.setdefault("subprotocols", ["beta"])
    raw = world.connection()
    with (
        raw,
        connect(
            f"ws://{host}.{DOMAIN}/chat?x=1",
            sock=raw.socket,
            proxy=None,
            max_size=4 * MIB,
            **options,
        ) as client,
    ):
        yield client


def test_websocket_messages_of_every_kind_pass(world: Product) -> None:
    with websocket(world, "ws", subprotocols=["alpha", "beta"]) as client:
        assert client.subprotocol == "beta"
        for message in ("", "é", "x" * (2 * MIB), b"", bytes(range(256)), bytes(2 * MIB)):
            client.send(message)
            assert client.recv(10) == message
        client.ping().wait(5)
        client.send(iter(["in ", "fragments"]))
        assert client.recv(20) == "in fragments"
        client.send("bye")
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(20)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4321, "as you wish")


def test_a_websocket_is_introduced_like_any_request(world: Product) -> None:
    with websocket(
        world, "ws", additional_headers={"X-Pomerium-Jwt-Assertion": "forged"}
    ) as client:
        client.send("headers")
        headers = {name.lower(): value for name, value in json.loads(client.recv(20))}
    assert headers["x-forwarded-host"] == f"ws.{DOMAIN}"
    assert "x-pomerium-jwt-assertion" not in headers


def test_a_route_without_websockets_refuses_them(world: Product) -> None:
    with pytest.raises(InvalidStatus) as refused, websocket(world, "no-ws"):
        pass
    assert refused.value.response.status_code == 403


# -- other upgrades

OWN = "own-protocol/2"


@pytest.fixture(scope="module")
def switcher(background: Background) -> Iterator[Switcher]:
    with Switcher(background).running() as running:
        yield running


def test_an_upgrade_passes_where_it_is_allowed(world: Product, switcher: Switcher) -> None:
    table: dict[str, tuple[dict[str, Any], set[str]]] = {
        "up-none": ({}, set()),
        "up-spdy": ({"allow_spdy": True}, {"SPDY/3.1"}),
        "up-ws": ({"allow_websockets": True}, {"websocket"}),
        "up-both": (
            {"allow_websockets": True, "allow_spdy": True},
            {"websocket", "SPDY/3.1"},
        ),
        "up-list": (
            {"allow_upgrades": ["WebSocket", "Spdy/3.1", "", OWN.upper()]},
            {"websocket", "SPDY/3.1", OWN},
        ),
        "up-empty": ({"allow_upgrades": []}, set()),
    }
    routes = [https(host, to=switcher.url, **keys) for host, (keys, _) in table.items()]

    def passing(host: str) -> set[str]:
        return {
            token
            for token in ("websocket", "SPDY/3.1", OWN, "other")
            if world.upgraded(host, token) == 101
        }

    before = world.stack.routes[1:]
    try:
        world.reload([*before, *routes])
        assert {host: passing(host) for host in table} == {
            host: tokens for host, (_, tokens) in table.items()
        }
        assert world.upgraded("up-none", OWN) == 403
        # What the settings allow holds for routes that have no list of their own.
        world.reload([*before, *routes], allow_upgrades=[OWN, "SPDY/3.1"])
        assert passing("up-none") == {OWN, "SPDY/3.1"}
        assert passing("up-ws") == {OWN, "SPDY/3.1", "websocket"}
        assert passing("up-empty") == set()
    finally:
        world.reload(before)


# -- server-sent events


@pytest.mark.parametrize("http2", [False, True])
def test_events_arrive_when_they_are_sent(
    world: Product, application: Application, http2: bool
) -> None:
    cut = application.cut
    with (
        world.browser("app", http2=http2) as client,
        client.stream("GET", world.url("app", "/?stall=")) as response,
    ):
        assert response.headers["content-type"] == "text/event-stream"
        events = response.iter_text()
        assert next(events) == "data: 0\n\n"
        assert application.cut == cut
    # The upstream is told when the reader has gone.
    eventually(lambda: application.cut == cut + 1)


# -- gRPC


@pytest.fixture(params=["grpc", "grpcs"])
def channel(world: Product, request: pytest.FixtureRequest) -> Iterator[Any]:
    with grpc_client(world.port, world.authority.path, request.param) as channel:
        yield channel


def trailers(call: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((name, value) for name, value in call.trailing_metadata() if name[:2] == "x-")


def ours(call: Any) -> tuple[tuple[str, Any], ...]:
    names = {name for name, _ in TRAILERS}
    return tuple(each for each in trailers(call) if each[0] in names)


def test_grpc_unary(channel: Any) -> None:
    reply, call = channel.unary_unary(method("Unary")).with_call(b"abc", timeout=10)
    assert reply == b"cba"
    assert dict(call.initial_metadata())["x-initial"] == "first"
    assert ours(call) == TRAILERS
    assert call.code() is grpc.StatusCode.OK


def test_grpc_errors_keep_status_message_and_trailers(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(method("Refuse"))("é: not so".encode(), timeout=10)
    call: Any = refused.value
    assert (call.code(), call.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "é: not so")
    assert ours(call) == TRAILERS


def test_grpc_metadata_arrives_and_ours_does_not(channel: Any) -> None:
    sent = (("x-own", "1"), ("x-own-bin", b"\x01\xfe"), ("x-pomerium-claim-email", "forged"))
    text = channel.unary_unary(method("Metadata"))(b"", metadata=sent, timeout=10).decode()
    assert "x-own='1'" in text
    assert "x-own-bin=b'\\x01\\xfe'" in text
    assert "pomerium" not in text


def test_grpc_server_streams(channel: Any) -> None:
    call = channel.unary_stream(method("Count"))(b"500", timeout=10)
    assert [int(each) for each in call] == list(range(500))
    assert ours(call) == TRAILERS
    broken = channel.unary_stream(method("Break"))(b"", timeout=10)
    assert next(broken) == b"one"
    with pytest.raises(grpc.RpcError):
        next(broken)
    assert (broken.code(), broken.details()) == (grpc.StatusCode.DATA_LOSS, "broken")
    assert ours(broken) == TRAILERS


def test_grpc_client_streams(channel: Any) -> None:
    parts = (bytes(100_000) for _ in range(50))
    reply, call = channel.stream_unary(method("Sum")).with_call(parts, timeout=20)
    assert int(reply) == 5_000_000
    assert ours(call) == TRAILERS


def test_grpc_talks_both_ways_at_once(channel: Any) -> None:
    """Each answer arrives before the next request is sent."""
    sent: queue.Queue[bytes | None] = queue.Queue()
    call = channel.stream_stream(method("Chat"))(iter(sent.get, None), timeout=10)
    for word in (b"one", b"two", b"three"):
        sent.put(word)
        assert next(call) == word.upper()
    sent.put(None)
    assert list(call) == []
    assert call.code() is grpc.StatusCode.OK
    assert ours(call) == TRAILERS


@pytest.mark.parametrize(
    ("host", "name", "expected"),
    [
        ("grpc-down", "Unary", grpc.StatusCode.UNAVAILABLE),
        ("grpc", "Nowhere", grpc.StatusCode.UNIMPLEMENTED),
        ("grpc-slow", "Sleep", grpc.StatusCode.DEADLINE_EXCEEDED),
        ("unknown", "Unary", grpc.StatusCode.NOT_FOUND),
    ],
)
def test_grpc_gets_errors_in_its_own_form(
    world: Product, host: str, name: str, expected: grpc.StatusCode
) -> None:
    with (
        grpc_client(world.port, world.authority.path, host) as channel,
        pytest.raises(grpc.RpcError) as refused,
    ):
        channel.unary_unary(method(name))(b"", timeout=10)
    call: Any = refused.value
    assert call.code() is expected


# -- large bodies


def memory(pid: int) -> int:
    """Bytes of real memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found.group(1)) * 1024


def steady(value: Any, for_s: float = 0.4) -> int:
    """`value()` once it has not changed for a while."""
    deadline = time.monotonic() + 15
    last, since = value(), time.monotonic()
    while time.monotonic() - since < for_s:
        assert time.monotonic() < deadline
        time.sleep(0.02)
        if (now := value()) != last:
            last, since = now, time.monotonic()
    found: int = last
    return found


def test_a_large_download_waits_for_its_reader(world: Product, application: Application) -> None:
    envoy = world.envoy_pid()
    world.get("app")
    before, sent = memory(envoy), application.sent
    with world.connection() as connection:
        connection.send(f"/?size={LARGE}", host=f"app.{DOMAIN}")
        response = connection.answer()
        first = response.read(1)
        # Nobody reads: the upstream is held back, by Envoy's buffers and the sockets'.
        assert steady(lambda: application.sent) - sent < LARGE // 2
        assert memory(envoy) - before < 16 * MIB
        total = len(first)
        while piece := response.read(MIB):
            total += len(piece)
            assert memory(envoy) - before < 16 * MIB
    assert total == LARGE


def test_a_large_upload_waits_for_its_reader(world: Product, application: Application) -> None:
    envoy = world.envoy_pid()
    world.get("app")
    before, written = memory(envoy), [0]
    piece = bytes(MIB)
    with world.connection() as connection:
        headers = [("Content-Length", str(LARGE))]
        connection.send("/?hold=", host=f"app.{DOMAIN}", method="POST", headers=headers)

        def upload() -> None:
            while written[0] < LARGE:
                connection.socket.sendall(piece)
                written[0] += len(piece)

        writer = threading.Thread(target=upload)
        writer.start()
        try:
            # The upstream does not read.
            assert steady(lambda: written[0]) < LARGE // 2
            assert memory(envoy) - before < 16 * MIB
        finally:
            application.open_gate()
            writer.join(20)
        response = connection.answer()
        seen = json.loads(response.read())
    assert seen["body_size"] == LARGE
    assert memory(envoy) - before < 16 * MIB


def test_chunked_uploads_and_expectations_pass(world: Product) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(64):
            yield bytes(65_536)

    with world.browser("app") as client:
        answer = client.post(world.url("app"), content=parts())
        assert answer.json()["body_size"] == 4 * MIB
        expecting = {"expect": "100-continue"}
        answer = client.put(world.url("app"), content=b"x" * 1000, headers=expecting)
        assert answer.json()["body_size"] == 1000


def test_large_bodies_over_http2(world: Product) -> None:
    with world.browser("app", http2=True) as client:
        with client.stream("GET", world.url("app", f"/?size={16 * MIB}")) as response:
            assert response.http_version == "HTTP/2"
            assert sum(len(piece) for piece in response.iter_bytes()) == 16 * MIB
        answer = client.post(world.url("app"), content=bytes(16 * MIB))
        assert answer.json()["body_size"] == 16 * MIB


# -- HTTP/2


async def test_one_http2_connection_carries_many_requests(world: Product) -> None:
    """From one thread: this client's connection is not made for several."""
    accepted = r"http\.ingress\.downstream_cx_http2_total"
    name = f"app.{DOMAIN}"

    def ask(client: httpx.AsyncClient, path: str) -> Coroutine[Any, Any, httpx.Response]:
        return client.get(path, extensions={"sni_hostname": name})

    async with httpx.AsyncClient(
        base_url=f"https://127.0.0.1:{world.port}",
        headers={"host": f"{name}:{world.port}"},
        verify=ssl.create_default_context(cafile=str(world.authority.path)),
        http2=True,
        timeout=15.0,
        trust_env=False,
    ) as client:
        assert (await ask(client, "/")).http_version == "HTTP/2"
        before = sum(world.stats(accepted).values())
        paths = [f"/?delay=0.4&n={n}" for n in range(20)]
        started = time.monotonic()
        answers = await asyncio.gather(*(ask(client, path) for path in paths))
        assert time.monotonic() - started < 7  # one after the other they take 8 s
        assert sum(world.stats(accepted).values()) == before
    assert [answer.json()["path"] for answer in answers] == paths


@pytest.mark.parametrize("http2", [False, True])
def test_an_http2_upstream(world: Product, http2: bool) -> None:
    with world.browser("second", http2=http2) as client:
        answer = client.post(world.url("second", "/a?b"), content=b"hello")
    seen = answer.json()
    assert (seen["version"], seen["path"], seen["body"]) == ("HTTP/2", "/a?b", "hello")
    headers = httpx.Headers([(name, value) for name, value in seen["headers"]])
    assert headers["x-forwarded-host"].startswith(f"second.{DOMAIN}")
