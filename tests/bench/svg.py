"""Charts as SVG text: bars in groups, and lines. Plain shapes that show alike in light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH = 720
_LABEL = 330
_BAR = 16
_GAP = 8
_TOP = 34
_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#9d755d", "#e45756", "#2a9d9d")
_INK = "#767676"
_PLOT_HEIGHT = 260
_MARGIN = 60


def bars(title: str, unit: str, rows: Sequence[tuple[str, float, float, float]]) -> str:
    """One bar a row: label, value, and the least and greatest run as a whisker."""
    most = max([high for _, _, _, high in rows] + [value for _, value, _, _ in rows], default=0.0)
    scale = (WIDTH - _LABEL - 90) / most if most > 0 else 0.0
    parts: list[str] = []
    for number, (label, value, low, high) in enumerate(rows):
        top = _TOP + number * (_BAR + _GAP)
        middle = top + _BAR / 2
        colour = _COLOURS[number % len(_COLOURS)]
        left, right = _LABEL + max(0.0, low) * scale, _LABEL + max(0.0, high) * scale
        parts += [
            _text(_LABEL - 8, middle + 4, label, anchor="end"),
            _rectangle(_LABEL, top, max(0.0, value) * scale, colour),
            _line(left, middle, right, middle),
            _text(max(right, _LABEL) + 6, middle + 4, f"{value:,.4g} {unit}".rstrip()),
        ]
    return _document(title, _TOP + len(rows) * (_BAR + _GAP) + 8, parts)


def lines(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    log_x: bool = False,
) -> str:
    """Each series of (x, y) as a line, both axes from zero; `log_x`: by orders of magnitude."""
    points = [point for of_it in series.values() for point in of_it]
    most_x = max((x for x, _ in points), default=0.0) or 1.0
    most_y = max((y for _, y in points), default=0.0) or 1.0
    legend = _TOP + 14 * len(series) + 6
    bottom, right = legend + _PLOT_HEIGHT, WIDTH - 20
    ticks = sorted({x for x, _ in points})
    is_log = log_x and len(ticks) > 1 and ticks[0] > 0

    def across(x: float) -> float:
        share = math.log(x / ticks[0]) / math.log(most_x / ticks[0]) if is_log else x / most_x
        return _MARGIN + share * (right - _MARGIN)

    def place(x: float, y: float) -> tuple[float, float]:
        return across(x), bottom - y / most_y * _PLOT_HEIGHT

    parts = [_line(_MARGIN, bottom, right, bottom), _line(_MARGIN, legend, _MARGIN, bottom)]
    for number, (name, of_it) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in of_it))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(_MARGIN + 4, _TOP + 14 * number, name, colour=colour))
    parts += [
        _text(_MARGIN - 6, legend + 8, f"{most_y:,.4g}", anchor="end"),
        _text(_MARGIN - 6, bottom, "0", anchor="end"),
        _text(right, bottom + 16, f"{_count(most_x)} {x_label}", anchor="end"),
        _text(_MARGIN, bottom + 16, _count(ticks[0]) if is_log else ""),
        _text(8, legend - 4, y_label),
    ]
    if is_log:
        parts += [_text(across(x), bottom + 16, _count(x), anchor="middle") for x in ticks[1:-1]]
    return _document(title, bottom + 28, parts)


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.4g}"


def _document(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'font-family="sans-serif" font-size="12">\n<title>{escape(title)}</title>\n'
        + _text(8, 18, title)
        + "\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = _INK) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">'
        f"{escape(text)}</text>"
    )


def _rectangle(x: float, y: float, width: float, colour: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{_INK}"/>'
