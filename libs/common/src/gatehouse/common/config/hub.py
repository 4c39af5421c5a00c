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
Lead = Callable[[], Awaitable[None]]
PrepareLead = Callable[[ResolvedSettings], Awaitable[Lead]]


class ConfigHub:
    """Holds the settings in force and the parts that must agree to a change."""

    def __init__(self, initial: ResolvedSettings) -> None:
        self._current = initial
        self._participants: dict[str, Prepare] = {}
        self._leads: list[PrepareLead] = []
        self._lock = asyncio.Lock()

    @property
    def current(self) -> ResolvedSettings:
        """The settings in force."""
        return self._current

    def join(self, name: str, prepare: Prepare) -> None:
        """Ask `prepare` about every later change. Names must be unique in a process."""
        assert name not in self._participants, name
        self._participants[name] = prepare

    def lead(self, prepare: PrepareLead) -> None:
        """Ask `prepare` after all participants; what it returns goes first when they commit.

        For those outside this process, whose switch takes time: it is awaited, and only when it is
        over does this process switch and say so. It must not fail.
        """
        self._leads.append(prepare)

    async def apply(self, new: ResolvedSettings) -> None:
        """Put `new` in force, or raise what the first refusing participant raised.

        Calls are serialized. The commit awaits nothing, so no reader ever sees one part of this
        process on the new configuration and another on the old.
        """
        async with self._lock:
            commit = await self.prepare(new)
            leads = [await prepare(new) for prepare in self._leads]
            try:
                for lead in leads:
                    await lead()
            finally:
                commit()  # some may have switched already: there is no way back

    async def rehearse(self, new: ResolvedSettings) -> None:
        """Raise what `apply` would raise by now; nothing is put in force."""
        async with self._lock:
            await self.prepare(new)

    async def prepare(self, new: ResolvedSettings) -> Commit:
        """Every part ready for `new`; the commit puts it in force. Callers take turns.

        For who is himself a part of something larger; everybody else calls `apply`.
        """
        commits = [await prepare(new) for prepare in list(self._participants.values())]

        def commit() -> None:
            for take in commits:
                take()
            self._current = new

        return commit
