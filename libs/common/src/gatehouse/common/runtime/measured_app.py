"""How many HTTP requests a server of ours answered, how long that took and how large they were."""

from __future__ import annotations

import time
from typing import Final

from gatehouse.common.observability.metrics import HTTP_SERVER
from gatehouse.common.runtime.asgi_limits import App, Message, Receive, Scope, Send

_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_OTHER: Final = "other"  # clients choose methods, and must not choose how many series there are
_NO_ANSWER: Final = "0"


class MeasuredApp:
    """`app`, counted under the name of its listener. Never under what a client says."""

    def __init__(self, app: App, listener: str) -> None:
        self._app = app
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = time.monotonic()
        status, received, sent = _NO_ANSWER, 0, 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = str(message["status"])
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, counted_receive, counted_send)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else _OTHER
            key = (self._listener, method, status)
            HTTP_SERVER.observe(key, time.monotonic() - began_s, received, sent)
