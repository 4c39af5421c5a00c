"""Which sessions and service accounts were used, and when last, until somebody writes it down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gatehouse.common.ids import TypeUrl

AT_ONCE: Final = 10_000  # of one write
CAPACITY: Final = 200_000  # records noted between two writes

Key = tuple[TypeUrl, str]


class AccessTimes:
    """A bounded note of the last use of each record. Times are Unix seconds."""

    __slots__ = ("_capacity", "_noted", "_passed_over")

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._noted: dict[Key, float] = {}
        self._passed_over = 0

    def __len__(self) -> int:
        return len(self._noted)

    def note(self, key: Key, now_s: float) -> None:
        """This record is used now. One more than there is room for is passed over and counted."""
        noted = self._noted
        if key in noted or len(noted) < self._capacity:
            noted[key] = now_s
        else:
            self._passed_over += 1

    def take(self) -> Mapping[Key, float]:
        """The next notes to write down, the oldest first; they are no longer noted here."""
        noted = self._noted
        if len(noted) <= AT_ONCE:
            self._noted = {}
            return noted
        batch = [key for key, _ in zip(noted, range(AT_ONCE), strict=False)]
        return {key: noted.pop(key) for key in batch}

    def put_back(self, batch: Mapping[Key, float]) -> None:
        """What could not be written down after all; a later use stays the one that counts."""
        for key, at_s in batch.items():
            known_s = self._noted.get(key)
            if known_s is None or known_s < at_s:
                self.note(key, at_s)

    def take_passed_over(self) -> int:
        """How many uses were passed over since this was last asked."""
        count, self._passed_over = self._passed_over, 0
        return count
