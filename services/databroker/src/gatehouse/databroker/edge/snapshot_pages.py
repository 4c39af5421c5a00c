"""How copies of the records are read once for all who take one at the same time.

A page says from which position on the log has to be followed after it; it may be handed out for a
while, as what changed since comes with the log. So replicas that start together cost the store one
reading, as long as none is further behind than what is kept here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gatehouse.common.clock import Clock
from gatehouse.common.databroker.compressed import compressed
from gatehouse.databroker.core.feed import Position
from gatehouse.databroker.core.projection import project
from gatehouse.databroker.core.records import Key, StoredRecord
from gatehouse.databroker.edge.backends.base import Storage
from gatehouse.pb.databroker_pb2 import Projection, Record

PAGE_RECORDS: Final = 512
KEPT_BYTES: Final = 64 << 20
KEPT_S: Final = 10.0
COMPRESSED_BYTES: Final = 16 << 10  # less is not worth the work

Work = Callable[..., Awaitable[Any]]
_Place = tuple[str, Key | None, int, bool]  # type, after which key, projection, compressed


@dataclass(frozen=True, slots=True)
class Page:
    """Records in (type, id) order as a projection shows them: `records`, or `zstd`."""

    position: Position  # taken before they were read
    records: tuple[Record, ...]
    zstd: bytes
    end: Key | None  # the last of them
    is_last: bool
    read_at_s: float
    size: int


class SnapshotPages:
    """Reads pages of one store, and keeps the newest while there are copies under way."""

    def __init__(
        self,
        storage: Storage,
        clock: Clock,
        *,
        kept_bytes: int = KEPT_BYTES,
        page_records: int = PAGE_RECORDS,
        work: Work = asyncio.to_thread,
    ) -> None:
        """`work` calls what takes long, and is awaited."""
        self._storage = storage
        self._clock = clock
        self._page_records = page_records
        self._kept_bytes = kept_bytes
        self._work = work
        self._pages: dict[_Place, Page] = {}  # oldest first
        self._size = 0
        self._reading: dict[_Place, asyncio.Event] = {}
        self._copies = 0

    def __repr__(self) -> str:
        return f"SnapshotPages({len(self._pages)}, {self._size} bytes, {self._copies} copies)"

    @contextlib.contextmanager
    def copy(self) -> Iterator[None]:
        """Count a copy for the length of the block."""
        self._copies += 1
        try:
            yield
        finally:
            self._copies -= 1
            if not self._copies:
                self._pages.clear()
                self._size = 0

    async def page(
        self,
        type_: str,
        after: Key | None,
        projection: Projection.ValueType,
        *,
        zstd: bool = False,
    ) -> Page:
        """Return the next records after a key, of one type or of all (""), read lately.

        `zstd`: compressed, which is done once for all who ask for them.
        """
        place = type_, after, projection, zstd
        while True:
            page = self._pages.get(place)
            if page is not None and self._clock.monotonic_s() - page.read_at_s < KEPT_S:
                return page
            reading = self._reading.get(place)
            if reading is None:
                return await self._read(place, projection)
            await reading.wait()

    async def _read(self, place: _Place, projection: Projection.ValueType) -> Page:
        done = self._reading[place] = asyncio.Event()
        try:
            read_at_s = self._clock.monotonic_s()
            position = await self._storage.position()
            found = await self._storage.head(place[0], place[1], limit=self._page_records)
            # Not in the event loop, which may have checks to answer meanwhile.
            records, size = await self._work(_shown, found.records, projection)
            packed = b""
            if place[3] and size >= COMPRESSED_BYTES:
                packed = await self._work(compressed, records)
                records, size = (), len(packed)
            end = found.records[-1].key if found.records else None
            page = Page(position, records, packed, end, found.is_last, read_at_s, size)
            self._keep(place, page)
            return page
        finally:
            del self._reading[place]
            done.set()

    def _keep(self, place: _Place, page: Page) -> None:
        older = self._pages.pop(place, None)
        self._size += page.size - (older.size if older else 0)
        self._pages[place] = page
        while self._size > self._kept_bytes:
            self._size -= self._pages.pop(next(iter(self._pages))).size


def _shown(
    found: Sequence[StoredRecord], projection: Projection.ValueType
) -> tuple[tuple[Record, ...], int]:
    records = tuple(project(record, projection) for record in found)
    return records, sum(record.ByteSize() for record in records)
