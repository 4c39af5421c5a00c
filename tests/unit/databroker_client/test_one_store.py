"""When databrokers are believed to have different stores."""

from __future__ import annotations

from gatehouse.common.databroker.one_store import HistoriesMet


def met(histories: HistoriesMet, versions: list[int], *, from_s: float, step_s: float) -> float:
    """Meet one after the other; the time of the last."""
    now_s = from_s
    for number, version in enumerate(versions):
        now_s = from_s + number * step_s
        histories.met(version, now_s)
    return now_s


def test_alternating_for_over_a_minute_tells() -> None:
    histories = HistoriesMet()
    last_s = met(histories, [1, 2] * 6, from_s=0.0, step_s=5.0)
    assert last_s == 55.0
    assert not histories.are_several(last_s)
    last_s = met(histories, [1, 2] * 3, from_s=60.0, step_s=5.0)
    assert histories.are_several(last_s)
    assert histories.are_several(last_s + 59.0)
    assert not histories.are_several(last_s + 61.0), "one alone has answered since"


def test_a_new_history_is_none_beside_the_old_one() -> None:
    histories = HistoriesMet()
    last_s = met(histories, [1] * 20 + [2] * 20 + [3] * 20, from_s=0.0, step_s=5.0)
    assert not histories.are_several(last_s)


def test_what_a_databroker_knew_before_a_change_is_forgiven() -> None:
    histories = HistoriesMet()
    met(histories, [1, 2, 1, 2, 1, 2], from_s=0.0, step_s=5.0)  # behind for a moment
    assert not histories.are_several(met(histories, [2] * 40, from_s=30.0, step_s=5.0))
    met(histories, [3, 2, 3, 2, 3], from_s=300.0, step_s=5.0)  # and once more, minutes later
    assert not histories.are_several(met(histories, [3] * 10, from_s=325.0, step_s=5.0))


def test_unknown_histories_count_for_nothing() -> None:
    histories = HistoriesMet()
    last_s = met(histories, [1, 0] * 40, from_s=0.0, step_s=5.0)
    assert not histories.are_several(last_s)


def test_many_histories_are_not_all_remembered() -> None:
    histories = HistoriesMet()
    met(histories, list(range(1, 1000)), from_s=0.0, step_s=0.01)
    assert len(histories._left) <= 16
