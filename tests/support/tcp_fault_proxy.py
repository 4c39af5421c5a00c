"""A TCP proxy on loopback that can cut connections, swallow what they carry, or refuse new ones."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
from collections.abc import AsyncIterator

_CHUNK = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Fault(enum.Enum):
    """What the proxy does to bytes and new connections."""

    NONE = "none"
    BLACK_HOLE = "black hole"  # takes everything, passes nothing on, in either direction
    REFUSE = "refuse"  # resets whoever connects


class TcpFaultProxy:
    """Forwards connections to one address: a (host, port) pair or the path of a Unix socket."""

    def __init__(self, target: tuple[str, int] | str) -> None:
        self._target = target
        self._fault = Fault.NONE
        self._healed = asyncio.Event()
        self._healed.set()
        self._sockets: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.accepted = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[TcpFaultProxy]:
        """Listen for the length of the block; `port` says where."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.set(Fault.NONE)
            server.close()
            self.cut()
            await server.wait_closed()

    def set(self, fault: Fault) -> None:
        """Behave so from now on; connections that are open stay open."""
        self._fault = fault
        if fault is Fault.BLACK_HOLE:
            self._healed.clear()
        else:
            self._healed.set()

    def cut(self) -> int:
        """Reset every open connection; return how many ends there were."""
        writers, self._sockets = self._sockets, set()
        for writer in writers:
            _reset(writer)
        return len(writers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._fault is Fault.REFUSE:
            _reset(writer)
            return
        self._sockets.add(writer)
        try:
            await self._healed.wait()
            if isinstance(self._target, str):
                far_reader, far_writer = await asyncio.open_unix_connection(self._target)
            else:
                far_reader, far_writer = await asyncio.open_connection(*self._target)
            self._sockets.add(far_writer)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, far_writer))
                    group.create_task(self._pump(far_reader, writer))
            finally:
                self._sockets.discard(far_writer)
                far_writer.close()
        except* OSError:
            pass  # one of the two ends is gone, and so will be the other
        finally:
            self._sockets.discard(writer)
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await self._healed.wait()
            writer.write(data)
            await writer.drain()
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.family in {socket.AF_INET, socket.AF_INET6}:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
