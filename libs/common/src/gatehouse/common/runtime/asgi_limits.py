"""What an HTTP request may cost: an ASGI wrapper with the limits the server itself does not have.

Body size (413), time (503 when no answer has begun), no WebSockets, a `server` in the scope also
behind a Unix socket, and an answer of 500 that says nothing when the application fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from gatehouse.common.observability.logging import get_logger

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = get_logger("http")


class _BodyTooLargeError(Exception):
    """The application read past the limit."""


class LimitedApp:
    """`app` within limits. Bytes and seconds; `unix_socket` is put into the scope."""

    def __init__(
        self,
        app: App,
        *,
        max_body_bytes: int,
        request_timeout_s: float,
        unix_socket: Path | None,
    ) -> None:
        self._app = app
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
        announced = _content_length(scope)
        if announced is None or announced > self._max_body_bytes:
            status = 400 if announced is None else 413
            await answer.refuse(status)
            return
        read = 0

        async def limited_receive() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_body_bytes:
                raise _BodyTooLargeError
            return message

        try:
            async with asyncio.timeout(self._request_timeout_s):
                await self._app(scope, limited_receive, answer.send)
        except _BodyTooLargeError:
            await answer.refuse(413)
        except TimeoutError:
            _log.warning("request took too long", method=scope["method"], path=scope["path"])
            await answer.refuse(503)
        except Exception:  # noqa: BLE001  # the last net before the server
            _log.exception("request failed", method=scope["method"], path=scope["path"])
            await answer.refuse(500)


class _Answer:
    """Knows whether the response has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = False

    async def send(self, message: Message) -> None:
        """Pass a message of the application on."""
        self._begun = True
        await self._send(message)

    async def refuse(self, status: int) -> None:
        """An answer of our own; when the application's has begun, only the connection's end helps.

        Raises ConnectionAbortedError in that case, which the server takes as a lost peer.
        """
        if self._begun:
            raise ConnectionAbortedError("the response had begun")
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
    413: b"The request's body is too large.\n",
    500: b"Something went wrong here; the log of this service says what.\n",
    503: b"The answer took too long. Try again in a moment.\n",
}


def _content_length(scope: Scope) -> int | None:
    """Bytes announced, 0 when nothing is; None when it is not a number."""
    for name, value in scope["headers"]:
        if name.lower() == b"content-length":
            return int(value) if value.isdigit() and len(value) < 19 else None
    return 0
