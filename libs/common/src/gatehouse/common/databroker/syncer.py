"""Answers how a replica is fed: one stream per record type, doing what sync_core decides."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Final, Protocol

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.databroker.replica import Refusal, Replica
from gatehouse.common.databroker.sync_core import (
    BACKOFF_CAP_S,
    BACKOFF_JITTER,
    Advance,
    Apply,
    Begin,
    ChangeRecord,
    CloseStream,
    CopiedUpTo,
    CopyBatch,
    CopyRecord,
    CopyVersions,
    DropStaged,
    Effect,
    Event,
    Heartbeat,
    OpenChanges,
    OpenCopy,
    Phase,
    Position,
    Problem,
    Report,
    RetryDue,
    Silence,
    Stage,
    StreamEnded,
    SwapIn,
    SyncState,
    Wait,
    backoff_s,
    step,
)
from gatehouse.common.errors import GatehouseError
from gatehouse.common.ids import TypeUrl
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.observability.metrics import (
    SYNC_COPIES,
    SYNC_FAILURES,
    SYNC_VERSION,
    SYNCS,
)
from gatehouse.pb.databroker_pb2 import (
    FULL,
    CopyPlace,
    Projection,
    Record,
    SyncLatestResponse,
    SyncResponse,
    Versions,
)

INITIAL_SYNC_CHECK: Final = "databroker.sync.initial"
_RECORD_LOG_S: Final = 10.0  # at most one line about a single record per type in this time

_log = get_logger("databroker-client")


class Streams(Protocol):
    """What the feed needs of DatabrokerClient."""

    def sync(
        self,
        server_version: int,
        record_version: int,
        type_url: TypeUrl,
        heartbeat_s: float | None = None,
        projection: Projection.ValueType = FULL,
        *,
        stamp: int = 0,
        batches: bool = False,
    ) -> AsyncGenerator[SyncResponse, None]:
        """Follow changes from a position."""
        ...

    def sync_latest(
        self,
        type_url: TypeUrl,
        projection: Projection.ValueType = FULL,
        after: CopyPlace | None = None,
    ) -> AsyncGenerator[SyncLatestResponse, None]:
        """Copy all records."""
        ...

    async def wait_recovery(self, most_s: float) -> None:
        """Sleep for `most_s`, or until the databroker answers again after being away."""
        ...


class Health(Protocol):
    """What the feed needs of HealthRegistry."""

    def expect(self, check: str) -> None:
        """Name a check that must report."""
        ...

    def set_running(self, check: str) -> None:
        """Report that it is well."""
        ...

    def set_error(self, check: str, error: str) -> None:
        """Report what is wrong."""
        ...


class ReplicaFeed:
    """Keeps a replica true to the databroker while `run` runs.

    Heartbeats are asked for every `heartbeat_s`; a stream on which nothing came for `silence_s`
    (while copying, or from a broker that has sent heartbeats) is given up and opened anew.
    `projection` is how much of each record the replica's decoders need.
    `health`: its check stays unset until the first copy of every type is complete, shows the
    reason when that copy fails, and is never withdrawn later: an old copy is still a copy.
    """

    def __init__(
        self,
        client: Streams,
        replica: Replica,
        clock: Clock,
        rng: Rng,
        health: Health | None = None,
        *,
        check: str = INITIAL_SYNC_CHECK,
        heartbeat_s: float = 10.0,
        silence_s: float = 30.0,
        projection: Projection.ValueType = FULL,
    ) -> None:
        self.client = client
        self.replica = replica
        self.clock = clock
        self.rng = rng
        self.heartbeat_s = heartbeat_s
        self.silence_s = silence_s
        self.projection = projection
        self._health = health
        self._check = check
        self._synced = asyncio.Event()
        self._types = [_TypeFeed(self, type_url) for type_url in replica.types]
        if health is not None:
            health.expect(check)

    async def run(self, stop: asyncio.Event) -> None:
        """Feed the replica until `stop`. Raises only when a promise of ours is broken."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(feed.run(), name=f"sync {feed}") for feed in self._types]
            await stop.wait()
            for task in tasks:
                task.cancel()

    async def wait_synced(self) -> None:
        """Return once every type has had a complete copy."""
        await self._synced.wait()

    def states(self) -> dict[TypeUrl, SyncState]:
        """Return where each type's cursor machine stands."""
        return {feed.state.type_url: feed.state for feed in self._types}

    def swapped(self) -> None:
        """Note a complete copy of one type."""
        if self.replica.ready and not self._synced.is_set():
            self._synced.set()
            if self._health is not None:
                self._health.set_running(self._check)

    def troubled(self, type_url: TypeUrl, report: Report, failures: int) -> None:
        """Log a problem, and show it in health while the first copy is not there."""
        code = report.code.name.lower() if report.code else None
        usual = report.problem in {Problem.SYNC_ENDED, Problem.HISTORY_CHANGED} and failures <= 1
        (_log.info if usual else _log.warning)(
            "databroker sync", problem=report.problem.value, type=type_url, code=code
        )
        if self._health is not None and not self._synced.is_set():
            reason = f" ({code})" if code else ""
            self._health.set_error(self._check, f"{type_url}: {report.problem.value}{reason}")


class _TypeFeed:
    """The stream of one type."""

    def __init__(self, feed: ReplicaFeed, type_url: TypeUrl) -> None:
        self.state = SyncState(type_url)
        self._feed = feed
        self._copy: AsyncGenerator[SyncLatestResponse, None] | None = None
        self._changes: AsyncGenerator[SyncResponse, None] | None = None
        self._unread: deque[Record] = deque()  # of the batch that was received last
        self._opened_s = 0.0
        self._delay_s = 0.0
        self._logged_s: float | None = None

    def __repr__(self) -> str:
        return f"{self.state.type_url}"

    async def run(self) -> None:
        event: Event = Begin()
        try:
            while True:
                self.state, effects = step(self.state, event)
                for effect in effects:
                    await self._perform(effect)
                event = await self._next_event()
        finally:
            await self._close()

    async def _perform(self, effect: Effect) -> None:
        replica, type_url = self._feed.replica, self.state.type_url
        match effect:
            case Apply(record=record):
                self._note(replica.apply(record))
            case Stage(records=records):
                for record in records:
                    self._note(replica.stage(record))
            case Advance(position=position, current=current):
                heard_s = self._feed.clock.monotonic_s() if current else None
                replica.advance(type_url, position, heard_s=heard_s)
                SYNC_VERSION.labels(type_url).set(position.record_version)
            case OpenCopy(after=after):
                if after is None:
                    replica.begin_copy(type_url)
                SYNC_COPIES.labels(type_url).inc()
                self._opened_s = self._feed.clock.monotonic_s()
                self._copy = self._feed.client.sync_latest(
                    type_url, self._feed.projection, _place(type_url, after)
                )
            case OpenChanges(position=position):
                SYNCS.labels(type_url).inc()
                self._opened_s = self._feed.clock.monotonic_s()
                self._changes = self._feed.client.sync(
                    position.server_version,
                    position.record_version,
                    type_url,
                    self._feed.heartbeat_s,
                    self._feed.projection,
                    stamp=position.stamp,
                    batches=True,
                )
            case CloseStream():
                await self._close()
            case DropStaged():
                replica.drop_copy(type_url)
            case SwapIn(position=position):
                replica.swap(type_url, position, now_s=self._feed.clock.monotonic_s())
                self._feed.swapped()
            case Wait(failures=failures):
                jitter = self._feed.rng.uniform(1 - BACKOFF_JITTER, 1 + BACKOFF_JITTER)
                self._delay_s = min(BACKOFF_CAP_S, backoff_s(failures) * jitter)
            case Report(problem=Problem.MISPLACED_RECORD | Problem.BEHIND):
                if self._may_log():
                    self._feed.troubled(type_url, effect, self.state.failures)
            case Report():
                SYNC_FAILURES.labels(type_url).inc()
                self._feed.troubled(type_url, effect, self.state.failures)

    async def _next_event(self) -> Event:
        if self.state.phase is Phase.WAITING:
            # However long it was away: once it is back, what it has been told meanwhile counts.
            await self._feed.client.wait_recovery(self._delay_s)
            return RetryDue()
        number = self.state.stream
        watched = self.state.phase is Phase.COPYING or self.state.heartbeats
        event: Event | None = None
        try:
            async with asyncio.timeout(self._feed.silence_s if watched else None):
                while event is None:
                    event = await self._read(number)
        except TimeoutError:
            return Silence(number)
        except (GatehouseError, StopAsyncIteration) as error:
            await self._close()
            code = error.code if isinstance(error, GatehouseError) else None
            lived_s = self._feed.clock.monotonic_s() - self._opened_s
            return StreamEnded(number, code, lived_s)
        return event

    async def _read(self, number: int) -> Event | None:
        """Return the next message as an event, or None for one that means nothing here."""
        if self._copy is not None:
            latest = await anext(self._copy)
            match latest.WhichOneof("response"):
                case "record":
                    return CopyRecord(number, latest.record)
                case "versions":
                    versions = latest.versions
                    return CopyVersions(
                        number,
                        versions.server_version,
                        versions.latest_record_version,
                        versions.stamp,
                    )
                case "batch":
                    records = tuple(latest.batch.records)
                    return CopyBatch(number, records, _position(latest.batch.position))
                case _:
                    return None
        if self._unread:
            return ChangeRecord(number, self._unread.popleft())
        assert self._changes is not None
        change = await anext(self._changes)
        match change.WhichOneof("response"):
            case "record":
                return ChangeRecord(number, change.record)
            case "batch":
                self._unread.extend(change.batch.records)
                return None
            case "heartbeat":
                versions = change.heartbeat
                return Heartbeat(
                    number,
                    versions.server_version,
                    versions.latest_record_version,
                    versions.stamp,
                )
            case _:
                return None

    async def _close(self) -> None:
        streams = (self._copy, self._changes)
        self._copy = self._changes = None
        self._unread.clear()
        for stream in streams:
            if stream is not None:
                await stream.aclose()

    def _note(self, refusal: Refusal | None) -> None:
        if refusal is None:
            return
        if self._may_log():
            _log.error(
                "databroker record kept out: it cannot be read",
                type=refusal.type_url,
                record=refusal.id,
                version=refusal.version,
                reason=refusal.reason,
                kept_out=self._feed.replica.state(self.state.type_url).unreadable,
            )

    def _may_log(self) -> bool:
        """Tell whether a line about a single record may be written: one in a while is enough."""
        now_s = self._feed.clock.monotonic_s()
        if self._logged_s is not None and now_s - self._logged_s < _RECORD_LOG_S:
            return False
        self._logged_s = now_s
        return True


def _position(versions: Versions) -> Position:
    return Position(versions.server_version, versions.latest_record_version, versions.stamp)


def _place(type_url: TypeUrl, after: CopiedUpTo | None) -> CopyPlace:
    if after is None:
        return CopyPlace()
    position = Versions(
        server_version=after.position.server_version,
        latest_record_version=after.position.record_version,
        stamp=after.position.stamp,
    )
    return CopyPlace(position=position, type=type_url, id=after.id)
