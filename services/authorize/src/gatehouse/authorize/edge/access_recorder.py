"""Who tells the databroker which sessions are in use: once a minute, off the way of decisions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from gatehouse.authorize.core.access_times import AT_ONCE, AccessTimes, Key
from gatehouse.authorize.core.identity import Identity
from gatehouse.common.clock import Rng
from gatehouse.common.errors import GatehouseError
from gatehouse.common.ids import SERVICE_ACCOUNT, SESSION
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.runtime.supervise import wait_or_stop

INTERVAL_S: Final = 60.0
_JITTER: Final = 0.1  # of the interval, so that replicas do not write all at once
_LAST_WRITE_S: Final = 1.0  # at the end of the process

_log = get_logger("authorize")


class AccessTimesWriter(Protocol):
    """What is needed of DatabrokerClient."""

    async def put_access_times(self, times: Mapping[Key, float]) -> None:
        """Write the times of at most AT_ONCE records down; the latest of each stays."""
        ...


class AccessRecorder:
    """Notes uses and writes them down. One per process: it outlives configurations."""

    def __init__(
        self, client: Callable[[], AccessTimesWriter], rng: Rng, *, interval_s: float = INTERVAL_S
    ) -> None:
        self._client = client
        self._rng = rng
        self._interval_s = interval_s
        self._times = AccessTimes()
        self._is_failing = False

    def note(self, identity: Identity, now_s: float) -> None:
        """Somebody shows the handle of this session or service account."""
        if identity.session_id:
            kind = SERVICE_ACCOUNT if identity.is_service_account else SESSION
            self._times.note((kind, identity.session_id), now_s)

    async def run(self, stop: asyncio.Event) -> None:
        """Write until `stop`, and then once more if that goes quickly."""
        spread_s = self._interval_s * _JITTER
        while not await wait_or_stop(
            stop, self._interval_s + self._rng.uniform(-spread_s, spread_s)
        ):
            await self._write()
        try:
            async with asyncio.timeout(_LAST_WRITE_S):
                await self._write()
        except TimeoutError:
            return

    async def _write(self) -> None:
        """Write all that is noted; what fails is tried again the next time."""
        for _ in range(0, max(1, len(self._times)), AT_ONCE):
            batch = self._times.take()
            if not batch:
                break
            try:
                await self._client().put_access_times(batch)
            except GatehouseError as error:
                self._times.put_back(batch)
                if not self._is_failing:
                    _log.warning("access times not written", error=str(error))
                self._is_failing = True
                return
        self._is_failing = False
        passed_over = self._times.take_passed_over()
        if passed_over:
            _log.error("access times passed over: too many sessions in use", count=passed_over)
