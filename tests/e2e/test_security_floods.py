"""What is too much, too long or never ends: it is cut off, and others are served."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import hpack
import pytest

from tests.e2e.conftest import World
from tests.e2e.test_security_paths import (
    CLOSED,
    connected,
    http1,
    http2,
    parse,
    pseudo,
)
from tests.support.envoy_processes import envoy_of, memory_mib
from tests.support.stack import Stack
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

Make = Callable[..., tuple[Stack, EchoUpstream]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes([kind, flags])
        + struct.pack(">I", stream)
        + payload
    )


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
HEADERS, RST_STREAM, CONTINUATION = 1, 3, 9
END_STREAM, END_HEADERS = 1, 4


def flood(world: World, pieces: Iterator[bytes], limit: int = 20_000) -> bool:
    """Send until Envoy closes the connection; True if it did within `limit` pieces."""
    with connected(world, "h2") as tls:
        tls.settimeout(5)
        try:
            tls.sendall(PREFACE)
            for _, piece in zip(range(limit), pieces, strict=False):
                tls.sendall(piece)
            while tls.recv(65536):
                pass
        except CLOSED:
            return True
        except TimeoutError:
            return False
    return True


def block(extra: list[tuple[str, str]] | None = None) -> bytes:
    encoder = hpack.Encoder()
    return encoder.encode([*pseudo(), *(extra or [])], huffman=False)


def cookie_bomb() -> Iterator[bytes]:
    """One large cookie in the dynamic table, then a byte for each further copy of it."""
    encoded = block([("cookie", "c" * 3900)] * 40_000)
    parts = [encoded[start : start + 16_000] for start in range(0, len(encoded), 16_000)]
    for number, part in enumerate(parts):
        kind = HEADERS if number == 0 else CONTINUATION
        last = END_HEADERS if number == len(parts) - 1 else 0
        yield frame(kind, last | (END_STREAM if number == 0 else 0), 1, part)


def continuations() -> Iterator[bytes]:
    yield frame(HEADERS, END_STREAM, 1, block())
    while True:
        yield frame(CONTINUATION, 0, 1) * 100


def large_continuations() -> Iterator[bytes]:
    yield frame(HEADERS, END_STREAM, 1, block())
    while True:
        yield frame(CONTINUATION, 0, 1, b"\x00\x03x-a\x7f\x80\x3e" + b"v" * 16_000)


def resets() -> Iterator[bytes]:
    stream = 1
    while True:
        yield b"".join(
            frame(HEADERS, END_STREAM | END_HEADERS, number, block())
            + frame(RST_STREAM, 0, number, struct.pack(">I", 8))
            for number in range(stream, stream + 200, 2)
        )
        stream += 200


@pytest.mark.parametrize("pieces", [cookie_bomb, continuations, large_continuations, resets])
def test_r55_floods_are_cut_off_and_others_are_served(
    all_in_one: World, pieces: Callable[[], Iterator[bytes]]
) -> None:
    world = all_in_one
    envoy = envoy_of(world.stack)
    before = memory_mib(envoy)
    requests = len(world.upstream.requests)
    closed = flood(world, pieces())
    world.upstream.settle()  # streams that were reset may have begun there
    assert closed or pieces is cookie_bomb  # whose one stream is refused
    if pieces is not resets:
        assert len(world.upstream.requests) == requests
    assert http1(world, "/after").arrived["path"] == "/after"
    assert memory_mib(envoy) - before < 64
    assert envoy_of(world.stack) == envoy


def test_r55_a_thousand_headers_and_large_ones_are_refused(all_in_one: World) -> None:
    world = all_in_one
    before = len(world.upstream.requests)
    many = [f"X-A{number}: 1" for number in range(1001)]
    large = ["X-A: " + "a" * 140_000]
    for lines in (many, large):
        assert http1(world, lines=lines).status == 431
        fields = [(name.lower(), value) for name, value in (line.split(": ") for line in lines)]
        assert http2(world, [*pseudo(), *fields]).status in (0, 431)
    assert len(world.upstream.requests) == before


@pytest.mark.parametrize("length", [300, 10_000, 100_000])
def test_r56_long_hosts_lead_nowhere_and_envoy_lives(all_in_one: World, length: int) -> None:
    world = all_in_one
    envoy = envoy_of(world.stack)
    before = len(world.upstream.requests)
    host = "a" * length
    assert 400 <= http1(world, host=host).status < 500
    assert 400 <= http2(world, pseudo(host=host)).status < 500
    assert len(world.upstream.requests) == before
    assert envoy_of(world.stack) == envoy


@dataclass
class AnsweringWith:
    """An upstream that answers every connection's first bytes with the same bytes."""

    answer: bytes
    received: list[bytes] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator[int]:
        listener = socket.create_server(("127.0.0.1", 0))
        threads: list[threading.Thread] = []
        held: list[socket.socket] = []

        def serve(connection: socket.socket) -> None:
            held.append(connection)
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                answered = False
                while data := connection.recv(65536):
                    self.received.append(data)
                    if not answered:
                        connection.sendall(self.answer)
                        answered = True

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    thread = threading.Thread(target=serve, args=(listener.accept()[0],))
                    threads.append(thread)
                    thread.start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            accepting.join(5)
            for connection in held:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(6)


UPGRADE = [
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version: 13",
]


def test_r53_r56_r58_upgrades_disconnects_and_slow_clients(
    fresh_stack: Make, provider: str
) -> None:
    refusing = AnsweringWith(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")
    with refusing.running() as refusing_port:
        stack, upstream = fresh_stack(routes=[], extra={"timeout_read": "2s", "timeout_idle": "3s"})
        stack.routes = [
            {
                "from": "https://public.localhost",
                "to": upstream.url,
                "allow_public_unauthenticated_access": True,
            },
            {
                "from": "https://ws.localhost",
                "to": f"http://127.0.0.1:{refusing_port}",
                "allow_websockets": True,
                "allow_public_unauthenticated_access": True,
            },
            {
                "from": "https://app.localhost",
                "to": f"http://127.0.0.1:{refusing_port}",
                "allow_websockets": True,
                "allow_any_authenticated_user": True,
            },
        ]
        stack.write_config()
        stack.start()
        world = World(stack, upstream, provider)
        envoy = envoy_of(stack)
        # R53, CVE-2024-23326: an upgrade that the upstream answers with 200 is no tunnel.
        smuggled = b"GET /smuggled HTTP/1.1\r\nHost: admin\r\n\r\n"
        with connected(world, "http/1.1", "ws.localhost") as tls, contextlib.suppress(CLOSED[0]):
            tls.sendall(_upgrade("ws.localhost"))
            first = tls.recv(65536)
            assert b"101" not in first.split(b"\r\n")[0]
            with contextlib.suppress(*CLOSED):
                tls.sendall(smuggled)
                tls.recv(65536)
        # R56: clients that leave while their upgrade is decided.
        for _ in range(100):
            with connected(world, "http/1.1", "ws.localhost") as tls:
                tls.sendall(_upgrade("app.localhost"))
                tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert http1(world).status == 200
        assert envoy_of(stack) == envoy
        assert not any(b"/smuggled" in data for data in refusing.received)
        # R58: headers and bodies that never end, and connections nobody uses.
        with (
            connected(world, "http/1.1") as headers,
            connected(world, "http/1.1") as body,
            connected(world, "http/1.1") as idle,
        ):
            idle.sendall(b"GET / HTTP/1.1\r\nHost: public.localhost\r\n\r\n")
            headers.sendall(b"GET / HTTP/1.1\r\nHost: public.lo")
            body.sendall(
                b"POST / HTTP/1.1\r\nHost: public.localhost\r\nContent-Length: 9\r\n\r\nabc"
            )
            assert parse(headers.recv(65536)).status == 408
            assert parse(body.recv(65536)).status == 408
            assert idle.recv(65536).startswith(b"HTTP/1.1 200")
            while idle.recv(65536):  # the body may come apart from the head
                pass
        assert http1(world).status == 200


def _upgrade(host: str) -> bytes:
    return "\r\n".join(["GET /ws HTTP/1.1", f"Host: {host}", *UPGRADE, "", ""]).encode()
