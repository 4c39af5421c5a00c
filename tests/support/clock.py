"""A clock that a test moves, and randomness that repeats."""

from __future__ import annotations

import hashlib
import itertools


class FakeClock:
    """Both time bases move only by `advance`."""

    def __init__(self, now_s: float = 1_800_000_000.0) -> None:
        self.now = now_s
        self.monotonic = 1_000.0

    def now_s(self) -> float:
        return self.now

    def monotonic_s(self) -> float:
        return self.monotonic

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.monotonic += seconds


class SeededRng:
    """The same values for the same seed."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._count = itertools.count()

    def token_bytes(self, count: int) -> bytes:
        made = b""
        while len(made) < count:
            made += hashlib.sha256(f"{self._seed}/{next(self._count)}".encode()).digest()
        return made[:count]

    def uuid4(self) -> str:
        digits = self.token_bytes(16).hex()
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:32]}"

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * (int.from_bytes(self.token_bytes(7), "big") / (1 << 56))


class FixedRng(SeededRng):
    """`uniform` always gives the same share of its range: 0 is the low end, 1 the high one."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self._share = share

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self._share
