"""PostgreSQL's disk is full: nothing acknowledged is lost, and it goes on once there is room."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gatehouse.databroker.edge.backends.base import running
from tests.integration.databroker.test_faults import (
    Writer,
    client_of,
    converged,
    postgres,
    replica,
    writing,
)
from tests.support.databroker_client import feeding, until
from tests.support.postgres_cluster import TcpServer, tcp_server
from tests.support.small_disk import NoSmallDiskError, SmallDisk, small_disk
from tests.support.storage import served

pytestmark = pytest.mark.postgres

SIZE = "160m"  # an empty server takes 40
PATIENCE_S = 120.0


@pytest.fixture
def server() -> Iterator[TcpServer]:
    with tcp_server() as made:
        yield made


@contextmanager
def small_parts(server: TcpServer, small: str, *options: str) -> Iterator[SmallDisk]:
    """Start the server, made with these options of initdb, with its `small` part on a small disk.

    The parts are "data" and "wal".
    """
    try:
        with small_disk(server.directory / small, SIZE) as disk:
            server.prefix = disk.prefix
            server.seen = disk.seen if small == "data" else server.data
            try:
                server.init(options=("--waldir", str(server.directory / "wal"), *options))
                server.start()
                yield disk
            finally:
                server.close()
    except NoSmallDiskError as error:
        pytest.skip(f"no disk to fill on this machine (root or user namespaces needed): {error}")


async def test_room_for_tables_runs_out(server: TcpServer) -> None:
    """Writes are refused with the reason, reading goes on, and so does all once there is room."""
    with small_parts(server, "data") as disk:
        async with (
            running(postgres(server.dsn())) as storage,
            served(storage) as broker,
            client_of(broker.port) as client,
            feeding(client, copy := replica(), heartbeat_s=0.2, silence_s=15.0),
        ):
            writer = Writer(storage)
            async with writing(writer):
                await until(lambda: len(writer.acknowledged) >= 20, PATIENCE_S)
                disk.fill()
                await until(lambda: len(writer.failures) >= 5, PATIENCE_S)
                first = next(iter(writer.acknowledged))
                assert await storage.get("t", first) is not None
                disk.empty()
                count = len(writer.acknowledged)
                await until(lambda: len(writer.acknowledged) >= count + 20, PATIENCE_S)
            assert any("No space left on device" in str(error) for error in writer.failures)
            await writer.check(storage)
            await converged(copy, storage)


async def test_room_for_the_write_ahead_log_runs_out(server: TcpServer) -> None:
    """PostgreSQL crashes then, and may end itself: whoever has made room starts it again."""
    with small_parts(server, "wal", "--wal-segsize", "1") as disk:
        async with (
            running(postgres(server.dsn())) as storage,
            served(storage) as broker,
            client_of(broker.port) as client,
            feeding(client, copy := replica(), heartbeat_s=0.2, silence_s=15.0),
        ):
            writer = Writer(storage, padding=20_000)  # there is some log in reserve
            async with writing(writer):
                await until(lambda: len(writer.acknowledged) >= 20, PATIENCE_S)
                disk.fill()
                await until(lambda: writer.failures, PATIENCE_S)
                disk.empty()
                count = len(writer.acknowledged)
                async with asyncio.timeout(PATIENCE_S):
                    while len(writer.acknowledged) < count + 20:
                        if not server.is_running():
                            await asyncio.to_thread(server.start)
                        await asyncio.sleep(0.05)
            await writer.check(storage)
            await converged(copy, storage)
