"""HTTP as bytes, for requests that no well-behaved client would send."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from tests.support.upstream import EchoUpstream

TIMEOUT_S = 10.0
_guarded: list[EchoUpstream] = []


@contextlib.contextmanager
def guarded_upstream() -> Iterator[EchoUpstream]:
    """An upstream that no request of these clients reaches, to the byte, unless it answers it.

    For requests that are made one after the other.
    """
    with EchoUpstream().running() as upstream:
        _guarded.append(upstream)
        try:
            yield upstream
        finally:
            _guarded.remove(upstream)


def _received() -> list[int]:
    return [upstream.received for upstream in _guarded]


def _check_refusal(headers: Mapping[str, str], before: Sequence[int]) -> None:
    for upstream, received in zip(_guarded, before, strict=True):
        upstream.check_refusal(headers.items(), received)


@dataclass(frozen=True)
class Answer:
    """`status` is 0 when the connection or stream ended without one."""

    status: int
    headers: dict[str, str]
    body: bytes


async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server's handler that reads and never answers."""
    await reader.read()
    writer.close()


async def exchange(port: int, data: bytes) -> bytes:
    """Send `data` and read one answer: as long as it says it is, else until the server closes."""
    before = _received()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        writer.write(data)
        async with asyncio.timeout(TIMEOUT_S):
            while chunk := await reader.read(65536):
                received += chunk
                head, blank, body = received.partition(b"\r\n\r\n")
                length = re.search(rb"(?im)^content-length: (\d+)", head)
                if blank and length and len(body) >= int(length.group(1)):
                    break
    except ConnectionResetError:
        pass
    finally:
        writer.close()
    _check_refusal(parse(received).headers, before)
    return received


async def http1(
    port: int,
    path: str = "/",
    *,
    host: str = "app.example.com",
    method: str = "GET",
    lines: Sequence[str] = (),
    body: bytes = b"",
) -> Answer:
    """One HTTP/1.1 request, header lines exactly as given, on a connection of its own."""
    head = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *lines]
    data = "\r\n".join([*head, "", ""]).encode("latin-1") + body
    return parse(await exchange(port, data))


def parse(data: bytes) -> Answer:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    if not first:
        return Answer(0, {}, b"")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        body = _unchunked(body)
    return Answer(int(first.split()[1]), headers, body)


def _unchunked(body: bytes) -> bytes:
    parts = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            break
        parts, body = parts + rest[:length], rest[length + 2 :]
    return parts


async def http2(
    port: int,
    headers: Sequence[tuple[str, str]],
    body: bytes = b"",
    *,
    until_headers: bool = False,
) -> Answer:
    """One HTTP/2 request with prior knowledge; nothing is checked or normalised on our side.

    `until_headers` is for streams that stay open: the request is not ended either.
    """
    config = h2.config.H2Configuration(
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
        header_encoding="utf-8",
    )
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    connection.send_headers(1, headers, end_stream=not body and not until_headers)
    if body:
        connection.send_data(1, body, end_stream=True)
    before = _received()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    status, data = 0, b""
    received: dict[str, str] = {}
    try:
        writer.write(connection.data_to_send())
        async with asyncio.timeout(TIMEOUT_S):
            while chunk := await reader.read(65536):
                ended = False
                for event in connection.receive_data(chunk):
                    if isinstance(event, h2.events.ResponseReceived):
                        received = {str(name): str(value) for name, value in event.headers or ()}
                        status = int(received[":status"])
                        ended = until_headers
                    elif isinstance(event, h2.events.DataReceived):
                        data += event.data
                    elif isinstance(
                        event,
                        h2.events.StreamEnded
                        | h2.events.StreamReset
                        | h2.events.ConnectionTerminated,
                    ):
                        ended = True
                writer.write(connection.data_to_send())
                if ended:
                    break
    finally:
        writer.close()
    _check_refusal(received, before)
    return Answer(status, received, data)


def request_headers(
    method: str = "GET", path: str = "/", host: str = "app.example.com"
) -> list[tuple[str, str]]:
    """The pseudo-headers of a plain HTTP/2 request."""
    return [(":method", method), (":scheme", "http"), (":authority", host), (":path", path)]
