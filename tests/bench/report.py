"""docs/performance.md's tables and plots from the newest results of each benchmark.

Only what stands between `<!-- results: NAME -->` and `<!-- end -->` is replaced; what limits a
figure is written by hand around it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.bench import svg
from tests.bench.figures import Figure
from tests.bench.machine import was_busy

_BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_PLOTTED_UNITS = ("req/s", "/s", "ms", "s", "µs", "B")
_BY_PART = frozenset({"broker"})  # measures of parts that may be taken on their own: `part: name`
_SIZED = re.compile(r"(.+), ([\d,]+) (sessions)")  # one measure at several sizes


@dataclass(frozen=True)
class Result:
    """One benchmark's figures of one run."""

    at: str
    machine: Mapping[str, Any]
    figures: tuple[Figure, ...]


def newest(documents: Iterable[Mapping[str, Any]]) -> dict[str, Result]:
    """For each benchmark, or part of one (`name_part`), its figures of the latest run of it."""
    found: dict[str, Result] = {}
    runs = [document for document in documents if "at" in document]  # others keep theirs beside
    for document in sorted(runs, key=lambda each: str(each["at"])):
        for name, figures in document.get("benchmarks", {}).items():
            parts: dict[str, list[Figure]] = {}
            for each in figures:
                figure = Figure(**{**each, "runs": tuple(each["runs"])})
                part, mark, rest = figure.name.partition(": ")
                key = name
                if mark and name in _BY_PART:
                    key, figure = f"{name}_{part}", replace(figure, name=rest)
                parts.setdefault(key, []).append(figure)
            for key, of_it in parts.items():
                found[key] = Result(document["at"], document["machine"], tuple(of_it))
    return found


def table(result: Result) -> str:
    """A Markdown table: median, spread, yardstick, target."""
    rows = [
        "| Measure | Median | Least to most | Yardstick | Target |",
        "|---|---:|---:|---|---|",
    ]
    for figure in result.figures:
        spread = f"{_number(min(figure.runs))} to {_number(max(figure.runs))}"
        yardstick = (
            ""
            if figure.yardstick_value is None
            else f"{figure.yardstick}: {_number(figure.yardstick_value)}"
        )
        target = f"{figure.bound}: {'met' if figure.is_met else '**missed**'}"
        rows.append(
            f"| {figure.name.strip()} | {_number(figure.median)} {figure.unit}".rstrip()
            + f" | {spread if len(figure.runs) > 1 else ''} | {yardstick}"
            + f" | {target if figure.target is not None else ''} |"
        )
    return "\n".join(rows) + "\n"


def origin(result: Result) -> str:
    """When and where the figures were made."""
    machine = result.machine
    text = (
        f"{result.at}: {machine.get('cpu_model', 'unknown')}, {machine.get('cpus')} CPUs, "
        f"{machine.get('memory_mib', 0)} MiB, Linux {machine.get('kernel', 'unknown')}, "
        f"Python {machine.get('python')}, with {', '.join(machine.get('tools', [])) or 'no tools'}."
    )
    if was_busy(machine):
        used = machine["used_by_others"]
        text += f" **Others used {used:.0%} of the CPUs: do not rely on these.**"
    elif "used_by_others" not in machine and "load_average" in machine:
        load = machine["load_average"][0]
        text += f" The load average was {load:.1f} as it began, what ran just before included."
    return text + "\n"


def plots(name: str, result: Result) -> dict[str, str]:
    """File names and SVG: one chart for each unit that has at least two figures.

    What was measured at several sizes is shown as lines over these.
    """
    found: dict[str, str] = {}
    for unit in _PLOTTED_UNITS:
        key = unit.replace("req/s", "rate").replace("/s", "rate").replace("µs", "us")
        of_unit = [figure for figure in result.figures if figure.unit == unit]
        growth = _growth(of_unit)
        if growth:
            text = svg.lines(f"{name} by sessions, {unit}", "sessions", unit, growth, log_x=True)
            found[f"{name}-growth-{key}.svg"] = text
        rows = [
            (_short(figure.name), figure.median, min(figure.runs), max(figure.runs))
            for figure in of_unit
            if not _SIZED.fullmatch(figure.name) or not growth
        ]
        if len(rows) > 1:
            found[f"{name}-{key}.svg"] = svg.bars(f"{name}, {unit}", unit, rows)
    return found


def _growth(figures: Iterable[Figure]) -> dict[str, list[tuple[float, float]]]:
    """Each measure that was taken at two sizes or more: its medians by size.

    Where there is a p99 the p50 is left to the table.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for figure in figures:
        sized = _SIZED.fullmatch(figure.name)
        if sized is not None and " p50" not in sized[1]:
            place = float(sized[2].replace(",", "")), figure.median
            found.setdefault(_short(sized[1]), []).append(place)
    return {measure: sorted(points) for measure, points in found.items() if len(points) > 1}


def filled(page: str, results: Mapping[str, Result], folder: str) -> str:
    """The page with every block of a known result replaced; `folder` holds the plots."""

    def replace(found: re.Match[str]) -> str:
        result = results.get(found[2])
        if result is None:
            return found[0]
        images = "".join(f"\n![{found[2]}]({folder}/{name})\n" for name in plots(found[2], result))
        return f"{found[1]}{origin(result)}\n{table(result)}{images}{found[3]}"

    return _BLOCK.sub(replace, page)


def write(results_dir: Path, page: Path) -> list[Path]:
    """Refresh the page and its plots; gives what was written."""
    documents = [json.loads(path.read_text()) for path in sorted(results_dir.glob("*.json"))]
    results = newest(documents)
    folder = page.with_suffix("")
    folder.mkdir(exist_ok=True)
    written = [page]
    wanted = _BLOCK.findall(page.read_text())
    for _, name, _ in wanted:
        if name in results:
            for file, text in plots(name, results[name]).items():
                (folder / file).write_text(text)
                written.append(folder / file)
    page.write_text(filled(page.read_text(), results, folder.name))
    return written


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _short(name: str, most: int = 52) -> str:
    name = name.strip()
    return name if len(name) <= most else name[: most - 1] + "…"
