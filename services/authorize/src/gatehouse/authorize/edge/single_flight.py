"""How many askers share one piece of work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from gatehouse.authorize.errors import CannotKnowError

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass(slots=True)
class _Flight(Generic[T]):
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    results: list[T | CannotKnowError] = field(default_factory=list)


class SingleFlight(Generic[K, T]):
    """Work by key: whoever asks while it is being done shares its outcome, a failure too.

    The one who works is the first to ask; when its request is given up, the next one takes over.
    A key must name everything that the outcome depends on. Belongs to one event loop.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: of keys worked on or waited for; further ones are CannotKnowError."""
        self._limit = limit
        self._flights: dict[K, _Flight[T]] = {}

    async def run(self, key: K, work: Callable[[], Awaitable[T]]) -> T:
        """The outcome of `work`, begun by this caller or another."""
        flight = self._flights.get(key)
        if flight is None:
            if len(self._flights) >= self._limit:
                raise CannotKnowError("too many bearer tokens are being verified")
            flight = self._flights[key] = _Flight()
        flight.waiting += 1
        try:
            async with flight.lock:
                if not flight.results:
                    flight.results.append(await _outcome(work))
                    self._end(key, flight)  # who comes later begins anew
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                self._end(key, flight)
        result = flight.results[0]
        if isinstance(result, CannotKnowError):
            raise CannotKnowError(str(result), public_message=result.public_message)
        return result

    def _end(self, key: K, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


async def _outcome(work: Callable[[], Awaitable[T]]) -> T | CannotKnowError:
    try:
        return await work()
    except CannotKnowError as error:
        return error
