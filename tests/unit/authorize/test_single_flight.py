"""One piece of work, many askers, and each way it can end."""

from __future__ import annotations

import asyncio

import pytest

from gatehouse.authorize.edge.single_flight import SingleFlight
from gatehouse.authorize.errors import CannotKnowError


class Work:
    def __init__(self) -> None:
        self.begun = 0
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.error: CannotKnowError | None = None

    async def __call__(self) -> int:
        self.begun += 1
        self.started.set()
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return self.begun


async def test_r33_askers_of_one_key_share_and_of_another_do_not() -> None:
    flights: SingleFlight[tuple[str, str], int] = SingleFlight(10)
    one, two = Work(), Work()
    async with asyncio.TaskGroup() as tasks:
        ones = [tasks.create_task(flights.run(("a", "t"), one)) for _ in range(50)]
        other = tasks.create_task(flights.run(("b", "t"), two))
        await one.started.wait()
        one.go.set()
        two.go.set()
    assert {task.result() for task in ones} == {1}
    assert (other.result(), one.begun, two.begun) == (1, 1, 1)
    assert await flights.run(("a", "t"), one) == 2  # nothing is remembered


async def test_a_failure_is_shared_too() -> None:
    flights: SingleFlight[str, int] = SingleFlight(10)
    work = Work()
    work.error = CannotKnowError("away")
    waiting = [asyncio.ensure_future(flights.run("k", work)) for _ in range(20)]
    await work.started.wait()
    work.go.set()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(one) for one in ended] == ["away"] * 20
    assert len({id(one) for one in ended}) == 20
    assert work.begun == 1


async def test_when_the_first_gives_up_the_next_takes_over() -> None:
    flights: SingleFlight[str, int] = SingleFlight(10)
    work = Work()
    first = asyncio.ensure_future(flights.run("k", work))
    await work.started.wait()
    second = asyncio.ensure_future(flights.run("k", work))
    work.started.clear()
    await asyncio.sleep(0)
    first.cancel()
    await work.started.wait()
    work.go.set()
    assert await second == 2
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_it_is_bounded() -> None:
    flights: SingleFlight[str, int] = SingleFlight(1)
    work = Work()
    first = asyncio.ensure_future(flights.run("k", work))
    await work.started.wait()
    with pytest.raises(CannotKnowError, match="too many"):
        await flights.run("other", work)
    work.go.set()
    assert await first == 1
    assert await flights.run("other", work) == 2
