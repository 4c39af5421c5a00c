"""What a service manager is told: ready, how it goes, still alive, stopping (sd_notify(3))."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from typing import Final

from gatehouse.common.observability.logging import get_logger
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.common.runtime.supervise import wait_or_stop

_IDLE_S: Final = 3600.0  # without a watchdog there is nothing to say regularly

_log = get_logger("health")


class Notifier:
    """Sends datagrams to the socket that the environment names, if it names one."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._failed = False
        pid = environ.get("WATCHDOG_PID", "")
        microseconds = environ.get("WATCHDOG_USEC", "")
        mine = not pid or pid == str(os.getpid())
        self.watchdog_s = int(microseconds) / 2e6 if mine and microseconds.isdecimal() else 0.0

    def __bool__(self) -> bool:
        return bool(self._address)

    def send(self, *lines: str) -> None:
        """Say something. A service manager that does not listen is told of once, in the log."""
        name = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.setblocking(False)  # noqa: FBT003  # positional only
                channel.sendto("\n".join(lines).encode(), name)
        except OSError as error:
            if not self._failed:
                _log.warning("the service manager cannot be told", error=str(error))
            self._failed = True


async def notify_systemd(
    health: HealthRegistry, environ: Mapping[str, str], stop: asyncio.Event
) -> None:
    """Tell until `stop`; returns at once where nobody asks.

    The watchdog hears of a process whose event loop turns, whatever its checks say: to restart it
    would not mend a databroker that is away.
    """
    notifier = Notifier(environ)
    if not notifier:
        return
    changed = asyncio.Event()
    unsubscribe = health.subscribe(changed.set)
    told: tuple[str, ...] = ()
    try:
        while not stop.is_set():
            changed.clear()
            words = _words(health, told)
            if words != told:
                notifier.send(*words)
                told = words
            elif notifier.watchdog_s:
                notifier.send("WATCHDOG=1")
            await _either(changed, stop, notifier.watchdog_s or _IDLE_S)
    finally:
        unsubscribe()


def _words(health: HealthRegistry, told: tuple[str, ...]) -> tuple[str, ...]:
    if health.terminating:
        return ("STOPPING=1", "STATUS=stopping")
    if health.ready():
        return ("READY=1", "STATUS=ready")
    snapshot = health.snapshot()
    waiting = [
        check
        for check in snapshot.expected
        if check not in snapshot.records or not snapshot.records[check].healthy
    ]
    state = "degraded" if any("READY=1" in line for line in told) else "starting"
    return (f"STATUS={state}: {', '.join(waiting)[:200]}",)


async def _either(event: asyncio.Event, stop: asyncio.Event, timeout_s: float) -> None:
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(event.wait()), group.create_task(wait_or_stop(stop, timeout_s))]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
