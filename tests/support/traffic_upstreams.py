"""Upstream applications that do what the query of a request says, on a thread of their own.

They run beside the tests, so that health checks and streams go on whatever a test waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar
from urllib.parse import parse_qsl, urlsplit

import h2.config
import h2.connection
import h2.events

T = TypeVar("T")

CALL_TIMEOUT_S = 30.0
BLOCK = bytes(65536)


class Background:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="upstreams")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self.run(self._cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(CALL_TIMEOUT_S)
        self.loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks(self.loop) - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.loop.shutdown_asyncgens()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run there and wait here."""
        return self.submit(coroutine).result(CALL_TIMEOUT_S)


@dataclass
class Seen:
    """A request as it arrived."""

    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    body_size: int = 0
    whole: bool = False  # the body came to its end
    server_name: str | None = None  # what TLS asked for
    client_names: tuple[str, ...] = ()  # of the client's certificate
    protocol: str | None = None  # that TLS settled on (ALPN)
    peer: str = ""  # the address that it came from; none of a Unix socket

    def values(self, name: str) -> list[str]:
        return [value for header, value in self.headers if header.lower() == name]

    def value(self, name: str) -> str | None:
        """The only value; asserts that there are not two."""
        found = self.values(name)
        assert len(found) < 2, found
        return found[0] if found else None

    @property
    def wishes(self) -> list[tuple[str, str]]:
        return parse_qsl(urlsplit(self.target).query, keep_blank_values=True)

    def wish(self, name: str) -> str | None:
        return dict(self.wishes).get(name)

    def described(self) -> bytes:
        return json.dumps(
            {
                "method": self.method,
                "path": self.target,
                "version": self.version,
                "protocol": self.protocol,
                "headers": self.headers,
                "body": self.body.decode(errors="replace"),
                "body_size": self.body_size,
            }
        ).encode()


class _CountingReader(asyncio.StreamReader):
    """Tells how much came, whether or not anybody reads it."""

    def __init__(self, tell: Callable[[int], None], limit: int) -> None:
        super().__init__(limit)
        self._tell = tell

    def feed_data(self, data: Any) -> None:
        self._tell(len(data))
        super().feed_data(data)


class Server:
    """Something that listens, can be killed and comes back on its port."""

    def __init__(
        self,
        background: Background,
        *,
        address: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        path: str = "",
    ) -> None:
        """On a loopback port, or on the Unix socket `path`."""
        self.path = path
        self.background = background
        self.address = address
        self.port = port
        self._tls = tls
        self._names: dict[ssl.SSLObject | ssl.SSLSocket, str] = {}
        if tls is not None:
            tls.sni_callback = self._note_name
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.connections = 0
        self.received = 0  # bytes, also of what never became a request

    def _count(self, count: int) -> None:
        self.received += count

    def check_refusal(self, headers: Iterable[tuple[str, str]], received: int) -> None:
        """Unless `headers` are those of our own answer, nothing came since `received` bytes had."""
        if not any(name.lower() == "x-upstream" for name, _ in headers):
            assert self.received == received, "refused, but something came"

    def _note_name(self, sock: Any, name: str | None, _context: ssl.SSLContext) -> None:
        self._names[sock] = name or ""

    @property
    def url(self) -> str:
        scheme = "http" if self._tls is None else "https"
        if self.path:
            return f"{'unix' if self._tls is None else 'https+unix'}://{self.path}"
        return f"{scheme}://{self.address}:{self.port}"

    def start(self) -> Self:
        loop = self.background.loop

        def protocol() -> asyncio.StreamReaderProtocol:
            reader = _CountingReader(self._count, 1 << 18)
            return asyncio.StreamReaderProtocol(reader, self._serve)

        async def listen() -> asyncio.Server:
            if self.path:
                return await loop.create_unix_server(protocol, self.path, ssl=self._tls)
            return await loop.create_server(protocol, self.address, self.port, ssl=self._tls)

        self._server = self.background.run(listen())
        if not self.path:
            self.port = self._server.sockets[0].getsockname()[1]
        return self

    @property
    def listening(self) -> bool:
        return self._server is not None

    def kill(self) -> None:
        """Refuse new connections, reset those there are."""

        async def close() -> None:
            assert self._server is not None
            self._server.close()
            for writer in self._open:
                writer.transport.abort()
            await self._server.wait_closed()

        self.background.run(close())
        self._server = None

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        self.start()
        try:
            yield self
        finally:
            if self._server is not None:
                self.kill()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        self.connections += 1
        try:
            await self.serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()
            with contextlib.suppress(Exception):
                await writer.wait_closed()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise AssertionError

    def _server_name(self, writer: asyncio.StreamWriter) -> str | None:
        secured = writer.get_extra_info("ssl_object")
        return None if secured is None else self._names.get(secured)

    @staticmethod
    def _protocol(writer: asyncio.StreamWriter) -> str | None:
        secured = writer.get_extra_info("ssl_object")
        return None if secured is None else secured.selected_alpn_protocol()

    @staticmethod
    def _peer(writer: asyncio.StreamWriter) -> str:
        name = writer.get_extra_info("peername")
        return name[0] if isinstance(name, tuple) else ""

    @staticmethod
    def _client_names(writer: asyncio.StreamWriter) -> tuple[str, ...]:
        certificate = writer.get_extra_info("peercert") or {}
        return tuple(value for _, value in certificate.get("subjectAltName", ()))


class Application(Server):
    """HTTP/1.1. Without wishes it answers JSON of what it received.

    Wishes, in the query: `delay` seconds before the answer, `status`, `header` (`name:value`, may
    come several times), `drip` (`count,seconds`: an event each so often), `stall` (headers and one
    event, then silence), `size` bytes, `close` (hang up without a word); until the gate is open,
    `hold` leaves the body unread and `wait` the answer ungiven.
    """

    def __init__(self, background: Background, **options: Any) -> None:
        super().__init__(background, **options)
        self.seen: list[Seen] = []
        self.healthy = True  # what /health says; no `seen` entry
        self.checks: list[Seen] = []
        self.failing = 0  # the status of everything else, if any
        self.sent = 0  # bytes of bodies that the socket took
        self.ended = 0  # answers that could be given to their end
        self.cut = 0  # answers that the other side ended
        self.behave: Callable[[Seen], None] = lambda _seen: None
        self.gate = asyncio.Event()

    def open_gate(self) -> None:
        self.background.loop.call_soon_threadsafe(self.gate.set)

    def close_gate(self) -> None:
        self.background.loop.call_soon_threadsafe(self.gate.clear)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await self._head(reader, writer)
            line, *rest = head.decode("latin-1").rstrip("\r\n").split("\r\n")
            method, target, version = line.split(" ")
            headers = [(name, value) for name, _, value in (each.partition(": ") for each in rest)]
            seen = Seen(
                method,
                target,
                version,
                headers,
                server_name=self._server_name(writer),
                client_names=self._client_names(writer),
                protocol=self._protocol(writer),
                peer=self._peer(writer),
            )
            if urlsplit(target).path == "/health":
                self.checks.append(seen)
                await self._plain(writer, 200 if self.healthy else 503, b"", [])
                continue
            self.seen.append(seen)
            await self._read_body(reader, seen)
            try:
                if not await self._answer(seen, reader, writer):
                    return
            except (ConnectionError, asyncio.IncompleteReadError):
                self.cut += 1
                raise
            self.ended += 1

    async def _head(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """A request's head. PING is answered with PONG, or with DOWN."""
        start = await reader.readexactly(4)
        while start == b"PING":
            writer.write(b"PONG" if self.healthy else b"DOWN")
            start = await reader.readexactly(4)
        return start + await reader.readuntil(b"\r\n\r\n")

    async def _read_body(self, reader: asyncio.StreamReader, seen: Seen) -> None:
        length = int(seen.value("content-length") or 0)
        if seen.value("transfer-encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                await self._take(reader, size, seen)
                await reader.readline()
            await reader.readline()
        elif length:
            await self._take(reader, length, seen)
        seen.whole = True

    async def _take(self, reader: asyncio.StreamReader, size: int, seen: Seen) -> None:
        while size:
            if seen.wish("hold") is not None:
                await self.gate.wait()
            piece = await reader.read(min(size, 1 << 18))
            if not piece:
                raise asyncio.IncompleteReadError(b"", size)
            size -= len(piece)
            seen.body_size += len(piece)
            if seen.body_size <= 1 << 16:
                seen.body += piece

    async def _answer(
        self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer; False when the connection is over."""
        self.behave(seen)
        if delay := seen.wish("delay"):
            await asyncio.sleep(float(delay))
        if seen.wish("wait") is not None:
            await self.gate.wait()
        if seen.wish("close") is not None:
            return False
        own = [value.partition(":")[::2] for name, value in seen.wishes if name == "header"]
        if size := seen.wish("size"):
            await self._stream(writer, int(size))
        elif drip := seen.wish("drip"):
            count, _, every = drip.partition(",")
            await self._events(writer, int(count), float(every))
        elif seen.wish("stall") is not None:
            await self._events(writer, 1, 0.0, end=False)
            await reader.read()
            raise ConnectionResetError
        else:
            status = self.failing or int(seen.wish("status") or 200)
            await self._plain(writer, status, seen.described(), own)
        return True

    async def _plain(
        self, writer: asyncio.StreamWriter, status: int, body: bytes, own: list[Any]
    ) -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", f"x-upstream: {self.url}"]
        lines += [f"{name}: {value}" for name, value in own]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter, size: int) -> None:
        writer.transport.set_write_buffer_limits(1 << 16)
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n".encode())
        while size:
            piece = BLOCK[:size]
            writer.write(piece)
            await writer.drain()
            size -= len(piece)
            self.sent += len(piece)

    async def _events(
        self, writer: asyncio.StreamWriter, count: int, every_s: float, *, end: bool = True
    ) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        for index in range(count):
            await asyncio.sleep(every_s if index else 0)
            event = f"data: {index}\n\n".encode()
            writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
            await writer.drain()
        if end:
            writer.write(b"0\r\n\r\n")
            await writer.drain()


class Switcher(Server):
    """Takes every upgrade, whatever it is called, and echoes what comes then."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        fields = [line.partition(": ") for line in head.split("\r\n")]
        asked = [value for name, _, value in fields if name.lower() == "upgrade"]
        if not asked:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            await writer.drain()
            return
        lines = ["HTTP/1.1 101 X", f"upgrade: {asked[0]}", "connection: upgrade", "", ""]
        writer.write("\r\n".join(lines).encode("latin-1"))
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


class Http2Application(Server):
    """HTTP/2, in clear text or by ALPN; answers JSON of what it received, with a trailer."""

    def __init__(self, background: Background, **options: Any) -> None:
        super().__init__(background, **options)
        self.seen: list[Seen] = []

    @property
    def url(self) -> str:
        return super().url.replace("http://", "h2c://")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        requests: dict[int, Seen] = {}
        while data := await reader.read(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    headers = [(name.decode(), value.decode()) for name, value in event.headers]
                    pseudo = dict(headers)
                    headers = [each for each in headers if not each[0].startswith(":")]
                    requests[event.stream_id] = Seen(
                        pseudo[":method"],
                        pseudo[":path"],
                        "HTTP/2",
                        [*headers, ("host", pseudo[":authority"])],
                        server_name=self._server_name(writer),
                        client_names=self._client_names(writer),
                        protocol=self._protocol(writer),
                    )
                elif isinstance(event, h2.events.DataReceived):
                    requests[event.stream_id].body += event.data
                    requests[event.stream_id].body_size += len(event.data)
                    connection.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )
                elif isinstance(event, h2.events.StreamEnded):
                    seen = requests.pop(event.stream_id)
                    self.seen.append(seen)
                    connection.send_headers(event.stream_id, [(":status", "200")])
                    connection.send_data(event.stream_id, seen.described())
                    connection.send_headers(
                        event.stream_id, [("x-trailer", "the end")], end_stream=True
                    )
            writer.write(connection.data_to_send())
            await writer.drain()


def server_tls(
    certificate: Any, *, alpn: tuple[str, ...] = (), client_authority: Any = None
) -> ssl.SSLContext:
    """For a server with this leaf; with `client_authority`, clients must show one of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if client_authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_authority)
    return context


@dataclass
class Farm:
    """Several equal applications, for what is spread over them."""

    members: list[Application] = field(default_factory=list)

    @property
    def urls(self) -> list[str]:
        return [member.url for member in self.members]

    def clear(self) -> None:
        for member in self.members:
            member.seen.clear()

    @property
    def counts(self) -> list[int]:
        """How many requests each has seen."""
        return [len(member.seen) for member in self.members]

    def recover(self) -> None:
        """Everything as it was at the beginning."""
        for member in self.members:
            member.healthy = True
            member.failing = 0
            if not member.listening:
                member.start()


@contextlib.contextmanager
def farm(background: Background, count: int) -> Iterator[Farm]:
    with contextlib.ExitStack() as stack:
        yield Farm([stack.enter_context(Application(background).running()) for _ in range(count)])
