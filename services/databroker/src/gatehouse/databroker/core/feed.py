"""From where a reader may follow the log, and what comes next for it.

Positions are record versions within one history (server version). The log is cut at its old end:
everything up to and including `pruned` may be missing. `ChangeRing` keeps the newest changes in
memory for all readers of a process; each reader only holds a cursor.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, Generic, Protocol, TypeVar

from gatehouse.common.errors import AbortedError

GONE_BACK: Final = frozenset({"record-version-unknown", "record-version-replaced"})
"""Reasons of `admit` and `check_stamp` which say that the store was put back."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a store stands: its history, its newest version, and how far its log is cut.

    `stamp` is when the newest change was made, in Unix microseconds; 0 when that is not known. Two
    logs that have grown apart may have the same versions, but not with the same stamps.
    """

    server_version: int
    latest: int
    pruned: int
    stamp: int = 0

    @property
    def earliest(self) -> int:
        """The oldest version in the log; 0 when the log is empty."""
        return self.pruned + 1 if self.pruned < self.latest else 0


def admit(position: Position, server_version: int, record_version: int) -> None:
    """Check that a reader can go on from where it stands. Raises AbortedError."""
    if server_version != position.server_version:
        raise AbortedError(
            f"invalid server version {server_version}; this is {position.server_version}",
            reason="invalid-server-version",
        )
    if record_version < position.pruned:
        raise AbortedError(
            f"invalid record version {record_version}; the log begins after {position.pruned}",
            reason="record-version-too-old",
        )
    if record_version > position.latest:
        raise AbortedError(
            f"invalid record version {record_version}; the newest is {position.latest}",
            reason="record-version-unknown",
        )


def check_stamp(record_version: int, seen: int, held: int) -> None:
    """Check that a reader has seen this log at that version, where both say. AbortedError."""
    if seen and held and seen != held:
        raise AbortedError(
            f"version {record_version} is not the one that was seen; the store has gone back",
            reason="record-version-replaced",
        )


class Versioned(Protocol):
    """Something with a place in the log."""

    @property
    def version(self) -> int:
        """The record version."""
        ...

    @property
    def size(self) -> int:
        """How many bytes it takes, roughly."""
        ...


Item = TypeVar("Item", bound=Versioned)


class ChangeRing(Generic[Item]):
    """The newest changes of the log, without a gap, bounded in number and in bytes."""

    def __init__(self, start: int, *, max_items: int, max_bytes: int) -> None:
        assert max_items > 0
        assert max_bytes > 0
        self._items: list[Item] = []
        self._first = 0  # items before this index are dropped, and removed now and then
        self._start = start  # versions up to and including this one are not here
        self._end = start
        self._bytes = 0
        self._max_items = max_items
        self._max_bytes = max_bytes

    def __repr__(self) -> str:
        return f"ChangeRing({self._start}..{self._end}, {len(self._items) - self._first} items)"

    @property
    def start(self) -> int:
        """The ring holds what came after this version."""
        return self._start

    @property
    def end(self) -> int:
        """The newest version that the ring vouches for."""
        return self._end

    def extend(self, items: Iterable[Item], end: int) -> None:
        """Append changes in version order; the ring then vouches for everything up to `end`."""
        for item in items:
            assert item.version > self._end, (item.version, self._end)
            self._items.append(item)
            self._end = item.version
            self._bytes += item.size
        assert end >= self._end, (end, self._end)
        self._end = end
        while len(self._items) - self._first > self._max_items or self._bytes > self._max_bytes:
            dropped = self._items[self._first]
            self._first += 1
            self._bytes -= dropped.size
            self._start = dropped.version
        if self._first > len(self._items) // 2:
            del self._items[: self._first]
            self._first = 0

    def after(self, cursor: int, limit: int) -> Sequence[Item] | None:
        """Return up to `limit` changes after `cursor`; None when some are no longer here."""
        if cursor < self._start:
            return None
        begin = bisect_right(self._items, cursor, lo=self._first, key=attrgetter("version"))
        return self._items[begin : begin + limit]
