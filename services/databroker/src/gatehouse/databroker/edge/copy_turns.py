"""How many long copies are sent at the same time, so that a crowd of readers costs no crowd's room.

Replicas that start together, or hear together that their copies are void, all come at once. Each
copy under way holds a page or two; beyond so many of them the next ones wait for a turn, and for a
time of their own at the most, so that a reader that is slow holds up nobody for good.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from gatehouse.common.clock import Rng

MOST_COPIES: Final = 32
PAUSE_S: Final = 20.0  # readers give up what has been silent for 30 s


class CopyTurns:
    """A limited number of places."""

    def __init__(self, rng: Rng, *, most: int = MOST_COPIES, pause_s: float = PAUSE_S) -> None:
        self._rng = rng
        self._pause_s = pause_s
        self._places = asyncio.Semaphore(most)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Begin the block with a place of its own, or after a random pause without one."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._rng.uniform(0.0, self._pause_s)):
                    await self._places.acquire()
                    stack.callback(self._places.release)
            yield
