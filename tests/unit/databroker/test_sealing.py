"""Payloads at rest: only this store's secret opens them, and only for their own record."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from google.protobuf.any_pb2 import Any
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.common.clock import SystemRng
from gatehouse.common.errors import FailedPreconditionError
from gatehouse.databroker.core.sealing import (
    DATA_KEY_LIFE_US,
    BrokenSealError,
    DataKeys,
    UnknownDataKeyError,
    UnwrappableError,
    WrappedKey,
    WrappingKey,
    plan_keys,
)
from gatehouse.databroker.edge.backends.sealed_payloads import SealedPayloads

ONE, TWO, THREE = (bytes([number]) * 32 for number in (1, 2, 3))
RANDOM = SystemRng().token_bytes
KEY = ("t", "a")
KEYS = plan_keys([], [ONE], {}, 5, RANDOM).keys


def stored(rows: Sequence[WrappedKey], changed: Sequence[WrappedKey]) -> list[WrappedKey]:
    """Return the table after the changes."""
    return list({row.id: row for row in (*rows, *changed)}.values())


@given(st.tuples(st.text(min_size=1), st.text()), st.binary())
def test_a_payload_comes_back(key: tuple[str, str], data: bytes) -> None:
    sealed = KEYS.seal(key, data, RANDOM)
    assert KEYS.open(key, sealed) == data


def test_r63_the_same_payload_never_looks_the_same() -> None:
    sealed = {KEYS.seal(KEY, b"refresh-token", RANDOM) for _ in range(50)}
    assert len(sealed) == 50
    assert len({item[6:18] for item in sealed}) == 50  # the nonces
    assert not any(b"refresh" in item for item in sealed)


@pytest.mark.parametrize("other", [("t", "b"), ("u", "a"), ("ta", ""), ("", "ta")])
def test_a_payload_of_another_record_does_not_open(other: tuple[str, str]) -> None:
    sealed = KEYS.seal(KEY, b"x", RANDOM)
    with pytest.raises(BrokenSealError):
        KEYS.open(other, sealed)


def test_a_changed_payload_does_not_open() -> None:
    sealed = KEYS.seal(KEY, b"x", RANDOM)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises((BrokenSealError, UnknownDataKeyError)):
            KEYS.open(KEY, bytes(changed))
    for length in range(1, len(sealed)):
        with pytest.raises(BrokenSealError):
            KEYS.open(KEY, sealed[:length])


@pytest.mark.parametrize("data", [b"", b"\x00", Any(type_url="t", value=b"x").SerializeToString()])
def test_r63_a_payload_in_clear_does_not_open(data: bytes) -> None:
    with pytest.raises(BrokenSealError):
        KEYS.open(KEY, data)


def test_data_keys_are_wrapped_by_the_first_secret_and_open_with_any() -> None:
    first = plan_keys([], [ONE], {}, 5, RANDOM)
    rows = stored([], first.changed)
    assert len(rows) == 1
    assert rows[0].wrapped_by == WrappingKey.of(ONE).name
    (key,) = first.keys.keys.values()
    assert key not in rows[0].wrapped
    assert ONE not in rows[0].wrapped

    again = plan_keys(rows, [ONE], {}, 6, RANDOM)
    assert again.keys.keys == first.keys.keys
    assert again.changed == ()

    rotated = plan_keys(rows, [TWO, ONE], {}, 6, RANDOM)
    assert rotated.keys.keys == first.keys.keys
    rows = stored(rows, rotated.changed)
    assert rows[0].wrapped_by == WrappingKey.of(TWO).name
    assert plan_keys(rows, [TWO], {}, 7, RANDOM).keys.keys == first.keys.keys
    with pytest.raises(UnwrappableError, match="none of the"):
        plan_keys(rows, [ONE, THREE], {}, 7, RANDOM)
    # What this process has opened it can wrap anew without the former secret.
    assert plan_keys(rows, [THREE], first.keys.keys, 7, RANDOM).changed[0].wrapped_by == (
        WrappingKey.of(THREE).name
    )


def test_a_wrapped_key_is_bound_to_its_row() -> None:
    (row,) = plan_keys([], [ONE], {}, 5, RANDOM).changed
    for moved in (
        WrappedKey(row.id + 1, row.created_at_us, row.wrapped_by, row.wrapped),
        WrappedKey(row.id, row.created_at_us + 1, row.wrapped_by, row.wrapped),
    ):
        with pytest.raises(UnwrappableError):
            plan_keys([moved], [ONE], {}, 5, RANDOM)


def test_a_new_data_key_each_day() -> None:
    rows: list[WrappedKey] = []
    sealed = []
    for day in range(3):
        plan = plan_keys(rows, [ONE], {}, day * DATA_KEY_LIFE_US, RANDOM)
        assert len(plan.changed) == 1
        rows = stored(rows, plan.changed)
        sealed.append(plan.keys.seal(KEY, b"x", RANDOM))
        late = (day + 1) * DATA_KEY_LIFE_US - 1
        assert plan_keys(rows, [ONE], {}, late, RANDOM).changed == ()
    last = plan_keys(rows, [ONE], {}, 2 * DATA_KEY_LIFE_US, RANDOM).keys
    assert [last.open(KEY, item) for item in sealed] == [b"x"] * 3
    assert len({item[2:6] for item in sealed}) == 3


def test_ids_are_not_given_twice() -> None:
    taken = WrappedKey(7, 0, "", b"")
    draws = itertools.chain([b"\x00\x00\x00\x07", b"\x00\x00\x00\x08"])

    def random(count: int) -> bytes:
        return next(draws) if count == 4 else RANDOM(count)

    plan = plan_keys([taken], [ONE], {7: ONE}, DATA_KEY_LIFE_US, random)
    assert sorted(plan.keys.keys) == [7, 8]


def test_keys_do_not_show() -> None:
    assert ONE.hex() not in repr(WrappingKey.of(ONE))
    key = WrappingKey.of(ONE).key
    assert repr(key) not in repr(WrappingKey.of(ONE))
    assert repr(KEYS) == f"DataKeys(1, newest {next(iter(KEYS.keys))})"


def test_a_wrong_secret_says_what_would_be_right() -> None:
    rows = plan_keys([], [ONE], {}, 5, RANDOM).changed
    with pytest.raises(FailedPreconditionError, match="nothing is lost: set shared_secret"):
        SealedPayloads(lambda: [TWO], SystemRng()).plan(rows, 5)


def test_what_does_not_open_is_there_without_content() -> None:
    payloads = SealedPayloads(lambda: [ONE], SystemRng())
    payloads.install(payloads.plan([], 5))
    sealed = payloads.seal(KEY, b"x")
    assert payloads.open(KEY, sealed) == b"x"
    assert payloads.open(("t", "b"), sealed) == b""
    foreign = DataKeys({1: TWO}, 1).seal(KEY, b"x", RANDOM)
    with pytest.raises(UnknownDataKeyError):
        payloads.open(KEY, foreign)
    assert not payloads.knows(1)
    payloads.give_up(1)
    assert payloads.open(KEY, foreign) == b""
