"""How long a change waits for an authorize worker."""

from __future__ import annotations

import asyncio
import math

import pytest

from gatehouse.authorize.edge.worker_pool import (
    PREPARE_TIMEOUT_S,
    SILENCE_S,
    answered_or_silent,
)
from tests.support.virtual_time import run_virtually


class Asked:
    """A worker that was asked at 0, and when it was heard of last."""

    def __init__(self, *, is_ready: bool = True) -> None:
        self.is_ready = is_ready
        self.heard_s = 0.0
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def waited_s(self) -> float:
        await answered_or_silent(
            self.answer, lambda: self.heard_s + SILENCE_S if self.is_ready else math.inf
        )
        return asyncio.get_running_loop().time()

    async def works(self, for_s: float) -> None:
        """Say so once a second, then answer."""
        loop = asyncio.get_running_loop()
        for second in range(1, int(for_s)):
            await asyncio.sleep(second - loop.time())
            self.heard_s = loop.time()
        await asyncio.sleep(for_s - loop.time())
        if not self.answer.done():
            self.answer.set_result(None)


def test_one_that_hangs_keeps_a_change_waiting_for_seconds_only() -> None:
    async def hangs() -> None:
        assert await Asked().waited_s() == pytest.approx(SILENCE_S)

    run_virtually(hangs())
    assert SILENCE_S <= 5.0


def test_one_that_hangs_after_a_while_is_noticed_as_soon() -> None:
    async def hangs_later() -> None:
        asked = Asked()
        asyncio.get_running_loop().call_later(3.0, setattr, asked, "heard_s", 3.0)
        assert await asked.waited_s() == pytest.approx(3.0 + SILENCE_S)

    run_virtually(hangs_later())


@pytest.mark.parametrize("work_s", [0.1, 4.0, 30.0])
def test_one_that_is_at_work_is_waited_for(work_s: float) -> None:
    async def works() -> None:
        asked = Asked()
        async with asyncio.TaskGroup() as group:
            group.create_task(asked.works(work_s))
            assert await asked.waited_s() == pytest.approx(work_s)
        assert asked.answer.done()

    run_virtually(works())


def test_nobody_is_waited_for_forever() -> None:
    async def works_on() -> None:
        asked = Asked()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(asked.works(10 * PREPARE_TIMEOUT_S))
            assert await asked.waited_s() == pytest.approx(PREPARE_TIMEOUT_S)
            task.cancel()

    run_virtually(works_on())


def test_one_that_starts_may_be_silent() -> None:
    async def starts() -> None:
        assert await Asked(is_ready=False).waited_s() == pytest.approx(PREPARE_TIMEOUT_S)

    run_virtually(starts())
