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
IDLE, RUN, WAIT, STOPPING, DONE, GAVE_UP = (
    Phase.IDLE,
    Phase.RUNNING,
    Phase.WAITING,
    Phase.STOPPING,
    Phase.STOPPED,
    Phase.GAVE_UP,
)
TABLE = {
    (IDLE, "start"): (RUN, Spawn()),
    (IDLE, "exited"): (IDLE, Nothing()),
    (IDLE, "timer"): (IDLE, Nothing()),
    (IDLE, "stop"): (DONE, Nothing()),
    (RUN, "start"): (RUN, Nothing()),
    (RUN, "exited"): (WAIT, Wait(0.5)),
    (RUN, "timer"): (RUN, Nothing()),
    (RUN, "stop"): (STOPPING, Terminate()),
    (WAIT, "start"): (WAIT, Nothing()),
    (WAIT, "exited"): (WAIT, Nothing()),
    (WAIT, "timer"): (RUN, Spawn()),
    (WAIT, "stop"): (DONE, Nothing()),
    (STOPPING, "start"): (STOPPING, Nothing()),
    (STOPPING, "exited"): (DONE, Nothing()),
    (STOPPING, "timer"): (STOPPING, Nothing()),
    (STOPPING, "stop"): (STOPPING, Nothing()),
    (DONE, "start"): (DONE, Nothing()),
    (DONE, "exited"): (DONE, Nothing()),
    (DONE, "timer"): (DONE, Nothing()),
    (DONE, "stop"): (DONE, Nothing()),
    (GAVE_UP, "start"): (GAVE_UP, Nothing()),
    (GAVE_UP, "exited"): (GAVE_UP, Nothing()),
    (GAVE_UP, "timer"): (GAVE_UP, Nothing()),
    (GAVE_UP, "stop"): (GAVE_UP, Nothing()),
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
