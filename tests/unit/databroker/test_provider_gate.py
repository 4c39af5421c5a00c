"""The gate before one provider."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from gatehouse.databroker.core.provider_gate import Gate


def test_a_burst_then_the_rate() -> None:
    gate = Gate(rate=2.0, burst=4.0, in_flight=100)
    assert [gate.enter(0.0) for _ in range(5)] == [True] * 4 + [False]
    assert gate.wait_s(0.0) == 0.5
    assert not gate.enter(0.4)
    assert gate.enter(0.5)
    assert gate.wait_s(0.5, 2.0) == 1.0


def test_the_bucket_does_not_overflow() -> None:
    gate = Gate(rate=2.0, burst=4.0, in_flight=100)
    assert gate.enter(0.0)
    assert [gate.enter(1e6) for _ in range(5)] == [True] * 4 + [False]


def test_places() -> None:
    gate = Gate(rate=100.0, burst=100.0, in_flight=2)
    assert gate.enter(0.0)
    assert gate.enter(0.0)
    assert not gate.enter(0.0)
    assert gate.wait_s(0.0) == math.inf
    gate.leave()
    assert gate.enter(0.0)


def test_a_pause_is_kept_and_never_shortened() -> None:
    gate = Gate()
    gate.pause(0.0, 60.0)
    gate.pause(10.0, 5.0)
    assert not gate.enter(59.9)
    assert gate.wait_s(20.0) == 40.0
    assert gate.enter(60.0)


@given(st.lists(st.tuples(st.floats(0, 3), st.sampled_from([1.0, 2.0])), max_size=60))
def test_never_more_than_burst_and_rate(steps: list[tuple[float, float]]) -> None:
    gate = Gate(rate=3.0, burst=5.0, in_flight=1000)
    now_s, entered = 0.0, []
    for delay_s, cost in steps:
        now_s += delay_s
        if gate.enter(now_s, cost):
            entered.append((now_s, cost))
    for first, (begin_s, _) in enumerate(entered):
        spent = 0.0
        for at_s, cost in entered[first:]:
            spent += cost
            assert spent <= 5.0 + 3.0 * (at_s - begin_s) + 1e-6
