"""How long each operation of the record store takes, whichever backend does it."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from gatehouse.common.clock import Clock
from gatehouse.common.observability.metrics import STORAGE_MS
from gatehouse.databroker.edge.backends.base import Storage

OPERATIONS: Final = frozenset(
    {"get", "write", "query", "list_types", "changes", "head", "set_options", "clear"}
    | {"put_access_times", "access_times", "acquire_lease", "renew_lease", "release_lease"}
    | {"reapable", "prune", "change_history", "register", "registered"}
)


def measured(storage: Storage, clock: Clock) -> Storage:
    """The same store; what is asked of it by this name is counted."""
    return cast("Storage", _Measured(storage, clock))


class _Measured:
    def __init__(self, storage: Storage, clock: Clock) -> None:
        self._storage = storage
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        if name in OPERATIONS:
            found = self._timed(name, found)
            setattr(self, name, found)  # asked for once
        return found

    def _timed(self, name: str, operation: Callable[..., Awaitable[Any]]) -> Any:
        good, bad = (
            STORAGE_MS.labels(name, result, self._storage.name) for result in ("success", "error")
        )
        monotonic_s = self._clock.monotonic_s

        @functools.wraps(operation)
        async def timed(*arguments: Any, **named: Any) -> Any:
            started_s, outcome = monotonic_s(), bad
            try:
                answer = await operation(*arguments, **named)
                outcome = good
                return answer
            finally:
                outcome.observe((monotonic_s() - started_s) * 1000.0)

        return timed
