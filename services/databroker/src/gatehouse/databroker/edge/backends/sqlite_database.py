"""The SQLite file behind the `file` store: blocking calls, each one transaction.

One `SqliteDatabase` belongs to one thread. The writing one owns the directory: an exclusive lock
on its LOCK file keeps a second process out. Commits are durable before they return (write-ahead
log, synchronous=FULL), so that a killed process loses nothing that was acknowledged.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final

from gatehouse.common.errors import (
    InternalError,
)
from gatehouse.databroker.core import leases
from gatehouse.databroker.core.feed import Position
from gatehouse.databroker.core.options import BUILT_IN, NO_RULES, TypeRules, effective
from gatehouse.databroker.core.query import (
    Query,
    QueryResults,
    Selection,
    index_terms,
    narrow,
)
from gatehouse.databroker.core.records import Key, Plan, Reap, StoredRecord, Write, keys_of, plan
from gatehouse.databroker.edge.backends.base import (
    LEASE_KEPT_US,
    MAX_PAGE_BYTES,
    MAX_PRUNED,
    MAX_REAPED,
    ChangePage,
    Checkpoint,
    HeadPage,
    PayloadCodec,
    QueryAnswer,
)
from gatehouse.databroker.edge.backends.write_queue import Committed
from gatehouse.databroker.edge.migrations import SQLITE_VERSION, read_step
from gatehouse.databroker.errors import StorageUnavailableError, StorageUnusableError

FILE_NAME: Final = "databroker.sqlite3"
LOCK_NAME: Final = "LOCK"
_BUSY_TIMEOUT_S: Final = 5.0
_COLUMNS: Final = "version, type, id, data, modified_at_us"
# Each type costs one index probe, whatever the number of its records.
_TYPES: Final = """
    WITH RECURSIVE types(type) AS (
        SELECT (SELECT min(type) FROM records)
        UNION ALL
        SELECT (SELECT min(type) FROM records WHERE records.type > types.type)
        FROM types WHERE types.type IS NOT NULL
    )
    SELECT type FROM types WHERE type IS NOT NULL"""


@contextlib.contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Hold a store directory for this process; make it if need be (mode 0700).

    Raises StorageUnusableError when another process holds it or it cannot be used.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageUnusableError(
            f"the databroker cannot use the directory {directory}: {error.strerror}; "
            "databroker_storage_connection_string must name one that it may write to"
        ) from error
    with os.fdopen(descriptor, "r+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageUnusableError(
                f"the databroker's directory {directory} is in use by process {_holder(lock)}; "
                "one process at a time may have it (use postgres storage for several)",
                reason="storage-in-use",
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _holder(lock: IO[str]) -> str:
    lock.seek(0)
    return lock.read(32).strip() or "another"


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StorageUnavailableError(f"SQLite: {error}") from error
    except sqlite3.Error as error:
        raise InternalError(
            f"SQLite: {error}", reason="storage-broken", public_message="the store is broken"
        ) from error


class SqliteDatabase:
    """One connection. Every public method is one transaction. Times are Unix microseconds."""

    def __init__(self, path: Path, codec: PayloadCodec, *, is_writer: bool) -> None:
        self._codec = codec
        if is_writer:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        with _translated():
            self._db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
            try:
                _check_format(self._db, path)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                if not is_writer:
                    self._db.execute("PRAGMA query_only = ON")
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the connection; the last one folds the write-ahead log into the file."""
        self._db.close()

    @contextlib.contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        with _translated():
            self._db.execute(begin)
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _reading(self) -> contextlib.AbstractContextManager[None]:
        return self._transaction("BEGIN DEFERRED")

    def _rows(self, sql: str, *args: Any) -> list[Any]:
        return self._db.execute(sql, args).fetchall()

    def _row(self, sql: str, *args: Any) -> Any:
        return self._db.execute(sql, args).fetchone()

    # Schema

    def migrate(self, server_version: int) -> None:
        """Bring the schema up to date; a new store begins with that server version."""
        with self._transaction():
            (version,) = self._row("PRAGMA user_version")
            if version > SQLITE_VERSION:
                raise StorageUnusableError(
                    f"the databroker's SQLite file has schema version {version}, this release "
                    f"knows up to {SQLITE_VERSION}; run the newer release"
                )
            for step in range(version + 1, SQLITE_VERSION + 1):
                for statement in _statements(read_step("sqlite", step)):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {SQLITE_VERSION:d}")
            self._db.execute(
                "INSERT OR IGNORE INTO sequencer (only_row, server_version, latest_version,"
                " pruned_version) VALUES (1, ?, 0, 0)",
                (server_version,),
            )
            for type_ in sorted({*BUILT_IN, *(name for (name,) in self._rows(_TYPES))}):
                self._reindex(type_)

    # Reading

    def position(self) -> Position:
        """Return where the store stands."""
        with _translated():
            return self._position()

    def _position(self) -> Position:
        return Position(
            *self._row("SELECT server_version, latest_version, pruned_version FROM sequencer")
        )

    def _record(self, row: Sequence[Any]) -> StoredRecord:
        version, type_, id_, stored, modified_at_us, *deleted = row
        data = self._codec.open((type_, id_), stored)
        return StoredRecord(version, type_, id_, data, modified_at_us, *deleted)

    def get(self, type_: str, id_: str) -> StoredRecord | None:
        """Return a live record."""
        with _translated():
            return self._get((type_, id_))

    def _get(self, key: Key) -> StoredRecord | None:
        row = self._row(f"SELECT {_COLUMNS} FROM records WHERE type = ? AND id = ?", *key)  # noqa: S608
        return None if row is None else self._record(row)

    def changes(self, after: int, type_: str, limit: int) -> ChangePage:
        """Return the next changes after a version."""
        where = "version > ? AND type = ?" if type_ else "version > ?"
        args = (after, type_) if type_ else (after,)
        with self._reading():
            position = self._position()
            cursor = self._db.execute(
                f"SELECT {_COLUMNS}, deleted_at_us FROM record_changes WHERE {where}"  # noqa: S608
                " ORDER BY version LIMIT ?",
                (*args, limit),
            )
            found, is_cut = self._page(cursor, limit)
        return ChangePage(position, found, found[-1].version if is_cut else position.latest)

    def head(self, type_: str, after: Key | None, limit: int) -> HeadPage:
        """Return the next live records after a key."""
        where, args = ["TRUE"], []
        if type_:
            where.append("type = ?")
            args.append(type_)
        if after is not None:
            where.append("(type, id) > (?, ?)")
            args += after
        with _translated():
            cursor = self._db.execute(
                f"SELECT {_COLUMNS} FROM records WHERE {' AND '.join(where)}"  # noqa: S608
                " ORDER BY type, id LIMIT ?",
                (*args, limit),
            )
            found, is_cut = self._page(cursor, limit)
        return HeadPage(found, is_last=not is_cut)

    def _page(self, cursor: sqlite3.Cursor, limit: int) -> tuple[tuple[StoredRecord, ...], bool]:
        """Read records until `limit` or MAX_PAGE_BYTES; True when there may be more."""
        found: list[StoredRecord] = []
        size = 0
        with contextlib.closing(cursor):
            for row in cursor:
                found.append(self._record(row))
                size += len(found[-1].data)
                if size >= MAX_PAGE_BYTES:
                    return tuple(found), True
        return tuple(found), len(found) == limit

    def query(self, query: Query) -> QueryAnswer:
        """Answer a query from one snapshot."""
        with self._reading():
            position = self._position()
            if query.is_listing:
                return self._list(query, position)
            indexed = self._indexed_fields(query.type) if query.type else ()
            selection = narrow(query.expression, indexed)
            results = QueryResults(query, is_narrowed=selection is not None)
            with contextlib.closing(self._candidates(query.type, selection)) as cursor:
                for row in cursor:
                    results.add(self._record(row))
                    if results.is_complete:
                        break
            return QueryAnswer(results.records(), results.total, position)

    def _list(self, query: Query, position: Position) -> QueryAnswer:
        where, args = ("type = ?", (query.type,)) if query.type else ("TRUE", ())
        (total,) = self._row(f"SELECT count(*) FROM records WHERE {where}", *args)  # noqa: S608
        results = QueryResults(replace(query, offset=0), is_narrowed=True)
        cursor = self._db.execute(
            f"SELECT {_COLUMNS} FROM records WHERE {where}"  # noqa: S608
            " ORDER BY type, id LIMIT ? OFFSET ?",
            (*args, query.limit, query.offset),
        )
        with contextlib.closing(cursor):
            for row in cursor:
                results.add(self._record(row))
        return QueryAnswer(results.records(), total, position)

    def _candidates(self, type_: str, selection: Selection | None) -> sqlite3.Cursor:
        if selection is None:
            where, args = ("type = ?", (type_,)) if type_ else ("TRUE", ())
            return self._db.execute(
                f"SELECT {_COLUMNS} FROM records WHERE {where} ORDER BY type, id",  # noqa: S608
                args,
            )
        ids = json.dumps(sorted(selection.ids))
        terms = json.dumps(sorted(selection.terms))
        types = json.dumps([type_] if type_ else [name for (name,) in self._rows(_TYPES)])
        return self._db.execute(
            f"""
            WITH wanted AS (
                SELECT types.value AS type, ids.value AS id
                FROM json_each(?) AS types, json_each(?) AS ids
                UNION
                SELECT record_index.type, record_index.id
                FROM json_each(?) AS terms CROSS JOIN record_index
                    ON record_index.field = terms.value ->> 0
                    AND record_index.value = terms.value ->> 1
                WHERE record_index.type IN (SELECT value FROM json_each(?))
            )
            SELECT {_COLUMNS} FROM wanted CROSS JOIN records USING (type, id)
            ORDER BY type, id""",  # noqa: S608
            (types, ids, terms, types),
        )

    def list_types(self) -> tuple[str, ...]:
        """Return the types that have a live record."""
        with _translated():
            return tuple(name for (name,) in self._rows(_TYPES))

    # Options and indexes

    def options(self, type_: str) -> TypeRules | None:
        """Return the options in force for a type."""
        with _translated():
            return effective(type_, self._stored_options(type_))

    def all_options(self) -> Mapping[str, TypeRules]:
        """Return the options of every type that has some."""
        with _translated():
            stored = {
                type_: TypeRules(capacity, ttl_us, tuple(json.loads(fields)))
                for type_, capacity, ttl_us, fields in self._rows(
                    "SELECT type, capacity, ttl_us, fields FROM record_options"
                )
            }
        return dict(sorted({**BUILT_IN, **stored}.items()))

    def _stored_options(self, type_: str) -> TypeRules | None:
        row = self._row("SELECT capacity, ttl_us, fields FROM record_options WHERE type = ?", type_)
        return None if row is None else TypeRules(row[0], row[1], tuple(json.loads(row[2])))

    def set_options(self, type_: str, rules: TypeRules | None) -> None:
        """Replace what was set for a type."""
        with self._transaction():
            self._db.execute("DELETE FROM record_options WHERE type = ?", (type_,))
            if rules is not None:
                self._db.execute(
                    "INSERT INTO record_options (type, capacity, ttl_us, fields)"
                    " VALUES (?, ?, ?, ?)",
                    (type_, rules.capacity, rules.ttl_us, json.dumps(rules.indexed)),
                )
            self._reindex(type_)

    def _indexed_fields(self, type_: str) -> tuple[str, ...]:
        row = self._row("SELECT fields FROM indexed_fields WHERE type = ?", type_)
        return () if row is None else tuple(json.loads(row[0]))

    def _rules(self, type_: str) -> TypeRules:
        """Return the rules in force, with the fields that are indexed at this moment."""
        rules = effective(type_, self._stored_options(type_)) or NO_RULES
        return TypeRules(rules.capacity, rules.ttl_us, self._indexed_fields(type_))

    def _reindex(self, type_: str) -> None:
        before = self._indexed_fields(type_)
        after = (effective(type_, self._stored_options(type_)) or NO_RULES).indexed
        if set(before) == set(after):
            return
        self._db.execute(
            "INSERT OR REPLACE INTO indexed_fields (type, fields) VALUES (?, ?)",
            (type_, json.dumps(after)),
        )
        cursor = self._db.execute(f"SELECT {_COLUMNS} FROM records WHERE type = ?", (type_,))  # noqa: S608
        with contextlib.closing(cursor):
            for row in cursor:
                record = self._record(row)
                old, new = index_terms(record.data, before), index_terms(record.data, after)
                self._index(record.key, old, new)

    def _index(
        self, key: Key, old: frozenset[tuple[str, str]], new: frozenset[tuple[str, str]]
    ) -> None:
        self._db.executemany(
            "DELETE FROM record_index WHERE field = ? AND value = ? AND type = ? AND id = ?",
            [(*term, *key) for term in old - new],
        )
        self._db.executemany(
            "INSERT OR IGNORE INTO record_index (field, value, type, id) VALUES (?, ?, ?, ?)",
            [(*term, *key) for term in new - old],
        )

    # Writing

    def commit(self, writes: Sequence[Write], now_us: int) -> Committed:
        """Apply a batch of writes in one transaction."""
        with self._transaction():
            position = self._position()
            planned = self._apply(writes, position.latest, now_us)
            latest = planned.latest
            for type_ in sorted({record.type for record in planned.changes}):
                over = self._over_capacity(type_)
                if over:
                    latest = self._apply([Reap(over)], latest, now_us).latest
            self._db.execute("UPDATE sequencer SET latest_version = ?", (latest,))
        return Committed(position.server_version, planned.outcomes)

    def _apply(self, writes: Sequence[Write], latest: int, now_us: int) -> Plan:
        keys = keys_of(writes)
        held = {key: record for key in keys if (record := self._get(key)) is not None}
        rules = {type_: self._rules(type_) for type_ in {key[0] for key in keys}}
        planned = plan(writes, held, rules, latest=latest, now_us=now_us)
        self._db.executemany(
            f"INSERT INTO record_changes ({_COLUMNS}, deleted_at_us) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608
            [(*self._columns(record), record.deleted_at_us) for record in planned.changes],
        )
        for key, record in planned.head.items():
            if record is None:
                self._db.execute("DELETE FROM records WHERE type = ? AND id = ?", key)
            else:
                self._db.execute(
                    f"INSERT OR REPLACE INTO records ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)",  # noqa: S608
                    self._columns(record),
                )
            fields = rules[key[0]].indexed
            self._index(key, _terms(held.get(key), fields), _terms(record, fields))
        return planned

    def _columns(self, record: StoredRecord) -> tuple[Any, ...]:
        stored = self._codec.seal(record.key, record.data)
        return record.version, record.type, record.id, stored, record.modified_at_us

    def _over_capacity(self, type_: str) -> tuple[StoredRecord, ...]:
        capacity = self._rules(type_).capacity
        if capacity is None:
            return ()
        rows = self._rows(
            f"SELECT * FROM (SELECT {_COLUMNS} FROM records WHERE type = ?"  # noqa: S608
            " ORDER BY version DESC LIMIT -1 OFFSET ?) ORDER BY version LIMIT ?",
            type_,
            capacity,
            MAX_REAPED,
        )
        return tuple(self._record(row) for row in rows)

    def clear(self, server_version: int) -> tuple[int, int]:
        """Begin a new history under that server version; return the old and the new one."""
        with self._transaction():
            old = self._position().server_version
            for table in ("records", "record_changes", "record_index", "record_options"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608
            self._db.execute("DELETE FROM indexed_fields")
            for type_ in BUILT_IN:
                self._reindex(type_)
            self._db.execute(
                "UPDATE sequencer SET server_version = ?, pruned_version = latest_version,"
                " checkpoint_server_version = '0', checkpoint_record_version = '0'",
                (server_version,),
            )
        return old, server_version

    # Leases and checkpoint

    def change_lease(self, change: leases.Change, name: str, now_us: int) -> bool:
        """Store what `change` makes of the held lease; False when it makes nothing of it."""
        with self._transaction():
            row = self._row(
                "SELECT name, id, expires_at_us, fence FROM leases WHERE name = ?", name
            )
            lease = change(None if row is None else leases.Lease(*row), now_us)
            if lease is None:
                return False
            self._db.execute(
                "INSERT OR REPLACE INTO leases (name, id, expires_at_us, fence)"
                " VALUES (?, ?, ?, ?)",
                (lease.name, lease.id, lease.expires_at_us, lease.fence),
            )
            return True

    def checkpoint(self) -> Checkpoint:
        """Return the replication position."""
        with _translated():
            row = self._row(
                "SELECT checkpoint_server_version, checkpoint_record_version FROM sequencer"
            )
        return Checkpoint(int(row[0]), int(row[1]))

    def set_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Store the replication position."""
        with self._transaction():
            self._db.execute(
                "UPDATE sequencer SET checkpoint_server_version = ?, checkpoint_record_version = ?",
                (str(checkpoint.server_version), str(checkpoint.record_version)),
            )

    # Cleaning

    def reapable(self, now_us: int) -> tuple[StoredRecord, ...]:
        """Return records past their time to live or over capacity."""
        found: list[StoredRecord] = []
        for type_, rules in self.all_options().items():
            with self._reading():
                found += self._over_capacity(type_)
                if rules.ttl_us is not None:
                    rows = self._rows(
                        f"SELECT {_COLUMNS} FROM records WHERE type = ? AND modified_at_us < ?"  # noqa: S608
                        " LIMIT ?",
                        type_,
                        now_us - rules.ttl_us,
                        MAX_REAPED,
                    )
                    found += (self._record(row) for row in rows)
            if len(found) >= MAX_REAPED:
                break
        return tuple(found[:MAX_REAPED])

    def prune(self, now_us: int, retention_us: int) -> int:
        """Forget old changes and long expired leases."""
        with self._transaction():
            self._db.execute(
                "DELETE FROM leases WHERE expires_at_us < ?", (now_us - LEASE_KEPT_US,)
            )
            (old,) = self._row(
                "SELECT max(version) FROM record_changes WHERE modified_at_us < ?",
                now_us - retention_us,
            )
            if old is None:
                return 0
            position = self._position()
            end = min(old, position.latest - 1, position.pruned + MAX_PRUNED)
            gone = self._db.execute("DELETE FROM record_changes WHERE version <= ?", (end,))
            if gone.rowcount:
                self._db.execute("UPDATE sequencer SET pruned_version = ?", (end,))
            return gone.rowcount


def _check_format(db: sqlite3.Connection, path: Path) -> None:
    try:
        db.execute("PRAGMA schema_version").fetchone()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise StorageUnusableError(
            f"{path} is not a SQLite database ({error}); move it away or restore a backup"
        ) from error


def _terms(record: StoredRecord | None, fields: Iterable[str]) -> frozenset[tuple[str, str]]:
    return frozenset() if record is None else index_terms(record.data, fields)


def _statements(script: str) -> Iterator[str]:
    """Split a script of ours into statements; `executescript` would commit in between."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
    assert not pending.strip(), pending
