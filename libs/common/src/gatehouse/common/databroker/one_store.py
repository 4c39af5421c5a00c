"""Whether the databrokers that a process calls are all of one store.

Those on PostgreSQL share a history; one with a store of its own has another. Calls that meet now
this and now that would end sessions and bring them back, so a process that sees it for over a
minute says so and is not ready (spec: configuration, section 2.1).
"""

from __future__ import annotations

import asyncio
from typing import Final

from gatehouse.common.clock import Clock
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.errors import GatehouseError
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.common.runtime.supervise import wait_or_stop

CHECK: Final = "databroker.one-store"
EVERY_S: Final = 10.0
ASKED_EACH_TIME: Final = 4  # calls go to one address after the other
TELLING_S: Final = 60.0  # how long histories must alternate, and how long none, to believe it
_MOST_LEFT: Final = 16  # histories that are remembered

_log = get_logger("databroker client")


class HistoriesMet:
    """The histories that answers came from. Pure; times are seconds of a monotonic clock.

    A store that is cleared or restored goes over to a new history and never back. One that is met
    again after another was met is therefore alive at the same time. Shortly after such a change
    a databroker may answer with what it knew before, so only what lasts counts.
    """

    def __init__(self, telling_s: float = TELLING_S) -> None:
        self._telling_s = telling_s
        self._current = 0
        self._left: dict[int, None] = {}  # in the order in which they were left
        self._began_s: float | None = None  # alternating, without a pause of `telling_s`
        self._returned_s = 0.0

    def met(self, server_version: int, now_s: float) -> None:
        """An answer came from this history; 0 stands for an unknown one."""
        if server_version in {0, self._current}:
            return
        if server_version in self._left:
            if self._began_s is None or now_s - self._returned_s >= self._telling_s:
                self._began_s = now_s
            self._returned_s = now_s
        if self._current:
            self._left.pop(self._current, None)
            self._left[self._current] = None
            while len(self._left) > _MOST_LEFT:
                del self._left[next(iter(self._left))]
        self._current = server_version

    def are_several(self, now_s: float) -> bool:
        """True while there are stores side by side, for all that is known."""
        return (
            self._began_s is not None
            and self._returned_s - self._began_s >= self._telling_s
            and now_s - self._returned_s < self._telling_s
        )


async def watch_one_store(
    client: DatabrokerClient,
    health: HealthRegistry,
    clock: Clock,
    stop: asyncio.Event,
    *,
    every_s: float = EVERY_S,
    telling_s: float = TELLING_S,
) -> None:
    """Ask until `stop`; report the check `CHECK` from the first time that there are several."""
    histories = HistoriesMet(telling_s)
    were_several = False
    while not await wait_or_stop(stop, every_s):
        for _ in range(ASKED_EACH_TIME):
            try:
                answer = await client.server_info()
            except GatehouseError:  # others tell that it is away
                break
            histories.met(answer.server_version, clock.monotonic_s())
        several = histories.are_several(clock.monotonic_s())
        if several and not were_several:
            _log.error(
                "databrokers with different stores answer",
                key="databroker_service_urls",
                fix="one PostgreSQL database for all of them",
            )
            health.expect(CHECK)
            health.set_running(CHECK)
            health.set_error(CHECK, "databrokers with different stores answer")
        elif were_several and not several:
            _log.info("databrokers answer from one store again")
            health.set_running(CHECK)
        were_several = several
