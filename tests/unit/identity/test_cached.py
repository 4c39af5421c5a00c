from __future__ import annotations

import asyncio

import pytest

from gatehouse.common.identity.cached import Cached
from gatehouse.common.identity.errors import IdentityProviderError
from tests.support.clock import FakeClock, FixedRng


class Source:
    """Counts up; fails or waits when told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.failing = False
        self.gate: asyncio.Event | None = None
        self.entered = asyncio.Event()

    async def fetch(self) -> int:
        self.calls += 1
        self.entered.set()
        number = self.calls
        if self.gate is not None:
            await self.gate.wait()
        if self.failing:
            raise IdentityProviderError("away", retry_after_s=7)
        return number


def make(source: Source, clock: FakeClock) -> Cached[int]:
    return Cached(source.fetch, clock, FixedRng(0.5), max_age_s=100, min_interval_s=10)


async def test_fetched_once_and_renewed_by_age() -> None:
    source, clock = Source(), FakeClock()
    cached = make(source, clock)
    assert source.calls == 0
    assert [await cached.get() for _ in range(3)] == [1, 1, 1]
    clock.advance(99)
    assert await cached.get() == 1
    clock.advance(2)
    assert await cached.get() == 2


async def test_renewal_on_demand_is_bounded() -> None:
    source, clock = Source(), FakeClock()
    cached = make(source, clock)
    assert await cached.get() == 1
    assert [await cached.renewed() for _ in range(5)] == [1] * 5
    clock.advance(10)
    assert [await cached.renewed() for _ in range(5)] == [2] * 5
    assert await cached.get() == 2


async def test_a_failure_is_tried_again_by_the_next_asker() -> None:
    source, clock = Source(), FakeClock()
    cached = make(source, clock)
    source.failing = True
    for expected in (1, 2, 3):
        with pytest.raises(IdentityProviderError):
            await cached.get()
        assert source.calls == expected
    source.failing = False
    assert await cached.get() == 4


async def test_an_old_value_survives_an_outage_without_hammering() -> None:
    source, clock = Source(), FakeClock()
    cached = make(source, clock)
    assert await cached.get() == 1
    source.failing = True
    clock.advance(1000)
    assert [await cached.get() for _ in range(5)] == [1] * 5
    assert [await cached.renewed() for _ in range(5)] == [1] * 5
    assert source.calls == 2
    clock.advance(10)
    source.failing = False
    assert await cached.get() == 3


async def test_concurrent_askers_share_one_fetch_and_its_failure() -> None:
    source, clock = Source(), FakeClock()
    cached = make(source, clock)
    source.gate, source.failing = asyncio.Event(), True
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(_outcome(cached)) for _ in range(50)]
        await source.entered.wait()
        await asyncio.sleep(0)
        source.gate.set()
    results = [task.result() for task in waiting]
    assert source.calls == 1
    assert all(isinstance(one, IdentityProviderError) and one.retry_after_s == 7 for one in results)
    assert len({id(one) for one in results}) == 50  # each has a traceback of its own


async def test_cancelling_the_one_that_fetches_harms_nobody() -> None:
    source, clock = Source(), FakeClock()
    cached = make(source, clock)
    source.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(cached.get())
        await source.entered.wait()
        second = group.create_task(cached.get())
        await asyncio.sleep(0)
        first.cancel()
        source.gate.set()
    assert second.result() == 2


async def _outcome(cached: Cached[int]) -> int | IdentityProviderError:
    try:
        return await cached.get()
    except IdentityProviderError as error:
        return error
