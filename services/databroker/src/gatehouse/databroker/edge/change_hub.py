"""How every stream of this process follows the log through one reader.

The reader polls the store (at once when a change is announced, else about once a second) and keeps
the newest changes in a ring. Streams hold a cursor into it: one that is further behind first reads
the store by itself; one that falls out of the ring afterwards is cut with ABORTED and takes a new
copy, so that a slow reader holds up nobody. Everything here runs in one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.errors import AbortedError, GatehouseError
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.runtime.backoff import Backoff
from gatehouse.databroker.core.feed import ChangeRing, Position, admit
from gatehouse.databroker.core.projection import project
from gatehouse.databroker.core.records import StoredRecord
from gatehouse.databroker.edge.backends.base import ChangePage, Storage
from gatehouse.databroker.errors import (
    DrainingError,
    SlowSubscriberError,
    StorageUnavailableError,
)
from gatehouse.pb.databroker_pb2 import Projection, SyncResponse, Versions

RING_CHANGES: Final = 16_384
RING_BYTES: Final = 64 << 20
READ_LIMIT: Final = 512  # changes per read of the log
BATCH_LIMIT: Final = 64  # changes that a stream takes at a time
POLL_S: Final = 1.0
PAUSE_S: Final = 0.02  # between the beginnings of two reads, at the least
POLL_SPREAD: Final = 0.2
VOUCHED_S: Final = 1.0  # a heartbeat rests on a read that began no longer ago than this

History = tuple[int, int]  # server version, and which reading of it

_log = get_logger("databroker")


class Change:
    """A change with its wire forms, each made once for all streams that ask for it."""

    __slots__ = ("_responses", "record", "size", "type", "version")

    def __init__(self, record: StoredRecord) -> None:
        self.version = record.version
        self.type = record.type
        self.size = len(record.data) + 512
        self.record = record
        self._responses: dict[int, SyncResponse] = {}

    def response(self, projection: Projection.ValueType) -> SyncResponse:
        """Return what a stream of that projection is sent."""
        response = self._responses.get(projection)
        if response is None:
            response = SyncResponse(record=project(self.record, projection))
            self._responses[projection] = response
        return response


class ChangeHub:
    """Reads the log once for all streams. `report` hears how each round of reading went."""

    def __init__(
        self,
        storage: Storage,
        clock: Clock,
        rng: Rng,
        *,
        report: Callable[[GatehouseError | None], None] = lambda _error: None,
        ring_changes: int = RING_CHANGES,
        ring_bytes: int = RING_BYTES,
        poll_s: float = POLL_S,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._rng = rng
        self._report = report
        self._ring_changes = ring_changes
        self._ring_bytes = ring_bytes
        self._poll_s = poll_s
        self._pause_s = pause_s
        self._server_version = 0
        self._beginnings = 0  # how often the ring was begun: a history may come back, wound back
        self._stamp = 0  # of the newest change that was read
        self._ring: ChangeRing[Change] | None = None
        self._fresh_at_s = 0.0
        self._wakeup = asyncio.Event()
        self._tick = asyncio.Event()
        self._is_closed = False
        storage.on_change(self._wakeup.set)

    def __repr__(self) -> str:
        return f"ChangeHub({self._server_version}, {self._ring!r})"

    async def run(self) -> None:
        """Read until cancelled; a failing store is tried again and again."""
        backoff = Backoff(0.1, 2.0, 2.0, 0.2)
        while True:
            started_s = self._clock.monotonic_s()
            if await self.look():
                backoff.reset()
                delay_s = self._poll_s * self._rng.uniform(1 - POLL_SPREAD, 1 + POLL_SPREAD)
            else:
                delay_s = backoff.next_s(self._rng)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._wakeup.wait()
                    # The first change of a burst is read at once, the others together.
                    passed_s = self._clock.monotonic_s() - started_s
                    await asyncio.sleep(max(0.0, self._pause_s - passed_s))

    async def look(self) -> bool:
        """Read what is new in the log, once; False when the store failed."""
        self._wakeup.clear()
        started_s = self._clock.monotonic_s()
        error: GatehouseError | None = None
        try:
            await self._read()
            self._fresh_at_s = started_s
        except GatehouseError as caught:
            error = caught
        self._report(error)
        self._announce()
        return error is None

    async def ready(self) -> None:
        """Return once the log was read for the first time."""
        while self._ring is None:
            await self._tick.wait()

    def close(self) -> None:
        """End every stream with UNAVAILABLE."""
        self._is_closed = True
        self._announce()

    def check_open(self) -> None:
        """Raise DrainingError once closed."""
        if self._is_closed:
            raise DrainingError("this databroker is stopping; connect to another one")

    def follow(self, server_version: int, record_version: int, type_: str) -> Follower:
        """Begin a stream where `admit` says that it may begin; ask that afterwards.

        What happens to the history from here on ends the stream.
        """
        return Follower(
            self, self._storage, (server_version, self._beginnings), record_version, type_
        )

    async def _read(self) -> None:
        if self._ring is None:
            self._start_over(await self._storage.position())
            return
        while True:
            page = await self._storage.changes(self._ring.end, limit=READ_LIMIT)
            if not await self._take(page):
                return
            # Streams need not wait until a long log has been read to its end.
            self._announce()

    async def _take(self, page: ChangePage) -> bool:
        """Add a page to the ring; True when there is more to read."""
        assert self._ring is not None
        position = page.position
        if position.server_version != self._server_version:
            _log.info("record history replaced", server_version=str(position.server_version))
            self._start_over(position)
            return False
        was_replaced = page.before and self._stamp and page.before != self._stamp
        if position.latest < self._ring.end or was_replaced:
            # Restored from a backup, or failed over to a copy that lacks the last writes.
            _log.warning("store has gone back", latest=position.latest, seen=self._ring.end)
            await self._storage.renew_history(
                Position(self._server_version, self._ring.end, position.pruned, self._stamp)
            )
            self._start_over(await self._storage.position())
            return False
        if position.pruned > self._ring.end:
            _log.warning("log was cut before it was read", read=self._ring.end)
            self._start_over(position)
            return False
        self._ring.extend(map(Change, page.changes), page.end)
        if page.end == position.latest:
            self._stamp = position.stamp
        elif page.changes:
            self._stamp = page.changes[-1].modified_at_us
        return page.end < position.latest

    def _start_over(self, position: Position) -> None:
        self._beginnings += 1
        self._server_version = position.server_version
        self._stamp = position.stamp
        self._ring = ChangeRing(
            position.latest, max_items=self._ring_changes, max_bytes=self._ring_bytes
        )

    def _announce(self) -> None:
        tick, self._tick = self._tick, asyncio.Event()
        tick.set()

    def vouched(self, cursor: int) -> Versions | None:
        """Return a heartbeat for a stream at `cursor`; None unless that is known to be current."""
        if self._ring is None or self._ring.end != cursor:
            return None
        if self._wakeup.is_set():  # a change was announced and has not been read yet
            return None
        if self._clock.monotonic_s() - self._fresh_at_s > VOUCHED_S:
            return None
        return Versions(
            server_version=self._server_version, latest_record_version=cursor, stamp=self._stamp
        )

    def ring_of(self, history: History) -> ChangeRing[Change]:
        """Return the ring for a stream of that history. Raises AbortedError, UnavailableError."""
        self.check_open()
        if self._ring is None:
            raise StorageUnavailableError("the log has not been read yet")
        server_version, beginning = history
        if server_version != self._server_version:
            raise AbortedError(
                f"invalid server version {server_version}; this is {self._server_version}",
                reason="invalid-server-version",
            )
        if beginning != self._beginnings:
            raise AbortedError(
                "the log was read anew since this stream began; it may be another one",
                reason="log-begun-anew",
            )
        return self._ring

    async def tick(self, timeout_s: float | None) -> None:
        """Return after the next round of reading, or after `timeout_s`."""
        tick = self._tick
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await tick.wait()


class Follower:
    """One stream's place in the log."""

    def __init__(
        self, hub: ChangeHub, storage: Storage, history: History, cursor: int, type_: str
    ) -> None:
        self._hub = hub
        self._storage = storage
        self._history = history
        self._cursor = cursor
        self._type = type_
        self._has_joined = False  # reads from the ring, not from the store

    async def take(self) -> Sequence[Change]:
        """Return the next changes of the type; none when there are none at present.

        Raises AbortedError when the stream must start over, UnavailableError when it must end.
        """
        while True:
            ring = self._hub.ring_of(self._history)
            if self._cursor < ring.start:
                if self._has_joined:
                    raise SlowSubscriberError(
                        f"this stream is {ring.end - self._cursor} changes behind; take a new copy"
                    )
                before = self._cursor
                found = await self._take_from_store()
                if found:
                    return found
                if self._cursor <= before:
                    # It was put back; the reader of the log will notice at its next look.
                    raise StorageUnavailableError("the store is behind what was read of it")
                continue
            self._has_joined = True
            if self._cursor >= ring.end:
                return ()
            items = ring.after(self._cursor, BATCH_LIMIT)
            assert items is not None
            self._cursor = items[-1].version if len(items) == BATCH_LIMIT else ring.end
            found = [item for item in items if not self._type or item.type == self._type]
            if found:
                return found

    async def _take_from_store(self) -> Sequence[Change]:
        page = await self._storage.changes(self._cursor, type_=self._type, limit=BATCH_LIMIT)
        # The store may stand behind what the client has seen elsewhere, hence no upper bound here.
        admit(page.position, self._history[0], min(self._cursor, page.position.latest))
        self._cursor = page.end
        return [Change(record) for record in page.changes]

    def heartbeat(self) -> Versions | None:
        """Return what can be vouched for; None when that is not where this stream stands."""
        return self._hub.vouched(self._cursor)

    async def wait(self, timeout_s: float | None, *, for_tick: bool) -> None:
        """Return when there may be changes, after `timeout_s`, or (`for_tick`) after a read."""
        ring = self._hub.ring_of(self._history)
        if ring.end <= self._cursor:
            await self._hub.tick(timeout_s)
            while not for_tick and timeout_s is None and self._is_idle():
                await self._hub.tick(None)

    def _is_idle(self) -> bool:
        return self._hub.ring_of(self._history).end <= self._cursor
