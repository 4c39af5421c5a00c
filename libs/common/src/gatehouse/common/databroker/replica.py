"""Answers what this process holds of the databroker's records, and how fresh that is.

One table per record type: `get` is one dictionary look-up. Records are decoded when they arrive,
never when they are asked for.

A record whose decoder raises is kept out: looking it up finds nothing, even where an older,
readable version was held before, because what the newer one took away (a session's validity, a
group) cannot be known. Its version is remembered, so that an older one cannot return.

Not for use from several threads. Nothing here awaits, so within one event loop every reader sees
either the whole old copy or the whole new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from gatehouse.common.databroker.records import is_deleted
from gatehouse.common.databroker.sync_core import Position
from gatehouse.common.errors import GatehouseError
from gatehouse.common.ids import TypeUrl
from gatehouse.common.observability.metrics import SYNC_CLEARS, SYNC_UPDATES
from gatehouse.pb.databroker_pb2 import Record

Decoder = Callable[[Record], object]


@dataclass(frozen=True, slots=True)
class Held:
    """A record as this process keeps it."""

    version: int
    value: object


@dataclass(frozen=True, slots=True)
class Changed:
    """One record changed. `held` None: it is gone (or unreadable)."""

    type_url: TypeUrl
    id: str
    version: int
    held: Held | None


@dataclass(frozen=True, slots=True)
class Replaced:
    """The whole copy of a type was swapped: anything in it may be different."""

    type_url: TypeUrl
    position: Position


Change = Changed | Replaced


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record kept out because its decoder raised. `reason` holds nothing of its content."""

    type_url: str
    id: str
    version: int
    reason: str


@dataclass(frozen=True, slots=True)
class TypeState:
    """How much can be said about the copy of one type.

    `last_heard_s` is monotonic time: when the broker last vouched that nothing newer existed
    (its heartbeats; with a broker that sends none, any sign of life). None: never.
    """

    ready: bool
    server_version: int  # 0: unknown
    record_version: int
    last_heard_s: float | None
    unreadable: int  # records kept out of the copy


_UNREADABLE: Final = object()


@dataclass(slots=True)
class _Table:
    decoder: Decoder
    held: dict[str, Held] = field(default_factory=dict)
    staged: dict[str, Held] | None = None
    position: Position | None = None
    last_heard_s: float | None = None
    unreadable: int = 0
    staged_unreadable: int = 0


class Replica:
    """The copy of some record types, indexed by type and id.

    `decoders` names the types to hold. A decoder is given live records only and returns what
    `get` shall return in `Held.value`; it may raise anything (see the module's docstring).
    """

    def __init__(self, decoders: Mapping[TypeUrl, Decoder]) -> None:
        self._tables = {type_url: _Table(decoder) for type_url, decoder in decoders.items()}
        self._subscribers: dict[int, Callable[[Change], None]] = {}
        self._subscribed = 0
        self._positions: Mapping[TypeUrl, Position] | None = None  # None: to be worked out
        self._heard_from_all_s: float | None = None  # likewise

    def __repr__(self) -> str:
        tables = ", ".join(f"{url}: {len(table.held)}" for url, table in self._tables.items())
        return f"Replica({tables})"

    @property
    def types(self) -> tuple[TypeUrl, ...]:
        """The record types held."""
        return tuple(self._tables)

    @property
    def ready(self) -> bool:
        """True once every type has had a complete copy; it then stays true."""
        return len(self.positions()) == len(self._tables)

    def get(self, type_url: TypeUrl, id: str) -> Held | None:  # noqa: A002
        """Return the record, or None when it is absent, deleted or unreadable.

        Raises KeyError for a type that this replica does not hold.
        """
        held = self._tables[type_url].held.get(id)
        return None if held is None or held.value is _UNREADABLE else held

    def live(self, type_url: TypeUrl) -> dict[str, Held]:
        """Return all readable records of a type, by id."""
        held = self._tables[type_url].held
        return {id_: one for id_, one in held.items() if one.value is not _UNREADABLE}

    def state(self, type_url: TypeUrl) -> TypeState:
        """Return how far and how fresh the copy of a type is."""
        table = self._tables[type_url]
        position = table.position or Position(0, 0)
        return TypeState(
            ready=table.position is not None,
            server_version=position.server_version,
            record_version=position.record_version,
            last_heard_s=table.last_heard_s,
            unreadable=table.unreadable,
        )

    def positions(self) -> Mapping[TypeUrl, Position]:
        """Return how far the copy of each type is, of those that have had a complete one.

        The same object as long as that is so: whoever works something out of it need not again.
        """
        if self._positions is None:
            self._positions = {
                type_url: table.position
                for type_url, table in self._tables.items()
                if table.position is not None
            }
        return self._positions

    def count(self, type_url: TypeUrl) -> int:
        """Return how many readable records of a type are held."""
        table = self._tables[type_url]
        return len(table.held) - table.unreadable

    def staleness_s(self, now_s: float) -> float | None:
        """Return for how long no one has vouched for the least fresh type; None: not ready.

        `now_s` is monotonic.
        """
        if self._heard_from_all_s is None:
            heard = [table.last_heard_s for table in self._tables.values()]
            known = [heard_s for heard_s in heard if heard_s is not None]
            if len(known) < len(heard):
                return None
            if not known:
                return 0.0
            self._heard_from_all_s = min(known)
        return max(0.0, now_s - self._heard_from_all_s)

    def has_reached(
        self, type_url: TypeUrl, server_version: int | None, record_version: int | None
    ) -> bool:
        """Tell whether the copy can answer for what a credential made at that position needs.

        A hint of another history (or 0 or None: unknown) says nothing about this one and is met.
        """
        position = self._tables[type_url].position
        if position is None:
            return False
        if not server_version or server_version != position.server_version:
            return True
        return position.record_version >= (record_version or 0)

    def subscribe(self, callback: Callable[[Change], None]) -> Callable[[], None]:
        """Call `callback` after each change has taken effect; returns what ends this.

        Callbacks must not block or raise: an exception ends the feed, and with it the service.
        """
        self._subscribed += 1
        key = self._subscribed
        self._subscribers[key] = callback

        def unsubscribe() -> None:
            self._subscribers.pop(key, None)

        return unsubscribe

    # What the feed performs

    def begin_copy(self, type_url: TypeUrl) -> None:
        """Open an empty staging area, dropping an unfinished one. Look-ups are not touched."""
        table = self._tables[type_url]
        table.staged, table.staged_unreadable = {}, 0

    def stage(self, record: Record) -> Refusal | None:
        """Add a record to the staging area; of two versions the newer one stays."""
        table = self._tables[TypeUrl(record.type)]
        assert table.staged is not None, "stage before begin_copy"
        older = table.staged.get(record.id)
        if is_deleted(record) or (older is not None and older.version >= record.version):
            return None
        if older is not None and older.value is _UNREADABLE:
            table.staged_unreadable -= 1
        made, refusal = _decode(table.decoder, record)
        table.staged.pop(record.id, None)
        table.staged[_key(record, made)] = made
        table.staged_unreadable += refusal is not None
        return refusal

    def drop_copy(self, type_url: TypeUrl) -> None:
        """Throw the staging area away."""
        self._tables[type_url].staged = None

    def swap(self, type_url: TypeUrl, position: Position, *, now_s: float) -> None:
        """Put the staged copy in use. `now_s` is monotonic."""
        table = self._tables[type_url]
        assert table.staged is not None, "swap before begin_copy"
        table.held, table.staged = table.staged, None
        table.unreadable = table.staged_unreadable
        table.position = position
        table.last_heard_s = now_s
        self._forget()
        SYNC_CLEARS.labels(type_url).inc()
        self._tell(Replaced(type_url, position))

    def apply(self, record: Record) -> Refusal | None:
        """Apply one change, unless the version held is as new."""
        type_url = TypeUrl(record.type)
        table = self._tables[type_url]
        older = table.held.get(record.id)
        if older is not None and older.version >= record.version:
            return None
        refusal = None
        if older is not None and older.value is _UNREADABLE:
            table.unreadable -= 1
        if is_deleted(record):
            table.held.pop(record.id, None)
        else:
            made, refusal = _decode(table.decoder, record)
            table.held.pop(record.id, None)
            table.held[_key(record, made)] = made
            table.unreadable += refusal is not None
        SYNC_UPDATES.labels(type_url).inc()
        self._tell(Changed(type_url, record.id, record.version, self.get(type_url, record.id)))
        return refusal

    def advance(self, type_url: TypeUrl, position: Position, *, heard_s: float | None) -> None:
        """Note the position reached; `heard_s` (monotonic) if the broker vouched for it."""
        table = self._tables[type_url]
        table.position = position
        if heard_s is not None:
            table.last_heard_s = heard_s
        self._forget()

    def _forget(self) -> None:
        """What was worked out of all tables is to be worked out again; requests ask for it."""
        self._positions = None
        self._heard_from_all_s = None

    def _tell(self, change: Change) -> None:
        for callback in tuple(self._subscribers.values()):
            callback(change)


def _key(record: Record, held: Held) -> str:
    """Return the id, as the very text that the value holds where it holds it: one is enough."""
    own: object = getattr(held.value, "id", None)
    return own if isinstance(own, str) and own == record.id else record.id


def _decode(decoder: Decoder, record: Record) -> tuple[Held, Refusal | None]:
    try:
        return Held(record.version, decoder(record)), None
    except Exception as error:  # noqa: BLE001 - whatever it is, the record must not be used
        reason = str(error) if isinstance(error, GatehouseError) else type(error).__name__
        refusal = Refusal(record.type, record.id, record.version, reason)
        return Held(record.version, _UNREADABLE), refusal
