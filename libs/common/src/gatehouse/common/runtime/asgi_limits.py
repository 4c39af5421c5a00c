"""What an HTTP request may cost: an ASGI wrapper with limits that the server does not have.

Header and body size (431, 413), time (503 when no answer has begun), no WebSockets, a `server` in
the scope also behind a Unix socket, and a 500 that says nothing when the application fails.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final

from gatehouse.common.observability.logging import get_logger

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

READ_OFF_BYTES: Final = 1024 * 1024
READ_OFF_S: Final = 1.0

_log = get_logger("http")


class _BodyTooLargeError(Exception):
    """The application read past the limit; it has been answered already."""


class LimitedApp:
    """`app` within limits. Bytes and seconds; `unix_socket` is put into the scope."""

    def __init__(
        self,
        app: App,
        *,
        max_header_bytes: int,
        max_body_bytes: int,
        request_timeout_s: float,
        unix_socket: Path | None,
    ) -> None:
        self._app = app
        self._max_header_bytes = max_header_bytes
        self._max_body_bytes = max_body_bytes
        self._request_timeout_s = request_timeout_s
        self._unix_socket = unix_socket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._unix_socket is not None and scope.get("server") is None:
            scope["server"] = (str(self._unix_socket), None)  # as the ASGI specification spells it
        answer = _Answer(send)
        refusal = self._refusal(scope)
        if refusal:
            await _read_off(receive)
            await answer.refuse(refusal)
            return
        read = 0

        async def limited_receive() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_body_bytes:
                # Before the exception, which frameworks turn into an answer of their own.
                await _read_off(receive)
                await answer.refuse(413)
                raise _BodyTooLargeError
            return message

        try:
            async with asyncio.timeout(self._request_timeout_s):
                await self._app(scope, limited_receive, answer.send)
        except _BodyTooLargeError:
            pass
        except TimeoutError:
            _log.warning("request took too long", method=scope["method"], path=scope["path"])
            await answer.refuse(503)
        except Exception:  # noqa: BLE001  # the last net before the server
            _log.exception("request failed", method=scope["method"], path=scope["path"])
            await answer.refuse(500)

    def _refusal(self, scope: Scope) -> int:
        """The status to refuse a request with before reading on, or 0."""
        headers = scope["headers"]
        if sum(len(name) + len(value) + 4 for name, value in headers) > self._max_header_bytes:
            return 431
        announced = _content_length(scope)
        if announced is None:
            return 400
        return 413 if announced > self._max_body_bytes else 0


class _Answer:
    """Sends either the application's response or one of ours, never a mix."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = False
        self._refused = False

    async def send(self, message: Message) -> None:
        """Pass a message of the application on, unless it was answered for."""
        if self._refused:
            return
        self._begun = True
        await self._send(message)

    async def refuse(self, status: int) -> None:
        """Answer ourselves; a response that has begun is left unfinished, which ends it."""
        if self._begun or self._refused:
            return
        self._refused = True
        body = _TEXTS[status]
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    (b"content-type", b"text/plain; charset=utf-8"),
                    (b"content-length", str(len(body)).encode()),
                    (b"cache-control", b"no-store"),
                    (b"connection", b"close"),
                ],
            }
        )
        await self._send({"type": "http.response.body", "body": body})


_TEXTS = {
    400: b"The request's Content-Length is not a number.\n",
    431: b"The request's headers are too large.\n",
    413: b"The request's body is too large.\n",
    500: b"Something went wrong here; the log of this service says what.\n",
    503: b"The answer took too long. Try again in a moment.\n",
}


async def _read_off(receive: Receive) -> None:
    """Take in some of what the client still sends.

    Closing a connection with unread data resets it, and the client would never see the answer.
    """
    read = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READ_OFF_S):
            while read < READ_OFF_BYTES:
                message = await receive()
                read += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


def _content_length(scope: Scope) -> int | None:
    """Bytes announced, 0 when nothing is; None when it is not a number."""
    for name, value in scope["headers"]:
        if name.lower() == b"content-length":
            return int(value) if value.isdigit() and len(value) < 19 else None
    return 0
