"""Answers how the demo's own servers listen: the provider on loopback, or not at all."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from collections.abc import Callable
from typing import Any, Final

from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config

from gatehouse.common.errors import FailedPreconditionError, InvalidArgumentError

_BACKLOG: Final = 128
_MAX_MESSAGE_BYTES: Final = 64 * 1024  # of a WebSocket
_GRACE_S: Final = 2.0
_IDLE_TIMEOUT_S: Final = 2 * 3600.0  # longer than Envoy's, so that it is never we who close


def open_loopback(host: str, port: int, *, what: str) -> socket.socket:
    """Return a listening socket; port 0 takes any free one.

    Raises InvalidArgumentError when `host` is not loopback: a name other than localhost, an
    address of another interface, or all addresses. `what` names the server in messages.
    """
    address = "127.0.0.1" if host == "localhost" else host.strip("[]")
    try:
        loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise InvalidArgumentError(
            f"{what} is for development and listens on loopback only: {host or 'all addresses'!r} "
            "is refused; use 127.0.0.1, ::1 or localhost"
        )
    return open_listener(address, port, what=what)


def open_listener(address: str, port: int, *, what: str) -> socket.socket:
    """Return a socket that listens on this address of any interface.

    Raises FailedPreconditionError when that cannot be done.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
        listener.settimeout(0)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise FailedPreconditionError(
                f"{what} cannot listen on {address}:{port}: the port is taken; "
                "stop what uses it, or choose another port"
            ) from error
        raise FailedPreconditionError(
            f"{what} cannot listen on {address}:{port}: {error.strerror}"
        ) from error
    return listener


async def serve_listener(
    app: Any, listener: socket.socket, stop: asyncio.Event, ready: Callable[[], None] | None = None
) -> None:
    """Serve the ASGI app (HTTP/1.1, h2c, WebSocket) until `stop`; closes the listener.

    Connections made before this runs wait in the listener's backlog, so a caller that has the
    listener may give out its port already.
    """
    config = Config()
    config.bind = [f"fd://{os.dup(listener.fileno())}"]  # the server closes its own
    config.accesslog = None
    config.errorlog = None
    config.graceful_timeout = _GRACE_S
    config.keep_alive_timeout = _IDLE_TIMEOUT_S
    config.websocket_max_message_size = _MAX_MESSAGE_BYTES
    config.h11_max_incomplete_size = 32 * 1024
    config.include_server_header = False
    if ready is not None:
        ready()
    try:
        await hypercorn_serve(app, config, shutdown_trigger=stop.wait)
    finally:
        listener.close()
