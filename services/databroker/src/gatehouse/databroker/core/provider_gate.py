"""How fast one identity provider may be asked: a token bucket, a cap on calls, and pauses.

Times are seconds of a monotonic clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

RATE = 50.0  # requests per second
BURST = 50.0
IN_FLIGHT = 32


@dataclass(slots=True)
class Gate:
    """One provider's gate. The bucket starts full."""

    rate: float = RATE
    burst: float = BURST
    in_flight: int = IN_FLIGHT
    calls: int = 0  # under way
    _tokens: float = math.inf
    _at_s: float = -math.inf
    _paused_until_s: float = -math.inf

    def enter(self, now_s: float, cost: float = 1.0) -> bool:
        """Take `cost` requests' worth and one place if there are; False if there are not."""
        if self.wait_s(now_s, cost) > 0:
            return False
        self._tokens -= cost
        self.calls += 1
        return True

    def leave(self) -> None:
        """Give the place back."""
        assert self.calls > 0
        self.calls -= 1

    def pause(self, now_s: float, duration_s: float) -> None:
        """Let nobody in for so long: the provider has asked for it."""
        self._paused_until_s = max(self._paused_until_s, now_s + duration_s)

    def wait_s(self, now_s: float, cost: float = 1.0) -> float:
        """Return how long `enter` will still refuse; infinite while all places are taken."""
        assert cost <= self.burst
        if self.calls >= self.in_flight:
            return math.inf
        elapsed_s = max(0.0, now_s - self._at_s)
        self._tokens = min(self.burst, self._tokens + elapsed_s * self.rate)
        self._at_s = max(self._at_s, now_s)
        missing_s = (cost - self._tokens) / self.rate
        wait_s = max(0.0, self._paused_until_s - now_s, missing_s)
        return wait_s if wait_s > 1e-9 else 0.0
