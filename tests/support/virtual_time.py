"""An event loop whose time jumps to the next timer: hours pass in milliseconds, the same each run.

For code that does no real I/O. When nothing is left to wait for, the loop raises.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

BASE_S = 1_800_000_000.0  # Unix time at the start


class _Selector(selectors.SelectSelector):
    """Lets no real time pass."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("nothing is left to wait for")
            self.loop.skip(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop over virtual time, which begins at 0."""

    def __init__(self) -> None:
        self._virtual_s = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self._virtual_s

    def skip(self, seconds: float) -> None:
        """Let time pass."""
        self._virtual_s += max(0.0, seconds)


class VirtualClock:
    """The loop's time as a Clock; `skew_s` is by how much its wall time is off."""

    def __init__(self) -> None:
        self.skew_s = 0.0

    def now_s(self) -> float:
        return BASE_S + self.monotonic_s() + self.skew_s

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()


def run_virtually(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(work)
