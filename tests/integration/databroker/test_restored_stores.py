"""Stores put back from a backup: who has seen more of them takes a new copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.databroker.replica import Replica
from gatehouse.common.errors import AbortedError
from gatehouse.common.ids import TypeUrl
from gatehouse.databroker.core.records import Put
from gatehouse.databroker.edge.backends.base import Storage, running
from gatehouse.databroker.edge.backends.connections import parse_postgres
from gatehouse.databroker.edge.backends.postgres import PostgresStorage
from gatehouse.databroker.edge.backends.sqlite import SqliteStorage
from gatehouse.databroker.edge.backends.sqlite_connection import FILE_NAME
from gatehouse.pb.user_pb2 import User
from tests.integration.databroker.test_faults import client_of, converged
from tests.support.databroker_client import feeding, until
from tests.support.postgres import fresh_database
from tests.support.storage import incoming, secrets, served
from tests.support.tcp_fault_proxy import Fault, TcpFaultProxy

TYPE = TypeUrl("t")


def file(directory: Path) -> SqliteStorage:
    return SqliteStorage(directory, SystemClock(), SystemRng(), secrets)


def postgres(dsn: str) -> PostgresStorage:
    return PostgresStorage(parse_postgres(dsn), SystemClock(), SystemRng(), secrets)


async def put(storage: Storage, *ids: str) -> None:
    for id_ in ids:
        await storage.write(Put((incoming(TYPE, id_, User(id=id_)),)))


async def history(storage: Storage) -> int:
    return (await storage.position()).server_version


@pytest.mark.parametrize("taken", ["while open", "after closing"])
async def test_a_file_put_back_begins_another_history(tmp_path: Path, taken: str) -> None:
    store, backup = tmp_path / "store", tmp_path / "backup"
    async with running(file(store)) as storage:
        await put(storage, "a")
        first = await history(storage)
        if taken == "while open":
            shutil.copytree(store, backup)
    if taken == "after closing":
        shutil.copytree(store, backup)
    async with running(file(store)) as storage:
        assert await history(storage) == first
        await put(storage, "lost")
    for name in (FILE_NAME, f"{FILE_NAME}-wal"):
        (store / name).unlink(missing_ok=True)
        if (backup / name).exists():
            shutil.copy(backup / name, store / name)
    async with running(file(store)) as storage:
        assert await storage.get(TYPE, "a") is not None
        assert await storage.get(TYPE, "lost") is None
        second = await history(storage)
        assert second != first
    async with running(file(store)) as storage:
        assert await history(storage) == second


async def test_a_file_after_kill_9_is_no_restored_one(tmp_path: Path) -> None:
    """Neither is one whose process ended between noting an epoch and entering it."""
    storage = file(tmp_path / "store")
    await storage.open()
    first = await history(storage)
    shutil.copytree(tmp_path / "store", tmp_path / "killed")
    await storage.close()
    epochs = tmp_path / "killed" / "EPOCH"
    epochs.write_text(epochs.read_text() + "another\n")
    async with running(file(tmp_path / "killed")) as storage:
        assert await history(storage) == first


@pytest.mark.postgres
async def test_a_database_copied_elsewhere_begins_another_history() -> None:
    with fresh_database() as dsn:
        async with running(postgres(dsn)) as storage:
            await put(storage, "a")
            first = await history(storage)
        async with running(postgres(dsn)) as storage:
            assert await history(storage) == first
        name = conninfo_to_dict(dsn)["dbname"]
        copied = make_conninfo(dsn, dbname=f"{name}_copy")
        with psycopg.connect(make_conninfo(dsn, dbname="postgres"), autocommit=True) as admin:
            admin.execute(f'CREATE DATABASE "{name}_copy" TEMPLATE "{name}"'.encode())
            try:
                async with running(postgres(copied)) as storage:
                    assert await storage.get(TYPE, "a") is not None
                    position = await storage.position()
                    assert position.server_version != first
                    assert position.pruned == position.latest == 1
                    await put(storage, "b")
                async with running(postgres(copied)) as storage:
                    assert await history(storage) == position.server_version
            finally:
                admin.execute(f'DROP DATABASE "{name}_copy" WITH (FORCE)'.encode())


@pytest.mark.postgres
async def test_a_log_that_was_wound_back_and_overtaken_shows() -> None:
    """The same versions again, with other changes: nobody takes them for those that they saw."""
    with fresh_database() as dsn:
        async with (
            running(postgres(dsn)) as storage,
            served(storage, poll_s=0.05) as broker,
            TcpFaultProxy(("127.0.0.1", broker.port)).running() as proxy,
            client_of(proxy.port) as client,
            feeding(client, copy := Replica({TYPE: lambda record: record.id}), heartbeat_s=0.1),
        ):
            await put(storage, "a", "b", "lost")
            await converged(copy, storage)
            first = await history(storage)
            proxy.set(Fault.REFUSE)
            proxy.cut()
            wind_back(dsn, version=2)
            await until(lambda: f"ChangeHub({first}," not in repr(broker.hub))
            assert await history(storage) != first
            proxy.set(Fault.NONE)
            await converged(copy, storage)
            assert copy.get(TYPE, "lost") is None
            assert copy.get(TYPE, "other") is not None


@pytest.mark.postgres
@pytest.mark.parametrize("seen", [(3, 0), (3, 1), (2**60, 0)], ids=["more", "other", "absurd"])
async def test_a_store_put_back_while_nobody_looked_shows_by_who_saw_more(
    seen: tuple[int, int],
) -> None:
    """The databrokers were stopped. The first who says what it saw ends the history for all."""
    version, stamp = seen
    with fresh_database() as dsn:
        async with running(postgres(dsn)) as storage:
            await put(storage, *(("a", "b", "lost") if stamp else ("a", "b")))
            first = await storage.position()
            async with served(storage) as broker, client_of(broker.port) as client:
                with pytest.raises(AbortedError):
                    async for _ in client.sync(first.server_version, version, TYPE, stamp=stamp):
                        pass
            second = await storage.position()
            assert second.server_version != first.server_version
            assert first.latest <= second.latest < 2**53
            await put(storage, "c")


@pytest.mark.postgres
@pytest.mark.parametrize("old", [True, False])
async def test_nobody_ends_a_history_by_what_is_no_proof(*, old: bool) -> None:
    """Another history's version, or one of before what was pruned."""
    with fresh_database() as dsn:
        async with running(postgres(dsn)) as storage:
            await put(storage, "a", "b")
            held = await storage.position()
            async with served(storage) as broker, client_of(broker.port) as client:
                if old:
                    await storage.prune(0, 0)
                asked = (held.server_version, 0) if old else (held.server_version + 1, 99)
                with pytest.raises(AbortedError):
                    async for _ in client.sync(*asked, TYPE):
                        pass
            assert await history(storage) == held.server_version


def wind_back(dsn: str, *, version: int) -> None:
    """Undo what came after a version, and write other changes in its place, in one go."""
    with psycopg.connect(dsn, options="-c search_path=gatehouse") as db:
        db.execute("DELETE FROM records WHERE version > %s", (version,))
        db.execute("DELETE FROM record_changes WHERE version > %s", (version,))
        for table in ("records", "record_changes"):
            db.execute(
                f"INSERT INTO {table} (version, type, id, data, modified_at_us)"
                f" SELECT number, type, 'other', data, modified_at_us + 1"
                f" FROM {table}, generate_series(3, 5) AS number WHERE version = 2"
                f" ORDER BY number{' DESC LIMIT 1' if table == 'records' else ''}".encode()
            )
        db.execute(
            "UPDATE sequencer SET latest_version = 5, latest_at_us ="
            " (SELECT modified_at_us FROM record_changes WHERE version = 5)"
        )
