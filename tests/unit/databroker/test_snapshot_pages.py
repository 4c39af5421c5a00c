"""One reading of the store for all copies that are under way."""

from __future__ import annotations

import asyncio

import pytest

from gatehouse.common.clock import SystemRng
from gatehouse.common.databroker.compressed import unpack
from gatehouse.databroker.core.records import Key, Put
from gatehouse.databroker.edge.backends.base import HeadPage
from gatehouse.databroker.edge.backends.memory import MemoryStorage
from gatehouse.databroker.edge.snapshot_pages import KEPT_S, PAGE_RECORDS, Page, SnapshotPages
from gatehouse.databroker.errors import StorageUnavailableError
from gatehouse.pb.databroker_pb2 import FULL, KEYS_ONLY, RecordBatch
from gatehouse.pb.user_pb2 import User
from tests.support.clock import FakeClock
from tests.support.storage import incoming


class SlowStorage(MemoryStorage):
    """The real store in memory; pages come when `gate` is open, and are counted."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock, SystemRng())
        self.gate = asyncio.Event()
        self.gate.set()
        self.reads = 0
        self.failures = 0  # to come

    async def head(self, type_: str, after: Key | None, *, limit: int) -> HeadPage:
        self.reads += 1
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise StorageUnavailableError("away")
        return await super().head(type_, after, limit=limit)


async def made(count: int) -> SlowStorage:
    storage = SlowStorage(FakeClock())
    records = [incoming("t", f"{number:05}", User(name="x" * 100)) for number in range(count)]
    for begin in range(0, count, 1000):
        await storage.write(Put(tuple(records[begin : begin + 1000])))
    return storage


async def copied(pages: SnapshotPages) -> list[Page]:
    found: list[Page] = []
    after: Key | None = None
    while not found or not found[-1].is_last:
        found.append(await pages.page("t", after, FULL))
        after = found[-1].end
    return found


async def test_copies_share_what_was_read() -> None:
    storage = await made(2 * PAGE_RECORDS + 5)
    pages = SnapshotPages(storage, FakeClock())
    with pages.copy():
        copies = await asyncio.gather(*(copied(pages) for _ in range(20)))
    assert storage.reads == 3
    assert all(copy == copies[0] for copy in copies)
    assert [len(page.records) for page in copies[0]] == [PAGE_RECORDS, PAGE_RECORDS, 5]


async def test_a_page_names_a_position_from_before_it_was_read() -> None:
    storage = await made(1)
    pages = SnapshotPages(storage, FakeClock())
    with pages.copy():
        storage.gate.clear()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(pages.page("t", None, FULL))
            await asyncio.sleep(0)
            await storage.write(Put((incoming("t", "later", User()),)))
            storage.gate.set()
        page = task.result()
    assert page.position.latest == 1


async def test_pages_grow_old() -> None:
    clock = FakeClock()
    storage = await made(3)
    pages = SnapshotPages(storage, clock)
    with pages.copy():
        await pages.page("t", None, FULL)
        clock.advance(KEPT_S - 0.1)
        await pages.page("t", None, FULL)
        assert storage.reads == 1
        clock.advance(0.2)
        await pages.page("t", None, FULL)
        assert storage.reads == 2
        await pages.page("t", None, KEYS_ONLY)
        assert storage.reads == 3


async def test_nothing_is_kept_when_nobody_copies() -> None:
    storage = await made(3)
    pages = SnapshotPages(storage, FakeClock())
    with pages.copy():
        await pages.page("t", None, FULL)
        with pages.copy():
            pass
        await pages.page("t", None, FULL)
        assert storage.reads == 1
    assert repr(pages) == "SnapshotPages(0, 0 bytes, 0 copies)"


async def test_no_more_is_kept_than_allowed() -> None:
    storage = await made(4 * PAGE_RECORDS)
    size = (await SnapshotPages(storage, FakeClock()).page("t", None, FULL)).size
    pages = SnapshotPages(storage, FakeClock(), kept_bytes=int(2.5 * size))
    with pages.copy():
        await copied(pages)
        assert repr(pages).startswith("SnapshotPages(2, ")
        reads = storage.reads
        await copied(pages)
        assert storage.reads > reads


async def test_who_waited_for_a_failed_reading_tries_it_again() -> None:
    storage = await made(3)
    pages = SnapshotPages(storage, FakeClock())
    storage.gate.clear()
    storage.failures = 1
    with pages.copy():
        first = asyncio.ensure_future(pages.page("t", None, FULL))
        second = asyncio.ensure_future(pages.page("t", None, FULL))
        for _ in range(5):
            await asyncio.sleep(0)
        storage.gate.set()
        with pytest.raises(StorageUnavailableError):
            await first
        assert len((await second).records) == 3
    assert storage.reads == 2


async def test_compressing_is_done_once_and_keeps_more() -> None:
    storage = await made(2 * PAGE_RECORDS + 5)
    pages = SnapshotPages(storage, FakeClock())
    with pages.copy():
        plain = await copied(pages)
        after: Key | None = None
        for page in plain:
            one = await pages.page("t", after, FULL, zstd=True)
            same = await pages.page("t", after, FULL, zstd=True)
            assert one is same
            if len(page.records) == PAGE_RECORDS:
                assert not one.records
                assert one.size < page.size / 2
            else:
                assert not one.zstd  # too few
            batch = RecordBatch(records=one.records, zstd=one.zstd)
            unpack(batch)
            assert tuple(batch.records) == page.records
            assert (one.end, one.is_last) == (page.end, page.is_last)
            after = page.end
    assert storage.reads == 6
