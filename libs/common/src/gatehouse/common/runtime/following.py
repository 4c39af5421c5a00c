"""How a part of a process begins anew when its settings change, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gatehouse.common.config.hub import ConfigHub
from gatehouse.common.config.resolved import ResolvedSettings

T = TypeVar("T")


async def follow_settings(
    hub: ConfigHub,
    name: str,
    pick: Callable[[ResolvedSettings], T],
    serve: Callable[[T, asyncio.Event], Awaitable[None]],
    stop: asyncio.Event,
) -> None:
    """Run `serve` with what `pick` takes of the settings in force, until `stop`.

    `serve` returns soon after its event is set; it is called again with each other pick. When it
    returns by itself nothing happens until the next change. `name` is its own at the hub.
    """
    changed = asyncio.Event()

    async def prepare(_new: ResolvedSettings) -> Callable[[], None]:
        return changed.set

    hub.join(name, prepare)
    while not stop.is_set():
        wanted = pick(hub.current)
        ended = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(_serve(serve, wanted, ended), name=name)
            while not stop.is_set() and pick(hub.current) == wanted:
                await _either(group, stop, changed)
                changed.clear()
            ended.set()


async def _serve(
    serve: Callable[[T, asyncio.Event], Awaitable[None]], wanted: T, ended: asyncio.Event
) -> None:
    await serve(wanted, ended)


async def _either(group: asyncio.TaskGroup, *events: asyncio.Event) -> None:
    waits = [group.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
