"""The store of the log simulation: the product's own in memory, with all it ever committed."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.struct_pb2 import Value

from gatehouse.databroker.core import feed
from gatehouse.databroker.core.records import Put, StoredRecord
from gatehouse.databroker.core.sorted_ids import SortedIds
from gatehouse.databroker.edge.backends.base import ChangePage, HeadPage
from gatehouse.databroker.edge.backends.memory import MemoryStorage
from gatehouse.databroker.errors import StorageUnavailableError
from tests.support.clock import FakeClock, SeededRng
from tests.support.model_broker import TYPE, UNREADABLE
from tests.support.storage import incoming

T = TypeVar("T")


def drive(work: Coroutine[Any, Any, T]) -> T:
    """Run what never really waits."""
    try:
        work.send(None)
    except StopIteration as done:
        made: T = done.value
        return made
    raise AssertionError("it waits for something")


@dataclass(frozen=True, slots=True)
class Entry:
    """A committed change of one record."""

    version: int
    text: str | None  # None: deleted


class Store(MemoryStorage):
    """The store that all databrokers share, with everything that it ever committed.

    `skips`: a flaw to try the checkers with: a change may become visible after later ones.
    """

    def __init__(self, clock: FakeClock, seed: int, *, skips: bool = False) -> None:
        super().__init__(clock, SeededRng(seed))
        self._time = clock
        self._skips = skips
        self._hidden = 0
        self.histories: dict[int, dict[str, list[Entry]]] = {}
        self.committed: list[tuple[float, int, int]] = []  # when, server version, version
        self.tainted: set[int] = set()  # histories that were put back from a backup
        self.newest: dict[str, Entry] = {}  # of each record, whatever the history
        self.acknowledged: dict[str, int] = {}  # its version
        self._begin_history()

    def _begin_history(self) -> None:
        live = self._head.get(TYPE, {})
        entries = {id_: [_entry(record)] for id_, record in live.items()}
        self.histories[self._server_version] = entries
        self._note()

    def _note(self) -> None:
        self.committed.append((self._time.monotonic, self._server_version, self._latest))

    def commit(self, type_: str, id_: str, text: str | None) -> StoredRecord:
        """Write one record; the caller has held the sequencer."""
        payload = None if text is None else Value(string_value=text)
        before = len(self._log)
        (record,) = drive(self.write(Put((incoming(type_, id_, payload),)))).records
        for change in self._log[before:]:
            if self._skips and change.version % 7 == 0:
                self._hidden = change.version
            if change.type == TYPE:
                entries = self.histories[self._server_version]
                entries.setdefault(change.id, []).append(_entry(change))
                self.newest[change.id] = _entry(change)
        self._note()
        return record

    async def changes(self, after: int, *, type_: str = "", limit: int) -> ChangePage:
        page = await super().changes(after, type_=type_, limit=limit)
        shown = tuple(one for one in page.changes if one.version != self._hidden)
        self._hidden = 0
        return ChangePage(page.position, shown, page.end, page.before)

    async def change_history(self) -> tuple[int, int]:
        versions = await super().change_history()
        self._begin_history()
        return versions

    async def clear(self) -> tuple[int, int]:
        versions = await super().clear()
        self.newest.clear()
        self.acknowledged.clear()
        self._begin_history()
        return versions

    async def renew_history(self, seen: feed.Position) -> None:
        """As the PostgreSQL store does it, which may be put back under a running databroker."""
        held = next((one for one in self._log if one.version == seen.latest), None)
        replaced = held is not None and held.modified_at_us != seen.stamp
        if self._server_version != seen.server_version or not (
            self._latest < seen.latest or replaced
        ):
            return
        self._latest = max(self._latest, seen.latest)
        await self.change_history()

    def backup(self) -> Callable[[], None]:
        """Return what puts the store back to how it is now."""
        held = (self._server_version, self._latest, self._pruned, self._log_bytes)
        log, head = list(self._log), {name: dict(one) for name, one in self._head.items()}
        index = {term: set(keys) for term, keys in self._index.items()}
        newest, acknowledged = dict(self.newest), dict(self.acknowledged)

        def restore() -> None:
            self._server_version, self._latest, self._pruned, self._log_bytes = held
            self._log = list(log)
            self._head = {name: dict(one) for name, one in head.items()}
            self._ids = {name: SortedIds(one) for name, one in self._head.items()}
            for name, one in self._head.items():
                for id_ in one:
                    self._ids[name].add(id_)
            self._index = {term: set(keys) for term, keys in index.items()}
            self.newest, self.acknowledged = dict(newest), dict(acknowledged)
            self.tainted.add(self._server_version)
            self._note()

        return restore

    def contents(self) -> dict[str, tuple[int, str]]:
        """What a true and complete copy holds: id to (version, text)."""
        found = {}
        for id_, record in self._head.get(TYPE, {}).items():
            entry = _entry(record)
            if entry.text is not None and entry.text != UNREADABLE:
                found[id_] = entry.version, entry.text
        return found


def _entry(record: StoredRecord) -> Entry:
    if record.deleted_at_us is not None:
        return Entry(record.version, None)
    value = Value()
    assert record.to_message().data.Unpack(value)
    return Entry(record.version, value.string_value)


class View(MemoryStorage):
    """The store as one databroker reaches it, or does not."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.away = False
        self.wake: Callable[[], None] = lambda: None

    def on_change(self, wake: Callable[[], None]) -> None:
        self.wake = wake

    def _reached(self) -> Store:
        if self.away:
            raise StorageUnavailableError("away")
        return self._store

    async def position(self) -> feed.Position:
        return await self._reached().position()

    async def changes(self, after: int, *, type_: str = "", limit: int) -> ChangePage:
        return await self._reached().changes(after, type_=type_, limit=limit)

    async def head(self, type_: str, after: tuple[str, str] | None, *, limit: int) -> HeadPage:
        return await self._reached().head(type_, after, limit=limit)

    async def renew_history(self, seen: feed.Position) -> None:
        await self._reached().renew_history(seen)
