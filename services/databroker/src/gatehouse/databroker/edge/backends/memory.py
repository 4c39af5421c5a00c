"""The store in memory: plain dicts and an ordered log. Everything is gone at the end.

It is also the model that the other stores are tested against.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.errors import GatehouseError
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
from gatehouse.databroker.core.records import Key, Plan, Reap, StoredRecord, Write, plan
from gatehouse.databroker.core.registry import Entry
from gatehouse.databroker.core.sorted_ids import SortedIds
from gatehouse.databroker.edge.backends.base import (
    LEASE_KEPT_US,
    MAX_PAGE_BYTES,
    MAX_PRUNED,
    MAX_REAPED,
    ChangePage,
    Checkpoint,
    Figure,
    HeadPage,
    QueryAnswer,
    WriteResult,
    change_size,
    new_server_version,
)

MAX_LOG_BYTES: Final = 256 << 20  # there is less room here than on a disk


class MemoryStorage:
    """Records in dicts; one event loop, so no lock."""

    name = "memory"

    def __init__(self, clock: Clock, rng: Rng) -> None:
        self._clock = clock
        self._rng = rng
        self._server_version = new_server_version(rng)
        self._latest = 0
        self._pruned = 0
        self._log_bytes = 0
        self._log: list[StoredRecord] = []  # versions pruned + 1 .. latest, without a gap
        self._head: dict[str, dict[str, StoredRecord]] = {}
        self._ids: dict[str, SortedIds] = {}  # of each type in `_head`
        self._index: dict[tuple[str, str], set[Key]] = {}
        self._options: dict[str, TypeRules] = {}
        self._access_times: dict[Key, int] = {}
        self._leases: dict[str, leases.Lease] = {}
        self._services: dict[Entry, int] = {}  # until when each counts
        self._checkpoint = Checkpoint()
        self._wake: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"MemoryStorage({self._server_version}, {self._pruned}..{self._latest})"

    async def open(self) -> None:
        """Do nothing: it is there."""

    async def run(self) -> None:
        """Do nothing until cancelled."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Do nothing."""

    def on_change(self, wake: Callable[[], None]) -> None:
        """Call `wake` after each write."""
        self._wake = wake

    def on_listening(self, report: Callable[[GatehouseError | None], None]) -> None:
        """Do nothing: there are no others."""

    def figures(self) -> Sequence[Figure]:
        """Return nothing: the process's memory is what there is to see."""
        return ()

    async def position(self) -> Position:
        """Return where the store stands."""
        stamp = self._log[-1].modified_at_us if self._log else 0
        return Position(self._server_version, self._latest, self._pruned, stamp)

    async def get(self, type_: str, id_: str) -> StoredRecord | None:
        """Return a live record."""
        return self._head.get(type_, {}).get(id_)

    async def write(self, write: Write) -> WriteResult:
        """Apply a write as a whole."""
        planned = self._apply(write)
        (outcome,) = planned.outcomes
        if isinstance(outcome, GatehouseError):
            raise outcome
        for type_ in sorted({record.type for record in planned.changes}):
            over = self._over_capacity(type_)
            if over:
                self._apply(Reap(over))
        self._wake()
        return WriteResult(self._server_version, outcome)

    def _apply(self, write: Write) -> Plan:
        items = write.victims if isinstance(write, Reap) else write.records
        held = {
            item.key: record
            for item in items
            if (record := self._head.get(item.type, {}).get(item.id)) is not None
        }
        rules = {item.type: self._rules(item.type) for item in items}
        planned = plan([write], held, rules, latest=self._latest, now_us=self._now_us())
        for key, record in planned.head.items():
            indexed = rules[key[0]].indexed
            self._reindex(key, held.get(key), record, indexed, indexed)
            if record is None:
                self._access_times.pop(key, None)
                self._remove(*key)
            else:
                self._insert(record)
        self._log += planned.changes
        self._log_bytes += sum(map(_size, planned.changes))
        self._latest = planned.latest
        return planned

    def _insert(self, record: StoredRecord) -> None:
        records = self._head.setdefault(record.type, {})
        is_new = record.id not in records
        records[record.id] = record
        if is_new:
            self._ids.setdefault(record.type, SortedIds(records)).add(record.id)

    def _remove(self, type_: str, id_: str) -> None:
        records = self._head.get(type_, {})
        if records.pop(id_, None) is None:
            return
        self._ids[type_].remove()
        if not records:
            del self._head[type_], self._ids[type_]

    def _reindex(
        self,
        key: Key,
        before: StoredRecord | None,
        after: StoredRecord | None,
        fields_before: Iterable[str],
        fields_after: Iterable[str],
    ) -> None:
        old = index_terms(before.data, fields_before) if before else frozenset()
        new = index_terms(after.data, fields_after) if after else frozenset()
        for term in old - new:
            self._index[term].discard(key)
            if not self._index[term]:
                del self._index[term]
        for term in new - old:
            self._index.setdefault(term, set()).add(key)

    def _over_capacity(self, type_: str) -> tuple[StoredRecord, ...]:
        capacity = self._rules(type_).capacity
        records = self._head.get(type_, {})
        if capacity is None or len(records) <= capacity:
            return ()
        over = min(len(records) - capacity, MAX_REAPED)
        return tuple(heapq.nsmallest(over, records.values(), key=lambda item: item.version))

    def _rules(self, type_: str) -> TypeRules:
        return effective(type_, self._options.get(type_)) or NO_RULES

    def _now_us(self) -> int:
        return int(self._clock.now_s() * 1e6)

    async def query(self, query: Query) -> QueryAnswer:
        """Answer a query; candidates are picked at once and looked at in a thread."""
        position = await self.position()
        indexed = self._rules(query.type).indexed if query.type else ()
        selection = narrow(query.expression, indexed)
        candidates = self._candidates(query.type, selection)
        results = QueryResults(query, is_narrowed=selection is not None or query.is_listing)

        def look() -> None:
            for record in sorted(candidates, key=lambda item: item.key):
                if results.is_complete:
                    break
                results.add(record)

        await asyncio.to_thread(look)
        return QueryAnswer(results.records(), results.total, position)

    def _candidates(self, type_: str, selection: Selection | None) -> list[StoredRecord]:
        types = [type_] if type_ else list(self._head)
        if selection is None:
            return [record for name in types for record in self._head.get(name, {}).values()]
        keys = {(name, id_) for name in types for id_ in selection.ids}
        for term in selection.terms:
            keys |= {key for key in self._index.get(term, ()) if not type_ or key[0] == type_}
        found = (self._head.get(name, {}).get(id_) for name, id_ in keys)
        return [record for record in found if record is not None]

    async def list_types(self) -> tuple[str, ...]:
        """Return the types that have a live record."""
        return tuple(sorted(self._head))

    async def options(self, type_: str) -> TypeRules | None:
        """Return the options in force for a type."""
        return effective(type_, self._options.get(type_))

    async def all_options(self) -> Mapping[str, TypeRules]:
        """Return the options of every type that has some."""
        return dict(sorted({**BUILT_IN, **self._options}.items()))

    async def set_options(self, type_: str, rules: TypeRules | None) -> None:
        """Replace what was set for a type."""
        before = self._rules(type_).indexed
        if rules is None:
            self._options.pop(type_, None)
        else:
            self._options[type_] = rules
        after = self._rules(type_).indexed
        for record in self._head.get(type_, {}).values():
            self._reindex(record.key, record, record, before, after)

    async def changes(self, after: int, *, type_: str = "", limit: int) -> ChangePage:
        """Return the next changes after a version."""
        found: list[StoredRecord] = []
        size = 0
        end = self._latest
        for number in range(max(after - self._pruned, 0), len(self._log)):
            record = self._log[number]
            if type_ and record.type != type_:
                continue
            found.append(record)
            size += len(record.data)
            if len(found) == limit or size >= MAX_PAGE_BYTES:
                end = record.version
                break
        before = (
            self._log[after - self._pruned - 1] if self._pruned < after <= self._latest else None
        )
        stamp = before.modified_at_us if before else 0
        return ChangePage(await self.position(), tuple(found), end, stamp)

    async def head(self, type_: str, after: Key | None, *, limit: int) -> HeadPage:
        """Return the next live records after a key."""
        after_type, after_id = after or ("", "")
        names = [type_] if type_ else sorted(self._head)
        keys = list(
            islice(
                (
                    (name, id_)
                    for name in names
                    if name in self._head and name >= after_type
                    for id_ in self._ids[name].after(after_id if name == after_type else None)
                ),
                limit + 1,
            )
        )
        found: list[StoredRecord] = []
        size = 0
        for name, id_ in keys[:limit]:
            record = self._head[name][id_]
            found.append(record)
            size += len(record.data)
            if size >= MAX_PAGE_BYTES:
                break
        return HeadPage(tuple(found), is_last=len(found) == len(keys))

    async def put_access_times(self, times: Mapping[Key, int]) -> None:
        """Note when live records were used."""
        for (type_, id_), accessed_at_us in times.items():
            if id_ in self._head.get(type_, {}):
                held_us = self._access_times.get((type_, id_), 0)
                self._access_times[type_, id_] = max(held_us, accessed_at_us)

    async def access_times(self, type_: str, ids: Sequence[str]) -> Mapping[str, int]:
        """Return when live records were last used."""
        found = ((id_, self._access_times.get((type_, id_))) for id_ in ids)
        return {id_: time_us for id_, time_us in found if time_us is not None}

    async def acquire_lease(self, name: str, new_id: str, duration_us: int) -> bool:
        """Take a lease."""
        return self._change_lease(leases.acquisition(name, new_id, duration_us), name)

    async def renew_lease(self, name: str, lease_id: str, duration_us: int) -> bool:
        """Extend a lease."""
        return self._change_lease(leases.renewal(name, lease_id, duration_us), name)

    async def release_lease(self, name: str, lease_id: str) -> None:
        """Give a lease back."""
        self._change_lease(leases.giving_back(lease_id), name)

    def _change_lease(self, change: leases.Change, name: str) -> bool:
        lease = change(self._leases.get(name), self._now_us())
        if lease is not None:
            self._leases[name] = lease
        return lease is not None

    async def register(self, entries: Sequence[Entry], ttl_us: int) -> None:
        """Note where services are."""
        self._services.update(dict.fromkeys(entries, self._now_us() + ttl_us))

    async def registered(self) -> tuple[Entry, ...]:
        """Return what has not expired."""
        now_us = self._now_us()
        return tuple(sorted(entry for entry, end_us in self._services.items() if end_us > now_us))

    async def change_history(self) -> tuple[int, int]:
        """Begin a new history with the same records."""
        old = self._server_version
        while self._server_version == old:
            self._server_version = new_server_version(self._rng)
        self._pruned = self._latest
        self._log.clear()
        self._log_bytes = 0
        self._wake()
        return old, self._server_version

    async def clear(self) -> tuple[int, int]:
        """Begin a new history without records."""
        versions = await self.change_history()
        self._head.clear()
        self._ids.clear()
        self._index.clear()
        self._access_times.clear()
        self._options.clear()
        self._checkpoint = Checkpoint()
        self._wake()
        return versions

    async def renew_history(self, seen: Position) -> None:
        """Do nothing: memory does not go back."""

    async def checkpoint(self) -> Checkpoint:
        """Return the replication position."""
        return self._checkpoint

    async def set_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Store the replication position."""
        self._checkpoint = checkpoint

    async def reapable(self) -> tuple[StoredRecord, ...]:
        """Return records past their time to live or over capacity."""
        now_us = self._now_us()
        found: list[StoredRecord] = []
        for type_, records in self._head.items():
            found += self._over_capacity(type_)
            ttl_us = self._rules(type_).ttl_us
            if ttl_us is not None:
                found += (
                    record for record in records.values() if record.modified_at_us < now_us - ttl_us
                )
        return tuple(found[:MAX_REAPED])

    async def prune(self, retention_us: int, max_bytes: int) -> int:
        """Forget old changes, long expired leases and silent services."""
        now_us = self._now_us()
        max_bytes = min(max_bytes, MAX_LOG_BYTES)
        count = 0
        while count < min(len(self._log) - 1, MAX_PRUNED):
            oldest = self._log[count]
            left = self._log_bytes - _size(oldest)
            if oldest.modified_at_us >= now_us - retention_us and left < max_bytes:
                break
            self._log_bytes = left
            count += 1
        del self._log[:count]
        self._pruned += count
        for lease in list(self._leases.values()):
            if lease.expires_at_us < now_us - LEASE_KEPT_US:
                del self._leases[lease.name]
        self._services = {key: end for key, end in self._services.items() if end > now_us}
        return count


def _size(record: StoredRecord) -> int:
    return change_size(record, len(record.data))
