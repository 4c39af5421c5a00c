"""One reader for all streams: what it vouches for, and what it does when the store is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gatehouse.common.clock import SystemRng
from gatehouse.common.errors import AbortedError, GatehouseError, UnavailableError
from gatehouse.databroker.core.feed import Position
from gatehouse.databroker.core.records import Put
from gatehouse.databroker.edge.backends.base import ChangePage
from gatehouse.databroker.edge.backends.memory import MemoryStorage
from gatehouse.databroker.edge.change_hub import ChangeHub
from gatehouse.databroker.edge.tasks import background
from gatehouse.databroker.errors import StorageUnavailableError
from gatehouse.pb.databroker_pb2 import FULL
from gatehouse.pb.user_pb2 import User
from tests.support.clock import FakeClock
from tests.support.storage import incoming

PATIENCE_S = 60.0


class FlakyStorage(MemoryStorage):
    """The real store in memory, with reads that can be made to fail and are counted."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock, SystemRng())
        self.is_away = False
        self.reads = 0
        self.lowered = 0

    async def position(self) -> Position:
        if self.is_away:
            raise StorageUnavailableError("away")
        held = await super().position()
        return Position(held.server_version, held.latest - self.lowered, held.pruned)

    async def changes(self, after: int, *, type_: str = "", limit: int) -> ChangePage:
        self.reads += 1
        return await super().changes(after, type_=type_, limit=limit)

    async def renew_history(self, seen: Position) -> None:
        assert seen.latest > (await self.position()).latest
        self.lowered = 0
        await self.clear()

    async def add(self, *ids: str, type_: str = "t") -> None:
        await self.write(Put(tuple(incoming(type_, id_, User(id=id_)) for id_ in ids)))


class World:
    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock()
        self.storage = FlakyStorage(self.clock)
        self.reports: list[GatehouseError | None] = []
        self.reported = asyncio.Event()
        self.hub = ChangeHub(self.storage, self.clock, SystemRng(), report=self._report, **options)

    def _report(self, error: GatehouseError | None) -> None:
        self.reports.append(error)
        self.reported.set()

    def failed(self) -> bool:
        return self.reports[-1] is not None

    async def round(self) -> None:
        """Wait for one more round of reading."""
        self.reported.clear()
        async with asyncio.timeout(PATIENCE_S):
            await self.reported.wait()


@asynccontextmanager
async def world(**options: Any) -> AsyncIterator[World]:
    made = World(**options)
    async with background(made.hub.run()):
        async with asyncio.timeout(PATIENCE_S):
            await made.hub.ready()
        yield made


async def server_version(made: World) -> int:
    return (await made.storage.position()).server_version


async def test_many_followers_one_read_per_change() -> None:
    async with world(poll_s=60) as made:
        version = await server_version(made)
        followers = [made.hub.follow(version, 0, "t") for _ in range(200)]
        assert [await follower.take() for follower in followers] == [()] * 200
        before = made.storage.reads
        await made.storage.add("a")
        await made.storage.add("b", type_="other")
        await made.round()
        for follower in followers:
            assert [change.version for change in await follower.take()] == [1]
            assert await follower.take() == ()
        assert made.storage.reads - before <= 2


async def test_followers_share_one_message() -> None:
    async with world(poll_s=60) as made:
        version = await server_version(made)
        one, other = (made.hub.follow(version, 0, "") for _ in range(2))
        assert (await one.take(), await other.take()) == ((), ())
        await made.storage.add("a")
        await made.round()
        assert (await one.take())[0].response(FULL) is (await other.take())[0].response(FULL)


async def test_it_polls_when_nothing_is_announced() -> None:
    async with world(poll_s=0.01) as made:
        follower = made.hub.follow(await server_version(made), 0, "t")
        made.storage.on_change(lambda: None)
        await made.storage.add("a")
        async with asyncio.timeout(PATIENCE_S):
            await follower.wait(None, for_tick=False)
            assert [change.version for change in await follower.take()] == [1]


async def test_a_heartbeat_rests_on_a_read_of_the_last_second() -> None:
    async with world(poll_s=60) as made:
        version = await server_version(made)
        await made.storage.add("a", "b")
        await made.round()
        follower = made.hub.follow(version, 2, "t")
        await follower.take()
        heartbeat = follower.heartbeat()
        assert heartbeat is not None
        assert (heartbeat.server_version, heartbeat.latest_record_version) == (version, 2)
        made.clock.advance(1.5)
        assert follower.heartbeat() is None


async def test_no_heartbeat_while_the_store_is_away_or_the_stream_behind() -> None:
    async with world(poll_s=0.01) as made:
        version = await server_version(made)
        follower = made.hub.follow(version, 0, "t")
        await follower.take()
        assert follower.heartbeat() is not None
        await made.storage.add("a")
        await made.round()
        assert follower.heartbeat() is None  # not taken yet
        await follower.take()
        assert follower.heartbeat() is not None
        made.storage.is_away = True
        await made.round()
        await made.round()
        assert made.failed()
        made.clock.advance(1.5)
        assert follower.heartbeat() is None
        made.storage.is_away = False
        async with asyncio.timeout(PATIENCE_S):
            while made.failed():
                await made.round()
        assert follower.heartbeat() is not None


async def test_a_stream_ahead_of_this_reader_waits_for_it() -> None:
    """Its client has seen the newest change at another databroker."""
    async with world(poll_s=60) as made:
        follower = made.hub.follow(await server_version(made), 5, "t")
        assert await follower.take() == ()
        assert follower.heartbeat() is None
        await made.storage.add(*"abcdef")
        await made.round()
        assert [change.version for change in await follower.take()] == [6]


async def test_falling_out_of_the_ring_after_joining_aborts() -> None:
    async with world(poll_s=60, ring_changes=4) as made:
        version = await server_version(made)
        slow = made.hub.follow(version, 0, "t")
        assert await slow.take() == ()
        await made.storage.add(*"abcdef")
        await made.round()
        with pytest.raises(AbortedError) as caught:
            await slow.take()
        assert caught.value.reason == "slow-subscriber"
        # One that is only beginning reads the store first.
        beginner = made.hub.follow(version, 0, "t")
        assert [change.version for change in await beginner.take()] == [1, 2, 3, 4, 5, 6]
        await made.storage.add("g")
        await made.round()
        assert [change.version for change in await beginner.take()] == [7]


async def test_another_history_aborts_everyone() -> None:
    async with world(poll_s=60) as made:
        follower = made.hub.follow(await server_version(made), 0, "t")
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(follower.wait(None, for_tick=True))
            await asyncio.sleep(0)
            await made.storage.clear()
            async with asyncio.timeout(PATIENCE_S):
                await waiting
        with pytest.raises(AbortedError):
            await follower.take()


async def test_a_store_that_has_gone_back_begins_another_history() -> None:
    async with world(poll_s=60) as made:
        version = await server_version(made)
        await made.storage.add("a", "b")
        await made.round()
        follower = made.hub.follow(version, 2, "t")
        assert await follower.take() == ()
        made.storage.lowered = 1
        made.hub._wakeup.set()
        await made.round()
        assert await server_version(made) != version
        with pytest.raises(AbortedError):
            await follower.take()


async def test_a_stream_does_not_go_on_in_a_history_that_was_left_and_put_back() -> None:
    """The same server version again, from a backup: what the stream has seen may not be in it."""
    async with world(poll_s=60) as made:
        version = await server_version(made)
        await made.storage.add("a", "b")
        await made.round()
        follower = made.hub.follow(version, 1, "t")
        await made.storage.clear()
        await made.round()
        made.storage._server_version = version
        await made.storage.add("c")
        await made.round()
        assert await server_version(made) == version
        with pytest.raises(AbortedError, match="read anew"):
            await follower.take()


async def test_a_store_behind_the_reader_is_not_asked_again_and_again() -> None:
    async with world(poll_s=60, ring_changes=2) as made:
        version = await server_version(made)
        await made.storage.add("a", "b", "c", "d")  # too many for the ring
        await made.round()
        assert made.hub.ring_of((version, 1)).start == 2
        follower = made.hub.follow(version, 1, "t")
        made.storage._log.clear()  # put back
        made.storage._latest = made.storage._pruned = 1
        made.storage.reads = 0
        with pytest.raises(UnavailableError):
            await follower.take()
        assert made.storage.reads <= 2


async def test_closing_ends_everyone_at_once() -> None:
    async with world(poll_s=60) as made:
        follower = made.hub.follow(await server_version(made), 0, "t")
        made.hub.check_open()
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(follower.wait(None, for_tick=True))
            await asyncio.sleep(0)
            made.hub.close()
            async with asyncio.timeout(PATIENCE_S):
                await waiting
        with pytest.raises(UnavailableError):
            await follower.take()
        with pytest.raises(UnavailableError):
            made.hub.check_open()


async def test_before_the_first_read_there_is_nothing_to_follow() -> None:
    made = World()
    follower = made.hub.follow(1, 0, "t")
    with pytest.raises(UnavailableError):
        await follower.take()
