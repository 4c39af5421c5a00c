"""What only the PostgreSQL store promises: many databrokers on one database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    UnavailableError,
)
from gatehouse.databroker.core.options import TypeRules
from gatehouse.databroker.core.records import Put
from gatehouse.databroker.edge.backends.base import Storage, running
from gatehouse.databroker.edge.backends.connections import parse_postgres
from gatehouse.databroker.edge.backends.postgres import PostgresStorage
from gatehouse.databroker.edge.backends.postgres_sql import CHANNEL
from gatehouse.pb import databroker_pb2 as pb
from gatehouse.pb.user_pb2 import User
from tests.support.postgres import disconnect, fresh_database, server_dsn
from tests.support.storage import incoming, secrets, served

pytestmark = pytest.mark.postgres
PATIENCE_S = 60.0


@pytest.fixture
def dsn() -> Iterator[str]:
    with fresh_database() as made:
        yield made


def store(dsn: str, **more: Any) -> PostgresStorage:
    target = parse_postgres(make_conninfo(dsn, **more))
    return PostgresStorage(target, SystemClock(), SystemRng(), secrets)


@contextlib.asynccontextmanager
async def session(dsn: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        yield connection


async def put(storage: Storage, *ids: str) -> list[int]:
    records = tuple(incoming("t", id_, User(id=id_)) for id_ in ids)
    return [record.version for record in (await storage.write(Put(records))).records]


async def test_interleaved_writers_are_read_once_and_in_order(dsn: str) -> None:
    """Two databrokers write at the same time; a third delivers each version once, in order."""
    total = 300
    async with (
        running(store(dsn)) as first,
        running(store(dsn)) as second,
        running(store(dsn)) as third,
        served(third) as broker,
    ):
        version = (await third.position()).server_version
        call = broker.stub.Sync(pb.SyncRequest(server_version=version, type="t"))

        async def write(storage: Storage, name: str) -> None:
            for number in range(total // 2):
                await put(storage, f"{name}{number}")

        seen: list[int] = []
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(write(first, "a"))
            group.create_task(write(second, "b"))
            while len(seen) < total:
                seen.append((await call.read()).record.version)
        assert seen == list(range(1, total + 1))
        call.cancel()


async def test_a_writer_that_has_not_committed_holds_up_those_after_it(dsn: str) -> None:
    """The sequencer: no version is visible before a smaller one."""
    async with running(store(dsn)) as storage, session(dsn) as slow:
        async with slow.transaction():
            row = await slow.execute("SELECT latest_version FROM gatehouse.sequencer FOR UPDATE")
            assert await row.fetchone() == (0,)
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(put(storage, "later"))
                async with session(dsn) as watcher, asyncio.timeout(PATIENCE_S):
                    while not await _is_blocked(watcher):  # noqa: ASYNC110 - another process
                        await asyncio.sleep(0.01)
                assert not waiting.done()
                assert (await storage.changes(0, limit=10)).changes == ()
                await slow.execute(
                    "INSERT INTO gatehouse.record_changes"
                    " (version, type, id, data, modified_at_us) VALUES (1, 't', 'slow', '', 1)"
                )
                await slow.execute("UPDATE gatehouse.sequencer SET latest_version = 1")
                await slow.execute("COMMIT")
                assert await waiting == [2]
        page = await storage.changes(0, limit=10)
        assert [(record.version, record.id) for record in page.changes] == [
            (1, "slow"),
            (2, "later"),
        ]


async def _is_blocked(connection: psycopg.AsyncConnection[Any]) -> bool:
    cursor = await connection.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    row = await cursor.fetchone()
    assert row is not None
    return bool(row[0])


async def test_changes_of_another_databroker_come_by_notification(dsn: str) -> None:
    """Polling is slowed down to show that it is not what brings them."""
    async with running(store(dsn)) as writer, running(store(dsn)) as reader:  # noqa: SIM117
        async with served(reader, poll_s=60.0) as broker:
            version = (await reader.position()).server_version
            call = broker.stub.Sync(pb.SyncRequest(server_version=version, type="t"))
            await call.wait_for_connection()
            await _listening(dsn, 2)
            async with asyncio.timeout(PATIENCE_S):
                for number in range(1, 4):
                    assert await put(writer, f"{number}") == [number]
                    assert (await call.read()).record.version == number
                # A burst is announced at its beginning and once more after it.
                await asyncio.gather(*(put(writer, f"burst{number}") for number in range(50)))
                await put(writer, "end")
                while (await call.read()).record.id != "end":
                    pass
            call.cancel()


async def _listening(dsn: str, count: int) -> None:
    async with session(dsn) as watcher, asyncio.timeout(PATIENCE_S):
        while True:
            cursor = await watcher.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND query = %s",
                (f"LISTEN {CHANNEL}",),
            )
            row = await cursor.fetchone()
            if row == (count,):
                return
            await asyncio.sleep(0.01)


async def test_streams_converge_when_listening_was_cut(dsn: str) -> None:
    async with running(store(dsn)) as writer, running(store(dsn)) as reader:  # noqa: SIM117
        async with served(reader) as broker:
            version = (await reader.position()).server_version
            call = broker.stub.Sync(pb.SyncRequest(server_version=version, type="t"))
            await call.wait_for_connection()
            await _listening(dsn, 2)
            assert disconnect(dsn, condition=f"query = 'LISTEN {CHANNEL}'") == 2
            # Written while nobody listens, and nothing after it.
            await put(writer, "a")
            async with asyncio.timeout(60.0):
                assert (await call.read()).record.version == 1
            await _listening(dsn, 2)
            call.cancel()


async def test_losing_every_connection_costs_no_committed_write(dsn: str) -> None:
    async with running(store(dsn)) as storage:
        acknowledged: set[str] = set()

        async def write(number: int) -> None:
            with contextlib.suppress(UnavailableError):
                await put(storage, f"{number}")
                acknowledged.add(f"{number}")

        for start in range(0, 100, 20):
            async with asyncio.TaskGroup() as group:
                for number in range(start, start + 20):
                    group.create_task(write(number))
                disconnect(dsn)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(UnavailableError):
                    await put(storage, "last")
                    break
        page = await storage.changes(0, limit=1000)
        versions = [record.version for record in page.changes]
        assert versions == list(range(1, len(versions) + 1))
        assert acknowledged < {record.id for record in page.changes}


async def test_reads_survive_a_dead_pooled_connection(dsn: str) -> None:
    async with running(store(dsn, application_name="reads")) as storage:
        for _ in range(5):
            assert (await storage.position()).latest == 0
            disconnect(dsn, condition="application_name = 'reads'")
        assert (await storage.position()).latest == 0


async def test_a_write_not_begun_survives_a_dead_pooled_connection(dsn: str) -> None:
    async with running(store(dsn, application_name="writes")) as storage:
        for number in range(1, 5):
            assert await put(storage, f"{number}") == [number]
            disconnect(dsn, condition="application_name = 'writes'")
        assert await put(storage, "last") == [5]


async def test_clear_on_one_databroker_aborts_streams_of_another(dsn: str) -> None:
    async with running(store(dsn)) as first, running(store(dsn)) as second:  # noqa: SIM117
        async with served(second) as broker:
            version = (await second.position()).server_version
            call = broker.stub.Sync(pb.SyncRequest(server_version=version, type="t"))
            await call.wait_for_connection()
            await first.clear()
            assert await _end_of(call) is grpc.StatusCode.ABORTED


async def _end_of(call: Any) -> grpc.StatusCode:
    """Read a stream until it fails; return its status."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            async for _ in call:
                pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_a_restored_backup_begins_another_history(dsn: str) -> None:
    """The store stands behind what was already handed out: clients must start over."""
    async with running(store(dsn)) as storage, served(storage, poll_s=0.1) as broker:
        await put(storage, "a")
        async with session(dsn) as admin:
            await put(storage, "b", "c")
            version = (await storage.position()).server_version
            request = pb.SyncRequest(server_version=version, record_version=1, type="t")
            call = broker.stub.Sync(request)
            async with asyncio.timeout(PATIENCE_S):
                assert (await call.read()).record.version == 2
            await admin.execute("UPDATE gatehouse.sequencer SET latest_version = 1")
            await admin.execute("DELETE FROM gatehouse.record_changes WHERE version > 1")
            await admin.execute("DELETE FROM gatehouse.records WHERE version > 1")
        assert await _end_of(call) is grpc.StatusCode.ABORTED
        position = await storage.position()
        assert position.server_version != version
        assert await put(storage, "d") == [4]  # above everything that was handed out


async def test_many_databrokers_may_start_on_an_empty_database(dsn: str) -> None:
    stores = [store(dsn) for _ in range(6)]
    try:
        await asyncio.gather(*(storage.open() for storage in stores))
        versions = {(await storage.position()).server_version for storage in stores}
        assert len(versions) == 1
    finally:
        for storage in stores:
            await storage.close()


async def test_a_newer_schema_is_refused(dsn: str) -> None:
    async with running(store(dsn)), session(dsn) as admin:
        await admin.execute("INSERT INTO gatehouse.schema_version VALUES (99)")
        with pytest.raises(FailedPreconditionError, match="schema version 99"):
            await store(dsn).open()


async def test_a_role_without_ddl_rights_can_use_a_schema_made_for_it(dsn: str) -> None:
    role = sql.Identifier("gatehouse_plain_role")
    async with session(dsn) as admin:
        await admin.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(role))
        await admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        try:
            with pytest.raises(FailedPreconditionError, match="schema gatehouse"):
                await store(dsn, user="gatehouse_plain_role").open()
            async with running(store(dsn)):
                pass
            for grant in (
                "GRANT USAGE ON SCHEMA gatehouse TO {}",
                "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA gatehouse TO {}",
            ):
                await admin.execute(sql.SQL(grant).format(role))
            async with running(store(dsn, user="gatehouse_plain_role")) as storage:
                assert await put(storage, "a") == [1]
        finally:
            await admin.execute(sql.SQL("DROP OWNED BY {}").format(role))
            await admin.execute(sql.SQL("DROP ROLE {}").format(role))


async def test_an_unreachable_server_is_unavailable(dsn: str) -> None:
    nowhere = store(dsn, host="127.0.0.1", port="1", password="hunter2")
    with pytest.raises(UnavailableError) as caught:
        await nowhere.open()
    assert "hunter2" not in str(caught.value)
    assert "127.0.0.1" not in caught.value.public_message
    await nowhere.close()
    with pytest.raises(UnavailableError):
        await nowhere.position()


async def test_a_statement_that_takes_too_long(dsn: str) -> None:
    async with running(store(dsn)) as storage, session(dsn) as blocker:

        async def run(limit: str, statement: str) -> None:
            async with storage._db.pooled() as connection:
                await connection.execute(f"SET {limit} = '50ms'".encode())
                try:
                    await connection.execute(statement.encode())
                finally:
                    await connection.execute(f"RESET {limit}".encode())

        with pytest.raises(DeadlineExceededError):
            await run("statement_timeout", "SELECT pg_sleep(10)")
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE gatehouse.sequencer")
            with pytest.raises(DeadlineExceededError):
                await run("lock_timeout", "SELECT * FROM gatehouse.sequencer")
        assert await put(storage, "still works") == [1]


async def test_connections_have_their_timeouts(dsn: str) -> None:
    async with running(store(dsn)) as storage, storage._db.pooled() as connection:
        found = []
        for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
            cursor = await connection.execute(sql.SQL("SHOW {}").format(sql.Identifier(name)))
            row = await cursor.fetchone()
            assert row is not None
            found.append(row[0])
        assert found == ["10s", "8s", "5s"]


async def test_a_read_only_server_is_unavailable_for_writing(dsn: str) -> None:
    async with running(store(dsn)):
        pass
    options = "-c default_transaction_read_only=on"
    async with running(store(dsn, options=options)) as storage:
        assert (await storage.position()).latest == 0
        with pytest.raises(UnavailableError):
            await put(storage, "a")


async def test_options_set_elsewhere_hold_here(dsn: str) -> None:
    async with running(store(dsn)) as first, running(store(dsn)) as second:
        await first.set_options("t", TypeRules(capacity=1))
        await put(second, "a", "b")
        head = await second.head("t", None, limit=10)
        assert [record.id for record in head.records] == ["b"]


def test_the_server_is_real() -> None:
    with psycopg.connect(server_dsn()) as connection:
        assert connection.info.server_version >= 140000
