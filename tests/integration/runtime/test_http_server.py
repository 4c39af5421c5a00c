"""Hypercorn with our limits, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import stat
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from gatehouse.common.config.resolved import CertificatePair, ListenAddress
from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.runtime.http_server import ServerTls, serve_http, server_config
from tests.support.pki import Authority

LOOPBACK = ListenAddress("127.0.0.1", 0)


class Application:
    """An application whose requests a test can hold and let go."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.started = False
        self.ended = False
        self.app = Starlette(
            routes=[
                Route("/", self.scope),
                Route("/length", self.length, methods=["POST"]),
                Route("/wait", self.wait),
                Route("/crash", self.crash),
                Route("/crash-late", self.crash_late),
            ],
            lifespan=self.lifespan,
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        self.started = True
        yield
        self.ended = True

    async def scope(self, request: Request) -> Response:
        scope = request.scope
        return Response(
            json.dumps(
                {
                    "server": scope["server"],
                    "http_version": scope["http_version"],
                    "scheme": scope["scheme"],
                }
            )
        )

    async def length(self, request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async def wait(self, _request: Request) -> Response:
        self.entered.set()
        await self.gate.wait()
        return PlainTextResponse("done")

    async def crash(self, _request: Request) -> Response:
        raise RuntimeError("secret detail of a crash")

    async def crash_late(self, _request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"begun"
            raise RuntimeError("secret detail of a crash")

        return StreamingResponse(body())


class Serving:
    """A server under test."""

    def __init__(self) -> None:
        self.application = Application()
        self.stop = asyncio.Event()
        self.ready = asyncio.Event()
        self.port = 0
        self.task: asyncio.Task[None]

    def bound(self, port: int) -> None:
        self.port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Serving]:
    one = Serving()
    if "unix_socket" not in options:
        options.setdefault("address", LOOPBACK)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        one.task = group.create_task(
            serve_http(
                one.application.app,
                stop=one.stop,
                ready=one.ready.set,
                bound=one.bound,
                **{"grace_s": 1.0, **options},
            )
        )
        await one.ready.wait()
        try:
            yield one
        finally:
            one.stop.set()
            one.application.gate.set()


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> bytes:
    """Send raw bytes and read until the server closes."""
    answer = bytearray()
    try:
        writer.write(data)
        await writer.drain()
        while piece := await reader.read(65536):
            answer += piece
    except ConnectionError:
        pass  # closed while we still wrote
    finally:
        writer.close()
    return bytes(answer)


async def raw(port: int, data: bytes) -> bytes:
    return await talk(*await asyncio.open_connection("127.0.0.1", port), data)


async def test_serves_and_tells_where_without_naming_the_server() -> None:
    async with serving() as one, httpx.AsyncClient() as client:
        response = await client.get(one.url)
        assert response.json()["server"] == ["127.0.0.1", one.port]
        assert "server" not in response.headers
        assert one.application.started
    assert one.application.ended


async def test_unix_socket_is_private_and_in_the_scope(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    async with serving(unix_socket=path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport) as client:
            response = await client.get("http://app.localhost/")
        assert response.json()["server"] == [str(path), None]
    assert not path.exists()


async def test_an_address_in_use_is_an_error_that_says_so() -> None:
    async with serving() as one:
        with pytest.raises(OSError, match=rf"127\.0\.0\.1:{one.port}.*in use"):
            await serve_http(
                one.application.app,
                stop=one.stop,
                address=ListenAddress("127.0.0.1", one.port),
            )


# -- limits


async def test_bodies_up_to_the_limit() -> None:
    async with serving(max_body_bytes=1000) as one, httpx.AsyncClient() as client:
        for size, status in ((1000, 200), (1001, 413)):
            response = await client.post(f"{one.url}/length", content=b"x" * size)
            assert response.status_code == status, size
        assert "too large" in response.text


async def test_a_large_body_still_gets_to_read_its_answer() -> None:
    async with serving(max_body_bytes=1000) as one, httpx.AsyncClient() as client:
        response = await client.post(f"{one.url}/length", content=b"x" * 500_000)
        assert response.status_code == 413


async def test_bodies_of_unknown_length_are_counted() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    async with serving(max_body_bytes=1000) as one, httpx.AsyncClient() as client:
        response = await client.post(f"{one.url}/length", content=chunks())
        assert response.status_code == 413


@pytest.mark.parametrize(
    ("size", "status"), [(60_000, b"200"), (66_000, b"431"), (80_000, b"431"), (400_000, b"431")]
)
async def test_headers_over_the_limit(size: int, status: bytes) -> None:
    async with serving() as one:
        head = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: "
        answer = await raw(one.port, head + b"a" * size + b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize(
    "data",
    [
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /length HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_malformed_requests_get_a_4xx_and_hurt_nobody(data: bytes) -> None:
    async with serving() as one, httpx.AsyncClient() as client:
        answer = await raw(one.port, data + b"\r\n\r\n")
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
        assert (await client.get(one.url)).status_code == 200


async def test_a_request_that_takes_too_long() -> None:
    async with serving(request_timeout_s=0.05) as one, httpx.AsyncClient() as client:
        response = await client.get(f"{one.url}/wait")
        assert response.status_code == 503
        assert response.headers["cache-control"] == "no-store"


async def test_websockets_are_refused() -> None:
    async with serving() as one:
        answer = await raw(
            one.port,
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        )
        assert answer.startswith(b"HTTP/1.1 403 ")


# -- errors


async def test_a_crash_is_a_500_without_details_and_a_log_line() -> None:
    with structlog.testing.capture_logs() as logs:
        async with serving() as one, httpx.AsyncClient() as client:
            url = f"{one.url}/crash?code=secret-code"
            response = await client.get(url, headers={"cookie": "_pomerium=secret-cookie"})
    assert response.status_code == 500
    assert "secret" not in response.text
    failures = [line for line in logs if line["log_level"] == "error"]
    assert [line["path"] for line in failures] == ["/crash"]
    assert "secret-c" not in str(logs)


async def test_a_crash_after_the_answer_began_breaks_the_connection() -> None:
    async with serving() as one, httpx.AsyncClient() as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(f"{one.url}/crash-late")
        assert (await client.get(one.url)).status_code == 200


# -- stopping


async def test_open_requests_are_finished() -> None:
    async with serving(grace_s=20.0) as one, httpx.AsyncClient() as client:
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(client.get(f"{one.url}/wait"))
            await one.application.entered.wait()
            one.stop.set()
            await until_refused(one.url)
            assert not one.task.done()
            one.application.gate.set()
            assert (await answer).text == "done"
        await one.task


async def test_the_grace_is_the_most_a_request_gets() -> None:
    async with (
        serving(grace_s=0.2) as one,
        httpx.AsyncClient() as client,
        asyncio.TaskGroup() as group,
    ):
        answer = group.create_task(_status(client.get(f"{one.url}/wait")))
        await one.application.entered.wait()
        one.stop.set()
        async with asyncio.timeout(60):
            await one.task
        one.application.gate.set()
        assert await answer != 200


async def test_idle_connections_do_not_hold_up_the_stop() -> None:
    async with serving(grace_s=20.0) as one, httpx.AsyncClient() as client:
        await client.get(one.url)
        one.stop.set()
        async with asyncio.timeout(60):
            await one.task


async def until_refused(url: str) -> None:
    """Open new connections until that fails."""
    while True:
        async with httpx.AsyncClient() as other:
            if not await _status(other.get(url)):
                return


async def _status(answer: Any) -> int:
    try:
        return int((await answer).status_code)
    except httpx.TransportError:
        return 0


# -- TLS


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def client_context(authority: Authority, *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.ca_pem.decode())
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


async def peer_names(port: int, authority: Authority, name: str) -> set[str]:
    _, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=client_context(authority), server_hostname=name
    )
    certificate = writer.get_extra_info("peercert")
    writer.close()
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        await writer.wait_closed()
    return {value for _, value in certificate["subjectAltName"]}


async def test_tls_picks_the_certificate_by_name_and_leaves_no_key_behind(tmp_path: Path) -> None:
    authority = Authority()
    pairs = (
        authority.issue("one.test", "fallback.test"),
        authority.issue("two.test"),
        authority.issue("*.wild.test"),
    )
    async with serving(tls=ServerTls(pairs, tmp_path)) as one:
        assert await peer_names(one.port, authority, "one.test") == {"one.test", "fallback.test"}
        assert await peer_names(one.port, authority, "two.test") == {"two.test"}
        assert await peer_names(one.port, authority, "A.wild.test") == {"*.wild.test"}
        assert await peer_names(one.port, authority, "fallback.test") == {
            "one.test",
            "fallback.test",
        }
        with pytest.raises(ssl.SSLCertVerificationError):
            await peer_names(one.port, authority, "other.test")
        assert files_in(tmp_path) == []


async def test_replaced_certificates_are_shown_while_connections_go_on(tmp_path: Path) -> None:
    """Listening anew for them refused whoever connected meanwhile."""
    authority = Authority()
    tls = ServerTls((authority.issue("one.test"), authority.issue("two.test")), tmp_path)
    async with serving(tls=tls) as one:
        context = client_context(authority)
        old = await asyncio.open_connection(
            "127.0.0.1", one.port, ssl=context, server_hostname="one.test"
        )
        replace = tls.prepare((authority.issue("one.test", "three.test"),))
        assert await peer_names(one.port, authority, "one.test") == {"one.test"}
        replace()
        for name in ("one.test", "three.test"):
            assert await peer_names(one.port, authority, name) == {"one.test", "three.test"}
        with pytest.raises(ssl.SSLCertVerificationError):
            await peer_names(one.port, authority, "two.test")
        context.check_hostname = False  # without a name nothing is said about which is wanted
        _, nameless = await asyncio.open_connection(
            "127.0.0.1", one.port, ssl=context, server_hostname=""
        )
        shown = nameless.get_extra_info("peercert")["subjectAltName"]
        assert {value for _, value in shown} == {"one.test", "three.test"}
        old[1].write(b"GET / HTTP/1.1\r\nhost: one.test\r\n\r\n")
        assert (await old[0].readline()).startswith(b"HTTP/1.1 200")
        for writer in (old[1], nameless):
            writer.close()
        assert files_in(tmp_path) == []


async def test_http2_over_tls(tmp_path: Path) -> None:
    authority = Authority()
    async with serving(tls=ServerTls((authority.issue("one.test"),), tmp_path)) as one:
        assert await get_h2(one.port, authority) == {
            "server": ["127.0.0.1", one.port],
            "http_version": "2",
            "scheme": "https",
        }


async def test_a_connection_lasts_for_as_many_requests_as_come(tmp_path: Path) -> None:
    """The library's own limit of 1,000 ended HTTP/2 connections with requests under way."""
    authority = Authority()
    async with serving(tls=ServerTls((authority.issue("one.test"),), tmp_path)) as one:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", one.port, ssl=client_context(authority, "h2"), server_hostname="one.test"
        )
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        connection.initiate_connection()
        headers = [(":method", "GET"), (":path", "/"), (":scheme", "https")]
        headers.append((":authority", "one.test"))
        waiting = iter(range(1, 2 * 1_010, 2))
        ended, open_streams = 0, 0
        while ended < 1_010:
            while open_streams < 20 and (stream := next(waiting, None)) is not None:
                connection.send_headers(stream, headers, end_stream=True)
                open_streams += 1
            writer.write(connection.data_to_send())
            for event in connection.receive_data(await reader.read(65536)):
                assert not isinstance(event, h2.events.ConnectionTerminated | h2.events.StreamReset)
                if isinstance(event, h2.events.DataReceived):
                    connection.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )
                if isinstance(event, h2.events.StreamEnded):
                    ended, open_streams = ended + 1, open_streams - 1
        writer.close()


@pytest.mark.parametrize("on_unix_socket", [True, False])
def test_nothing_stops_reading_from_a_connection_that_stays_open(*, on_unix_socket: bool) -> None:
    """Hypercorn's read timeout does: what came on the connection after it hung until it failed."""
    with socket.socket(socket.AF_UNIX if on_unix_socket else socket.AF_INET) as listener:
        assert server_config(listener, None, 5.0).read_timeout is None


async def test_http2_can_be_left_out(tmp_path: Path) -> None:
    authority = Authority()
    pairs = (authority.issue("one.test"),)
    async with serving(tls=ServerTls(pairs, tmp_path, http2=False)) as one:
        _, writer = await asyncio.open_connection(
            "127.0.0.1",
            one.port,
            ssl=client_context(authority, "h2", "http/1.1"),
            server_hostname="one.test",
        )
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        writer.close()


async def get_h2(port: int, authority: Authority) -> Any:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=client_context(authority, "h2"), server_hostname="one.test"
    )
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    connection.initiate_connection()
    headers = [
        (":method", "GET"),
        (":path", "/"),
        (":scheme", "https"),
        (":authority", "one.test"),
    ]
    connection.send_headers(1, headers, end_stream=True)
    body = b""
    ended = False
    while not ended:
        writer.write(connection.data_to_send())
        for event in connection.receive_data(await reader.read(65536)):
            if isinstance(event, h2.events.DataReceived):
                body += event.data
            ended = ended or isinstance(event, h2.events.StreamEnded)
    writer.close()
    return json.loads(body)


async def test_old_tls_is_refused(tmp_path: Path) -> None:
    authority = Authority()
    context = client_context(authority)
    with warnings.catch_warnings(action="ignore"):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    async with serving(tls=ServerTls((authority.issue("one.test"),), tmp_path)) as one:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(
                "127.0.0.1", one.port, ssl=context, server_hostname="one.test"
            )


@pytest.mark.parametrize("broken", ["key", "certificate", "mismatch"])
def test_certificates_that_do_not_load(tmp_path: Path, broken: str) -> None:
    authority = Authority()
    good, other = authority.issue("one.test"), authority.issue("two.test")
    pair = {
        "key": CertificatePair(good.certificate_pem, b"hunter2", "certificates[0]"),
        "certificate": CertificatePair(b"hunter2", good.key_pem, "certificates[0]"),
        "mismatch": CertificatePair(good.certificate_pem, other.key_pem, "certificates[0]"),
    }[broken]
    with pytest.raises(InvalidArgumentError, match=r"certificates\[0\]") as caught:
        ServerTls((pair,), tmp_path)
    assert "hunter2" not in str(caught.value)
    assert files_in(tmp_path) == []
