"""An HTTP/3 client on aioquic, which shares no code with Envoy.

One connection, requests on it one after the other or at once; header fields go out as they are
written, sound or not.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, QuicEvent, StreamReset

from tests.support.tls import Leaf
from tests.support.traffic import Reply

TIMEOUT_S = 30.0


class Http3Error(Exception):
    """The stream or the connection ended before the answer did."""


@dataclass
class _Answer:
    done: asyncio.Future[None]
    headers: list[tuple[str, str]] = field(default_factory=list)
    trailers: list[tuple[str, str]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)


class Http3Connection(QuicConnectionProtocol):
    """A client's end. `request` waits for the whole answer."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._http = H3Connection(self._quic)
        self._answers: dict[int, _Answer] = {}
        self.trailers: list[tuple[str, str]] = []  # of the last answer
        self.ended = ""  # why, once the server has ended the connection

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ConnectionTerminated):
            self.ended = f"{event.error_code:#x} {event.reason_phrase}"
            for answer in self._answers.values():
                _fail(answer, self.ended)
        if isinstance(event, StreamReset) and event.stream_id in self._answers:
            _fail(self._answers[event.stream_id], f"stream reset {event.error_code:#x}")
        for found in self._http.handle_event(event):
            self._take(found)

    def _take(self, event: H3Event) -> None:
        if not isinstance(event, (HeadersReceived, DataReceived)):
            return
        answer = self._answers.get(event.stream_id)
        if answer is None:
            return
        if isinstance(event, DataReceived):
            answer.body += event.data
        else:
            pairs = [(name.decode(), value.decode()) for name, value in event.headers]
            (answer.trailers if answer.headers else answer.headers).extend(pairs)
        if event.stream_ended and not answer.done.done():
            answer.done.set_result(None)

    async def request(
        self,
        path: str = "/",
        *,
        host: str,
        method: str = "GET",
        headers: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
    ) -> Reply:
        """Send one request; the answer, or Http3Error."""
        if self.ended:
            raise Http3Error(self.ended)
        stream = self._quic.get_next_available_stream_id()
        answer = _Answer(asyncio.get_running_loop().create_future())
        self._answers[stream] = answer
        first = [(":method", method), (":scheme", "https"), (":authority", host), (":path", path)]
        fields = [(name.encode(), value.encode()) for name, value in (*first, *headers)]
        self._http.send_headers(stream, fields, end_stream=body is None)
        if body is not None:
            self._http.send_data(stream, body, end_stream=True)
        self.transmit()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await answer.done
        finally:
            del self._answers[stream]
        self.trailers = answer.trailers
        (status,) = (int(value) for name, value in answer.headers if name == ":status")
        plain = tuple((name, value) for name, value in answer.headers if name[0] != ":")
        return Reply(status, plain, bytes(answer.body))


def _fail(answer: _Answer, why: str) -> None:
    if not answer.done.done():
        answer.done.set_exception(Http3Error(why))


@contextlib.asynccontextmanager
async def http3(
    port: int, authority: Path, server_name: str, client: Leaf | None = None
) -> AsyncIterator[Http3Connection]:
    """A connection to loopback, verified as `server_name`; ConnectionError when there is none."""
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=H3_ALPN,
        cafile=str(authority),
        server_name=server_name,
        max_data=16 << 20,
        max_stream_data=16 << 20,
    )
    if client is not None:
        configuration.load_cert_chain(client.certificate, client.key)
    async with connect(
        "127.0.0.1", port, configuration=configuration, create_protocol=Http3Connection
    ) as connection:
        assert isinstance(connection, Http3Connection)
        yield connection
