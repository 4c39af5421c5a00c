"""The note of which sessions were used when."""

from __future__ import annotations

from gatehouse.authorize.core import access_times
from gatehouse.authorize.core.access_times import AT_ONCE, AccessTimes
from gatehouse.common.ids import SERVICE_ACCOUNT, SESSION


def test_the_latest_use_of_each_counts() -> None:
    times = AccessTimes()
    times.note((SESSION, "a"), 10.0)
    times.note((SESSION, "a"), 20.0)
    times.note((SERVICE_ACCOUNT, "a"), 15.0)
    assert times.take() == {(SESSION, "a"): 20.0, (SERVICE_ACCOUNT, "a"): 15.0}
    assert times.take() == {}


def test_what_was_not_written_down_comes_again_unless_there_is_later_word() -> None:
    times = AccessTimes()
    times.note((SESSION, "a"), 10.0)
    times.note((SESSION, "b"), 10.0)
    batch = times.take()
    times.note((SESSION, "a"), 30.0)
    times.put_back(batch)
    assert times.take() == {(SESSION, "a"): 30.0, (SESSION, "b"): 10.0}


def test_there_is_an_end_to_what_is_noted() -> None:
    times = AccessTimes(capacity=2)
    for name in ("a", "b", "c", "a", "d"):
        times.note((SESSION, name), 1.0)
    assert len(times) == 2
    assert times.take_passed_over() == 2
    assert times.take_passed_over() == 0
    batch = times.take()
    times.note((SESSION, "x"), 2.0)
    times.note((SESSION, "y"), 2.0)
    times.put_back(batch)
    assert times.take() == {(SESSION, "x"): 2.0, (SESSION, "y"): 2.0}
    assert times.take_passed_over() == 2


def test_batches_fit_one_write() -> None:
    times = AccessTimes()
    for number in range(AT_ONCE + 5):
        times.note((SESSION, str(number)), float(number))
    first, second = times.take(), times.take()
    assert len(first) == AT_ONCE
    assert set(first.values()) == {float(number) for number in range(AT_ONCE)}
    assert len(second) == 5
    assert access_times.CAPACITY > AT_ONCE
