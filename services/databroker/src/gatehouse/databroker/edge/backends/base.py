"""The storage contract: what every backend promises, in the same words.

Methods raise errors of `common/errors.py` only: UnavailableError when the store cannot be reached,
DeadlineExceededError when it takes too long. They may be called concurrently from one event loop
and do no blocking work on it. Cancelling a call abandons its answer; a write may still happen.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from gatehouse.common.clock import Rng
from gatehouse.common.errors import GatehouseError
from gatehouse.databroker.core.feed import Position
from gatehouse.databroker.core.options import TypeRules
from gatehouse.databroker.core.query import Query
from gatehouse.databroker.core.records import Key, StoredRecord, Write
from gatehouse.databroker.core.registry import Entry
from gatehouse.databroker.edge.tasks import background

MAX_PAGE_BYTES: Final = 4 << 20  # a page ends after the record that passes this
MAX_PRUNED: Final = 10_000  # changes forgotten in one go
MAX_ORPHANS: Final = 10_000  # access times without a record, forgotten in one go
MAX_REAPED: Final = 1_000  # records deleted in one go by capacity or time to live
KEYS_CHECKED_S: Final = 60.0
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

    The page vouches that there are no other changes up to and including `end`. `before` is the
    stamp of the change that the page begins after; 0 when that is not known.
    """

    position: Position
    changes: tuple[StoredRecord, ...]
    end: int
    before: int = 0


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


@dataclass(frozen=True, slots=True)
class Figure:
    """Something that a backend counts about itself: a metric without labels."""

    name: str
    meaning: str
    value: float
    is_counter: bool = False


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

    def on_listening(self, report: Callable[[GatehouseError | None], None]) -> None:
        """Tell `report` when changes of others are no longer announced, and (None) when they are.

        They are found by polling meanwhile.
        """
        ...

    def figures(self) -> Sequence[Figure]:
        """Return what the backend knows about itself, for metrics. May be called in any thread."""
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

    async def put_access_times(self, times: Mapping[Key, int]) -> None:
        """Note when live records were used, in Unix microseconds; the later time stays.

        Keys come in order. No version is made; absent records are passed over.
        """
        ...

    async def access_times(self, type_: str, ids: Sequence[str]) -> Mapping[str, int]:
        """Return when live records were last used, by id; those not known are left out."""
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

    async def register(self, entries: Sequence[Entry], ttl_us: int) -> None:
        """Note where services are, for so long. Entries come in order."""
        ...

    async def registered(self) -> tuple[Entry, ...]:
        """Return what was noted and has not expired, in order."""
        ...

    async def clear(self) -> tuple[int, int]:
        """Delete records, log, options and checkpoint, and begin a new history.

        The version counter goes on. Returns the old and the new server version.
        """
        ...

    async def change_history(self) -> tuple[int, int]:
        """Begin a new history with the same records and options.

        The version counter goes on. Returns the old and the new server version.
        """
        ...

    async def renew_history(self, seen: Position) -> None:
        """Begin a new history if the store does not hold what was seen of this one."""
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

    async def prune(self, retention_us: int, max_bytes: int) -> int:
        """Forget changes older than that, or before the last so many bytes; not the newest.

        And long expired leases, and services that have not reported again. Returns how many
        changes were forgotten; MAX_PRUNED says that there may be more.
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


def change_size(record: StoredRecord, stored: int) -> int:
    """Return how much of the log a change takes, roughly, when `stored` is that of its payload."""
    return stored + len(record.type) + len(record.id) + 64


def new_server_version(rng: Rng) -> int:
    """Return a random history number: positive and within 63 bits, never 0."""
    return (int.from_bytes(rng.token_bytes(8), "big") >> 1) or 1
