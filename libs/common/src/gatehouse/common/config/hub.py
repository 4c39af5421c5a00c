"""One configuration in force: every part prepares the new one, then all take it, or none does.

A participant's `prepare` builds all it needs from the new settings without touching what is in
force and returns a `commit` that only swaps references. `apply` runs every prepare first; if one
raises, nothing was changed anywhere (design D2: the last good configuration stays in force).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gatehouse.common.config.resolved import ResolvedSettings

Commit = Callable[[], None]
Prepare = Callable[[ResolvedSettings], Awaitable[Commit]]


class ConfigHub:
    """Holds the settings in force and the parts that must agree to a change."""

    def __init__(self, initial: ResolvedSettings) -> None:
        self._current = initial
        self._participants: dict[str, Prepare] = {}
        self._lock = asyncio.Lock()

    @property
    def current(self) -> ResolvedSettings:
        """The settings in force."""
        return self._current

    def join(self, name: str, prepare: Prepare) -> None:
        """Ask `prepare` about every later change. Names must be unique in a process."""
        assert name not in self._participants, name
        self._participants[name] = prepare

    async def apply(self, new: ResolvedSettings) -> None:
        """Put `new` in force, or raise what the first refusing participant raised.

        Calls are serialized. After the last prepare nothing awaits, so no reader ever sees one
        part on the new configuration and another on the old.
        """
        async with self._lock:
            commits = [await prepare(new) for prepare in list(self._participants.values())]
            for commit in commits:
                commit()
            self._current = new
