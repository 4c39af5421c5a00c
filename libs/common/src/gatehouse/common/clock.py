"""Time and randomness as arguments: the protocols that cores take and the real ones."""

from __future__ import annotations

import secrets
import time
import uuid
from typing import Protocol


class Clock(Protocol):
    """Two time bases: wall time for what other machines see, monotonic time for durations."""

    def now_s(self) -> float:
        """Unix time in seconds."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        ...


class Rng(Protocol):
    """Unpredictable values."""

    def token_bytes(self, count: int) -> bytes:
        """Cryptographically strong random bytes."""
        ...

    def uuid4(self) -> str:
        """A random UUID in its canonical text form."""
        ...

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high); for jitter, never for secrets."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_s(self) -> float:
        """Unix time in seconds."""
        return time.time_ns() / 1e9

    def monotonic_s(self) -> float:
        """CLOCK_MONOTONIC in seconds."""
        return time.monotonic()


class SystemRng:
    """The operating system's random source."""

    def token_bytes(self, count: int) -> bytes:
        """Cryptographically strong random bytes."""
        return secrets.token_bytes(count)

    def uuid4(self) -> str:
        """A random UUID in its canonical text form."""
        return str(uuid.uuid4())

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * (secrets.randbits(53) / (1 << 53))
