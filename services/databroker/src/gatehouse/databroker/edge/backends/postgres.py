"""The PostgreSQL store, for any number of databrokers.

A writer locks the one row of `sequencer` from the moment it learns its versions until it has
committed, so versions become visible in order and a reader that has seen version n has seen all
before it. Concurrent writes of one process share a transaction. Other processes hear of a change
by NOTIFY, sent inside the transaction and at most 20 times a second; what is not announced they
find by polling.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg.rows import TupleRow

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.errors import GatehouseError
from gatehouse.common.observability.logging import get_logger
from gatehouse.databroker.core.feed import Position
from gatehouse.databroker.core.options import BUILT_IN, NO_RULES, TypeRules, effective
from gatehouse.databroker.core.query import Query, QueryResults, Selection, index_terms, narrow
from gatehouse.databroker.core.records import Key, Plan, Reap, StoredRecord, Write, keys_of, plan
from gatehouse.databroker.edge.backends import postgres_sql as sql
from gatehouse.databroker.edge.backends.base import (
    LEASE_KEPT_US,
    MAX_ORPHANS,
    MAX_PAGE_BYTES,
    MAX_PRUNED,
    MAX_REAPED,
    ChangePage,
    HeadPage,
    QueryAnswer,
    WriteResult,
    change_size,
    new_server_version,
)
from gatehouse.databroker.edge.backends.connections import PostgresConnection
from gatehouse.databroker.edge.backends.postgres_connections import (
    ANSWER_TIMEOUT_S,
    Connections,
    allow,
)
from gatehouse.databroker.edge.backends.postgres_keys import KeyTable
from gatehouse.databroker.edge.backends.postgres_schema import Connection, migrate
from gatehouse.databroker.edge.backends.postgres_unversioned import UnversionedTables
from gatehouse.databroker.edge.backends.sealed_payloads import SealedPayloads, Secrets
from gatehouse.databroker.edge.backends.write_queue import Committed, WriteQueue

CLEANING_TIMEOUT_S: Final = 60
NOTIFY_INTERVAL_S: Final = 0.05
CANDIDATES_AT_ONCE: Final = 500
INLINE_CANDIDATES: Final = 32  # so few are opened in the event loop, which answers checks too

_log = get_logger("databroker")

Term = tuple[str, str, str, str]  # field, value, type, id


class PostgresStorage(UnversionedTables):
    """Records in the schema `gatehouse` of a PostgreSQL database."""

    name = "postgres"

    def __init__(
        self,
        connection: PostgresConnection,
        clock: Clock,
        rng: Rng,
        secrets: Secrets,
        *,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        super().__init__(Connections(connection, rng, answer_timeout_s))
        self._target = connection
        self._clock = clock
        self._rng = rng
        self._codec = SealedPayloads(secrets, rng)
        self._keys = KeyTable(self._db, self._codec, clock, rng)
        self._writes = WriteQueue(self._commit)
        self._wake: Callable[[], None] = lambda: None
        self._notify_wanted = asyncio.Event()
        self._next_notify_s = -math.inf

    def __repr__(self) -> str:
        return f"PostgresStorage({self._target!r})"

    async def open(self) -> None:
        """Bring the schema up to date and make the pool."""
        async with self._db.single() as connection:
            await migrate(connection, new_server_version(self._rng))
            await self._check_origin(connection)
            await self._keys.refresh(connection)
            await self._reindex(connection, sorted(BUILT_IN))
        await self._db.open()
        self._writes.accept()

    async def _check_origin(self, connection: Connection) -> None:
        """Begin a new history where the database is not the one that the log was written in.

        A backup restored elsewhere, or to a point in time, has the versions of the store that it
        was taken of, and gives them again for other changes.
        """
        try:
            row = await (await connection.execute(sql.ORIGIN)).fetchone()
        except psycopg.errors.InsufficientPrivilege:
            return
        held = await (await connection.execute(sql.HELD_ORIGIN)).fetchone()
        assert row is not None
        assert held is not None
        if row[0] == held[0]:
            return
        if held[0]:
            _log.warning("the database was restored or copied: beginning a new history")
        new = new_server_version(self._rng)
        await connection.execute(sql.SET_ORIGIN, {"origin": row[0], "held": held[0], "new": new})

    async def run(self) -> None:
        """Commit writes, listen and announce until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._writes.run())
            group.create_task(self._db.run())
            group.create_task(self._db.listen(self._call_wake))
            group.create_task(self._notify_later())
            group.create_task(self._keys.run())

    async def close(self) -> None:
        """Close every connection."""
        await self._db.close()

    def on_change(self, wake: Callable[[], None]) -> None:
        """Call `wake` after own commits, on notifications and whenever listening begins anew."""
        self._wake = wake

    def _call_wake(self) -> None:
        self._wake()

    async def _notify_later(self) -> None:
        """Announce what was committed too soon after another announcement."""
        while True:
            await self._notify_wanted.wait()
            await asyncio.sleep(max(0.0, self._next_notify_s - self._clock.monotonic_s()))
            if not self._notify_wanted.is_set():
                continue  # a later commit has announced it
            self._notified()
            with contextlib.suppress(GatehouseError):  # others poll
                async with self._db.pooled() as connection:
                    await connection.execute(sql.NOTIFY)

    def _notified(self) -> None:
        self._notify_wanted.clear()
        self._next_notify_s = self._clock.monotonic_s() + NOTIFY_INTERVAL_S

    def _record(self, row: Sequence[Any]) -> StoredRecord:
        version, type_, id_, stored, modified_at_us, *deleted = row
        data = self._codec.open((type_, id_), stored)
        return StoredRecord(version, type_, id_, data, modified_at_us, *deleted)

    async def _records(self, rows: Sequence[Sequence[Any]]) -> tuple[StoredRecord, ...]:
        async def read() -> tuple[StoredRecord, ...]:
            if len(rows) > INLINE_CANDIDATES:
                return await asyncio.to_thread(lambda: tuple(map(self._record, rows)))
            return tuple(map(self._record, rows))

        return await self._keys.having_keys(read)

    # Reading

    async def position(self) -> Position:
        """Return where the store stands."""
        row = await self._db.row(sql.POSITION)
        assert row is not None
        return Position(*row)

    async def get(self, type_: str, id_: str) -> StoredRecord | None:
        """Return a live record."""

        async def read() -> StoredRecord | None:
            row = await self._db.row(sql.GET, type_, id_)
            return None if row is None else self._record(row)

        return await self._keys.having_keys(read)

    async def changes(self, after: int, *, type_: str = "", limit: int) -> ChangePage:
        """Return the next changes after a version."""
        rows = await self._db.rows(
            sql.TYPED_CHANGES if type_ else sql.CHANGES,
            {"after": after, "type": type_, "limit": limit, "bytes": MAX_PAGE_BYTES},
        )
        *position_columns, before = rows[0][:5]
        position = Position(*position_columns)
        found = [row[5:] for row in rows if row[5] is not None]
        end = found[-1][0] if _is_cut(found, limit) else position.latest
        return ChangePage(position, await self._records(found), end, before or 0)

    async def head(self, type_: str, after: Key | None, *, limit: int) -> HeadPage:
        """Return the next live records after a key."""
        after_type, after_id = after or ("", "")
        rows = await self._db.rows(
            sql.TYPED_HEAD if type_ else sql.HEAD,
            {
                "type": type_,
                "after_type": after_type,
                "after_id": after_id,
                "limit": limit,
                "bytes": MAX_PAGE_BYTES,
            },
        )
        return HeadPage(await self._records(rows), is_last=not _is_cut(rows, limit))

    async def list_types(self) -> tuple[str, ...]:
        """Return the types that have a live record."""
        return tuple(type_ for (type_,) in await self._db.rows(sql.TYPES))

    async def query(self, query: Query) -> QueryAnswer:
        """Answer a query from one snapshot."""
        selection = narrow(query.expression, ())
        if query.type and selection is not None and not selection.terms:
            return await self._query_by_id(query, selection)

        async def answer(connection: Connection) -> QueryAnswer:
            async with connection.transaction():
                await connection.execute(sql.SNAPSHOT)
                row = await (await connection.execute(sql.POSITION)).fetchone()
                assert row is not None
                if query.is_listing:
                    return await self._list(connection, query, Position(*row))
                return await self._search(connection, query, Position(*row))

        return await self._keys.having_keys(lambda: self._db.use(answer))

    async def _query_by_id(self, query: Query, selection: Selection) -> QueryAnswer:
        args = {"type": query.type, "ids": sorted(selection.ids)}
        rows = await self._db.rows(sql.SELECT_BY_ID, args)
        results = QueryResults(query, is_narrowed=True)
        for record in await self._records([row[4:] for row in rows if row[4] is not None]):
            results.add(record)
        return QueryAnswer(results.records(), results.total, Position(*rows[0][:4]))

    async def _list(self, connection: Connection, query: Query, position: Position) -> QueryAnswer:
        args = {"type": query.type, "offset": query.offset, "limit": query.limit}
        count = sql.COUNT_TYPE if query.type else sql.COUNT_ALL
        total = await (await connection.execute(count, args)).fetchone()
        assert total is not None
        listing = sql.LIST_TYPE if query.type else sql.LIST_ALL
        cursor = await connection.execute(listing, args, binary=True)
        rows = await cursor.fetchall()
        return QueryAnswer(tuple(map(self._record, rows)), total[0], position)

    async def _search(
        self, connection: Connection, query: Query, position: Position
    ) -> QueryAnswer:
        types = [query.type]
        indexed: tuple[str, ...] = ()
        if query.type:
            indexed = (await self._indexed_fields(connection, types)).get(query.type, ())
        else:
            cursor = await connection.execute(sql.TYPES)
            types = [type_ for (type_,) in await cursor.fetchall()]
        selection = narrow(query.expression, indexed)
        results = QueryResults(query, is_narrowed=selection is not None)
        async with connection.cursor(name="candidates", binary=True) as candidates:
            if selection is None:
                scan = sql.SCAN_TYPE if query.type else sql.SCAN_ALL
                await candidates.execute(scan, {"type": query.type})
            else:
                args = {
                    "types": types,
                    "ids": sorted(selection.ids),
                    "fields": [field for field, _ in sorted(selection.terms)],
                    "values": [value for _, value in sorted(selection.terms)],
                }
                await candidates.execute(sql.SELECT_BY_TERM, args)
            while not results.is_complete:
                rows = await candidates.fetchmany(CANDIDATES_AT_ONCE)
                if len(rows) <= INLINE_CANDIDATES:
                    self._look(results, rows)
                else:
                    await asyncio.to_thread(self._look, results, rows)
                if len(rows) < CANDIDATES_AT_ONCE:
                    break
        return QueryAnswer(results.records(), results.total, position)

    def _look(self, results: QueryResults, rows: Iterable[TupleRow]) -> None:
        for row in rows:
            results.add(self._record(row))

    # Writing

    async def write(self, write: Write) -> WriteResult:
        """Apply a write as a whole."""
        return await self._writes.submit(write)

    async def _commit(self, writes: Sequence[Write]) -> Committed:
        """Apply a batch in two round trips: learn what is held, then write and commit."""
        has_begun = False

        async def commit(connection: Connection) -> Committed:
            nonlocal has_begun
            async with connection.pipeline(), connection.transaction():
                sequence = await connection.execute(sql.SEQUENCE)
                learn = await self._learn(connection, writes)
                row = await sequence.fetchone()
                assert row is not None
                has_begun = True
                server_version, first, log_bytes, now_us = row
                held, rules = await learn()
                planned = plan(writes, held, rules, latest=first, now_us=now_us)
                log_bytes = await self._apply(connection, planned, held, rules, log_bytes)
                latest, log_bytes = await self._enforce_capacity(
                    connection, planned, rules, now_us, log_bytes
                )
                if latest != first:
                    await connection.execute(sql.ADVANCE, (latest, now_us, log_bytes))
                    await self._announce(connection)
            return Committed(server_version, planned.outcomes)

        committed = await self._keys.having_keys(
            lambda: self._db.use(commit, lambda: not has_begun)
        )
        self._wake()
        return committed

    async def _announce(self, connection: Connection) -> None:
        if self._clock.monotonic_s() < self._next_notify_s:
            self._notify_wanted.set()
            return
        self._notified()
        await connection.execute(sql.NOTIFY)

    async def _learn(
        self, connection: Connection, writes: Iterable[Write]
    ) -> Callable[[], Awaitable[tuple[dict[Key, StoredRecord], dict[str, TypeRules]]]]:
        """Send the questions about the written keys; the returned function takes the answers."""
        keys = sorted(keys_of(writes))
        types = sorted({type_ for type_, _ in keys})
        columns = ([type_ for type_, _ in keys], [id_ for _, id_ in keys])
        held = await connection.execute(sql.HELD, columns, binary=True)
        options = await connection.execute(sql.OPTIONS, (types,))
        indexed = await connection.execute(sql.INDEXED, (types,))

        async def answers() -> tuple[dict[Key, StoredRecord], dict[str, TypeRules]]:
            records = {record.key: record for record in map(self._record, await held.fetchall())}
            stored = {row[0]: _rules_of(row) for row in await options.fetchall()}
            fields = {type_: tuple(names) for type_, names in await indexed.fetchall()}
            rules = {}
            for type_ in types:
                in_force = effective(type_, stored.get(type_)) or NO_RULES
                rules[type_] = TypeRules(in_force.capacity, in_force.ttl_us, fields.get(type_, ()))
            return records, rules

        return answers

    async def _apply(
        self,
        connection: Connection,
        planned: Plan,
        held: Mapping[Key, StoredRecord],
        rules: Mapping[str, TypeRules],
        log_bytes: int,
    ) -> int:
        """Write what was planned; return how many bytes the log has had by then."""
        live = [record for record in planned.head.values() if record is not None]
        gone = [key for key, record in planned.head.items() if record is None and key in held]
        if planned.changes:
            log_bytes = await self._add_changes(
                connection, planned.changes, {record.version for record in live}, log_bytes
            )
        if gone:
            keys = [key[0] for key in gone], [key[1] for key in gone]
            await connection.execute(sql.DELETE, keys)
            await connection.execute(sql.DELETE_ACCESS_TIMES, keys)
        changed = {change.version for change in planned.changes}
        touched = [record for record in live if record.version not in changed]
        if touched:  # as they were, at another time
            args = (
                [record.type for record in touched],
                [record.id for record in touched],
                [record.modified_at_us for record in touched],
            )
            await connection.execute(sql.TOUCH, args)
        old: set[Term] = set()
        new: set[Term] = set()
        for key, record in planned.head.items():
            fields = rules[key[0]].indexed
            old |= _terms(held.get(key), fields)
            new |= _terms(record, fields)
        await self._index(connection, old - new, new - old)
        return log_bytes

    async def _add_changes(
        self,
        connection: Connection,
        changes: Sequence[StoredRecord],
        live: Container[int],
        log_bytes: int,
    ) -> int:
        """Write changes into the log, and those with `live` versions into the head."""
        payloads = [self._codec.seal(change.key, change.data) for change in changes]
        ends = []
        for change, stored in zip(changes, payloads, strict=True):
            log_bytes += change_size(change, len(stored))
            ends.append(log_bytes)
        args = (
            [change.version for change in changes],
            [change.type for change in changes],
            [change.id for change in changes],
            payloads,
            [change.modified_at_us for change in changes],
            [change.deleted_at_us for change in changes],
            ends,
            [change.deleted_at_us is None and change.version in live for change in changes],
        )
        await connection.execute(sql.ADD_CHANGES, args)
        return log_bytes

    async def _index(self, connection: Connection, old: set[Term], new: set[Term]) -> None:
        for statement, terms in ((sql.DELETE_TERMS, old), (sql.ADD_TERMS, new)):
            if terms:
                ordered = sorted(terms)
                columns = tuple([term[place] for term in ordered] for place in range(4))
                await connection.execute(statement, columns)

    async def _enforce_capacity(
        self,
        connection: Connection,
        planned: Plan,
        rules: Mapping[str, TypeRules],
        now_us: int,
        log_bytes: int,
    ) -> tuple[int, int]:
        """Delete what is over capacity; return the newest version and the bytes of the log."""
        latest = planned.latest
        for type_ in sorted({record.type for record in planned.changes}):
            capacity = rules[type_].capacity
            if capacity is None:
                continue
            cursor = await connection.execute(
                sql.OVER_CAPACITY, (type_, capacity, MAX_REAPED), binary=True
            )
            over = tuple(map(self._record, await cursor.fetchall()))
            held = {record.key: record for record in over}
            reaped = plan([Reap(over)], held, rules, latest=latest, now_us=now_us)
            log_bytes = await self._apply(connection, reaped, held, rules, log_bytes)
            latest = reaped.latest
        return latest, log_bytes

    async def clear(self) -> tuple[int, int]:
        """Begin a new history."""
        new = new_server_version(self._rng)
        limit_s = CLEANING_TIMEOUT_S + 2.0
        async with self._db.pooled(limit_s) as connection, connection.transaction():
            await allow(connection, CLEANING_TIMEOUT_S)
            row = await (await connection.execute(sql.SEQUENCE)).fetchone()
            assert row is not None
            for statement in sql.CLEAR:
                await connection.execute(statement)
            await connection.execute(sql.CLEAR_HISTORY, (new,))
            await self._reindex_locked(connection, sorted(BUILT_IN))
            await connection.execute(sql.NOTIFY)
        self._wake()
        return row[0], new

    async def change_history(self) -> tuple[int, int]:
        """Begin a new history with the same records."""
        new = new_server_version(self._rng)
        async with self._db.pooled() as connection, connection.transaction():
            row = await (await connection.execute(sql.SEQUENCE)).fetchone()
            assert row is not None
            await connection.execute(sql.CHANGE_HISTORY, (new,))
            await connection.execute(sql.NOTIFY)
        self._wake()
        return row[0], new

    async def renew_history(self, seen: Position) -> None:
        """Begin a new history, with versions above those seen, if they are not held here."""
        args = {
            "new": new_server_version(self._rng),
            "old": seen.server_version,
            "latest": seen.latest,
            "stamp": seen.stamp,
        }
        async with self._db.pooled() as connection:
            await connection.execute(sql.RENEW_HISTORY, args)

    # Options and indexes

    async def options(self, type_: str) -> TypeRules | None:
        """Return the options in force for a type."""
        row = await self._db.row(sql.OPTIONS, [type_])
        return effective(type_, None if row is None else _rules_of(row))

    async def all_options(self) -> Mapping[str, TypeRules]:
        """Return the options of every type that has some."""
        stored = {row[0]: _rules_of(row) for row in await self._db.rows(sql.ALL_OPTIONS)}
        return dict(sorted({**BUILT_IN, **stored}.items()))

    async def set_options(self, type_: str, rules: TypeRules | None) -> None:
        """Replace what was set for a type."""
        await self._keys.having_keys(lambda: self._set_options(type_, rules))

    async def _set_options(self, type_: str, rules: TypeRules | None) -> None:
        async with self._db.pooled() as connection, connection.transaction():
            await connection.execute(sql.SEQUENCE)
            await connection.execute(sql.DELETE_OPTIONS, (type_,))
            if rules is not None:
                await connection.execute(
                    sql.ADD_OPTIONS, (type_, rules.capacity, rules.ttl_us, list(rules.indexed))
                )
            await self._reindex_locked(connection, [type_])

    async def _indexed_fields(
        self, connection: Connection, types: Sequence[str]
    ) -> dict[str, tuple[str, ...]]:
        cursor = await connection.execute(sql.INDEXED, (types,))
        return {type_: tuple(fields) for type_, fields in await cursor.fetchall()}

    async def _reindex(self, connection: Connection, types: Sequence[str]) -> None:
        indexed = await self._indexed_fields(connection, types)
        if all(set(indexed.get(type_, ())) == set(BUILT_IN[type_].indexed) for type_ in types):
            return
        async with connection.transaction():
            await connection.execute(sql.SEQUENCE)
            await self._reindex_locked(connection, types)

    async def _reindex_locked(self, connection: Connection, types: Sequence[str]) -> None:
        """Bring the index in line with the options in force; the caller holds the sequencer."""
        before = await self._indexed_fields(connection, types)
        cursor = await connection.execute(sql.OPTIONS, (types,))
        stored = {row[0]: _rules_of(row) for row in await cursor.fetchall()}
        for type_ in types:
            old_fields = before.get(type_, ())
            new_fields = (effective(type_, stored.get(type_)) or NO_RULES).indexed
            if set(old_fields) == set(new_fields):
                continue
            await connection.execute(sql.SET_INDEXED, (type_, list(new_fields)))
            async with connection.cursor(name="reindexed", binary=True) as records:
                await records.execute(sql.SCAN_TYPE, {"type": type_})
                while rows := await records.fetchmany(CANDIDATES_AT_ONCE):
                    old: set[Term] = set()
                    new: set[Term] = set()
                    for record in map(self._record, rows):
                        old |= _terms(record, old_fields)
                        new |= _terms(record, new_fields)
                    await self._index(connection, old - new, new - old)

    # Cleaning

    async def reapable(self) -> tuple[StoredRecord, ...]:
        """Return records past their time to live or over capacity."""
        found: list[TupleRow] = []
        for type_, rules in (await self.all_options()).items():
            if rules.capacity is not None:
                found += await self._db.rows(sql.OVER_CAPACITY, (type_, rules.capacity, MAX_REAPED))
            if rules.ttl_us is not None:
                found += await self._db.rows(sql.EXPIRED, (type_, rules.ttl_us, MAX_REAPED))
            if len(found) >= MAX_REAPED:
                break
        return await self._records(found[:MAX_REAPED])

    async def prune(self, retention_us: int, max_bytes: int) -> int:
        """Forget old changes, expired leases and silent services; one databroker at a time."""
        limit_s = CLEANING_TIMEOUT_S + 2.0
        async with self._db.pooled(limit_s) as connection, connection.transaction():
            row = await (await connection.execute(sql.PRUNE_LOCK, (sql.CLEANING_LOCK,))).fetchone()
            if row is None or not row[0]:
                return 0
            await allow(connection, CLEANING_TIMEOUT_S)
            await connection.execute(sql.PRUNE_LEASES, (LEASE_KEPT_US,))
            await connection.execute(sql.PRUNE_SERVICES)
            await connection.execute(sql.PRUNE_ACCESS_TIMES, (MAX_ORPHANS,))
            args = (MAX_PRUNED, retention_us, max_bytes)
            end = await (await connection.execute(sql.PRUNE_END, args)).fetchone()
            if end is None:
                return 0
            gone = await connection.execute(sql.PRUNE, (end[0],))
            if gone.rowcount:
                await connection.execute(sql.PRUNED, (end[0],))
            return gone.rowcount


def _rules_of(row: TupleRow) -> TypeRules:
    _, capacity, ttl_us, fields = row
    return TypeRules(capacity, ttl_us, tuple(fields))


def _terms(record: StoredRecord | None, fields: Iterable[str]) -> set[Term]:
    if record is None:
        return set()
    return {(*term, *record.key) for term in index_terms(record.data, fields)}


def _is_cut(rows: Sequence[Sequence[Any]], limit: int) -> bool:
    """Tell whether a page may have ended early, by the sizes that the statement went by."""
    return len(rows) == limit or sum(len(row[3]) for row in rows) >= MAX_PAGE_BYTES
