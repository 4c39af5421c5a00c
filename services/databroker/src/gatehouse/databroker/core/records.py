"""What a record is, which ones are taken in, and what writes do to the head and the log.

A store holds the head (the live record of each type and id) and the log (every change, in version
order). `plan` turns writes into both, so that every backend does the same: one version counter over
all types, no new version for an identical write, a tombstone for every deletion, nothing for the
deletion of what is absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from google.protobuf.any_pb2 import Any
from google.protobuf.timestamp_pb2 import Timestamp

from gatehouse.common.errors import (
    GatehouseError,
    InvalidArgumentError,
    ResourceExhaustedError,
)
from gatehouse.databroker.core.options import NO_RULES, TypeRules
from gatehouse.databroker.core.patch import apply_mask
from gatehouse.pb.databroker_pb2 import Record

MAX_RECORDS_PER_WRITE: Final = 1_000
MAX_RECORD_BYTES: Final = 1 << 20
MAX_ID_BYTES: Final = 512
MAX_TYPE_BYTES: Final = 256

Key = tuple[str, str]  # type, id


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A live record, or a tombstone when `deleted_at_us` is set. Times are Unix microseconds.

    `data` is the serialized `Any` as it came, byte for byte. A tombstone keeps its type URL alone.
    """

    version: int
    type: str
    id: str
    data: bytes
    modified_at_us: int
    deleted_at_us: int | None = None

    @property
    def key(self) -> Key:
        """Type and id."""
        return self.type, self.id

    def to_message(self) -> Record:
        """Return the wire form."""
        record = Record(version=self.version, type=self.type, id=self.id)
        record.data.MergeFromString(self.data)
        record.modified_at.CopyFrom(timestamp(self.modified_at_us))
        if self.deleted_at_us is not None:
            record.deleted_at.CopyFrom(timestamp(self.deleted_at_us))
        return record


@dataclass(frozen=True, slots=True)
class Incoming:
    """A record as a client wrote it, within the limits.

    A Patch leaves out a record whose `expected_version` is not the one held, like an absent one.
    """

    type: str
    id: str
    data: bytes
    is_deletion: bool = False
    expected_version: int | None = None

    @property
    def key(self) -> Key:
        """Type and id."""
        return self.type, self.id


@dataclass(frozen=True, slots=True)
class Put:
    """Upsert each record, or delete it where it says so. All or nothing."""

    records: tuple[Incoming, ...]


@dataclass(frozen=True, slots=True)
class Patch:
    """Copy the fields that `paths` names into the records that exist. All or nothing."""

    records: tuple[Incoming, ...]
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reap:
    """Delete those of `victims` that are still as they were when they were chosen."""

    victims: tuple[StoredRecord, ...]


Write = Put | Patch | Reap
Outcome = tuple[StoredRecord, ...] | GatehouseError


@dataclass(frozen=True, slots=True)
class Plan:
    """What a batch of writes comes to."""

    outcomes: tuple[Outcome, ...]  # one for each write
    changes: tuple[StoredRecord, ...]  # for the log, in version order
    head: Mapping[Key, StoredRecord | None]  # what each touched key holds from now on
    latest: int


def timestamp(time_us: int) -> Timestamp:
    """Return Unix microseconds as a protobuf timestamp."""
    seconds, micros = divmod(time_us, 1_000_000)
    return Timestamp(seconds=seconds, nanos=micros * 1_000)


def accept(records: Sequence[Record], *, deletions: bool = True) -> tuple[Incoming, ...]:
    """Check records of a Put or a Patch against the limits; `deletions` False ignores deleted_at.

    Raises InvalidArgumentError, or ResourceExhaustedError for what is too many or too large.
    """
    if len(records) > MAX_RECORDS_PER_WRITE:
        raise ResourceExhaustedError(
            f"{len(records)} records in one call; at most {MAX_RECORDS_PER_WRITE} are taken",
            reason="too-many-records",
        )
    return tuple(_accept_one(index, record, deletions) for index, record in enumerate(records))


def _accept_one(index: int, record: Record, deletions: bool) -> Incoming:
    where = f"records[{index}]"
    type_ = record.type or record.data.type_url
    check_name(type_, f"{where}.type", MAX_TYPE_BYTES)
    check_name(record.id, f"{where}.id", MAX_ID_BYTES)
    size = record.data.ByteSize()
    if size > MAX_RECORD_BYTES:
        raise ResourceExhaustedError(
            f"{where}.data has {size} bytes; at most {MAX_RECORD_BYTES} are taken",
            reason="record-too-large",
        )
    is_deletion = deletions and record.HasField("deleted_at")
    return Incoming(type_, record.id, record.data.SerializeToString(), is_deletion)


def check_name(value: str, where: str, max_bytes: int) -> None:
    """Refuse an empty name, one with a NUL, and one over `max_bytes` of UTF-8."""
    if not value:
        raise InvalidArgumentError(f"{where} is empty; it must name something")
    if "\x00" in value:
        raise InvalidArgumentError(f"{where} holds a NUL character; it must not")
    if len(value.encode()) > max_bytes:
        raise InvalidArgumentError(f"{where} is longer than {max_bytes} bytes")


def keys_of(writes: Iterable[Write]) -> frozenset[Key]:
    """Return the keys whose held records `plan` needs to know."""
    keys: set[Key] = set()
    for write in writes:
        items = write.victims if isinstance(write, Reap) else write.records
        keys.update(item.key for item in items)
    return frozenset(keys)


def plan(
    writes: Sequence[Write],
    held: Mapping[Key, StoredRecord],
    rules: Mapping[str, TypeRules],
    *,
    latest: int,
    now_us: int,
) -> Plan:
    """Apply `writes` in order to the `held` records. A write that fails leaves no trace."""
    head: dict[Key, StoredRecord | None] = {}
    changes: list[StoredRecord] = []
    outcomes: list[Outcome] = []
    for write in writes:
        step = _Step(held, head, rules, latest, now_us)
        try:
            outcome = step.apply(write)
        except GatehouseError as error:
            outcomes.append(error)
            continue
        outcomes.append(outcome)
        changes += step.changes
        head |= step.head
        latest = step.latest
    return Plan(tuple(outcomes), tuple(changes), head, latest)


class _Step:
    """One write on top of those before it."""

    def __init__(
        self,
        held: Mapping[Key, StoredRecord],
        before: Mapping[Key, StoredRecord | None],
        rules: Mapping[str, TypeRules],
        latest: int,
        now_us: int,
    ) -> None:
        self._held = held
        self._before = before
        self._rules = rules
        self._now_us = now_us
        self.latest = latest
        self.head: dict[Key, StoredRecord | None] = {}
        self.changes: list[StoredRecord] = []

    def apply(self, write: Write) -> tuple[StoredRecord, ...]:
        match write:
            case Put(records):
                return tuple(
                    self._delete(item) if item.is_deletion else self._upsert(item, item.data)
                    for item in records
                )
            case Patch(records, paths):
                return tuple(
                    self._upsert(item, apply_mask(current.data, item.data, paths))
                    for item in records
                    if (current := self._current(item.key)) is not None
                    and item.expected_version in {None, current.version}
                )
            case Reap(victims):
                oldest_first = sorted(victims, key=lambda item: item.version)
                return tuple(map(self._delete, filter(self._is_unchanged, oldest_first)))

    def _current(self, key: Key) -> StoredRecord | None:
        for layer in (self.head, self._before):
            if key in layer:
                return layer[key]
        return self._held.get(key)

    def _is_unchanged(self, victim: StoredRecord) -> bool:
        current = self._current(victim.key)
        return (
            current is not None
            and current.version == victim.version
            and current.modified_at_us == victim.modified_at_us
        )

    def _upsert(self, item: Incoming, data: bytes) -> StoredRecord:
        current = self._current(item.key)
        if current is not None and current.data == data:
            if self._rules.get(item.type, NO_RULES).ttl_us is None:
                return current
            # An identical write makes no version, yet it restarts the time to live.
            touched = replace(current, modified_at_us=self._now_us)
            self.head[item.key] = touched
            return touched
        self.latest += 1
        record = StoredRecord(self.latest, item.type, item.id, data, self._now_us)
        self.head[item.key] = record
        self.changes.append(record)
        return record

    def _delete(self, item: Incoming | StoredRecord) -> StoredRecord:
        current = self._current(item.key)
        if current is None:
            # Nothing is written, so there is no version to report.
            return StoredRecord(0, item.type, item.id, b"", self._now_us, self._now_us)
        self.latest += 1
        tombstone = StoredRecord(
            self.latest,
            item.type,
            item.id,
            Any(type_url=Any.FromString(current.data).type_url).SerializeToString(),
            self._now_us,
            self._now_us,
        )
        self.head[item.key] = None
        self.changes.append(tombstone)
        return tombstone
