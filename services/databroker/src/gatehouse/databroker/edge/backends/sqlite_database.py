"""The SQLite file behind the `file` store: blocking calls, each one transaction.

One `SqliteDatabase` belongs to one thread. The writing one owns the directory: an exclusive lock
on its LOCK file keeps a second process out. Commits are durable before they return (write-ahead
log, synchronous=FULL), so that a killed process loses nothing that was acknowledged.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

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
from gatehouse.databroker.core.registry import Entry
from gatehouse.databroker.core.sealing import WrappedKey
from gatehouse.databroker.edge.backends.base import (
    LEASE_KEPT_US,
    MAX_PAGE_BYTES,
    MAX_PRUNED,
    MAX_REAPED,
    ChangePage,
    Checkpoint,
    HeadPage,
    QueryAnswer,
    change_size,
)
from gatehouse.databroker.edge.backends.sealed_payloads import SealedPayloads
from gatehouse.databroker.edge.backends.sqlite_connection import (
    Epochs,
    SqliteConnection,
    translated,
)
from gatehouse.databroker.edge.backends.write_queue import Committed

_CLEARED: Final = (
    "records",
    "record_changes",
    "record_index",
    "record_options",
    "indexed_fields",
    "access_times",
)
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


class SqliteDatabase(SqliteConnection):
    """One connection. Every public method is one transaction. Times are Unix microseconds."""

    def __init__(self, path: Path, codec: SealedPayloads, *, is_writer: bool) -> None:
        super().__init__(path, is_writer=is_writer)
        self._codec = codec

    def migrate(self, server_version: int, now_us: int) -> None:
        """Bring the schema up to date; a new store begins with that server version."""
        with self._transaction():
            self._create_tables()
            self._db.execute(
                "INSERT OR IGNORE INTO sequencer (only_row, server_version, latest_version,"
                " pruned_version) VALUES (1, ?, 0, 0)",
                (server_version,),
            )
        self.refresh_keys(now_us)
        with self._transaction():
            for type_ in sorted({*BUILT_IN, *(name for (name,) in self._rows(_TYPES))}):
                self._reindex(type_)

    def begin_epoch(self, epoch: str, epochs: Epochs, server_version: int) -> bool:
        """Enter a new epoch; True when the store was restored, which begins a new history."""
        with translated():
            (held,) = self._row("SELECT epoch FROM sequencer")
        was_restored = held != "" and held not in epochs.read()
        epochs.write(held, epoch)
        with self._transaction():
            if was_restored:
                self._db.execute(
                    "UPDATE sequencer SET server_version = ?, pruned_version = latest_version,"
                    " latest_at_us = 0",
                    (server_version,),
                )
            self._db.execute("UPDATE sequencer SET epoch = ?", (epoch,))
        epochs.write(epoch)
        return was_restored

    # Sealing

    def refresh_keys(self, now_us: int) -> None:
        """Bring the data keys in line with the secrets in force; make a new one when due."""
        with self._transaction():
            rows = self._rows("SELECT id, created_at_us, wrapped_by, wrapped FROM data_keys")
            plan = self._codec.plan([WrappedKey(*row) for row in rows], now_us)
            self._db.executemany(
                "INSERT OR REPLACE INTO data_keys (id, created_at_us, wrapped_by, wrapped)"
                " VALUES (?, ?, ?, ?)",
                [(row.id, row.created_at_us, row.wrapped_by, row.wrapped) for row in plan.changed],
            )
        self._codec.install(plan)

    # Reading

    def position(self) -> Position:
        """Return where the store stands."""
        with translated():
            return self._position()

    def _position(self) -> Position:
        return Position(
            *self._row(
                "SELECT server_version, latest_version, pruned_version, latest_at_us FROM sequencer"
            )
        )

    def _record(self, row: Sequence[Any]) -> StoredRecord:
        version, type_, id_, stored, modified_at_us, *deleted = row
        data = self._codec.open((type_, id_), stored)
        return StoredRecord(version, type_, id_, data, modified_at_us, *deleted)

    def get(self, type_: str, id_: str) -> StoredRecord | None:
        """Return a live record."""
        with translated():
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
            before = self._row("SELECT modified_at_us FROM record_changes WHERE version = ?", after)
        end = found[-1].version if is_cut else position.latest
        return ChangePage(position, found, end, before[0] if before else 0)

    def head(self, type_: str, after: Key | None, limit: int) -> HeadPage:
        """Return the next live records after a key."""
        where, args = ["TRUE"], []
        if type_:
            where.append("type = ?")
            args.append(type_)
        if after is not None:
            where.append("(type, id) > (?, ?)")
            args += after
        with translated():
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
        with translated():
            return tuple(name for (name,) in self._rows(_TYPES))

    # Options and indexes

    def options(self, type_: str) -> TypeRules | None:
        """Return the options in force for a type."""
        with translated():
            return effective(type_, self._stored_options(type_))

    def all_options(self) -> Mapping[str, TypeRules]:
        """Return the options of every type that has some."""
        with translated():
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
            if latest != position.latest:
                self._db.execute(
                    "UPDATE sequencer SET latest_version = ?, latest_at_us = ?", (latest, now_us)
                )
        return Committed(position.server_version, planned.outcomes)

    def _apply(self, writes: Sequence[Write], latest: int, now_us: int) -> Plan:
        keys = keys_of(writes)
        held = {key: record for key in keys if (record := self._get(key)) is not None}
        rules = {type_: self._rules(type_) for type_ in {key[0] for key in keys}}
        planned = plan(writes, held, rules, latest=latest, now_us=now_us)
        self._append(planned.changes)
        for key, record in planned.head.items():
            if record is None:
                self._db.execute("DELETE FROM records WHERE type = ? AND id = ?", key)
                self._db.execute("DELETE FROM access_times WHERE type = ? AND id = ?", key)
            else:
                self._db.execute(
                    f"INSERT OR REPLACE INTO records ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)",  # noqa: S608
                    self._columns(record),
                )
            fields = rules[key[0]].indexed
            self._index(key, _terms(held.get(key), fields), _terms(record, fields))
        return planned

    def _append(self, changes: Sequence[StoredRecord]) -> None:
        (log_bytes,) = self._row("SELECT log_bytes FROM sequencer")
        rows = []
        for record in changes:
            columns = self._columns(record)
            log_bytes += change_size(record, len(columns[3]))
            rows.append((*columns, record.deleted_at_us, log_bytes))
        self._db.executemany(
            f"INSERT INTO record_changes ({_COLUMNS}, deleted_at_us, end_bytes)"  # noqa: S608
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        self._db.execute("UPDATE sequencer SET log_bytes = ?", (log_bytes,))

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
            for table in _CLEARED:
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608
            for type_ in BUILT_IN:
                self._reindex(type_)
            self._db.execute(
                "UPDATE sequencer SET server_version = ?, pruned_version = latest_version,"
                " latest_at_us = 0, checkpoint_server_version = '0',"
                " checkpoint_record_version = '0'",
                (server_version,),
            )
        return old, server_version

    def change_history(self, server_version: int) -> tuple[int, int]:
        """Begin a new history with the same records; return the old and the new server version."""
        with self._transaction():
            old = self._position().server_version
            self._db.execute(
                "UPDATE sequencer SET server_version = ?, pruned_version = latest_version,"
                " latest_at_us = 0",
                (server_version,),
            )
        return old, server_version

    # Access times, leases, services and checkpoint

    def put_access_times(self, times: Mapping[Key, int]) -> None:
        """Note when live records were used; the later time stays."""
        with self._transaction():
            self._db.executemany(
                "INSERT INTO access_times (type, id, accessed_at_us)"
                " SELECT type, id, ? FROM records WHERE type = ? AND id = ?"
                " ON CONFLICT (type, id) DO UPDATE SET accessed_at_us = excluded.accessed_at_us"
                " WHERE accessed_at_us < excluded.accessed_at_us",
                [(accessed_at_us, *key) for key, accessed_at_us in times.items()],
            )

    def access_times(self, type_: str, ids: Sequence[str]) -> Mapping[str, int]:
        """Return when live records were last used."""
        with translated():
            return dict(
                self._rows(
                    "SELECT id, accessed_at_us FROM access_times"
                    " WHERE type = ? AND id IN (SELECT value FROM json_each(?))",
                    type_,
                    json.dumps(ids),
                )
            )

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

    def register(self, entries: Sequence[Entry], expires_at_us: int) -> None:
        """Note where services are."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO services (kind, endpoint, expires_at_us) VALUES (?, ?, ?)",
                [(*entry, expires_at_us) for entry in entries],
            )

    def registered(self, now_us: int) -> tuple[Entry, ...]:
        """Return what has not expired."""
        with translated():
            return tuple(
                self._rows(
                    "SELECT kind, endpoint FROM services WHERE expires_at_us > ?"
                    " ORDER BY kind, endpoint",
                    now_us,
                )
            )

    def checkpoint(self) -> Checkpoint:
        """Return the replication position."""
        with translated():
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

    def prune(self, now_us: int, retention_us: int, max_bytes: int) -> int:
        """Forget old changes, long expired leases and silent services."""
        with self._transaction():
            self._db.execute(
                "DELETE FROM leases WHERE expires_at_us < ?", (now_us - LEASE_KEPT_US,)
            )
            self._db.execute("DELETE FROM services WHERE expires_at_us < ?", (now_us,))
            (end,) = self._row(
                "SELECT max(version) FROM"
                " (SELECT * FROM record_changes ORDER BY version LIMIT ?) AS oldest"
                " WHERE modified_at_us < ? OR end_bytes <= (SELECT log_bytes FROM sequencer) - ?",
                MAX_PRUNED,
                now_us - retention_us,
                max_bytes,
            )
            if end is None:
                return 0
            end = min(end, self._position().latest - 1)
            gone = self._db.execute("DELETE FROM record_changes WHERE version <= ?", (end,))
            if gone.rowcount:
                self._db.execute("UPDATE sequencer SET pruned_version = ?", (end,))
            return gone.rowcount


def _terms(record: StoredRecord | None, fields: Iterable[str]) -> frozenset[tuple[str, str]]:
    return frozenset() if record is None else index_terms(record.data, fields)
