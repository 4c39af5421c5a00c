"""The `file` store: SQLite in a directory of its own, for one process.

All writing happens in one thread and all reading in another, so that a long query holds up neither
writers nor the event loop. Concurrent writes share one commit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.errors import GatehouseError, UnavailableError
from gatehouse.common.observability.logging import get_logger
from gatehouse.databroker.core import leases
from gatehouse.databroker.core.feed import Position
from gatehouse.databroker.core.options import TypeRules
from gatehouse.databroker.core.query import Query
from gatehouse.databroker.core.records import Key, StoredRecord, Write
from gatehouse.databroker.core.registry import Entry
from gatehouse.databroker.edge.backends.base import (
    KEYS_CHECKED_S,
    ChangePage,
    Checkpoint,
    Figure,
    HeadPage,
    QueryAnswer,
    WriteResult,
    new_server_version,
)
from gatehouse.databroker.edge.backends.sealed_payloads import SealedPayloads, Secrets
from gatehouse.databroker.edge.backends.sqlite_connection import (
    FILE_NAME,
    Epochs,
    directory_lock,
)
from gatehouse.databroker.edge.backends.sqlite_database import SqliteDatabase
from gatehouse.databroker.edge.backends.write_queue import Committed, WriteQueue
from gatehouse.databroker.errors import StorageUnavailableError

T = TypeVar("T")

_log = get_logger("databroker")


class _Worker:
    """A connection and the only thread that uses it."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"databroker-{name}")
        self._database: SqliteDatabase | None = None

    async def open(self, connect: Callable[[], SqliteDatabase]) -> None:
        loop = asyncio.get_running_loop()
        self._database = await loop.run_in_executor(self._executor, connect)

    async def call(self, method: Callable[[SqliteDatabase], T]) -> T:
        database = self._database
        if database is None:
            raise StorageUnavailableError("the store is not open")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, method, database)

    async def close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._executor, database.close)
        self._executor.shutdown(wait=False)


class SqliteStorage:
    """Records in a SQLite file in `directory`."""

    name = "file"

    def __init__(self, directory: Path, clock: Clock, rng: Rng, secrets: Secrets) -> None:
        self._directory = directory
        self._clock = clock
        self._rng = rng
        self._codec = SealedPayloads(secrets, rng, alone=True)
        self._resources = contextlib.AsyncExitStack()
        self._writer = _Worker("writer")
        self._reader = _Worker("reader")
        self._writes = WriteQueue(self._commit)
        self._wake: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"SqliteStorage({str(self._directory)!r})"

    async def open(self) -> None:
        """Lock the directory, open the file and bring its schema up to date."""
        path = self._directory / FILE_NAME
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(directory_lock(self._directory))
            self._writer, self._reader = _Worker("writer"), _Worker("reader")
            stack.push_async_callback(self._writer.close)
            stack.push_async_callback(self._reader.close)
            await self._writer.open(partial(SqliteDatabase, path, self._codec, is_writer=True))
            server_version = new_server_version(self._rng)
            await self._writer.call(lambda db: db.migrate(server_version, self._now_us()))
            await self._begin_epoch()
            stack.push_async_callback(self._begin_epoch)
            await self._reader.open(partial(SqliteDatabase, path, self._codec, is_writer=False))
            self._resources = stack.pop_all()
        self._writes.accept()

    async def _begin_epoch(self) -> None:
        """Mark the store as opened or closed, so that a copy made before is known for one."""
        epoch, server_version = self._rng.token_bytes(8).hex(), new_server_version(self._rng)
        epochs = Epochs(self._directory)
        try:
            was_restored = await self._writer.call(
                lambda db: db.begin_epoch(epoch, epochs, server_version)
            )
        except UnavailableError as error:
            # On a full disk it goes on, and a backup of now is not known for one.
            _log.warning("opening of the store not noted", error=str(error))
            return
        if was_restored:
            _log.warning("the store was restored from a backup: beginning a new history")

    async def run(self) -> None:
        """Commit writes and look after the keys until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._writes.run())
            group.create_task(self._keep_keys())

    async def _keep_keys(self) -> None:
        while True:
            await asyncio.sleep(KEYS_CHECKED_S)
            try:
                await self._writer.call(lambda db: db.refresh_keys(self._now_us()))
            except GatehouseError as error:
                _log.error("keys of the store not looked after", error=str(error))

    async def close(self) -> None:
        """Close the file and unlock the directory."""
        await self._resources.aclose()

    def on_change(self, wake: Callable[[], None]) -> None:
        """Call `wake` after each commit."""
        self._wake = wake

    def _now_us(self) -> int:
        return int(self._clock.now_s() * 1e6)

    async def _commit(self, writes: Sequence[Write]) -> Committed:
        now_us = self._now_us()
        committed = await self._writer.call(lambda db: db.commit(writes, now_us))
        self._wake()
        return committed

    def on_listening(self, report: Callable[[GatehouseError | None], None]) -> None:
        """Do nothing: there are no others, the directory is locked."""

    def figures(self) -> Sequence[Figure]:
        """Return how much room the file takes, its write-ahead log apart."""
        path = self._directory / FILE_NAME
        return (
            Figure("storage_file_size_bytes", "Size of the SQLite file.", _size(path)),
            Figure(
                "storage_file_wal_size_bytes",
                "Size of the SQLite file's write-ahead log.",
                _size(path.with_name(f"{FILE_NAME}-wal")),
            ),
        )

    async def position(self) -> Position:
        """Return where the store stands."""
        return await self._reader.call(SqliteDatabase.position)

    async def get(self, type_: str, id_: str) -> StoredRecord | None:
        """Return a live record."""
        return await self._reader.call(lambda db: db.get(type_, id_))

    async def write(self, write: Write) -> WriteResult:
        """Apply a write as a whole."""
        return await self._writes.submit(write)

    async def query(self, query: Query) -> QueryAnswer:
        """Answer a query."""
        return await self._reader.call(lambda db: db.query(query))

    async def list_types(self) -> tuple[str, ...]:
        """Return the types that have a live record."""
        return await self._reader.call(SqliteDatabase.list_types)

    async def options(self, type_: str) -> TypeRules | None:
        """Return the options in force for a type."""
        return await self._reader.call(lambda db: db.options(type_))

    async def all_options(self) -> Mapping[str, TypeRules]:
        """Return the options of every type that has some."""
        return await self._reader.call(SqliteDatabase.all_options)

    async def set_options(self, type_: str, rules: TypeRules | None) -> None:
        """Replace what was set for a type."""
        await self._writer.call(lambda db: db.set_options(type_, rules))

    async def changes(self, after: int, *, type_: str = "", limit: int) -> ChangePage:
        """Return the next changes after a version."""
        return await self._reader.call(lambda db: db.changes(after, type_, limit))

    async def head(self, type_: str, after: Key | None, *, limit: int) -> HeadPage:
        """Return the next live records after a key."""
        return await self._reader.call(lambda db: db.head(type_, after, limit))

    async def put_access_times(self, times: Mapping[Key, int]) -> None:
        """Note when live records were used."""
        await self._writer.call(lambda db: db.put_access_times(times))

    async def access_times(self, type_: str, ids: Sequence[str]) -> Mapping[str, int]:
        """Return when live records were last used."""
        return await self._reader.call(lambda db: db.access_times(type_, ids))

    async def acquire_lease(self, name: str, new_id: str, duration_us: int) -> bool:
        """Take a lease."""
        return await self._change_lease(leases.acquisition(name, new_id, duration_us), name)

    async def renew_lease(self, name: str, lease_id: str, duration_us: int) -> bool:
        """Extend a lease."""
        return await self._change_lease(leases.renewal(name, lease_id, duration_us), name)

    async def release_lease(self, name: str, lease_id: str) -> None:
        """Give a lease back."""
        await self._change_lease(leases.giving_back(lease_id), name)

    async def _change_lease(self, change: leases.Change, name: str) -> bool:
        now_us = self._now_us()
        return await self._writer.call(lambda db: db.change_lease(change, name, now_us))

    async def register(self, entries: Sequence[Entry], ttl_us: int) -> None:
        """Note where services are."""
        end_us = self._now_us() + ttl_us
        await self._writer.call(lambda db: db.register(entries, end_us))

    async def registered(self) -> tuple[Entry, ...]:
        """Return what has not expired."""
        now_us = self._now_us()
        return await self._reader.call(lambda db: db.registered(now_us))

    async def clear(self) -> tuple[int, int]:
        """Begin a new history."""
        server_version = new_server_version(self._rng)
        versions = await self._writer.call(lambda db: db.clear(server_version))
        self._wake()
        return versions

    async def change_history(self) -> tuple[int, int]:
        """Begin a new history with the same records."""
        server_version = new_server_version(self._rng)
        versions = await self._writer.call(lambda db: db.change_history(server_version))
        self._wake()
        return versions

    async def renew_history(self, seen: Position) -> None:
        """Do nothing: with the directory locked, the file does not go back."""

    async def checkpoint(self) -> Checkpoint:
        """Return the replication position."""
        return await self._reader.call(SqliteDatabase.checkpoint)

    async def set_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Store the replication position."""
        await self._writer.call(lambda db: db.set_checkpoint(checkpoint))

    async def reapable(self) -> tuple[StoredRecord, ...]:
        """Return records past their time to live or over capacity."""
        now_us = self._now_us()
        return await self._reader.call(lambda db: db.reapable(now_us))

    async def prune(self, retention_us: int, max_bytes: int) -> int:
        """Forget old changes, long expired leases and silent services."""
        now_us = self._now_us()
        return await self._writer.call(lambda db: db.prune(now_us, retention_us, max_bytes))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # not there yet, or no longer
        return 0
