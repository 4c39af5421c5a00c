"""What is thrown away in the background: records past their time or over capacity, old changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from gatehouse.common.clock import Rng
from gatehouse.common.errors import GatehouseError
from gatehouse.common.runtime.backoff import Backoff
from gatehouse.databroker.core.records import Reap
from gatehouse.databroker.edge.backends.base import MAX_PRUNED, MAX_REAPED, Storage

PERIOD_S: Final = 60.0
RETRY_S: Final = 1.0  # readiness waits for a round that works
RETENTION_S: Final = 24 * 3600.0  # so that a replica away overnight resumes
MAX_LOG_BYTES: Final = 10 << 30


class Cleaner:
    """Cleans a store once a minute, the first time at once.

    Every databroker on a store does so; each deletion is checked again when it is made, so that
    they need not agree on who does it. `report` hears how each round went.
    """

    def __init__(
        self,
        storage: Storage,
        rng: Rng,
        *,
        report: Callable[[GatehouseError | None], None] = lambda _error: None,
        retention_s: float = RETENTION_S,
        max_log_bytes: int = MAX_LOG_BYTES,
        period_s: float = PERIOD_S,
    ) -> None:
        self._storage = storage
        self._rng = rng
        self._report = report
        self._retention_us = int(retention_s * 1e6)
        self._max_log_bytes = max_log_bytes
        self._period_s = period_s

    async def run(self) -> None:
        """Clean until cancelled; soon again after a round that failed."""
        backoff = Backoff(min(RETRY_S, self._period_s), 2.0, self._period_s, 0.2)
        while True:
            wait_s = self._period_s * self._rng.uniform(0.9, 1.1)
            try:
                await self.clean()
            except GatehouseError as error:
                self._report(error)
                wait_s = backoff.next_s(self._rng)
            else:
                self._report(None)
                backoff.reset()
            await asyncio.sleep(wait_s)

    async def clean(self) -> None:
        """Do one round."""
        while True:
            victims = await self._storage.reapable()
            if victims:
                await self._storage.write(Reap(victims))
            if len(victims) < MAX_REAPED:
                break
        while await self._storage.prune(self._retention_us, self._max_log_bytes) >= MAX_PRUNED:
            pass
