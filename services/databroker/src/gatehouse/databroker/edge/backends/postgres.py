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
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from psycopg.rows import TupleRow

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.errors import GatehouseError
from gatehouse.databroker.core import leases
from gatehouse.databroker.core.feed import Position
from gatehouse.databroker.core.options import BUILT_IN, NO_RULES, TypeRules, effective
from gatehouse.databroker.core.query import Query, QueryResults, Selection, index_terms, narrow
from gatehouse.databroker.core.records import Key, Plan, Reap, StoredRecord, Write, keys_of, plan
from gatehouse.databroker.edge.backends import postgres_sql as sql
from gatehouse.databroker.edge.backends.base import (
    LEASE_KEPT_US,
    MAX_PAGE_BYTES,
    MAX_PRUNED,
    MAX_REAPED,
    ChangePage,
    Checkpoint,
    HeadPage,
    PayloadCodec,
    PlainPayloads,
    QueryAnswer,
    WriteResult,
    new_server_version,
)
from gatehouse.databroker.edge.backends.connections import PostgresConnection
from gatehouse.databroker.edge.backends.postgres_connections import Connections, allow
from gatehouse.databroker.edge.backends.postgres_schema import Connection, migrate
from gatehouse.databroker.edge.backends.write_queue import Committed, WriteQueue

CLEANING_TIMEOUT_S: Final = 60
NOTIFY_INTERVAL_S: Final = 0.05
CANDIDATES_AT_ONCE: Final = 500
INLINE_CANDIDATES: Final = 32  # so few are looked at in the event loop

Term = tuple[str, str, str, str]  # field, value, type, id


class PostgresStorage:
    """Records in the schema `gatehouse` of a PostgreSQL database."""

    name = "postgres"

    def __init__(
        self,
        connection: PostgresConnection,
        clock: Clock,
        rng: Rng,
        codec: PayloadCodec | None = None,
    ) -> None:
        self._target = connection
        self._db = Connections(connection, rng)
        self._clock = clock
        self._rng = rng
        self._codec = codec or PlainPayloads()
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
            await self._reindex(connection, sorted(BUILT_IN))
        await self._db.open()
        self._writes.accept()

    async def run(self) -> None:
        """Commit writes, listen and announce until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._writes.run())
            group.create_task(self._db.run())
            group.create_task(self._db.listen(self._call_wake))
            group.create_task(self._notify_later())

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

    # Reading

    async def position(self) -> Position:
        """Return where the store stands."""
        row = await self._db.row(sql.POSITION)
        assert row is not None
        return Position(*row)

    async def get(self, type_: str, id_: str) -> StoredRecord | None:
        """Return a live record."""
        row = await self._db.row(sql.GET, type_, id_)
        return None if row is None else self._record(row)

    async def changes(self, after: int, *, type_: str = "", limit: int) -> ChangePage:
        """Return the next changes after a version."""
        rows = await self._db.rows(
            sql.TYPED_CHANGES if type_ else sql.CHANGES,
            {"after": after, "type": type_, "limit": limit, "bytes": MAX_PAGE_BYTES},
        )
        position = Position(*rows[0][:3])
        found = tuple(self._record(row[3:]) for row in rows if row[3] is not None)
        end = found[-1].version if _is_cut(found, limit) else position.latest
        return ChangePage(position, found, end)

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
        found = tuple(self._record(row) for row in rows)
        return HeadPage(found, is_last=not _is_cut(found, limit))

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

        return await self._db.use(answer)

    async def _query_by_id(self, query: Query, selection: Selection) -> QueryAnswer:
        args = {"type": query.type, "ids": sorted(selection.ids)}
        rows = await self._db.rows(sql.SELECT_BY_ID, args)
        results = QueryResults(query, is_narrowed=True)
        for row in rows:
            if row[3] is not None:
                results.add(self._record(row[3:]))
        return QueryAnswer(results.records(), results.total, Position(*rows[0][:3]))

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
                server_version, first, _, now_us = row
                held, rules = await learn()
                planned = plan(writes, held, rules, latest=first, now_us=now_us)
                await self._apply(connection, planned, held, rules)
                latest = await self._enforce_capacity(connection, planned, rules, now_us)
                if latest != first:
                    await connection.execute(sql.ADVANCE, (latest,))
                    await self._announce(connection)
            return Committed(server_version, planned.outcomes)

        committed = await self._db.use(commit, lambda: not has_begun)
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
    ) -> None:
        if planned.changes:
            deleted = [record.deleted_at_us for record in planned.changes]
            await connection.execute(sql.ADD_CHANGES, (*self._columns(planned.changes), deleted))
        gone = [key for key, record in planned.head.items() if record is None and key in held]
        if gone:
            await connection.execute(
                sql.DELETE, ([key[0] for key in gone], [key[1] for key in gone])
            )
        live = [record for record in planned.head.values() if record is not None]
        if live:
            await connection.execute(sql.UPSERT, self._columns(live))
        old: set[Term] = set()
        new: set[Term] = set()
        for key, record in planned.head.items():
            fields = rules[key[0]].indexed
            old |= _terms(held.get(key), fields)
            new |= _terms(record, fields)
        await self._index(connection, old - new, new - old)

    def _columns(self, records: Sequence[StoredRecord]) -> tuple[list[Any], ...]:
        return (
            [record.version for record in records],
            [record.type for record in records],
            [record.id for record in records],
            [self._codec.seal(record.key, record.data) for record in records],
            [record.modified_at_us for record in records],
        )

    async def _index(self, connection: Connection, old: set[Term], new: set[Term]) -> None:
        for statement, terms in ((sql.DELETE_TERMS, old), (sql.ADD_TERMS, new)):
            if terms:
                ordered = sorted(terms)
                columns = tuple([term[place] for term in ordered] for place in range(4))
                await connection.execute(statement, columns)

    async def _enforce_capacity(
        self, connection: Connection, planned: Plan, rules: Mapping[str, TypeRules], now_us: int
    ) -> int:
        """Delete what is over capacity after the planned writes; return the newest version."""
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
            await self._apply(connection, reaped, held, rules)
            latest = reaped.latest
        return latest

    async def clear(self) -> tuple[int, int]:
        """Begin a new history."""
        new = new_server_version(self._rng)
        async with self._db.pooled() as connection, connection.transaction():
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

    async def renew_history(self, seen: Position) -> None:
        """Begin a new history, with versions above those seen, if the store has gone back."""
        new = new_server_version(self._rng)
        async with self._db.pooled() as connection:
            await connection.execute(
                sql.RENEW_HISTORY,
                (new, seen.latest, seen.latest, seen.server_version, seen.latest),
            )

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

    # Leases and checkpoint

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
        async with (
            self._db.pooled() as connection,
            connection.pipeline(),
            connection.transaction(),
        ):
            await connection.execute(sql.LEASE_LOCK, (name,))
            cursor = await connection.execute(sql.LEASE, (name,))
            row = await cursor.fetchone()
            assert row is not None
            now_us, *columns = row
            held = None if columns[0] is None else leases.Lease(*columns)
            lease = change(held, now_us)
            if lease is not None:
                await connection.execute(
                    sql.SET_LEASE, (lease.name, lease.id, lease.expires_at_us, lease.fence)
                )
        return lease is not None

    async def checkpoint(self) -> Checkpoint:
        """Return the replication position."""
        row = await self._db.row(sql.CHECKPOINT)
        assert row is not None
        return Checkpoint(int(row[0]), int(row[1]))

    async def set_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Store the replication position."""
        async with self._db.pooled() as connection:
            await connection.execute(
                sql.SET_CHECKPOINT, (checkpoint.server_version, checkpoint.record_version)
            )

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
        return tuple(self._record(row) for row in found[:MAX_REAPED])

    async def prune(self, retention_us: int) -> int:
        """Forget old changes and long expired leases; one databroker at a time."""
        async with self._db.pooled() as connection, connection.transaction():
            row = await (await connection.execute(sql.PRUNE_LOCK, (sql.CLEANING_LOCK,))).fetchone()
            if row is None or not row[0]:
                return 0
            await allow(connection, CLEANING_TIMEOUT_S)
            await connection.execute(sql.PRUNE_LEASES, (LEASE_KEPT_US,))
            args = (retention_us, MAX_PRUNED, retention_us)
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


def _is_cut(found: Sequence[StoredRecord], limit: int) -> bool:
    return len(found) == limit or sum(len(record.data) for record in found) >= MAX_PAGE_BYTES
