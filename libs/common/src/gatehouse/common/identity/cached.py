"""How something fetched is kept, renewed, and fetched once for many askers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.identity.errors import IdentityProviderError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How the latest fetch ended, and when (monotonic)."""

    number: int
    at_s: float
    error: IdentityProviderError | None


class Cached(Generic[T]):
    """One fetched value.

    At most one fetch runs at a time; whoever asked before it ended shares its outcome, so that an
    outage costs each asker one time-out and the provider one request. A value past its age that
    cannot be renewed is still given out. Belongs to one event loop.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[T]],
        clock: Clock,
        rng: Rng,
        *,
        max_age_s: float,
        min_interval_s: float,
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        # replicas that started together do not renew together
        self._max_age_s = max_age_s * rng.uniform(0.9, 1.1)
        self._min_interval_s = min_interval_s
        self._lock = asyncio.Lock()
        self._value: T | None = None
        self._latest: _Outcome | None = None

    async def get(self) -> T:
        """The value, fetched if there is none yet. Raises IdentityProviderError."""
        return await self._get(self._max_age_s)

    async def renewed(self) -> T:
        """The value, fetched again unless that was done within the least interval."""
        return await self._get(self._min_interval_s)

    async def _get(self, max_age_s: float) -> T:
        value = self._usable(max_age_s)
        if value is not None:
            return value
        ended_before = self._ended
        async with self._lock:
            if self._latest is not None and self._ended != ended_before:
                return self._shared(self._latest)
            try:
                self._value = await self._fetch()
            except IdentityProviderError as error:
                self._end(error)
                if self._value is None:
                    raise
                return self._value
            self._end(None)
            return self._value

    @property
    def _ended(self) -> int:
        return 0 if self._latest is None else self._latest.number

    def _end(self, error: IdentityProviderError | None) -> None:
        self._latest = _Outcome(self._ended + 1, self._clock.monotonic_s(), error)

    def _usable(self, max_age_s: float) -> T | None:
        if self._value is None or self._latest is None:
            return None
        age_s = self._clock.monotonic_s() - self._latest.at_s
        # after a failed renewal the old value serves until the least interval is over
        limit_s = self._min_interval_s if self._latest.error is not None else max_age_s
        return self._value if age_s < limit_s else None

    def _shared(self, outcome: _Outcome) -> T:
        if self._value is not None:
            return self._value
        error = outcome.error
        assert error is not None
        raise IdentityProviderError(
            str(error), reason=error.reason, retry_after_s=error.retry_after_s
        )
