"""Answers what a client must do next to keep its copy of a record type true to the databroker.

`step(state, event) -> (state, effects)`: a pure machine, one per record type.

    IDLE --Begin--> COPYING --Versions--> FOLLOWING --Aborted--> COPYING (at once, then backing off)
                       |                      |
                       +----- any failure ----+--> WAITING --RetryDue--> COPYING or FOLLOWING

A copy is taken with SyncLatest into a staging area and swapped in whole; one that breaks off is
gone on with where the broker sends batches, else begun anew. From its position on Sync is followed.
`position` is what Sync resumes from; it is forgotten only when the broker says that it belongs to
another history (Aborted, or a heartbeat of another server version). The copy in use is never
touched before a complete new one is there.

Events carry the number of the stream they came from; what a closed stream still delivers is
ignored. Jitter and clocks are the caller's: see `backoff_s`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from gatehouse.common.errors import Code
from gatehouse.common.ids import TypeUrl
from gatehouse.pb.databroker_pb2 import Record

BACKOFF_INITIAL_S: Final = 0.5
BACKOFF_FACTOR: Final = 1.5
BACKOFF_CAP_S: Final = 60.0
BACKOFF_JITTER: Final = 0.5  # of the delay, either way
STEADY_S: Final = 60.0  # a Sync stream that lived this long was a good one, even if silent


class Phase(enum.Enum):
    """What is open now."""

    IDLE = "idle"  # nothing, not begun
    COPYING = "copying"  # SyncLatest
    FOLLOWING = "following"  # Sync
    WAITING = "waiting"  # nothing, backing off


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a history. `server_version` is never 0: that means unknown.

    `stamp` tells versions of a store from those of one that has gone back; 0: unknown.
    """

    server_version: int
    record_version: int
    stamp: int = 0


@dataclass(frozen=True, slots=True)
class CopiedUpTo:
    """How far an unfinished copy has come: everything up to `id` is staged.

    `position` is the earliest at which any of it was read.
    """

    position: Position
    id: str


@dataclass(frozen=True, slots=True)
class SyncState:
    """All the machine remembers."""

    type_url: TypeUrl
    phase: Phase = Phase.IDLE
    position: Position | None = None  # None: only a new copy can tell
    stream: int = 0  # the number of the stream that counts
    failures: int = 0  # in a row
    restarted: bool = False  # started over after Aborted and nothing heard from Sync since
    heartbeats: bool = False  # this broker sends them, so silence means trouble
    copied: CopiedUpTo | None = None  # a copy that broke off and can be gone on with


# Events


@dataclass(frozen=True, slots=True)
class Begin:
    """Start; once."""


@dataclass(frozen=True, slots=True)
class RetryDue:
    """The delay asked for by `Wait` is over."""


@dataclass(frozen=True, slots=True)
class CopyRecord:
    """A record of SyncLatest."""

    stream: int
    record: Record


@dataclass(frozen=True, slots=True)
class CopyBatch:
    """Records of SyncLatest in the order of their ids, with a position to follow them from."""

    stream: int
    records: tuple[Record, ...]
    position: Position


@dataclass(frozen=True, slots=True)
class CopyVersions:
    """The versions message that ends a complete SyncLatest."""

    stream: int
    server_version: int
    record_version: int
    stamp: int = 0


@dataclass(frozen=True, slots=True)
class ChangeRecord:
    """A record of Sync."""

    stream: int
    record: Record


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Everything up to this position has been sent on this Sync stream."""

    stream: int
    server_version: int
    record_version: int
    stamp: int = 0


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The stream is over; `code` None is an end without error."""

    stream: int
    code: Code | None
    lived_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing came for longer than it should have taken. The stream is still open."""

    stream: int


Event = (
    Begin
    | RetryDue
    | CopyRecord
    | CopyBatch
    | CopyVersions
    | ChangeRecord
    | Heartbeat
    | StreamEnded
    | Silence
)

# Effects


@dataclass(frozen=True, slots=True)
class OpenCopy:
    """Open SyncLatest as stream number `stream`.

    With `after` for what comes behind that, and the staging area as it is; else with an empty one.
    """

    stream: int
    after: CopiedUpTo | None = None


@dataclass(frozen=True, slots=True)
class OpenChanges:
    """Open Sync from `position` as stream number `stream`."""

    stream: int
    position: Position


@dataclass(frozen=True, slots=True)
class CloseStream:
    """Close the open stream."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Add the records to the staging area."""

    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class DropStaged:
    """Throw the staging area away."""


@dataclass(frozen=True, slots=True)
class SwapIn:
    """Put the staged copy in the place of the one in use, in one step."""

    position: Position


@dataclass(frozen=True, slots=True)
class Apply:
    """Apply the change to the copy in use, unless it holds a newer version of that record."""

    record: Record


@dataclass(frozen=True, slots=True)
class Advance:
    """The copy in use now stands at `position`.

    `current`: the broker vouches that there was nothing newer.
    """

    position: Position
    current: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """Give RetryDue after `backoff_s(failures)`, jittered."""

    failures: int


class Problem(enum.Enum):
    """What to tell the operator."""

    COPY_INCOMPLETE = "SyncLatest ended without versions"
    COPY_FAILED = "SyncLatest failed"
    UNKNOWN_SERVER_VERSION = "the databroker gave server version 0, which stands for unknown"
    HISTORY_CHANGED = "the databroker's history is another one; taking a new copy"
    SYNC_ENDED = "Sync ended"
    SILENT = "the databroker has fallen silent"
    MISPLACED_RECORD = "a record of another type or without a version was ignored"
    BEHIND = "the databroker is behind this copy"


@dataclass(frozen=True, slots=True)
class Report:
    """Something that should not be, for logs and health."""

    problem: Problem
    code: Code | None = None


Effect = (
    OpenCopy
    | OpenChanges
    | CloseStream
    | Stage
    | DropStaged
    | SwapIn
    | Apply
    | Advance
    | Wait
    | Report
)

Step = tuple[SyncState, Sequence[Effect]]


def backoff_s(failures: int) -> float:
    """Return the delay after that many failures in a row, before jitter. Databroker client rule."""
    if failures <= 0:
        return 0.0
    exponent = min(failures - 1, 32)  # far past the cap; keeps the power small
    return float(min(BACKOFF_CAP_S, BACKOFF_INITIAL_S * BACKOFF_FACTOR**exponent))


def step(state: SyncState, event: Event) -> Step:
    """Return the next state and what to do, in order. Any event in any state is answered."""
    match event:
        case Begin():
            return _open(state) if state.phase is Phase.IDLE else (state, ())
        case RetryDue():
            return _open(state) if state.phase is Phase.WAITING else (state, ())
        case _ if event.stream != state.stream:
            return state, ()
        case _ if state.phase is Phase.COPYING:
            return _copying(state, event)
        case _ if state.phase is Phase.FOLLOWING:
            return _following(state, event)
        case _:
            return state, ()


def _open(state: SyncState) -> Step:
    stream = state.stream + 1
    if state.position is None:
        return (
            replace(state, phase=Phase.COPYING, stream=stream),
            (OpenCopy(stream, state.copied),),
        )
    return (
        replace(state, phase=Phase.FOLLOWING, stream=stream),
        (OpenChanges(stream, state.position),),
    )


def _wait(state: SyncState, *effects: Effect) -> Step:
    failures = state.failures + 1
    return (
        replace(state, phase=Phase.WAITING, failures=failures),
        (*effects, Wait(failures)),
    )


def _copying(state: SyncState, event: Event) -> Step:
    match event:
        case CopyRecord(record=record):
            if _is_misplaced(state, record):
                return state, (Report(Problem.MISPLACED_RECORD),)
            return state, (Stage((record,)),)
        case CopyBatch(records=records, position=position):
            return _batch(state, records, position)
        case CopyVersions(server_version=0):
            state = replace(state, copied=None)
            return _wait(state, CloseStream(), DropStaged(), Report(Problem.UNKNOWN_SERVER_VERSION))
        case CopyVersions():
            return _copied(state, Position(event.server_version, event.record_version, event.stamp))
        case StreamEnded(code=Code.ABORTED) if state.copied is not None:
            return _copy_anew(state)
        case StreamEnded(code=None):
            return _wait(state, *_unfinished(state), Report(Problem.COPY_INCOMPLETE))
        case StreamEnded(code=code):
            return _wait(state, *_unfinished(state), Report(Problem.COPY_FAILED, code))
        case Silence():
            return _wait(state, CloseStream(), *_unfinished(state), Report(Problem.SILENT))
        case _:
            return state, ()


def _batch(state: SyncState, records: tuple[Record, ...], position: Position) -> Step:
    effects: list[Effect] = []
    placed = tuple(record for record in records if not _is_misplaced(state, record))
    if len(placed) < len(records):
        effects.append(Report(Problem.MISPLACED_RECORD))
    if not placed:
        return state, effects
    before = state.copied
    if before is not None and before.position.server_version != position.server_version:
        state, anew = _copy_anew(state)
        return state, (CloseStream(), *anew)
    earliest = position if before is None else _earlier(position, before.position)
    state = replace(state, copied=CopiedUpTo(earliest, placed[-1].id))
    return state, (*effects, Stage(placed))


def _copied(state: SyncState, position: Position) -> Step:
    before = state.copied
    if before is not None:
        if before.position.server_version != position.server_version:
            state, anew = _copy_anew(state)
            return state, (CloseStream(), *anew)
        position = _earlier(position, before.position)
    state, opened = _open(replace(state, position=position, copied=None))
    return state, (SwapIn(position), CloseStream(), *opened)


def _earlier(one: Position, other: Position) -> Position:
    return min(one, other, key=lambda position: position.record_version)


def _copy_anew(state: SyncState) -> Step:
    """Throw half a copy away that cannot be gone on with; the stream is closed."""
    report = Report(Problem.HISTORY_CHANGED)
    again = state.restarted
    state = replace(state, copied=None, restarted=True)
    if again:
        return _wait(state, DropStaged(), report)
    state, opened = _open(state)
    return state, (DropStaged(), report, *opened)


def _unfinished(state: SyncState) -> Sequence[Effect]:
    """Return what becomes of a copy that broke off: it stays where it can be gone on with."""
    return () if state.copied is not None else (DropStaged(),)


def _following(state: SyncState, event: Event) -> Step:
    assert state.position is not None
    match event:
        case ChangeRecord(record=record):
            return _change(state, state.position, record)
        case Heartbeat(server_version=0):
            return state, ()
        case Heartbeat(server_version=other) if other != state.position.server_version:
            return _start_over(state, CloseStream())
        case Heartbeat(record_version=record_version, stamp=stamp):
            state = replace(state, failures=0, restarted=False, heartbeats=True)
            return _heartbeat(state, record_version, stamp)
        case StreamEnded(code=Code.ABORTED, lived_s=lived_s):
            return _start_over(_rested(state, lived_s))
        case StreamEnded(code=code, lived_s=lived_s):
            return _wait(_rested(state, lived_s), Report(Problem.SYNC_ENDED, code))
        case Silence():
            return _wait(state, CloseStream(), Report(Problem.SILENT))
        case _:
            return state, ()


def _change(state: SyncState, position: Position, record: Record) -> Step:
    if _is_misplaced(state, record):
        return state, (Report(Problem.MISPLACED_RECORD),)
    if state.failures or state.restarted:
        state = replace(state, failures=0, restarted=False)
    if record.version <= position.record_version:
        return state, ()  # seen already: the position vouches for it
    stamp = record.modified_at.ToMicroseconds()
    position = replace(position, record_version=record.version, stamp=stamp)
    return (
        replace(state, position=position),
        (Apply(record), Advance(position, current=not state.heartbeats)),
    )


def _heartbeat(state: SyncState, record_version: int, stamp: int) -> Step:
    assert state.position is not None
    if record_version < state.position.record_version:
        return state, (Report(Problem.BEHIND),)
    position = replace(state.position, record_version=record_version, stamp=stamp)
    return replace(state, position=position), (Advance(position, current=True),)


def _start_over(state: SyncState, *effects: Effect) -> Step:
    """Forget the versions and copy anew: at once, but not again and again without a pause."""
    report = Report(Problem.HISTORY_CHANGED)
    again = state.restarted
    state = replace(state, position=None, restarted=True)
    if again:
        return _wait(state, *effects, report)
    state, opened = _open(state)
    return state, (*effects, report, *opened)


def _rested(state: SyncState, lived_s: float) -> SyncState:
    return replace(state, failures=0, restarted=False) if lived_s >= STEADY_S else state


def _is_misplaced(state: SyncState, record: Record) -> bool:
    return record.type != state.type_url or record.version == 0
