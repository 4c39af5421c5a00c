"""Answers what an application behind Gatehouse gets to see: the demo's sample application.

It shows the request as it arrived and who Gatehouse says is asking, after verifying it.
`/json` is the same for programs; `/ws` sends every WebSocket message back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from gatehouse.cli.demo.assertion import HEADER, AssertionVerifier, Standing
from gatehouse.cli.demo.loopback import open_loopback, serve_listener
from gatehouse.cli.demo.pages import demo_page

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_MAX_BODY_BYTES: Final = 1024 * 1024
_SHOWN_CLAIMS: Final = (
    ("name", "Name"),
    ("email", "Email"),
    ("groups", "Groups"),
    ("sub", "User ID"),
    ("sid", "Session ID"),
    ("iss", "Issued by"),
    ("aud", "Meant for"),
)


class SampleApplication:
    """The application. It believes `verifier` and nothing else."""

    def __init__(self, verifier: AssertionVerifier) -> None:
        self._verifier = verifier

    def app(self) -> ASGIApp:
        """Return the ASGI application."""
        return Starlette(
            routes=[
                WebSocketRoute("/ws", self._echo),
                Route("/json", self._json, methods=list(_METHODS)),
                Route("/json/{rest:path}", self._json, methods=list(_METHODS)),
                Route("/{rest:path}", self._page, methods=list(_METHODS)),
            ]
        )

    async def _page(self, request: Request) -> Response:
        asker = await self._verifier.verify(request.headers.get(HEADER))
        headers = sorted(request.headers.items())
        return demo_page(
            "sample_application.html.j2",
            asker=asker,
            verified=asker.standing is Standing.VERIFIED and bool(asker.name),
            refused=asker.standing is Standing.REFUSED,
            claims=[
                (label, _text(asker.claims[name]))
                for name, label in _SHOWN_CLAIMS
                if asker.claims.get(name)
            ],
            method=request.method,
            path=_path(request),
            host=request.headers.get("x-forwarded-host") or request.headers.get("host", ""),
            identity_headers=[item for item in headers if item[0].startswith("x-pomerium-")],
            other_headers=[item for item in headers if not item[0].startswith("x-pomerium-")],
        )

    async def _json(self, request: Request) -> Response:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > _MAX_BODY_BYTES:
                return JSONResponse({"error": "the body is larger than 1 MiB"}, status_code=413)
        asker = await self._verifier.verify(request.headers.get(HEADER))
        answer: dict[str, Any] = {
            "method": request.method,
            "path": _path(request),
            "body_bytes": size,
            "headers": [[name, value] for name, value in request.headers.items()],
            "identity": {
                "standing": asker.standing,
                "reason": asker.reason,
                "email": asker.claims.get("email", ""),
                "groups": asker.claims.get("groups", []),
                "claims": dict(asker.claims),
            },
        }
        return JSONResponse(answer, headers={"cache-control": "no-store"})

    async def _echo(self, socket: WebSocket) -> None:
        await socket.accept()
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if message.get("text") is not None:
                await socket.send_text(message["text"])
            else:
                await socket.send_bytes(message.get("bytes") or b"")


async def serve(
    stop: asyncio.Event,
    host: str,
    port: int,
    verifier: AssertionVerifier,
    *,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the application on loopback until `stop`; `ready` gets its base URL.

    Port 0 takes any free one. Raises as `loopback.open_loopback` does.
    """
    listener = open_loopback(host, port, what="the sample application")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    app = SampleApplication(verifier).app()
    await serve_listener(app, listener, stop, None if ready is None else lambda: ready(url))


def _path(request: Request) -> str:
    """Return path and query as they stood in the request line."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    path = raw.decode("latin-1").partition("?")[0]
    query: bytes = request.scope.get("query_string", b"")
    return f"{path}?{query.decode('latin-1')}" if query else path


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    return str(value)
