"""A server that was away for long is found again as soon as it is back."""

from __future__ import annotations

import asyncio

from gatehouse.common.clock import SystemRng
from gatehouse.databroker.edge.backends.connections import parse_postgres
from gatehouse.databroker.edge.backends.postgres_connections import Connections
from gatehouse.databroker.errors import StorageUnavailableError
from tests.support.databroker_client import until


async def test_attempts_to_connect_do_not_grow_rare() -> None:
    """With pauses that double, the seventh would come after a minute."""
    attempts = 0

    async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        target = parse_postgres(f"postgres://u@127.0.0.1:{port}/x?sslmode=disable")
        connections = Connections(target, SystemRng())
        await connections.open()
        try:
            async with asyncio.TaskGroup() as group:
                asking = group.create_task(ask_for_ever(connections))
                await until(lambda: attempts >= 7, 40.0)
                asking.cancel()
        finally:
            await connections.close()


async def ask_for_ever(connections: Connections) -> None:
    while True:
        try:
            await connections.row("SELECT 1")
        except StorageUnavailableError:
            await asyncio.sleep(0.1)
