"""Which reports of use are taken in."""

from __future__ import annotations

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from gatehouse.common.errors import InvalidArgumentError, ResourceExhaustedError
from gatehouse.databroker.core.access_times import (
    MAX_ACCESS_TIMES,
    accept_access_times,
    accept_ids,
)
from gatehouse.pb.access_times_pb2 import AccessTime


def used(id_: str, seconds: int, type_: str = "t") -> AccessTime:
    return AccessTime(type=type_, id=id_, accessed_at=Timestamp(seconds=seconds))


def test_the_latest_of_a_key_stays_in_the_order_of_keys() -> None:
    items = [used("b", 5), used("a", 3), used("b", 4), used("a", 2, "s")]
    accepted = accept_access_times(items, 10_000_000)
    assert list(accepted.items()) == [
        (("s", "a"), 2_000_000),
        (("t", "a"), 3_000_000),
        (("t", "b"), 5_000_000),
    ]


def test_the_future_counts_as_now() -> None:
    assert accept_access_times([used("a", 99)], 10_000_000) == {("t", "a"): 10_000_000}


@pytest.mark.parametrize(
    ("item", "where"),
    [
        (AccessTime(type="t", id="a"), r"access_time\[0\].accessed_at"),
        (used("a", -5), r"access_time\[0\].accessed_at"),
        (used("", 5), r"access_time\[0\].id"),
        (used("x" * 513, 5), r"access_time\[0\].id"),
        (used("a\x00", 5), r"access_time\[0\].id"),
        (used("a", 5, ""), r"access_time\[0\].type"),
    ],
)
def test_what_is_no_report_is_refused(item: AccessTime, where: str) -> None:
    with pytest.raises(InvalidArgumentError, match=where):
        accept_access_times([item], 10_000_000)


def test_too_many_are_refused() -> None:
    items = [used(f"{number}", 5) for number in range(MAX_ACCESS_TIMES + 1)]
    assert len(accept_access_times(items[1:], 10_000_000)) == MAX_ACCESS_TIMES
    with pytest.raises(ResourceExhaustedError, match="10001 items"):
        accept_access_times(items, 10_000_000)
    with pytest.raises(ResourceExhaustedError, match="10001 items"):
        accept_ids("t", [item.id for item in items])


def test_ids_are_asked_for_once() -> None:
    assert accept_ids("t", ["b", "a", "b"]) == ("b", "a")
    with pytest.raises(InvalidArgumentError, match="type"):
        accept_ids("", ["a"])
    with pytest.raises(InvalidArgumentError, match=r"id\[1\]"):
        accept_ids("t", ["a", ""])
