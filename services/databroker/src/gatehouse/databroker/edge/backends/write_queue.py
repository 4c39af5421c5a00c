"""How many concurrent writers share one commit: a bounded queue before a single committer.

Writes that arrive while a commit is under way go into the next one together, in order of arrival.
Each keeps its own outcome; only a failure of the commit itself is shared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from gatehouse.common.errors import GatehouseError, ResourceExhaustedError
from gatehouse.databroker.core.records import Outcome, Reap, Write
from gatehouse.databroker.edge.backends.base import WriteResult
from gatehouse.databroker.errors import StorageUnavailableError

MAX_PENDING: Final = 1_024
MAX_BATCH_WRITES: Final = 256
MAX_BATCH_RECORDS: Final = 1_000
MAX_BATCH_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Committed:
    """One outcome for each write of a batch."""

    server_version: int
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class _Pending:
    write: Write
    records: int
    size: int
    done: asyncio.Future[WriteResult]


class WriteQueue:
    """Collects writes and hands them to `commit` in batches, from `accept` to the end of `run`."""

    def __init__(self, commit: Callable[[Sequence[Write]], Awaitable[Committed]]) -> None:
        self._commit = commit
        self._queue: asyncio.Queue[_Pending] = asyncio.Queue(MAX_PENDING)
        self._held_over: _Pending | None = None
        self._is_accepting = False

    def accept(self) -> None:
        """Take writes from now on; `run` is about to be called."""
        self._is_accepting = True

    async def submit(self, write: Write) -> WriteResult:
        """Return once the write is committed.

        Raises the write's own error, UnavailableError when the commit failed or the store is
        closing, ResourceExhaustedError when too many writes are waiting.
        """
        if not self._is_accepting:
            raise StorageUnavailableError("the store is not open for writing")
        items = write.victims if isinstance(write, Reap) else write.records
        size = sum(len(item.data) for item in items)
        done: asyncio.Future[WriteResult] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait(_Pending(write, len(items), size, done))
        except asyncio.QueueFull:
            raise ResourceExhaustedError(
                f"{MAX_PENDING} writes are waiting already; try again later",
                reason="write-queue-full",
            ) from None
        return await done

    async def run(self) -> None:
        """Commit batches until cancelled; what is left then fails as unavailable."""
        batch: list[_Pending] = []
        try:
            while True:
                batch = await self._next_batch()
                await self._commit_batch(batch)
        finally:
            self._is_accepting = False
            self._abandon(batch)

    async def _next_batch(self) -> list[_Pending]:
        first = self._held_over or await self._queue.get()
        self._held_over = None
        batch = [first]
        records, size = first.records, first.size
        while len(batch) < MAX_BATCH_WRITES and not self._queue.empty():
            item = self._queue.get_nowait()
            records += item.records
            size += item.size
            if records > MAX_BATCH_RECORDS or size > MAX_BATCH_BYTES:
                self._held_over = item
                break
            batch.append(item)
        # A caller that has gone away before its write was begun does not get it.
        return [item for item in batch if not item.done.done()]

    async def _commit_batch(self, batch: Sequence[_Pending]) -> None:
        if not batch:
            return
        try:
            committed = await self._commit([item.write for item in batch])
        except GatehouseError as error:
            for item in batch:
                _fail(item, error)
            return
        for item, outcome in zip(batch, committed.outcomes, strict=True):
            if isinstance(outcome, GatehouseError):
                _fail(item, outcome)
            elif not item.done.done():
                item.done.set_result(WriteResult(committed.server_version, outcome))

    def _abandon(self, batch: Sequence[_Pending]) -> None:
        left = [*batch, *([self._held_over] if self._held_over else [])]
        self._held_over = None
        while not self._queue.empty():
            left.append(self._queue.get_nowait())
        for item in left:
            _fail(item, StorageUnavailableError("the store is closing"))


def _fail(item: _Pending, error: GatehouseError) -> None:
    if not item.done.done():
        item.done.set_exception(error)
