"""Long copies take turns."""

from __future__ import annotations

import asyncio

from gatehouse.common.clock import SystemRng
from gatehouse.databroker.edge.copy_turns import CopyTurns
from tests.support.databroker_client import until


async def test_so_many_at_once_and_the_next_when_one_ends() -> None:
    turns = CopyTurns(SystemRng(), most=2, pause_s=1e9)
    ends = [asyncio.Event() for _ in range(4)]
    begun: list[int] = []

    async def copy(number: int) -> None:
        async with turns.turn():
            begun.append(number)
            await ends[number].wait()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(copy(number)) for number in range(4)]
        await until(lambda: begun == [0, 1], 30.0)
        ends[1].set()
        await until(lambda: begun == [0, 1, 2], 30.0)
        tasks[0].cancel()  # its reader has gone
        await until(lambda: begun == [0, 1, 2, 3], 30.0)
        for end in ends:
            end.set()


async def test_nobody_waits_for_good() -> None:
    turns = CopyTurns(SystemRng(), most=1, pause_s=0.1)
    async with turns.turn():
        for _ in range(3):
            async with turns.turn():
                pass
    async with CopyTurns(SystemRng(), most=1, pause_s=1e9).turn():
        pass
    # Those that went on without a place have given none back.
    slow = CopyTurns(SystemRng(), most=1, pause_s=0.01)
    async with slow.turn():
        async with slow.turn():
            pass
        assert slow._places.locked()
