"""The arithmetic and the words of a figure."""

from __future__ import annotations

import pytest

from tests.bench.bench_proxy import added, ratios
from tests.bench.figures import Figure, percentile
from tests.bench.machine import cpu_model, memory_mib, used_share, was_busy
from tests.bench.progress import bar


@pytest.mark.parametrize(
    ("values", "share", "wanted"),
    [
        ([], 99, 0.0),
        ([7.0], 50, 7.0),
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([float(number) for number in range(1, 101)], 99, 99.0),
        ([float(number) for number in range(1, 101)], 100, 100.0),
        ([float(number) for number in range(1, 11)], 99, 10.0),
    ],
)
def test_percentile_is_of_the_nearest_rank(
    values: list[float], share: float, wanted: float
) -> None:
    assert percentile(values, share) == wanted


def test_an_upper_bound_is_met_from_below() -> None:
    assert Figure("a", "s", (1.0, 2.0, 9.0), 2.0).is_met is True
    assert Figure("a", "s", (3.0,), 2.0).is_met is False
    assert Figure("a", "s", (3.0,)).is_met is None


def test_a_lower_bound_is_met_from_above() -> None:
    figure = Figure("a", "", (0.6, 0.8), 0.65, at_least=True)
    assert figure.is_met is True
    assert ">= 0.65: met" in figure.line(10)
    assert "MISSED" in Figure("a", "", (0.6,), 0.65, at_least=True).line(10)


def test_rounds_are_compared_with_their_own_yardstick() -> None:
    assert ratios([50.0, 30.0], [100.0, 40.0]) == (0.5, 0.75)
    assert added([5.0, 9.0], [2.0, 10.0]) == (3.0, -1.0)


def test_machine_facts() -> None:
    assert cpu_model("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n") == "Some CPU @ 2 GHz"
    assert cpu_model("") == "unknown"
    assert memory_mib("MemTotal:  2048000 kB\n") == 2000
    assert was_busy({"cpus": 2, "used_by_others": 0.2})
    assert not was_busy({"cpus": 2, "used_by_others": 0.05, "load_average": [4.0, 1.0, 1.0]})
    assert not was_busy({})


def test_the_bar_fills() -> None:
    assert bar(0, 4, 4) == "[....] 0/4"
    assert bar(2, 4, 4) == "[##..] 2/4"
    assert bar(4, 4, 4) == "[####] 4/4"


def test_how_much_of_the_cpus_others_use():
    before = "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2 3\n"
    after = "cpu  160 0 80 890 70 0 0 0 0 0\ncpu0 1 2 3\n"
    assert used_share(before, after) == pytest.approx(90 / 200)
    assert used_share(before, before) == 0.0
    assert used_share("", "") == 0.0
