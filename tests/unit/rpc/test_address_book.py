"""Addresses over time, and the waits between questions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.common.rpc.address_book import AddressBook, Answer, refresh_delay_s
from gatehouse.common.rpc.targets import Address
from tests.support.clock import FixedRng, SeededRng

A, B, C = (Address(f"10.0.0.{number}", 5443) for number in (1, 2, 3))


def answer(*addresses: Address, complete: bool = True, ttl_s: float = 60.0) -> Answer:
    return Answer(frozenset(addresses), ttl_s, complete=complete)


def test_a_new_address_is_used_at_once() -> None:
    book = AddressBook()
    assert book.learn(answer(A)) is True
    assert book.learn(answer(A, B)) is True
    assert book.addresses == (A, B)


def test_the_same_answer_changes_nothing() -> None:
    book = AddressBook()
    book.learn(answer(A, B))
    assert book.learn(answer(B, A)) is False


def test_an_address_goes_only_after_two_answers_without_it() -> None:
    book = AddressBook()
    book.learn(answer(A, B))
    assert book.learn(answer(A)) is False
    assert book.addresses == (A, B)
    assert book.learn(answer(A)) is True
    assert list(book.addresses) == [A]


def test_a_return_resets_the_count() -> None:
    book = AddressBook()
    book.learn(answer(A, B))
    book.learn(answer(A))
    book.learn(answer(A, B))
    assert book.learn(answer(A)) is False
    assert book.addresses == (A, B)


def test_an_empty_answer_never_takes_the_last_good_one_away() -> None:
    book = AddressBook()
    book.learn(answer(A))
    for _ in range(5):
        assert book.learn(answer()) is False
    assert book.addresses == (A,)


def test_an_incomplete_answer_adds_but_does_not_remove() -> None:
    book = AddressBook()
    book.learn(answer(A, B))
    for _ in range(3):
        book.learn(answer(A, C, complete=False))
    assert book.addresses == (A, B, C)


@given(st.lists(st.tuples(st.frozensets(st.sampled_from([A, B, C])), st.booleans()), max_size=12))
def test_against_a_model(answers: list[tuple[frozenset[Address], bool]]) -> None:
    """In use: seen in the last answer, or in the last but one that counts against it."""
    book = AddressBook()
    for addresses, complete in answers:
        before = set(book.addresses)
        changed = book.learn(Answer(addresses, 60.0, complete=complete))
        after = set(book.addresses)
        assert changed is (before != after)
        if addresses:
            assert addresses <= after
            assert after <= before | addresses
        else:
            assert after == before


@pytest.mark.parametrize(
    ("ttl_s", "share", "expected"),
    [
        (60.0, 0.0, 30.0),
        (60.0, 1.0, 24.0),
        (10.0, 0.0, 10.0),
        (10.0, 1.0, 8.0),
        (0.0, 0.0, 5.0),
        (1.0, 1.0, 4.0),
    ],
)
def test_refresh_is_min_of_ttl_and_30_s_with_a_floor(
    ttl_s: float, share: float, expected: float
) -> None:
    delay_s = refresh_delay_s(answer(A, ttl_s=ttl_s), known=True, rng=FixedRng(share))
    assert delay_s == pytest.approx(expected)


def test_failures_are_retried_soon() -> None:
    assert refresh_delay_s(None, known=True, rng=FixedRng(0.0)) == 5.0
    assert refresh_delay_s(None, known=False, rng=FixedRng(0.0)) == 1.0
    assert refresh_delay_s(answer(), known=False, rng=FixedRng(0.0)) == 1.0


@given(st.floats(0, 1e9), st.booleans(), st.integers(0, 1000))
def test_a_new_address_is_used_within_35_s(ttl_s: float, known: bool, seed: int) -> None:
    delay_s = refresh_delay_s(answer(A, ttl_s=ttl_s), known=known, rng=SeededRng(seed))
    assert 4.0 <= delay_s <= 30.0
