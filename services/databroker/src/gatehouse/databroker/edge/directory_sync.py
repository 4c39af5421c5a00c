"""Keeps the directory's records as the configured document says, on one databroker at a time.

Whoever holds the lease reads the document on schedule. Whatever goes wrong leaves the records as
they are: the last good directory stays in force.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.errors import GatehouseError
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.observability.metrics import (
    DIRECTORY_ERRORS,
    DIRECTORY_RECORDS,
    DIRECTORY_SYNC_TIME,
)
from gatehouse.common.runtime.backoff import Backoff
from gatehouse.common.runtime.supervise import run_until_stop, wait_or_stop
from gatehouse.databroker.core.directory import parse_directory
from gatehouse.databroker.core.directory_records import (
    TYPES,
    Changes,
    Held,
    batches,
    held,
    plan_changes,
)
from gatehouse.databroker.core.records import Key, Put
from gatehouse.databroker.edge.backends.base import Storage
from gatehouse.databroker.edge.directory_source import read_source

LEASE: Final = "directory_sync"
LEASE_S: Final = 180.0
ROUND_S: Final = 120.0  # one round at most; the lease lasts longer
ASK_S: Final = 5.0  # for one request for the lease
LOOK_S: Final = 2.0  # between looks at settings and lease
RETRY_S: Final = 30.0  # after a round that failed, if the interval is longer
_PAGE: Final = 1_000
_BATCH: Final = 500

_log = get_logger("databroker")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The settings of one round: a change of any starts one at once."""

    source: str
    interval_s: float
    max_shrink: float
    token: str
    ca_bundle_pem: bytes | None


class DirectorySync:
    """One process's part of it."""

    def __init__(
        self,
        storage: Storage,
        settings_of: Callable[[], ResolvedSettings],
        clock: Clock,
        rng: Rng,
        show: Callable[[str, str], None] = lambda _name, _value: None,
        look_s: float = LOOK_S,
    ) -> None:
        """`show` gets what health may show, by name."""
        self._storage = storage
        self._settings_of = settings_of
        self._clock = clock
        self._rng = rng
        self._show = show
        self._look_s = look_s
        self._lease_id = rng.uuid4()
        self._held_until_s = 0.0  # monotonic
        self._done: _Wanted | None = None
        self._next_s = 0.0  # monotonic
        self._trouble = ""

    async def run(self, stop: asyncio.Event) -> None:
        """Synchronise until `stop`. Never raises."""
        try:
            await run_until_stop(
                stop,
                lambda: self._serve(stop),
                backoff=Backoff(1.0, 2.0, 60.0, 0.5),
                clock=self._clock,
                rng=self._rng,
                on_failure=_failed,
            )
        finally:
            if self._held_until_s:
                with contextlib.suppress(GatehouseError, TimeoutError):
                    async with asyncio.timeout(2.0):
                        await self._storage.release_lease(LEASE, self._lease_id)

    async def _serve(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            wanted = self._wanted()
            if wanted is None:
                self._done = None
                self._show("state", "off: directory_source is not set")
            elif not await self._has_lease():
                self._done = None
                self._show("state", "another databroker synchronises")
            elif wanted != self._done or self._clock.monotonic_s() >= self._next_s:
                await self._turn(wanted)
            if await wait_or_stop(stop, self._look_s):
                return

    def _wanted(self) -> _Wanted | None:
        settings = self._settings_of()
        keys = settings.settings
        if not keys.directory_source:
            return None
        return _Wanted(
            keys.directory_source,
            keys.directory_refresh_interval,
            keys.directory_max_shrink,
            keys.directory_source_token.get_secret_value(),
            settings.ca_bundle_pem,
        )

    async def _has_lease(self) -> bool:
        """Take or keep the lease; what is held long enough for a round is not asked for again."""
        now_s = self._clock.monotonic_s()
        if now_s < self._held_until_s - ROUND_S:
            return True
        try:
            async with asyncio.timeout(ASK_S):
                granted = await self._storage.renew_lease(LEASE, self._lease_id, int(LEASE_S * 1e6))
        except (GatehouseError, TimeoutError):
            granted = False  # the store's own health says so
        self._held_until_s = now_s + LEASE_S if granted else 0.0
        return granted

    async def _turn(self, wanted: _Wanted) -> None:
        """One round."""
        interval_s = wanted.interval_s
        try:
            async with asyncio.timeout(ROUND_S):
                changes = await self._round(wanted)
        except (GatehouseError, TimeoutError) as error:
            self._report(str(error) or f"not done within {ROUND_S:g} s")
            interval_s = min(interval_s, RETRY_S)
        else:
            self._succeeded(changes)
        self._done = wanted
        self._next_s = self._clock.monotonic_s() + interval_s * self._rng.uniform(0.95, 1.05)

    async def _round(self, wanted: _Wanted) -> Changes:
        data = await read_source(
            wanted.source, token=wanted.token, ca_bundle_pem=wanted.ca_bundle_pem
        )
        # Off the event loop: a large document takes a while.
        directory = await asyncio.to_thread(parse_directory, data)
        stored = await self._stored()
        changes = await asyncio.to_thread(plan_changes, directory, stored, wanted.max_shrink)
        for batch in batches(changes.writes, _BATCH):
            await self._storage.write(Put(batch))
        DIRECTORY_RECORDS.labels("users").set(len(directory.users))
        DIRECTORY_RECORDS.labels("groups").set(len(directory.groups))
        return changes

    async def _stored(self) -> dict[Key, Held]:
        found: dict[Key, Held] = {}
        for type_ in TYPES:
            after: Key | None = None
            is_last = False
            while not is_last:
                page = await self._storage.head(type_, after, limit=_PAGE)
                found |= {record.key: held(record) for record in page.records}
                after = page.records[-1].key if page.records else after
                is_last = page.is_last
                await asyncio.sleep(0)
        return found

    def _succeeded(self, changes: Changes) -> None:
        DIRECTORY_SYNC_TIME.set(self._clock.now_s())
        if self._trouble:
            self._trouble = ""
            _log.info("directory synchronised again")
        if changes.writes or changes.foreign:
            _log.info(
                "directory synchronised",
                added=changes.added,
                changed=changes.changed,
                removed=changes.removed,
                not_ours=[f"{type_} {id_}" for type_, id_ in changes.foreign[:10]],
                not_ours_count=len(changes.foreign),
            )
        self._show("state", "synchronised")
        self._show("last_success", f"{self._clock.now_s():.0f}")

    def _report(self, trouble: str) -> None:
        """Log the first of a kind, not each."""
        DIRECTORY_ERRORS.inc()
        self._show("state", f"failing, the last good directory stays: {trouble}")
        if trouble != self._trouble:
            self._trouble = trouble
            _log.error("directory not synchronised: the last good one stays", error=trouble)


def _failed(error: Exception, delay_s: float) -> None:
    _log.error(
        "directory synchronisation failed",
        error_type=type(error).__name__,
        retry_s=round(delay_s, 1),
    )
