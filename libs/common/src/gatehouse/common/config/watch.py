"""When the configuration changed, and whether the new one takes effect.

Polls the contents of the main file and of every file it refers to, off the event loop. What cannot
be loaded or applied is reported; the last good configuration stays, and the next change is tried.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from gatehouse.common.config.hub import ConfigHub
from gatehouse.common.config.inputs import file_digest
from gatehouse.common.config.issues import Issue
from gatehouse.common.config.load import paused_collection
from gatehouse.common.config.refused_routes import without_refused
from gatehouse.common.config.resolve import UnresolvedError
from gatehouse.common.config.resolved import ResolvedSettings

POLL_S: Final = 0.2
SETTLE_S: Final = 0.05  # a file is read once it has stood still for this long
MAX_SETTLE_S: Final = 2.0

Load = Callable[[], tuple[ResolvedSettings, tuple[Issue, ...]]]
Digests = Mapping[Path, bytes]


class ConfigWatcher:
    """Follows the configuration files of a process.

    `load` runs in a thread; the callbacks run on the event loop. Watching needs the runtime flag
    `config_hot_reload` at start; `request_reload` works always.
    """

    def __init__(
        self,
        hub: ConfigHub,
        *,
        path: Path | None,
        load: Load,
        on_error: Callable[[Exception], None],
        on_applied: Callable[[ResolvedSettings], None] = lambda _: None,
        on_warning: Callable[[Issue], None] = lambda _: None,
        poll_s: float = POLL_S,
    ) -> None:
        self._hub = hub
        self._path = path
        self._load = load
        self._on_error = on_error
        self._on_applied = on_applied
        self._on_warning = on_warning
        self._poll_s = poll_s
        self._requested = asyncio.Event()
        self._polls = hub.current.settings.runtime_flags.get("config_hot_reload", True)
        self._wanted: tuple[Path, ...] = ()  # files that a refused configuration refers to
        self._failed = False
        self._tried: Digests = dict(hub.current.file_digests) or digests(self._files())

    def request_reload(self) -> None:
        """Load again at once, changed or not (SIGHUP). Call on the event loop."""
        self._requested.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until `stop` is set; a change made since the settings in force were read counts.

        Returns within one poll interval of `stop`.
        """
        while not stop.is_set():
            requested = self._requested.is_set()
            self._requested.clear()
            if self._polls or requested:
                now = await asyncio.to_thread(digests, self._files())
                if requested or now != self._tried:
                    await self._reload(await self._settled(now))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._requested.wait()

    def _files(self) -> tuple[Path, ...]:
        own = () if self._path is None else (self._path,)
        return tuple(dict.fromkeys((*own, *self._hub.current.watched_files, *self._wanted)))

    async def _settled(self, now: Digests) -> Digests:
        """Wait until nobody writes any more, so that half a file is not taken for the whole."""
        for _ in range(int(MAX_SETTLE_S / SETTLE_S)):
            await asyncio.sleep(SETTLE_S)
            later = await asyncio.to_thread(digests, self._files())
            if later == now:
                break
            now = later
        return now

    async def _reload(self, seen: Digests) -> None:
        self._tried = seen
        try:
            with paused_collection():
                settings, warnings = await asyncio.to_thread(self._load)
                changed = settings.generation != self._hub.current.generation
                if changed:
                    settings = await self._apply(settings)
        except Exception as error:  # noqa: BLE001 - the last good configuration stays in force
            self._failed = True
            if isinstance(error, UnresolvedError):
                self._wanted = error.watched_files
                self._tried = {**error.file_digests, **seen}
            self._on_error(error)
            return
        self._wanted = ()
        # What was read, not what is there now: a change in between is seen by the next poll.
        self._tried = dict(settings.file_digests) or await asyncio.to_thread(digests, self._files())
        if changed or self._failed:
            self._failed = False
            for issue in warnings:
                self._on_warning(issue)
            self._on_applied(settings)

    async def _apply(self, settings: ResolvedSettings) -> ResolvedSettings:
        """Put them in force, at worst without stored routes that cannot be; gives what is."""
        try:
            await self._hub.apply(settings)
        except Exception as error:
            if not any(route.is_stored for route in settings.routes):
                raise
            try:
                settings = await without_refused(settings, self._hub.rehearse)
            except Exception:  # noqa: BLE001 - the stored routes are not to blame
                raise error from None
            await self._hub.apply(settings)
        return settings


def digests(files: Iterable[Path]) -> Digests:
    """The hash of each file's contents; a missing or unreadable file has none."""
    found: dict[Path, bytes] = {}
    for file in files:
        try:
            found[file] = file_digest(file.read_bytes())
        except (OSError, ValueError):
            found[file] = file_digest(None)
    return found
