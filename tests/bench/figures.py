"""One measured figure: its runs, its target, and the yardstick measured beside it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """Several runs of one measure. `target` is an upper bound in `unit`, or with `at_least` a lower
    one; None: no target."""

    name: str
    unit: str
    runs: tuple[float, ...]
    target: float | None = None
    yardstick: str = ""
    yardstick_value: float | None = None
    at_least: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.runs)

    @property
    def is_met(self) -> bool | None:
        """Whether the median meets the target; None without one."""
        if self.target is None:
            return None
        return self.median >= self.target if self.at_least else self.median <= self.target

    @property
    def bound(self) -> str:
        """The target in words; empty without one."""
        if self.target is None:
            return ""
        return f"{'>=' if self.at_least else '<='} {self.target:g}"

    def line(self, width: int) -> str:
        text = (
            f"{self.name:<{width}}  {self.median:10.3f} {self.unit:<6}"
            f" (min {min(self.runs):.3f}, max {max(self.runs):.3f}, {len(self.runs)} runs)"
        )
        if self.yardstick_value is not None:
            text += f"  yardstick {self.yardstick}: {self.yardstick_value:.3f} {self.unit}"
        if self.target is not None:
            text += f"  target {self.bound}: {'met' if self.is_met else 'MISSED'}"
        return text


class UnfinishedError(Exception):
    """A part of a benchmark failed; `figures` are those of the others."""

    def __init__(self, what: str, figures: Sequence[Figure]) -> None:
        super().__init__(what)
        self.figures = tuple(figures)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile, `share` in 0 to 100; 0.0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    rank = -(-len(ordered) * share // 100)
    return ordered[max(0, int(rank) - 1)]
