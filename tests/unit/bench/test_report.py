"""Tables and plots from result files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from tests.bench import report, svg
from tests.bench.figures import Figure

MACHINE = {
    "cpus": 2,
    "cpu_model": "Some CPU",
    "memory_mib": 4000,
    "kernel": "6.1",
    "python": "3.11.7",
    "load_average": [0.1, 0.1, 0.1],
    "used_by_others": 0.01,
    "tools": ["wrk"],
}
PAGE = """before
<!-- results: proxy -->
old
<!-- end -->
after
<!-- results: other -->
x
<!-- end -->
"""


def document(at: str, *figures: Figure, name: str = "proxy") -> dict[str, Any]:
    return {
        "at": at,
        "machine": MACHINE,
        "benchmarks": {name: [asdict(figure) for figure in figures]},
    }


def test_the_newest_run_of_each_benchmark_counts() -> None:
    old, new = Figure("a", "s", (1.0,)), Figure("a", "s", (2.0,))
    found = report.newest(
        [
            document("20260102T000000Z", new),
            document("20260101T000000Z", old),
            document("20260101T000000Z", old, name="check"),
            {"at": "2025", "machine": {}, "figures": []},  # an older form
        ]
    )
    assert found["proxy"].figures == (new,)
    assert found["check"].figures == (old,)


def test_a_table_has_median_spread_yardstick_and_verdict() -> None:
    figures = (
        Figure("fast", "ms", (3.0, 1.0, 2.0), 2.5, "bare", 1.5),
        Figure("share", "", (0.6,), 0.65, at_least=True),
    )
    text = report.table(report.Result("now", MACHINE, figures))
    assert "| fast | 2 ms | 1 to 3 | bare: 1.5 | <= 2.5: met |" in text
    assert "| share | 0.6 |  |  | >= 0.65: **missed** |" in text


def test_a_busy_machine_is_told() -> None:
    quiet = report.Result("now", MACHINE, ())
    busy = report.Result("now", {**MACHINE, "used_by_others": 0.5}, ())
    assert "do not rely" not in report.origin(quiet)
    assert "Others used 50% of the CPUs: do not rely on these" in report.origin(busy)
    earlier = {name: value for name, value in MACHINE.items() if name != "used_by_others"}
    assert "load average was 0.1" in report.origin(report.Result("now", earlier, ()))


def test_only_known_blocks_of_the_page_are_replaced(tmp_path: Path) -> None:
    results, page = tmp_path / "results", tmp_path / "performance.md"
    results.mkdir()
    figures = (Figure("a", "req/s", (5.0, 6.0)), Figure("b", "req/s", (7.0,)))
    (results / "1.json").write_text(json.dumps(document("20260101T000000Z", *figures)))
    page.write_text(PAGE)
    written = report.write(results, page)
    text = page.read_text()
    assert written == [page, tmp_path / "performance" / "proxy-rate.svg"]
    assert text.startswith("before\n<!-- results: proxy -->\n20260101T000000Z: Some CPU")
    assert "old" not in text
    assert "![proxy](performance/proxy-rate.svg)" in text
    assert "<!-- results: other -->\nx\n<!-- end -->" in text
    report.write(results, page)
    assert page.read_text() == text


def test_bars_are_well_formed_and_in_proportion() -> None:
    text = svg.bars("A & B", "ms", [("one <1>", 10.0, 9.0, 11.0), ("two", 20.0, 20.0, 20.0)])
    root = ET.fromstring(text)
    widths = [float(item.attrib["width"]) for item in root.iter() if item.tag.endswith("rect")]
    assert abs(widths[1] - 2 * widths[0]) < 0.2
    assert "one <1>" in [item.text for item in root.iter()]


def test_bars_of_nothing_and_of_negative_values() -> None:
    ET.fromstring(svg.bars("none", "s", []))
    root = ET.fromstring(svg.bars("less", "s", [("a", -3.0, -4.0, -1.0)]))
    assert [item.attrib["width"] for item in root.iter() if item.tag.endswith("rect")] == ["0.0"]


def test_lines_stay_in_the_picture() -> None:
    text = svg.lines("t", "s", "MiB", {"a": [(0.0, 0.0), (10.0, 5.0)], "b": [(5.0, 1.0)]})
    root = ET.fromstring(text)
    height = float(root.attrib["viewBox"].split()[3])
    found = [item.attrib["points"] for item in root.iter() if item.tag.endswith("polyline")]
    for line in found:
        for point in line.split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= svg.WIDTH
            assert 0 <= y <= height
    assert len(found) == 2
    ET.fromstring(svg.lines("none", "s", "", {}))


def test_what_was_measured_at_several_sizes_becomes_lines() -> None:
    figures = (
        Figure("ready, 10,000 sessions", "s", (1.0,)),
        Figure("ready, 100,000 sessions", "s", (11.0,)),
        Figure("alone", "s", (3.0,)),
        Figure("other", "s", (4.0,)),
    )
    found = report.plots("broker", report.Result("now", MACHINE, figures))
    assert set(found) == {"broker-growth-s.svg", "broker-s.svg"}
    assert "ready" in found["broker-growth-s.svg"]
    assert "ready" not in found["broker-s.svg"]
    ET.fromstring(found["broker-growth-s.svg"])


def test_growth_over_orders_of_magnitude_is_evenly_spread() -> None:
    series = {"a": [(10_000.0, 1.0), (100_000.0, 2.0), (1_000_000.0, 4.0)]}
    root = ET.fromstring(svg.lines("t", "sessions", "s", series, log_x=True))
    (line,) = (item.attrib["points"] for item in root.iter() if item.tag.endswith("polyline"))
    first, middle, last = (float(point.split(",")[0]) for point in line.split())
    assert abs((middle - first) - (last - middle)) < 0.2
    assert "100,000" in [item.text for item in root.iter()]


def test_a_median_is_not_plotted_beside_its_p99() -> None:
    figures = tuple(
        Figure(f"seen {which}, {size} sessions", "ms", (1.0,))
        for which in ("p50", "p99")
        for size in ("10,000", "100,000")
    )
    text = report.plots("broker", report.Result("now", MACHINE, figures))["broker-growth-ms.svg"]
    assert "seen p99" in text
    assert "seen p50" not in text


def test_parts_of_a_benchmark_may_come_from_different_runs() -> None:
    def of(store: str, value: float) -> Figure:
        return Figure(f"{store}: Puts, 10,000 sessions", "/s", (value,))

    found = report.newest(
        [
            document("20260101T000000Z", of("memory", 1.0), of("postgres", 2.0), name="broker"),
            document("20260102T000000Z", of("postgres", 3.0), name="broker"),
        ]
    )
    assert found["broker_memory"].figures[0].median == 1.0
    assert found["broker_postgres"].figures[0].median == 3.0
    assert found["broker_postgres"].figures[0].name == "Puts, 10,000 sessions"
    assert found["broker_memory"].at == "20260101T000000Z"
