"""What is acknowledged stays and what is followed converges, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.replica import Replica
from gatehouse.common.databroker.sync_core import Phase
from gatehouse.common.errors import DeadlineExceededError, GatehouseError, UnavailableError
from gatehouse.common.ids import TypeUrl
from gatehouse.common.rpc.channel import BalancedChannel
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.databroker.core.records import Put
from gatehouse.databroker.edge.backends.base import Storage, running
from gatehouse.databroker.edge.backends.connections import parse_postgres
from gatehouse.databroker.edge.backends.postgres import PostgresStorage
from gatehouse.databroker.edge.backends.sqlite import SqliteStorage
from gatehouse.pb import databroker_pb2 as pb
from gatehouse.pb.user_pb2 import User
from tests.support.databroker_client import feeding, until
from tests.support.postgres import OwnServer, disconnect, fresh_database
from tests.support.storage import StorageCase, incoming, secrets, served
from tests.support.tcp_fault_proxy import Fault, TcpFaultProxy

TYPE = TypeUrl("t")
PATIENCE_S = 60.0


def postgres(dsn: str, **options: float) -> PostgresStorage:
    return PostgresStorage(parse_postgres(dsn), SystemClock(), SystemRng(), secrets, **options)


@pytest.fixture
def dsn() -> Iterator[str]:
    with fresh_database() as made:
        yield made


@pytest.fixture
def own_server() -> Iterator[OwnServer]:
    server = OwnServer()
    try:
        yield server
    finally:
        server.close()


class Writer:
    """Writes one record after the other and keeps count of what was acknowledged."""

    def __init__(self, storage: Storage, padding: int = 0) -> None:
        """`padding`: bytes of each record."""
        self.storage = storage
        self._name = "x" * padding
        self.acknowledged: dict[str, int] = {}
        self.failures: list[GatehouseError] = []

    async def write(self, id_: str) -> None:
        try:
            user = User(id=id_, name=self._name)
            result = await self.storage.write(Put((incoming(TYPE, id_, user),)))
        except (UnavailableError, DeadlineExceededError) as error:
            self.failures.append(error)
            await asyncio.sleep(0.01)
        else:
            self.acknowledged[id_] = result.records[0].version

    async def run(self, name: str) -> None:
        number = 0
        while True:
            await self.write(f"{name}-{number}")
            number += 1

    async def check(self, storage: Storage) -> None:
        """Every acknowledged write is there, at its version."""
        assert self.acknowledged
        for id_, version in self.acknowledged.items():
            held = await storage.get(TYPE, id_)
            assert held is not None, id_
            assert held.version == version


@asynccontextmanager
async def writing(writer: Writer, name: str = "w") -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(writer.run(name))
        try:
            yield
        finally:
            task.cancel()


@asynccontextmanager
async def client_of(port: int) -> AsyncIterator[DatabrokerClient]:
    channel = BalancedChannel(
        [f"http://127.0.0.1:{port}"],
        audience="databroker",
        health_service="",
        credentials=ServiceCredentials("databroker", secrets, SystemClock()),
        ca_pem=None,
        clock=SystemClock(),
        rng=SystemRng(),
    )
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(channel.run(stop))
        try:
            yield DatabrokerClient(channel)
        finally:
            stop.set()
            await channel.close()


def replica() -> Replica:
    return Replica({TYPE: lambda record: record.id})


async def converged(copy: Replica, storage: Storage) -> None:
    """Wait until the copy holds what the store holds."""

    async def is_same() -> bool:
        head = await storage.head(TYPE, None, limit=100_000)
        held = {record.id: record.version for record in head.records}
        shown = {id_: found.version for id_ in held if (found := copy.get(TYPE, id_))}
        return (
            shown == held and copy.state(TYPE).record_version == (await storage.position()).latest
        )

    async with asyncio.timeout(PATIENCE_S):
        while not await is_same():  # noqa: ASYNC110 - it is the store that is asked
            await asyncio.sleep(0.02)


def reached(dsn: str, proxy: TcpFaultProxy) -> str:
    """The same database, seen through the proxy."""
    return make_conninfo(dsn, host="127.0.0.1", port=proxy.port, sslmode="disable")


def socket_of(dsn: str) -> str:
    found = conninfo_to_dict(dsn)
    return f"{found['host']}/.s.PGSQL.{found.get('port') or 5432}"


# Between the databroker and PostgreSQL


@pytest.mark.postgres
async def test_cut_connections_to_postgres_cost_no_acknowledged_write(dsn: str) -> None:
    async with (
        TcpFaultProxy(socket_of(dsn)).running() as proxy,
        running(postgres(reached(dsn, proxy))) as storage,
        served(storage) as broker,
        client_of(broker.port) as client,
        feeding(client, copy := replica(), heartbeat_s=0.2, silence_s=5.0),
    ):
        writer = Writer(storage)
        async with writing(writer):
            for count in (30, 60, 90):
                await until(lambda: len(writer.acknowledged) >= count)  # noqa: B023
                assert proxy.cut()
            proxy.set(Fault.REFUSE)
            proxy.cut()
            before = len(writer.failures)
            await until(lambda: len(writer.failures) > before)
            proxy.set(Fault.NONE)
            await until(lambda: len(writer.acknowledged) >= 120)
        await writer.check(storage)
        await converged(copy, storage)


@pytest.mark.postgres
async def test_a_postgres_that_falls_silent_is_noticed(dsn: str) -> None:
    """Calls end, nothing is vouched for meanwhile, and all goes on once it is back."""
    async with (
        TcpFaultProxy(socket_of(dsn)).running() as proxy,
        running(postgres(reached(dsn, proxy), answer_timeout_s=0.5)) as storage,
        served(storage) as broker,
    ):
        writer = Writer(storage)
        await writer.write("before")
        position = await storage.position()
        call = broker.stub.Sync(
            pb.SyncRequest(
                server_version=position.server_version,
                record_version=position.latest,
                type=TYPE,
                heartbeat_interval=Duration(nanos=100_000_000),
            )
        )
        beats: list[float] = []
        changes: list[int] = []

        async def listen() -> None:
            async for item in call:
                if item.HasField("heartbeat"):
                    beats.append(asyncio.get_running_loop().time())
                else:
                    changes.append(item.record.version)

        async with asyncio.TaskGroup() as group:
            group.create_task(listen())
            await until(lambda: len(beats) >= 3)
            proxy.set(Fault.BLACK_HOLE)
            silent_s = asyncio.get_running_loop().time()
            with pytest.raises((DeadlineExceededError, UnavailableError)):
                async with asyncio.timeout(PATIENCE_S):
                    await storage.get(TYPE, "before")
            # What was read in the last second may still be vouched for, and no more than that.
            assert all(at_s < silent_s + 1.5 for at_s in beats)
            proxy.set(Fault.NONE)
            proxy.cut()
            async with asyncio.timeout(PATIENCE_S):
                while "after" not in writer.acknowledged:
                    await writer.write("after")
            await until(lambda: changes == [writer.acknowledged["after"]])
            count = len(beats)
            await until(lambda: len(beats) > count)
            call.cancel()
        await writer.check(storage)


@pytest.mark.postgres
async def test_postgres_crashes_and_comes_back(own_server: OwnServer) -> None:
    async with (
        running(postgres(own_server.dsn)) as storage,
        served(storage) as broker,
        client_of(broker.port) as client,
        feeding(client, copy := replica(), heartbeat_s=0.2, silence_s=5.0),
    ):
        writer = Writer(storage)
        async with writing(writer):
            await until(lambda: len(writer.acknowledged) >= 50)
            await asyncio.to_thread(own_server.crash)
            await until(lambda: writer.failures)
            await asyncio.to_thread(own_server.start)
            count = len(writer.acknowledged)
            await until(lambda: len(writer.acknowledged) >= count + 50, PATIENCE_S)
        await writer.check(storage)
        await converged(copy, storage)
        assert copy.ready


@pytest.mark.postgres
async def test_killing_the_listener_during_writes(dsn: str) -> None:
    """What another databroker writes arrives without any further write."""
    async with (
        running(postgres(dsn)) as ours,
        running(postgres(dsn)) as theirs,
        served(ours) as broker,
        client_of(broker.port) as client,
        feeding(client, copy := replica(), heartbeat_s=0.2, silence_s=5.0),
    ):
        writer = Writer(theirs)
        async with writing(writer):
            for count in (20, 40, 60):
                await until(lambda: len(writer.acknowledged) >= count)  # noqa: B023
                await until(lambda: disconnect(dsn, condition="query LIKE 'LISTEN%'"))
        last = max(writer.acknowledged.values())
        await until(lambda: copy.state(TYPE).record_version >= last, 10.0)
        await converged(copy, ours)


# Between the databroker and its clients


async def test_a_client_behind_a_network_that_fails(case: StorageCase) -> None:
    async with (
        served(case.storage) as broker,
        TcpFaultProxy(("127.0.0.1", broker.port)).running() as proxy,
        client_of(proxy.port) as client,
        feeding(client, copy := replica(), heartbeat_s=0.1, silence_s=1.0) as feed,
    ):
        await case.put(incoming(TYPE, "a", User()))
        await converged(copy, case.storage)
        proxy.cut()
        await case.put(incoming(TYPE, "b", User()))
        await converged(copy, case.storage)
        # Nothing arrives and nothing ends: the silence itself is what shows it.
        proxy.set(Fault.BLACK_HOLE)
        await case.put(incoming(TYPE, "c", User()))
        await until(lambda: feed.states()[TYPE].phase is Phase.WAITING)
        assert copy.get(TYPE, "b") is not None
        assert copy.get(TYPE, "c") is None
        proxy.set(Fault.NONE)
        proxy.cut()
        await converged(copy, case.storage)


# Retention


async def test_a_reader_older_than_the_log_gets_a_new_copy_without_a_gap(
    case: StorageCase,
) -> None:
    """It keeps answering from the old copy until the new one is complete."""
    ids = [f"{number:04}" for number in range(1_500)]
    await case.put(*(incoming(TYPE, id_, User(id=id_)) for id_ in ids[:1_000]))
    await case.put(*(incoming(TYPE, id_, User(id=id_)) for id_ in ids[1_000:]))
    async with (
        served(case.storage) as broker,
        TcpFaultProxy(("127.0.0.1", broker.port)).running() as proxy,
        client_of(proxy.port) as client,
        feeding(client, copy := replica(), heartbeat_s=0.1, silence_s=5.0) as feed,
    ):
        await converged(copy, case.storage)
        misses: list[str] = []
        copy.subscribe(
            lambda _change: misses.extend(id_ for id_ in ids[1:] if copy.get(TYPE, id_) is None)
        )
        proxy.set(Fault.REFUSE)
        proxy.cut()
        await until(lambda: feed.states()[TYPE].phase is Phase.WAITING)
        await case.put(incoming(TYPE, ids[0]), incoming(TYPE, "new", User()))
        await case.put(incoming(TYPE, "newer", User()))
        assert await case.storage.prune(1 << 50, 0)
        before = copy.get(TYPE, ids[1])
        proxy.set(Fault.NONE)
        await converged(copy, case.storage)
        assert copy.get(TYPE, ids[0]) is None
        assert copy.get(TYPE, ids[1]) is not before  # another copy
        assert misses == []


# A full disk

FULL_DISK = """
import asyncio, json, resource, sys
from pathlib import Path
from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.errors import UnavailableError
from gatehouse.databroker.core.records import Put
from gatehouse.databroker.edge.backends.base import running
from gatehouse.databroker.edge.backends.sqlite import SqliteStorage
from gatehouse.pb.user_pb2 import User
from tests.support.storage import incoming, secrets

async def main():
    storage = SqliteStorage(Path(sys.argv[1]), SystemClock(), SystemRng(), secrets)
    acknowledged, errors = {}, []
    async def write(id_):
        user = User(id=id_, name="x" * 20_000)
        result = await storage.write(Put((incoming("t", id_, user),)))
        acknowledged[id_] = result.records[0].version
    async with running(storage):
        await write("first")
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
        for number in range(60):
            try:
                await write(f"{number}")
            except UnavailableError as error:
                errors.append(str(error))
        assert (await storage.get("t", "first")).version == 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        await write("after")
    print(json.dumps([acknowledged, errors]))

asyncio.run(main())
"""


async def test_a_full_disk_refuses_writes_and_loses_none(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] != 0
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    acknowledged: dict[str, int]
    acknowledged, errors = json.loads(done.stdout)
    assert errors
    assert all("SQLite" in error for error in errors)
    assert {"first", "after"} <= acknowledged.keys()
    storage = SqliteStorage(tmp_path / "store", SystemClock(), SystemRng(), secrets)
    async with running(storage):
        head: Any = await storage.head("t", None, limit=1000)
        assert {record.id: record.version for record in head.records} == acknowledged
        page = await storage.changes(0, limit=1000)
        assert [record.version for record in page.changes] == list(
            range(1, page.position.latest + 1)
        )
