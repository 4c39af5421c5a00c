"""Leases: who holds one, and how holders are told apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.databroker.core.leases import (
    MAX_DURATION_US,
    Lease,
    accept_duration,
    acquire,
    acquisition,
    giving_back,
    release,
    renew,
    renewal,
)

HELD = Lease("job", "a", expires_at_us=100, fence=4)


def test_taking() -> None:
    taken = acquire(None, name="job", new_id="b", now_us=50, duration_us=10)
    assert taken == Lease("job", "b", 60, 1)
    assert acquire(HELD, name="job", new_id="b", now_us=99, duration_us=10) is None
    assert acquire(HELD, name="job", new_id="b", now_us=100, duration_us=10) == Lease(
        "job", "b", 110, 5
    )


def test_renewing() -> None:
    assert renew(HELD, name="job", lease_id="a", now_us=99, duration_us=10) == Lease(
        "job", "a", 109, 4
    )
    # Expired, but nobody else has had it: the fence stays.
    assert renew(HELD, name="job", lease_id="a", now_us=500, duration_us=10) == Lease(
        "job", "a", 510, 4
    )
    assert renew(HELD, name="job", lease_id="b", now_us=99, duration_us=10) is None
    assert renew(None, name="job", lease_id="b", now_us=1, duration_us=1) == Lease("job", "b", 2, 1)


def test_releasing() -> None:
    assert release(HELD, lease_id="a", now_us=50) == Lease("job", "a", 49, 4)
    assert release(HELD, lease_id="b", now_us=50) is None
    assert release(HELD, lease_id="a", now_us=100) is None
    assert release(None, lease_id="a", now_us=1) is None


@pytest.mark.parametrize("duration_us", [0, -1, MAX_DURATION_US + 1])
def test_durations_out_of_range(duration_us: int) -> None:
    with pytest.raises(InvalidArgumentError):
        accept_duration(duration_us)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["acquire", "renew", "release"]),
            st.sampled_from("xyz"),
            st.integers(0, 40),
        ),
        max_size=40,
    )
)
def test_never_two_holders_and_a_fence_that_grows(steps: list[tuple[str, str, int]]) -> None:
    held: Lease | None = None
    now_us = 0
    for kind, who, wait_us in steps:
        now_us += wait_us
        holder = held.id if held is not None and held.expires_at_us > now_us else None
        change = {
            "acquire": acquisition("job", who, 50),
            "renew": renewal("job", who, 50),
            "release": giving_back(who),
        }[kind]
        made = change(held, now_us)
        if made is not None:
            assert holder in {None, who}
            if held is not None:
                assert made.fence == held.fence + (made.id != held.id or kind == "acquire")
            held = made
        elif kind == "renew":
            assert holder not in {None, who}
