"""A gRPC server on a Unix socket that only the Envoy beside us opens."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import grpc.aio

_SOCKET_MODE: Final = 0o600


def listen(server: grpc.aio.Server, socket: Path) -> None:
    """Let a server that is not yet started have this socket. Raises OSError when it cannot."""
    forget(socket)
    if server.add_insecure_port(f"unix:{socket}") == 0:
        raise OSError(f"cannot listen on {socket}")
    socket.chmod(_SOCKET_MODE)


def forget(socket: Path) -> None:
    """Remove the socket, if it is there."""
    socket.unlink(missing_ok=True)
