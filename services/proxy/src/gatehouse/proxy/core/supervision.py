"""When Envoy is started, left alone, started again, or given up.

A pure state machine: `step(state, event)` gives the next state and one command. Times are seconds
of a monotonic clock, handed in with the events.

    idle --Start--> running --Exited--> waiting --TimerFired--> running
                       |                   |
                       |                   +-- Stop --> stopped
                       +-- Exited, too often --> gave up
                       +-- Stop --> stopping --Exited--> stopped
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Final

INITIAL_DELAY_S: Final = 0.5
MAX_DELAY_S: Final = 30.0
MAX_EXITS: Final = 5
WINDOW_S: Final = 300.0


class Phase(enum.Enum):
    """Where the process is in its life."""

    IDLE = "idle"
    RUNNING = "running"
    WAITING = "waiting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    GAVE_UP = "gave up"


@dataclass(frozen=True, slots=True)
class Start:
    """Begin."""


@dataclass(frozen=True, slots=True)
class Exited:
    """The process ended, whoever wanted it."""

    at_s: float


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The delay of the last `Wait` is over."""


@dataclass(frozen=True, slots=True)
class Stop:
    """It shall end, and not come back."""


Event = Start | Exited | TimerFired | Stop


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the process."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Report `TimerFired` after this long."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Terminate:
    """Ask the process to end."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the whole service: restarting does not help."""

    exits: int


@dataclass(frozen=True, slots=True)
class Nothing:
    """No command."""


Command = Spawn | Wait | Terminate | GiveUp | Nothing


@dataclass(frozen=True, slots=True)
class State:
    """The phase, and when the process ended unexpectedly within the window, oldest first."""

    phase: Phase = Phase.IDLE
    exits_s: tuple[float, ...] = ()


def step(state: State, event: Event) -> tuple[State, Command]:
    """The next state and what to do now. Every event is allowed in every phase."""
    match state.phase, event:
        case Phase.IDLE, Start():
            return replace(state, phase=Phase.RUNNING), Spawn()
        case Phase.RUNNING, Exited(at_s):
            return _after_exit(state, at_s)
        case Phase.WAITING, TimerFired():
            return replace(state, phase=Phase.RUNNING), Spawn()
        case Phase.RUNNING, Stop():
            return replace(state, phase=Phase.STOPPING), Terminate()
        case ((Phase.IDLE | Phase.WAITING), Stop()):
            return replace(state, phase=Phase.STOPPED), Nothing()
        case Phase.STOPPING, Exited():
            return replace(state, phase=Phase.STOPPED), Nothing()
        case _:
            return state, Nothing()


def _after_exit(state: State, at_s: float) -> tuple[State, Command]:
    exits_s = (*(exit_s for exit_s in state.exits_s if at_s - exit_s < WINDOW_S), at_s)
    if len(exits_s) >= MAX_EXITS:
        return State(Phase.GAVE_UP, exits_s), GiveUp(len(exits_s))
    delay_s = min(INITIAL_DELAY_S * 2 ** (len(exits_s) - 1), MAX_DELAY_S)
    return State(Phase.WAITING, exits_s), Wait(delay_s)
