"""The identity manager: keeps sessions fresh beside the store, and never in its way.

Runs inside the databroker on the store itself. Partitions are owned by leases (`core/partitions`);
the sessions of owned ones are looked up once and then followed (`core/refresh` says what to do
when); `edge/refresh_attempt` does it. Whatever goes wrong here is logged and tried again: it ends
neither a session nor the service.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.errors import GatehouseError
from gatehouse.common.identity.errors import IdentityProviderError
from gatehouse.common.ids import SESSION
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.runtime.backoff import Backoff
from gatehouse.common.runtime.supervise import run_until_stop, wait_or_stop
from gatehouse.databroker.core.partitions import Ask, Shares
from gatehouse.databroker.core.records import StoredRecord
from gatehouse.databroker.core.refresh import (
    Attempt,
    Effect,
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


@dataclass(slots=True)
class Counters:
    """What was done since the start."""

    done: int = 0
    failed: int = 0
    ended: int = 0


class RefreshRunner:
    """One process's part of the identity manager.

    `alone`: no other process can use this store. `rules_of` is asked whenever numbers are needed.
    `show` gets what health may show, by name; `grace_s` is how long a call to a provider that is
    under way may go on after the stop: cut short, it could cost a session its refresh token.
    """

    def __init__(
        self,
        storage: Storage,
        hub: ChangeHub,
        providers: ProviderSource,
        clock: Clock,
        rng: Rng,
        *,
        alone: bool,
        rules_of: Callable[[], Rules] = Rules,
        show: Callable[[str, str], None] = lambda _name, _value: None,
        grace_s: float = 5.0,
    ) -> None:
        self._storage = storage
        self._hub = hub
        self._providers = providers
        self._clock = clock
        self._rng = rng
        self._alone = alone
        self._rules_of = rules_of
        self._show = show
        self._grace_s = grace_s
        self.counters = Counters()
        self._troubled: set[str] = set()
        self._attempts = RefreshAttempts(
            storage, providers.get, rules_of, clock, rng, report=self._report
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Manage until `stop`; then finish what is under way, within the grace. Never raises."""
        await run_until_stop(
            stop,
            lambda: self._life(stop),
            backoff=Backoff(1.0, 2.0, 60.0, 0.5),
            clock=self._clock,
            rng=self._rng,
            on_failure=lambda error, delay_s: _log.error(
                "identity manager failed", error_type=_name_of(error), retry_s=round(delay_s, 1)
            ),
        )

    async def _life(self, stop: asyncio.Event) -> None:
        """One life: from the first provider configured to the last one gone, or the stop."""
        self._show("state", "idle: no identity provider is configured")
        while not self._providers.ids():
            if await wait_or_stop(stop, CONFIGURED_S):
                return
        self._show("state", "running")
        _log.info("identity manager started", alone=self._alone)
        await _Life(self, stop).run()
        self._show("state", "stopped")

    # What a life needs

    def moment(self) -> Moment:
        """Now, in both time bases."""
        return Moment(self._clock.now_s(), self._clock.monotonic_s())

    def _report(self, idp_id: str, error: IdentityProviderError | None) -> None:
        """Log the first trouble with a provider and its end, not each failure."""
        if error is None:
            if idp_id in self._troubled:
                self._troubled.discard(idp_id)
                _log.info("identity provider answers again", idp_id=idp_id)
        elif idp_id not in self._troubled:
            self._troubled.add(idp_id)
            _log.warning(
                "identity provider trouble: sessions stay, refreshing is retried",
                idp_id=idp_id,
                reason=error.reason,
                error=str(error),
            )


class _Life:
    """The tasks of one life, around one schedule and one set of leases."""

    def __init__(self, runner: RefreshRunner, stop: asyncio.Event) -> None:
        self._runner = runner
        self._storage = runner._storage  # noqa: SLF001 - two halves of one thing
        self._hub = runner._hub  # noqa: SLF001
        self._providers = runner._providers  # noqa: SLF001
        self._attempts = runner._attempts  # noqa: SLF001
        self._rng = runner._rng  # noqa: SLF001
        self._stop = stop
        self._shares = Shares(self._rng.uuid4(), runner._alone)  # noqa: SLF001
        self._schedule = Schedule(runner._rules_of(), runner.moment())  # noqa: SLF001
        self._wake = asyncio.Event()
        self._load = asyncio.Event()
        self._to_load: set[int] = set()
        self._jobs: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            beside = [
                group.create_task(self._forever(work))
                for work in (self._keep_leases, self._follow, self._load_partitions)
            ]
            try:
                await self._drive()
            finally:
                self._is_stopping = True
            if self._jobs:
                await asyncio.wait(self._jobs, timeout=self._runner._grace_s)  # noqa: SLF001
            for task in (*beside, *self._jobs):
                task.cancel()
        await self._give_back()

    async def _drive(self) -> None:
        """Let time pass for the schedule, until the stop or until no provider is left."""
        while not self._stop.is_set():
            self._wake.clear()
            ids = self._providers.ids()
            if not ids:
                return
            self._tell(Providers(ids))
            self._tell(Tick())
            now = self._runner.moment()
            delay_s = max(0.0, self._schedule.wake_s(now) - now.monotonic_s)
            async with _first(self._stop.wait(), self._wake.wait(), timeout_s=delay_s):
                pass

    def _tell(self, event: Event) -> None:
        if self._is_stopping:
            if isinstance(event, Finished):
                self._schedule.step(event, self._runner.moment())
            return
        for effect in self._schedule.step(event, self._runner.moment()):
            self._perform(effect)
        if not isinstance(event, Tick | Providers):
            self._wake.set()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Attempt():
                self._spawn(self._attempt(effect))
            case Sweep(ids):
                self._spawn(self._sweep(ids))
            case Load(partitions):
                self._to_load |= partitions
                self._load.set()

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
            _log.error(  # noqa: TRY400 - a traceback might show a token
                "session not refreshed", session_id=attempt.id, error_type=_name_of(error)
            )
        finally:
            self._count(finished)
            self._tell(finished)

    async def _sweep(self, ids: tuple[str, ...]) -> None:
        ends = [Finished(id_, Result.FAILED) for id_ in ids]
        try:
            ends = await self._attempts.sweep(ids)
        except GatehouseError as error:
            _log.warning("expired sessions not removed", reason=error.reason)
        except Exception as error:  # noqa: BLE001 - see above
            _log.error("expired sessions not removed", error_type=_name_of(error))  # noqa: TRY400
        finally:
            for finished in ends:
                self._tell(finished)

    def _count(self, finished: Finished) -> None:
        counters = self._runner.counters
        counters.done += finished.result is Result.DONE
        counters.failed += finished.result in {Result.FAILED, Result.DOUBTED}
        counters.ended += finished.result is Result.VANISHED

    # Leases

    async def _keep_leases(self) -> None:
        while True:
            now_s = self._runner.moment().monotonic_s
            asks = self._shares.asks(now_s, self._schedule.busy_partitions)
            async with asyncio.TaskGroup() as group:
                for ask in asks:
                    group.create_task(self._ask(ask))
            self._tell(Owned(self._shares.held()))
            self._show()
            now_s = self._runner.moment().monotonic_s
            await asyncio.sleep(max(0.0, self._shares.wake_s(now_s) - now_s))

    async def _ask(self, ask: Ask) -> None:
        granted: bool | None = None
        try:
            async with asyncio.timeout(ASK_S):
                granted = await self._asked(ask)
        except (GatehouseError, TimeoutError):
            pass  # health of the store is reported elsewhere
        finally:
            self._shares.answer(ask, granted, self._runner.moment().monotonic_s)

    async def _asked(self, ask: Ask) -> bool:
        duration_us = int(ask.duration_s * 1e6)
        match ask.verb:
            case "renew":
                return await self._storage.renew_lease(ask.name, ask.lease_id, duration_us)
            case "release":
                await self._storage.release_lease(ask.name, ask.lease_id)
                return True
        granted = await self._storage.acquire_lease(ask.name, ask.lease_id, duration_us)
        if granted and ask.verb == "probe":
            await self._storage.release_lease(ask.name, ask.lease_id)
        return granted

    async def _give_back(self) -> None:
        asks = self._shares.releases(self._runner.moment().monotonic_s)
        with contextlib.suppress(TimeoutError, GatehouseError, ExceptionGroup):
            async with asyncio.timeout(RELEASE_S), asyncio.TaskGroup() as group:
                for ask in asks:
                    group.create_task(self._ask(ask))

    def _show(self) -> None:
        show, counters = self._runner._show, self._runner.counters  # noqa: SLF001
        show("partitions", str(len(self._shares.held())))
        show("sessions", str(self._schedule.count))
        show("trouble", ", ".join(sorted(self._runner._troubled)))  # noqa: SLF001
        show("refreshed", str(counters.done))

    # Records

    async def _follow(self) -> None:
        """Tell the schedule what changes; whenever that begins anew, look through everything."""
        await self._hub.ready()
        position = await self._storage.position()
        follower = self._hub.follow(position.server_version, position.latest, SESSION)
        self._to_load |= self._shares.held().keys()
        self._load.set()
        while True:
            changes = await follower.take()
            for change in changes:
                record = change.response.record
                if record.HasField("deleted_at"):
                    self._tell(Gone(record.id))
                else:
                    data = record.data.SerializeToString()
                    self._see(StoredRecord(record.version, record.type, record.id, data, 0))
            if not changes:
                await follower.wait(None, for_tick=False)

    async def _load_partitions(self) -> None:
        await self._load.wait()
        await asyncio.sleep(SETTLE_S)
        self._load.clear()
        partitions, self._to_load = frozenset(self._to_load), set()
        try:
            after = None
            is_last = False
            while not is_last:
                page = await self._storage.head(SESSION, after, limit=PAGE)
                started_s = self._runner.moment().monotonic_s
                for number, record in enumerate(page.records):
                    self._see(record, only=partitions)
                    if number % 50 == 49:
                        await asyncio.sleep(0)  # the store's own callers come first
                if page.records:
                    after = page.records[-1].key
                is_last = page.is_last
                # Half the time at most, so that a large store does not fill this process.
                await asyncio.sleep(self._runner.moment().monotonic_s - started_s)
        except BaseException:
            self._to_load |= partitions
            self._load.set()
            raise
        _log.debug("sessions loaded", partitions=len(partitions), count=self._schedule.count)

    def _see(self, record: StoredRecord, *, only: frozenset[int] | None = None) -> None:
        facts = self._attempts.facts(record)
        if facts is not None and (only is None or facts.partition in only):
            self._tell(Seen(facts, loaded=only is not None))

    async def _forever(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        backoff = Backoff(0.5, 2.0, 15.0, 0.5)
        while True:
            started_s = self._runner.moment().monotonic_s
            try:
                await work()
            except GatehouseError as error:
                _log.debug("identity manager waits for the store", reason=error.reason)
                if self._runner.moment().monotonic_s - started_s > 60:
                    backoff.reset()
                await asyncio.sleep(backoff.next_s(self._rng))
            else:
                backoff.reset()


@contextlib.asynccontextmanager
async def _first(
    *events: Coroutine[Any, Any, object], timeout_s: float
) -> AsyncIterator[None]:
    """Wait for the first of some events, or for so long."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(event) for event in events]
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
    yield


def _name_of(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return ", ".join(sorted({_name_of(inner) for inner in error.exceptions}))
    return type(error).__name__
