"""Ids in order, whatever came and went."""

from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from gatehouse.databroker.core.sorted_ids import SortedIds

IDS = st.text("abc", max_size=3)


@given(st.lists(st.tuples(st.booleans(), IDS), max_size=100), IDS)
def test_they_are_those_of_a_sorted_set(changes: list[tuple[bool, str]], after: str) -> None:
    live: dict[str, int] = {}
    ids = SortedIds(live)
    for is_new, id_ in changes:
        if is_new and id_ not in live:
            live[id_] = 1
            ids.add(id_)
        elif not is_new and id_ in live:
            del live[id_]
            ids.remove()
    assert list(ids.after(None)) == sorted(live)
    assert list(ids.after(after)) == [id_ for id_ in sorted(live) if id_ > after]


def test_they_stay_right_when_they_are_sorted_anew() -> None:
    live: dict[str, int] = {}
    ids = SortedIds(live)
    for number in range(5_000):
        id_ = f"{number * 7919 % 5_000:04}"
        live[id_] = 1
        ids.add(id_)
        if number % 3 == 0:
            del live[id_]
            ids.remove()
    assert list(ids.after(None)) == sorted(live)
    assert list(islice(ids.after("2500"), 3)) == [id_ for id_ in sorted(live) if id_ > "2500"][:3]
