"""The ids of a type in order, while some come and others go, without sorting at each page."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from typing import Final

_SLACK: Final = 256  # changes taken before they are merged in


class SortedIds:
    """A sorted list with the changes since. `live` is who owns the ids, and has the last word."""

    def __init__(self, live: Collection[str]) -> None:
        self._live = live
        self._sorted: list[str] = []
        self._added: set[str] = set()
        self._removed = 0

    def add(self, id_: str) -> None:
        """Note an id that is live from now on."""
        self._added.add(id_)

    def remove(self) -> None:
        """Note that an id is no longer live."""
        self._removed += 1
        if self._removed > _SLACK + len(self._sorted) // 8:
            self._merge()
            self._sorted = [id_ for id_ in self._sorted if id_ in self._live]
            self._removed = 0

    def _merge(self) -> None:
        self._sorted += sorted(self._added)
        self._sorted.sort()  # two sorted runs: one pass
        self._added.clear()

    def after(self, id_: str | None) -> Iterator[str]:
        """Return the live ids after one, or all of them, in order. Not while they change."""
        if len(self._added) > _SLACK:
            self._merge()
        begin = 0 if id_ is None else bisect_right(self._sorted, id_)
        known = (self._sorted[place] for place in range(begin, len(self._sorted)))
        added = sorted(new for new in self._added if id_ is None or new > id_)
        return self._live_of(heapq.merge(known, added))

    def _live_of(self, found: Iterable[str]) -> Iterator[str]:
        last: str | None = None
        for id_ in found:
            if id_ != last and id_ in self._live:
                last = id_
                yield id_
