"""Positions in the log, and the ring that streams read from."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.common.errors import AbortedError
from gatehouse.databroker.core.feed import ChangeRing, Position, admit


@dataclass(frozen=True)
class Item:
    version: int
    size: int = 1


@pytest.mark.parametrize(
    ("server_version", "record_version", "reason"),
    [
        (7, 3, None),
        (7, 9, None),
        (7, 2, "record-version-too-old"),
        (7, 0, "record-version-too-old"),
        (7, 10, "record-version-unknown"),
        (8, 5, "invalid-server-version"),
        (0, 0, "invalid-server-version"),
    ],
)
def test_admission(server_version: int, record_version: int, reason: str | None) -> None:
    position = Position(server_version=7, latest=9, pruned=3)
    if reason is None:
        admit(position, server_version, record_version)
        return
    with pytest.raises(AbortedError) as caught:
        admit(position, server_version, record_version)
    assert caught.value.reason == reason


def test_an_empty_history_admits_its_beginning() -> None:
    admit(Position(7, 0, 0), 7, 0)
    assert Position(7, 0, 0).earliest == 0
    assert Position(7, 9, 9).earliest == 0
    assert Position(7, 9, 8).earliest == 9


def test_reading_a_ring() -> None:
    ring: ChangeRing[Item] = ChangeRing(10, max_items=3, max_bytes=100)
    assert ring.after(10, 5) == []
    assert ring.after(9, 5) is None
    ring.extend([Item(11), Item(13)], 15)
    assert ring.end == 15
    assert ring.after(10, 5) == [Item(11), Item(13)]
    assert ring.after(10, 1) == [Item(11)]
    assert ring.after(12, 5) == [Item(13)]
    assert ring.after(15, 5) == []
    assert ring.after(99, 5) == []
    ring.extend([Item(16), Item(17)], 17)
    assert ring.start == 11
    assert ring.after(10, 5) is None
    assert ring.after(11, 5) == [Item(13), Item(16), Item(17)]


def test_a_ring_is_bounded_in_bytes() -> None:
    ring: ChangeRing[Item] = ChangeRing(0, max_items=100, max_bytes=10)
    ring.extend([Item(1, 6), Item(2, 4)], 2)
    assert ring.start == 0
    ring.extend([Item(3, 1)], 3)
    assert ring.start == 1
    ring.extend([Item(4, 99)], 4)
    assert (ring.start, ring.end) == (4, 4)
    assert ring.after(4, 5) == []


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5)), max_size=60),
    st.integers(1, 8),
    st.integers(1, 20),
    st.integers(1, 5),
)
def test_a_reader_that_keeps_up_misses_nothing(
    steps: list[tuple[int, int]], max_items: int, max_bytes: int, limit: int
) -> None:
    ring: ChangeRing[Item] = ChangeRing(0, max_items=max_items, max_bytes=max_bytes)
    log: list[Item] = []
    cursor, cut = 0, False
    seen: list[Item] = []
    for gap, size in steps:
        version = ring.end + gap
        log.append(Item(version, size))
        ring.extend([log[-1]], version)
        if cut:
            continue
        found = ring.after(cursor, limit)
        if found is None:
            # Cut only when something after the cursor has really gone.
            assert any(cursor < item.version <= ring.start for item in log)
            cut = True
            continue
        seen += found
        cursor = found[-1].version if found else cursor
    assert seen == log[: len(seen)]
