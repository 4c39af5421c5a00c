"""Every phase with every event, then the back-off and the limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.proxy.core.supervision import (
    Event,
    Exited,
    GiveUp,
    Nothing,
    Phase,
    Spawn,
    Start,
    State,
    Stop,
    Terminate,
    TimerFired,
    Wait,
    step,
)

EVENTS: dict[str, Event] = {
    "start": Start(),
    "exited": Exited(10.0),
    "timer": TimerFired(),
    "stop": Stop(),
}
I, R, W, G, D, U = (
    Phase.IDLE,
    Phase.RUNNING,
    Phase.WAITING,
    Phase.STOPPING,
    Phase.STOPPED,
    Phase.GAVE_UP,
)
TABLE = {
    (I, "start"): (R, Spawn()),
    (I, "exited"): (I, Nothing()),
    (I, "timer"): (I, Nothing()),
    (I, "stop"): (D, Nothing()),
    (R, "start"): (R, Nothing()),
    (R, "exited"): (W, Wait(0.5)),
    (R, "timer"): (R, Nothing()),
    (R, "stop"): (G, Terminate()),
    (W, "start"): (W, Nothing()),
    (W, "exited"): (W, Nothing()),
    (W, "timer"): (R, Spawn()),
    (W, "stop"): (D, Nothing()),
    (G, "start"): (G, Nothing()),
    (G, "exited"): (D, Nothing()),
    (G, "timer"): (G, Nothing()),
    (G, "stop"): (G, Nothing()),
    (D, "start"): (D, Nothing()),
    (D, "exited"): (D, Nothing()),
    (D, "timer"): (D, Nothing()),
    (D, "stop"): (D, Nothing()),
    (U, "start"): (U, Nothing()),
    (U, "exited"): (U, Nothing()),
    (U, "timer"): (U, Nothing()),
    (U, "stop"): (U, Nothing()),
}


def test_the_table_is_complete():
    assert TABLE.keys() == {(phase, event) for phase in Phase for event in EVENTS}


@pytest.mark.parametrize(("phase", "event"), TABLE)
def test_every_phase_with_every_event(phase: Phase, event: str):
    state, command = step(State(phase), EVENTS[event])
    assert (state.phase, command) == TABLE[phase, event]


def crash(times: list[float]) -> list[object]:
    state, _ = step(State(), Start())
    commands: list[object] = []
    for at_s in times:
        state, command = step(state, Exited(at_s))
        commands.append(command)
        state, _ = step(state, TimerFired())
    return commands


def test_delays_double_and_the_fifth_exit_within_five_minutes_gives_up():
    assert crash([0, 1, 2, 4, 8]) == [Wait(0.5), Wait(1.0), Wait(2.0), Wait(4.0), GiveUp(5)]


def test_exits_long_ago_do_not_count():
    assert crash([0, 1, 2, 4, 305]) == [Wait(0.5), Wait(1.0), Wait(2.0), Wait(4.0), Wait(0.5)]


def test_exactly_five_minutes_ago_is_outside():
    assert crash([0, 300]) == [Wait(0.5), Wait(0.5)]


def test_a_stop_while_waiting_starts_nothing_again():
    state, _ = step(State(Phase.WAITING), Stop())
    assert step(state, TimerFired())[1] == Nothing()


@given(st.lists(st.floats(0, 1000), max_size=30))
def test_it_gives_up_exactly_when_five_exits_lie_within_the_window(gaps):
    times, now = [], 0.0
    for gap in gaps:
        now += gap
        times.append(now)
    state, _ = step(State(), Start())
    for index, at_s in enumerate(times):
        state, command = step(state, Exited(at_s))
        recent = [each for each in times[: index + 1] if at_s - each < 300]
        if len(recent) >= 5:
            assert command == GiveUp(len(recent))
            return
        assert isinstance(command, Wait)
        assert 0.5 <= command.delay_s <= 30
        state, _ = step(state, TimerFired())
