"""One measured figure: its runs, its target, and the yardstick measured beside it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """Several runs of one measure. `target` is an upper bound in `unit`; None: no target."""

    name: str
    unit: str
    runs: tuple[float, ...]
    target: float | None = None
    yardstick: str = ""
    yardstick_value: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.runs)

    def line(self, width: int) -> str:
        text = (
            f"{self.name:<{width}}  {self.median:10.3f} {self.unit:<6}"
            f" (min {min(self.runs):.3f}, max {max(self.runs):.3f}, {len(self.runs)} runs)"
        )
        if self.yardstick_value is not None:
            text += f"  yardstick {self.yardstick}: {self.yardstick_value:.3f} {self.unit}"
        if self.target is not None:
            verdict = "met" if self.median <= self.target else "MISSED"
            text += f"  target <= {self.target:g}: {verdict}"
        return text
