"""Answers what the change table may say, from what the databroker tells.

`step(state, event) -> (state, effects)`: a pure machine. Two sources are held against each other.
The databroker is asked, again and again, for the newest version that it has committed; the time of
asking goes with the question. One stream brings the keys of what changed, in the order of versions.
Once the stream has brought everything up to an answer, the table was current when it was asked:
that moment, never a later one, is what `Fresh` carries. So neither a slow stream nor a process that
was stopped for a while can make the table look newer than it is.

A table stands for one history from one position on. Where the stream cannot go on from where it
was, the table is retired, and the next answer begins another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from gatehouse.common.record_keys import record_key, type_key
from gatehouse.proxy.core.decision_table import MOST_EXACT

_MOST_PENDING: Final = 16


@dataclass(frozen=True, slots=True)
class CursorState:
    """All the machine remembers. `server_version` 0: there is no table."""

    server_version: int = 0
    applied: int = 0  # everything up to this version is in the table
    stamp: int = 0  # of that version: a store that was put back has another one; 0: unknown
    stream: int = 0  # the number of the stream that counts
    is_following: bool = False
    pending: tuple[tuple[int, int], ...] = ()  # when it was asked (ns), and the version answered


# Events


@dataclass(frozen=True, slots=True)
class Told:
    """The newest committed version, asked for at `asked_at_ns` (monotonic) or later."""

    asked_at_ns: int
    server_version: int
    record_version: int


@dataclass(frozen=True, slots=True)
class Changed:
    """The stream brought the key of a change."""

    stream: int
    type_url: str
    record_id: str
    version: int
    stamp: int = 0


@dataclass(frozen=True, slots=True)
class Vouched:
    """The stream has brought everything up to this position."""

    stream: int
    server_version: int
    record_version: int
    stamp: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """The stream is over. `is_aborted`: it cannot be taken up again where it was."""

    stream: int
    is_aborted: bool


Event = Told | Changed | Vouched | Ended

# Effects


@dataclass(frozen=True, slots=True)
class NewTable:
    """Begin a table whose slots all say `floor`: nobody knows what changed before."""

    server_version: int
    floor: int


@dataclass(frozen=True, slots=True)
class Retire:
    """The table says nothing any more."""


@dataclass(frozen=True, slots=True)
class Follow:
    """Open the stream of all changes after a position, as number `stream`."""

    stream: int
    server_version: int
    record_version: int
    stamp: int = 0


@dataclass(frozen=True, slots=True)
class Close:
    """Close the stream."""


@dataclass(frozen=True, slots=True)
class Raise:
    """Raise the slots of these keys to a version."""

    keys: tuple[int, ...]
    version: int


@dataclass(frozen=True, slots=True)
class Fresh:
    """All that was committed at this monotonic time is in the table."""

    at_ns: int


Effect = NewTable | Retire | Follow | Close | Raise | Fresh
Step = tuple[CursorState, Sequence[Effect]]


def step(state: CursorState, event: Event) -> Step:
    """Return the next state and what to do, in order. Any event in any state is answered."""
    match event:
        case Told():
            return _told(state, event)
        case _ if event.stream != state.stream or not state.is_following:
            return state, ()
        case Changed():
            return _changed(state, event)
        case Vouched(server_version=0):
            return state, ()
        case Vouched(server_version=other) if other != state.server_version:
            return _given_up(state, Close())
        case Vouched(record_version=version, stamp=stamp):
            return _settled(_applied(state, version, stamp), ())
        case Ended(is_aborted=True):
            return _given_up(state)
        case Ended():
            return replace(state, is_following=False), ()


def _told(state: CursorState, told: Told) -> Step:
    if not told.server_version or told.record_version >= MOST_EXACT:
        return state, ()
    if state.server_version != told.server_version:
        effects: list[Effect] = []
        if state.server_version:
            state, given_up = _given_up(state, *((Close(),) if state.is_following else ()))
            effects += given_up
        state = CursorState(
            server_version=told.server_version,
            applied=told.record_version,
            stream=state.stream + 1,
            is_following=True,
        )
        begin = Follow(state.stream, state.server_version, state.applied)
        table = NewTable(told.server_version, told.record_version)
        return state, (*effects, table, Fresh(told.asked_at_ns), begin)
    if not state.is_following:
        state = replace(state, stream=state.stream + 1, is_following=True)
        return _asked(
            state, told, Follow(state.stream, state.server_version, state.applied, state.stamp)
        )
    return _asked(state, told)


def _asked(state: CursorState, told: Told, *effects: Effect) -> Step:
    if len(state.pending) < _MOST_PENDING:
        waiting = (*state.pending, (told.asked_at_ns, told.record_version))
        state = replace(state, pending=waiting)
    return _settled(state, effects)


def _changed(state: CursorState, change: Changed) -> Step:
    if change.version >= MOST_EXACT:
        return _given_up(state, Close())
    keys = (record_key(change.type_url, change.record_id), type_key(change.type_url))
    raised = Raise(keys, change.version)
    return _settled(_applied(state, change.version, change.stamp), (raised,))


def _applied(state: CursorState, version: int, stamp: int) -> CursorState:
    return state if version < state.applied else replace(state, applied=version, stamp=stamp)


def _settled(state: CursorState, effects: Sequence[Effect]) -> Step:
    """Answers that the stream has caught up with say how fresh the table is."""
    met = [asked_at_ns for asked_at_ns, version in state.pending if version <= state.applied]
    if not met:
        return state, effects
    waiting = tuple(one for one in state.pending if one[1] > state.applied)
    return replace(state, pending=waiting), (*effects, Fresh(max(met)))


def _given_up(state: CursorState, *effects: Effect) -> Step:
    return CursorState(stream=state.stream), (*effects, Retire())
