"""How long to wait before trying again (pure)."""

from __future__ import annotations

from dataclasses import dataclass

from gatehouse.common.clock import Rng


@dataclass(slots=True)
class Backoff:
    """Waits that grow by `factor` from `initial_s` to `cap_s`, each spread by ±`jitter` (a share).

    `Backoff(0.5, 1.5, 60.0, 0.5)` is the one for the databroker's clients.
    """

    initial_s: float
    factor: float
    cap_s: float
    jitter: float
    _next_s: float | None = None

    def __post_init__(self) -> None:
        assert 0 < self.initial_s <= self.cap_s
        assert self.factor >= 1
        assert 0 <= self.jitter < 1

    def next_s(self, rng: Rng) -> float:
        """Seconds to wait now; the following wait is longer. Never more than `cap_s`."""
        base_s = self.initial_s if self._next_s is None else self._next_s
        self._next_s = min(base_s * self.factor, self.cap_s)
        return min(base_s * (1 + self.jitter * (2 * rng.uniform(0.0, 1.0) - 1)), self.cap_s)

    def reset(self) -> None:
        """It worked: begin again at `initial_s`."""
        self._next_s = None
