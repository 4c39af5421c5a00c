"""How a task that may fail keeps going until the process stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.runtime.backoff import Backoff


async def wait_or_stop(stop: asyncio.Event, delay_s: float) -> bool:
    """Wait `delay_s` seconds or until `stop` is set; True when it is set."""
    if delay_s <= 0:
        return stop.is_set()
    try:
        async with asyncio.timeout(delay_s):
            await stop.wait()
    except TimeoutError:
        return stop.is_set()
    return True


async def run_until_stop(
    stop: asyncio.Event,
    attempt: Callable[[], Awaitable[None]],
    *,
    backoff: Backoff,
    clock: Clock,
    rng: Rng,
    on_failure: Callable[[Exception, float], None] | None = None,
    healthy_after_s: float = 60.0,
) -> None:
    """Run `attempt` again and again until `stop`, waiting between runs.

    A run that lasted `healthy_after_s` starts the back-off anew. `on_failure` gets the exception
    and the wait that follows. A run that returns without an exception is waited for just the
    same. `attempt` should itself watch `stop`; cancellation passes through.
    """
    while not stop.is_set():
        started_s = clock.monotonic_s()
        failure: Exception | None = None
        try:
            await attempt()
        except Exception as error:  # noqa: BLE001  # whatever it was, the task must go on
            failure = error
        if stop.is_set():
            return
        if clock.monotonic_s() - started_s >= healthy_after_s:
            backoff.reset()
        delay_s = backoff.next_s(rng)
        if failure is not None and on_failure is not None:
            on_failure(failure, delay_s)
        if await wait_or_stop(stop, delay_s):
            return
