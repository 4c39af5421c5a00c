"""The identity manager: keeps sessions fresh beside the store, and never in its way.

Runs inside the databroker on the store itself. Partitions are owned by leases (`core/partitions`);
the sessions of owned ones are looked up once and then followed (`core/refresh` says what to do
when); `edge/refresh_attempt` does it. Whatever goes wrong here is logged and tried again: it ends
neither a session nor the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.errors import GatehouseError
from gatehouse.common.identity.errors import IdentityProviderError
from gatehouse.common.ids import SESSION
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.observability.metrics import (
    REFRESH_TIME,
    SESSION_REFRESH_ERROR_TIME,
    SESSION_REFRESH_ERRORS,
    SESSION_REFRESH_TIME,
    SESSION_REFRESHES,
)
from gatehouse.common.runtime.backoff import Backoff
from gatehouse.common.runtime.supervise import run_until_stop
from gatehouse.databroker.core.partitions import PARTITIONS, Ask, Shares
from gatehouse.databroker.core.records import StoredRecord
from gatehouse.databroker.core.refresh import (
    Attempt,
    Event,
    Finished,
    Gone,
    Load,
    Moment,
    Owned,
    Providers,
    Result,
    Rules,
    Schedule,
    Seen,
    Sweep,
    Tick,
)
from gatehouse.databroker.edge.backends.base import Storage
from gatehouse.databroker.edge.change_hub import ChangeHub
from gatehouse.databroker.edge.refresh_attempt import RefreshAttempts
from gatehouse.databroker.edge.refresh_providers import Refresher

ASK_S: Final = 5.0  # for one request for a lease
RELEASE_S: Final = 2.0  # for giving all leases back at the end
PAGE: Final = 1_000
SETTLE_S: Final = 1.0  # partitions often come several at a time: look through the store once
STEADY_S: Final = 60.0  # work that went well for so long makes its next failure a first one
CONFIGURED_S: Final = 5.0  # between looks at whether a provider is configured

_log = get_logger("databroker")


class ProviderSource(Protocol):
    """Where the providers come from: `RefreshProviders`."""

    def ids(self) -> frozenset[str]:
        """The idp ids that can be refreshed with now."""
        ...

    def get(self, idp_id: str) -> Refresher | None:
        """The provider of that id."""
        ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the identity manager works with.

    `alone`: no other process can use this store. `rules_of` gives the numbers in force. `show`
    gets what health may show, by name. `grace_s` is how long a call to a provider that is under
    way may go on after the stop: cut short, it could cost a session its refresh token.
    """

    storage: Storage
    hub: ChangeHub
    providers: ProviderSource
    clock: Clock
    rng: Rng
    alone: bool
    rules_of: Callable[[], Rules] = Rules
    show: Callable[[str, str], None] = lambda _name, _value: None
    grace_s: float = 5.0

    def now(self) -> Moment:
        """The present, in both time bases."""
        return Moment(self.clock.now_s(), self.clock.monotonic_s())


@dataclass(slots=True)
class Tally:
    """What has been done since the start, and which providers fail at present."""

    confirmed: int = 0
    failed: int = 0
    removed: int = 0
    troubled: set[str] = field(default_factory=set)

    def count(self, finished: Finished) -> None:
        """Count the end of an attempt or of a sweep."""
        _measure(finished.result)
        self.confirmed += finished.result is Result.DONE
        self.failed += finished.result in {Result.FAILED, Result.UNCLEAR, Result.DOUBTED}
        self.removed += finished.result is Result.VANISHED

    def heard(self, idp_id: str, error: IdentityProviderError | None) -> None:
        """Log the first trouble with a provider and its end, not each failure."""
        if error is None:
            if idp_id in self.troubled:
                self.troubled.discard(idp_id)
                _log.info("identity provider answers again", idp_id=idp_id)
        elif idp_id not in self.troubled:
            self.troubled.add(idp_id)
            _log.warning(
                "identity provider trouble: sessions stay, refreshing is tried again",
                idp_id=idp_id,
                reason=error.reason,
                error=str(error),
            )


def _measure(result: Result) -> None:
    REFRESH_TIME.set_to_current_time()
    if result is Result.DONE:
        SESSION_REFRESHES.inc()
        SESSION_REFRESH_TIME.set_to_current_time()
    elif result in {Result.FAILED, Result.UNCLEAR, Result.DOUBTED}:
        SESSION_REFRESH_ERRORS.inc()
        SESSION_REFRESH_ERROR_TIME.set_to_current_time()


class RefreshRunner:
    """One process's part of the identity manager."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self.tally = Tally()

    async def run(self, stop: asyncio.Event) -> None:
        """Manage until `stop`; then finish what is under way, within the grace. Never raises."""
        await run_until_stop(
            stop,
            lambda: self._serve(stop),
            backoff=Backoff(1.0, 2.0, 60.0, 0.5),
            clock=self._around.clock,
            rng=self._around.rng,
            on_failure=_failed,
        )

    async def _serve(self, stop: asyncio.Event) -> None:
        """Manage until the first provider is configured, or the last one no longer.

        Without one sessions are not refreshed, yet expired ones are removed.
        """
        around = self._around
        refreshes = bool(around.providers.ids())
        state = "running" if refreshes else "only sweeping: no identity provider is configured"
        around.show("state", state)
        _log.info("identity manager started", alone=around.alone, refreshes=refreshes)
        await _Term(around, self.tally, stop, refreshes=refreshes).run()
        around.show("state", "stopped")


class _Term:
    """The time between two starts: tasks around one schedule and one set of leases."""

    def __init__(
        self, around: Surroundings, tally: Tally, stop: asyncio.Event, *, refreshes: bool
    ) -> None:
        self._around = around
        self._refreshes = refreshes
        self._tally = tally
        self._stop = stop
        self._rules = around.rules_of()
        self._attempts = RefreshAttempts(
            around.storage,
            around.providers.get,
            self._rules,
            around.clock,
            around.rng,
            report=tally.heard,
        )
        self._shares = Shares(around.rng.uuid4(), around.alone)
        self._schedule = Schedule(self._rules, around.now())
        self._wake = asyncio.Event()
        self._wake_s = 0.0  # when the schedule is looked at next
        self._load = asyncio.Event()
        self._to_load: set[int] = set()
        self._jobs: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                beside = [
                    group.create_task(self._forever(work))
                    for work in (self._keep_leases, self._follow, self._load_partitions)
                ]
                await self._drive()
                self._is_stopping = True
                if self._jobs:  # leases are still renewed meanwhile
                    await asyncio.wait(self._jobs, timeout=self._around.grace_s)
                for task in (*beside, *self._jobs):
                    task.cancel()
        except Exception:
            await self._give_back()
            raise
        await self._give_back()

    async def _drive(self) -> None:
        """Let time pass for the schedule, until the stop or until it must begin anew."""
        while not self._stop.is_set():
            ids = self._around.providers.ids()
            if bool(ids) != self._refreshes or self._around.rules_of() != self._rules:
                return
            self._tell(Providers(ids))
            self._tell(Tick())
            now = self._around.now()
            self._wake_s = self._schedule.wake_s(now)
            self._wake.clear()
            delay_s = max(0.0, self._wake_s - now.monotonic_s)
            await self._wake_or_stop(delay_s if self._refreshes else min(delay_s, CONFIGURED_S))

    async def _wake_or_stop(self, delay_s: float) -> None:
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(event.wait()) for event in (self._wake, self._stop)]
            await asyncio.wait(waits, timeout=delay_s, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()

    def _tell(self, event: Event) -> None:
        now = self._around.now()
        effects = self._schedule.step(event, now)
        if self._is_stopping:
            return
        for effect in effects:
            match effect:
                case Attempt():
                    self._spawn(self._attempt(effect))
                case Sweep(ids):
                    self._spawn(self._sweep(ids))
                case Load(partitions):
                    self._to_load |= partitions
                    self._load.set()
        if self._schedule.wake_s(now) < self._wake_s:
            self._wake.set()

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task = self._group.create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    # Jobs

    async def _attempt(self, attempt: Attempt) -> None:
        finished = Finished(attempt.id, Result.FAILED)
        try:
            finished = await self._attempts.attempt(attempt)
        except GatehouseError as error:
            _log.warning("session not refreshed", session_id=attempt.id, reason=error.reason)
        except Exception as error:  # noqa: BLE001 - one session must not stop the others
            _log.error("session not refreshed", session_id=attempt.id, error_type=_name_of(error))
        finally:
            self._tally.count(finished)
            self._tell(finished)

    async def _sweep(self, ids: tuple[str, ...]) -> None:
        ends = [Finished(id_, Result.FAILED) for id_ in ids]
        try:
            ends = await self._attempts.sweep(ids)
        except GatehouseError as error:
            _log.warning("expired sessions not removed", reason=error.reason)
        except Exception as error:  # noqa: BLE001 - see above
            _log.error("expired sessions not removed", error_type=_name_of(error))
        finally:
            for finished in ends:
                self._tally.count(finished)
                self._tell(finished)

    # Leases

    async def _keep_leases(self) -> None:
        if not self._refreshes:
            # Removing an expired session twice does no harm: no lease is taken from those who
            # refresh.
            self._tell(Owned(dict.fromkeys(range(PARTITIONS), math.inf)))
            self._around.show("sessions", str(self._schedule.count))
            await asyncio.sleep(CONFIGURED_S)
            return
        asks = self._shares.asks(self._around.clock.monotonic_s(), self._schedule.busy_partitions)
        async with asyncio.TaskGroup() as group:
            for ask in asks:
                group.create_task(self._ask(ask))
        self._tell(Owned(self._shares.held()))
        show = self._around.show
        show("partitions", str(len(self._shares.held())))
        show("sessions", str(self._schedule.count))
        show("confirmed", str(self._tally.confirmed))
        show("troubled_providers", ", ".join(sorted(self._tally.troubled)))
        now_s = self._around.clock.monotonic_s()
        await asyncio.sleep(self._shares.wake_s(now_s) - now_s)

    async def _ask(self, ask: Ask) -> None:
        granted: bool | None = None
        try:
            async with asyncio.timeout(ASK_S):
                granted = await self._asked(ask)
        except (GatehouseError, TimeoutError):
            pass  # the store's own health says so
        finally:
            self._shares.answer(ask, granted, self._around.clock.monotonic_s())

    async def _asked(self, ask: Ask) -> bool:
        storage, duration_us = self._around.storage, int(ask.duration_s * 1e6)
        match ask.verb:
            case "acquire":
                return await storage.acquire_lease(ask.name, ask.lease_id, duration_us)
            case "release":
                await storage.release_lease(ask.name, ask.lease_id)
                return True
        granted = await storage.renew_lease(ask.name, ask.lease_id, duration_us)
        if granted and ask.verb == "probe":
            await storage.release_lease(ask.name, ask.lease_id)
        return granted

    async def _give_back(self) -> None:
        asks = self._shares.releases(self._around.clock.monotonic_s())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RELEASE_S), asyncio.TaskGroup() as group:
                for ask in asks:
                    group.create_task(self._ask(ask))

    # Records

    async def _follow(self) -> None:
        """Tell the schedule what changes; whenever that begins anew, look through everything."""
        await self._around.hub.ready()
        position = await self._around.storage.position()
        follower = self._around.hub.follow(position.server_version, position.latest, SESSION)
        self._to_load |= self._shares.held().keys()
        self._load.set()
        while True:
            changes = await follower.take()
            for change in changes:
                if change.record.deleted_at_us is not None:
                    self._tell(Gone(change.record.id))
                else:
                    self._see(change.record)
            if changes:
                await asyncio.sleep(0)
            else:
                await follower.wait(None, for_tick=False)

    async def _load_partitions(self) -> None:
        await self._load.wait()
        await asyncio.sleep(SETTLE_S)
        self._load.clear()
        partitions, self._to_load = frozenset(self._to_load), set()
        try:
            await self._look_through(partitions)
        except BaseException:
            self._to_load |= partitions
            self._load.set()
            raise
        _log.debug("sessions loaded", partitions=len(partitions), count=self._schedule.count)

    async def _look_through(self, partitions: frozenset[int]) -> None:
        clock, after, is_last = self._around.clock, None, not partitions
        while not is_last:
            page = await self._around.storage.head(SESSION, after, limit=PAGE)
            started_s = clock.monotonic_s()
            for number, record in enumerate(page.records):
                self._see(record, only=partitions)
                if number % 50 == 49:
                    await asyncio.sleep(0)  # the store's callers come first
            if page.records:
                after = page.records[-1].key
            is_last = page.is_last
            # Half the time at most, so that a large store does not fill this process.
            await asyncio.sleep(clock.monotonic_s() - started_s)

    def _see(self, record: StoredRecord, *, only: frozenset[int] | None = None) -> None:
        facts = self._attempts.facts(record)
        if facts is not None and (only is None or facts.partition in only):
            self._tell(Seen(facts, loaded=only is not None))

    async def _forever(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        backoff = Backoff(0.5, 2.0, 15.0, 0.5)
        while True:
            started_s = self._around.clock.monotonic_s()
            try:
                await work()
            except GatehouseError as error:
                _log.debug("identity manager waits for the store", reason=error.reason)
                if self._around.clock.monotonic_s() - started_s > STEADY_S:
                    backoff.reset()
                await asyncio.sleep(backoff.next_s(self._around.rng))
            else:
                backoff.reset()


def _failed(error: Exception, delay_s: float) -> None:
    _log.error("identity manager failed", error_type=_name_of(error), retry_s=round(delay_s, 1))


def _name_of(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return ", ".join(sorted({_name_of(inner) for inner in error.exceptions}))
    return type(error).__name__
