"""The storage contract: what every backend promises, in the same words.

Methods raise errors of `common/errors.py` only: UnavailableError when the store cannot be reached,
DeadlineExceededError when it takes too long. They may be called concurrently from one event loop
and do no blocking work on it. Cancelling a call abandons its answer; a write may still happen.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from gatehouse.common.clock import Rng
from gatehouse.databroker.core.feed import Position
from gatehouse.databroker.core.options import TypeRules
from gatehouse.databroker.core.query import Query
from gatehouse.databroker.core.records import Key, StoredRecord, Write
from gatehouse.databroker.edge.tasks import background

MAX_PAGE_BYTES: Final = 4 << 20  # a page ends after the record that passes this
MAX_PRUNED: Final = 10_000  # changes forgotten in one go
MAX_REAPED: Final = 1_000  # records deleted in one go by capacity or time to live
LEASE_KEPT_US: Final = 3600 * 1_000_000  # how long an expired lease stays on record


@dataclass(frozen=True, slots=True)
class WriteResult:
    """The records of a committed write, with the history that they are in."""

    server_version: int
    records: tuple[StoredRecord, ...]


@dataclass(frozen=True, slots=True)
class QueryAnswer:
    """A query's window and total, both as of `position`."""

    records: tuple[StoredRecord, ...]
    total: int
    position: Position


@dataclass(frozen=True, slots=True)
class ChangePage:
    """Changes in version order, and where the store stood when they were read.

    The page vouches that there are no other changes up to and including `end`.
    """

    position: Position
    changes: tuple[StoredRecord, ...]
    end: int


@dataclass(frozen=True, slots=True)
class HeadPage:
    """Live records in (type, id) order."""

    records: tuple[StoredRecord, ...]
    is_last: bool


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a follower has copied; zeroes when it has not."""

    server_version: int = 0
    record_version: int = 0


class PayloadCodec(Protocol):
    """How payloads rest on disk: the seam where encryption at rest goes in."""

    def seal(self, key: Key, data: bytes) -> bytes:
        """Return what is stored for a payload of this type and id."""
        ...

    def open(self, key: Key, stored: bytes) -> bytes:
        """Return the payload again, byte for byte."""
        ...


class PlainPayloads:
    """Payloads rest as they are."""

    def seal(self, key: Key, data: bytes) -> bytes:
        """Return the payload itself."""
        del key
        return data

    def open(self, key: Key, stored: bytes) -> bytes:
        """Return the payload itself."""
        del key
        return stored


class Storage(Protocol):
    """A store of records, their log, options and leases."""

    name: str  # memory, file, postgres

    async def open(self) -> None:
        """Make the store ready; may be called again after it has failed.

        Raises FailedPreconditionError where trying again will not help.
        """
        ...

    async def run(self) -> None:
        """Do the store's background work until cancelled. Writes need it."""
        ...

    async def close(self) -> None:
        """Give everything back. Safe after a failed `open`."""
        ...

    def on_change(self, wake: Callable[[], None]) -> None:
        """Call `wake`, in the event loop, whenever the log may have grown or been replaced."""
        ...

    async def position(self) -> Position:
        """Return where the store stands; everything up to `latest` is committed."""
        ...

    async def get(self, type_: str, id_: str) -> StoredRecord | None:
        """Return a live record."""
        ...

    async def write(self, write: Write) -> WriteResult:
        """Apply a write as a whole, commit it durably and announce it. Raises what it meets."""
        ...

    async def query(self, query: Query) -> QueryAnswer:
        """Answer a query from one consistent view."""
        ...

    async def list_types(self) -> tuple[str, ...]:
        """Return the types that have a live record, in order."""
        ...

    async def options(self, type_: str) -> TypeRules | None:
        """Return the options in force for a type."""
        ...

    async def all_options(self) -> Mapping[str, TypeRules]:
        """Return the options of every type that has some, by type in order."""
        ...

    async def set_options(self, type_: str, rules: TypeRules | None) -> None:
        """Replace what was set for a type, None removes it; reindex its records."""
        ...

    async def changes(self, after: int, *, type_: str = "", limit: int) -> ChangePage:
        """Return the next changes after a version, of one type or of all ("")."""
        ...

    async def head(self, type_: str, after: Key | None, *, limit: int) -> HeadPage:
        """Return the next live records after a key, of one type or of all ("")."""
        ...

    async def acquire_lease(self, name: str, new_id: str, duration_us: int) -> bool:
        """Take a lease under `new_id`; False when another holds it."""
        ...

    async def renew_lease(self, name: str, lease_id: str, duration_us: int) -> bool:
        """Extend a lease; False when another holds it."""
        ...

    async def release_lease(self, name: str, lease_id: str) -> None:
        """Give a lease back, if it is held under `lease_id`."""
        ...

    async def clear(self) -> tuple[int, int]:
        """Delete records, log, options and checkpoint, and begin a new history.

        The version counter goes on. Returns the old and the new server version.
        """
        ...

    async def renew_history(self, seen: Position) -> None:
        """Begin a new history if the store has gone back behind what was seen of this one."""
        ...

    async def checkpoint(self) -> Checkpoint:
        """Return the replication position."""
        ...

    async def set_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Store the replication position."""
        ...

    async def reapable(self) -> tuple[StoredRecord, ...]:
        """Return up to MAX_REAPED records past their time to live or over capacity."""
        ...

    async def prune(self, retention_us: int) -> int:
        """Forget changes older than that, but never the newest one, and long expired leases.

        Returns how many changes were forgotten; MAX_PRUNED says that there may be more.
        """
        ...


AnyStorage = TypeVar("AnyStorage", bound=Storage)


@contextlib.asynccontextmanager
async def running(storage: AnyStorage) -> AsyncIterator[AnyStorage]:
    """Open a store, do its background work for as long as the block lasts, and close it."""
    try:
        await storage.open()
        async with background(storage.run()):
            yield storage
    finally:
        await storage.close()


def new_server_version(rng: Rng) -> int:
    """Return a random history number: positive and within 63 bits, never 0."""
    return (int.from_bytes(rng.token_bytes(8), "big") >> 1) or 1
