"""Running on after failures, and stopping at once."""

from __future__ import annotations

import asyncio

from gatehouse.common.runtime.backoff import Backoff
from gatehouse.common.runtime.supervise import run_until_stop, wait_or_stop
from tests.support.clock import FakeClock, FixedRng

RNG = FixedRng(0.5)


async def test_failures_are_told_and_tried_again() -> None:
    stop = asyncio.Event()
    told: list[tuple[str, float]] = []
    runs = 0

    async def attempt() -> None:
        nonlocal runs
        runs += 1
        if runs == 4:
            stop.set()
        raise RuntimeError(f"run {runs}")

    async with asyncio.timeout(60):
        await run_until_stop(
            stop,
            attempt,
            backoff=Backoff(0.001, 2.0, 0.01, 0.0),
            clock=FakeClock(),
            rng=RNG,
            on_failure=lambda error, delay_s: told.append((str(error), delay_s)),
        )
    assert told == [("run 1", 0.001), ("run 2", 0.002), ("run 3", 0.004)]


async def test_a_long_run_starts_the_backoff_anew() -> None:
    stop, clock = asyncio.Event(), FakeClock()
    waits: list[float] = []

    async def attempt() -> None:
        clock.advance(100 if len(waits) == 2 else 1)
        if len(waits) == 3:
            stop.set()
        raise RuntimeError

    async with asyncio.timeout(60):
        await run_until_stop(
            stop,
            attempt,
            backoff=Backoff(0.001, 2.0, 1.0, 0.0),
            clock=clock,
            rng=RNG,
            on_failure=lambda _error, delay_s: waits.append(delay_s),
        )
    assert waits == [0.001, 0.002, 0.001]


async def test_stop_ends_a_wait_at_once() -> None:
    stop = asyncio.Event()

    async def attempt() -> None:
        asyncio.get_running_loop().call_soon(stop.set)
        raise RuntimeError

    async with asyncio.timeout(60):
        await run_until_stop(
            stop, attempt, backoff=Backoff(600, 2.0, 600, 0.0), clock=FakeClock(), rng=RNG
        )


async def test_cancellation_passes_through() -> None:
    started = asyncio.Event()

    async def attempt() -> None:
        started.set()
        await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(
            run_until_stop(
                asyncio.Event(),
                attempt,
                backoff=Backoff(1, 1, 1, 0.0),
                clock=FakeClock(),
                rng=RNG,
            )
        )
        await started.wait()
        task.cancel()
    assert task.cancelled()


async def test_wait_or_stop() -> None:
    stop = asyncio.Event()
    assert await wait_or_stop(stop, 0.001) is False
    assert await wait_or_stop(stop, -1) is False
    stop.set()
    assert await wait_or_stop(stop, 600) is True
    assert await wait_or_stop(stop, 0) is True


async def test_nothing_runs_after_the_stop() -> None:
    stop = asyncio.Event()
    stop.set()
    ran: list[int] = []

    async def attempt() -> None:
        ran.append(1)

    await run_until_stop(stop, attempt, backoff=Backoff(1, 1, 1, 0), clock=FakeClock(), rng=RNG)
    assert ran == []
