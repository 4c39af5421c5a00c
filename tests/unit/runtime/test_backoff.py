"""Waits between attempts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.common.runtime.backoff import Backoff
from tests.support.clock import FixedRng, SeededRng


def waits(backoff: Backoff, count: int, share: float = 0.5) -> list[float]:
    rng = FixedRng(share)
    return [backoff.next_s(rng) for _ in range(count)]


def test_grows_to_the_cap() -> None:
    assert waits(Backoff(0.5, 2.0, 3.0, 0.5), 5) == pytest.approx([0.5, 1.0, 2.0, 3.0, 3.0])


def test_reset() -> None:
    backoff = Backoff(0.5, 2.0, 60.0, 0.0)
    waits(backoff, 6)
    backoff.reset()
    assert waits(backoff, 2) == pytest.approx([0.5, 1.0])


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.25), (1.0, 0.75)])
def test_jitter_to_both_sides(share: float, expected: float) -> None:
    assert waits(Backoff(0.5, 1.5, 60.0, 0.5), 1, share) == pytest.approx([expected])


@given(
    st.floats(0.01, 10),
    st.floats(1, 4),
    st.floats(10, 100),
    st.floats(0, 0.99),
    st.integers(0, 99),
)
def test_always_positive_and_capped(
    initial_s: float, factor: float, cap_s: float, jitter: float, seed: int
) -> None:
    backoff, rng = Backoff(initial_s, factor, cap_s, jitter), SeededRng(seed)
    for _ in range(30):
        assert 0 < backoff.next_s(rng) <= cap_s


@pytest.mark.parametrize("values", [(0, 2, 1, 0), (2, 2, 1, 0), (1, 0.5, 2, 0), (1, 2, 3, 1)])
def test_impossible_settings(values: tuple[float, float, float, float]) -> None:
    with pytest.raises(AssertionError):
        Backoff(*values)
