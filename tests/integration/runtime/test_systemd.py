"""What a service manager hears from a process."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from gatehouse.common.clock import SystemClock
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.common.runtime.systemd import notify_systemd


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(name)
        self._socket.setblocking(False)

    async def hears(self) -> list[str]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(60):
            return (await loop.sock_recv(self._socket, 4096)).decode().split("\n")

    def close(self) -> None:
        self._socket.close()


@pytest.mark.parametrize("kind", ["path", "abstract"])
async def test_from_the_start_to_the_stop(tmp_path: Path, kind: str):
    name = str(tmp_path / "notify") if kind == "path" else f"@gatehouse-test-{os.getpid()}"
    manager = Manager(name if kind == "path" else f"\0{name[1:]}")
    health, stop = HealthRegistry(SystemClock()), asyncio.Event()
    health.expect("a.service")
    async with asyncio.TaskGroup() as group:
        group.create_task(notify_systemd(health, {"NOTIFY_SOCKET": name}, stop))
        assert await manager.hears() == ["STATUS=starting: a.service"]
        health.set_running("a.service")
        assert await manager.hears() == ["READY=1", "STATUS=ready"]
        health.set_error("a.service", "broken")
        assert await manager.hears() == ["STATUS=degraded: a.service"]
        health.set_running("a.service")
        assert await manager.hears() == ["READY=1", "STATUS=ready"]
        health.terminate()
        assert await manager.hears() == ["STOPPING=1", "STATUS=stopping"]
        stop.set()
    manager.close()


async def test_the_watchdog_hears_of_a_loop_that_turns(tmp_path: Path):
    name = str(tmp_path / "notify")
    manager = Manager(name)
    health, stop = HealthRegistry(SystemClock()), asyncio.Event()
    health.expect("a.service")
    health.set_error("a.service", "broken for good")
    environ = {
        "NOTIFY_SOCKET": name,
        "WATCHDOG_USEC": "20000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    async with asyncio.TaskGroup() as group:
        group.create_task(notify_systemd(health, environ, stop))
        assert await manager.hears() == ["STATUS=starting: a.service"]
        for _ in range(3):
            assert await manager.hears() == ["WATCHDOG=1"]
        stop.set()
    manager.close()


async def test_nobody_asks():
    async with asyncio.timeout(60):
        await notify_systemd(HealthRegistry(SystemClock()), {}, asyncio.Event())
        # The watchdog of another process is none of ours, and a deaf manager stops nobody.
        health, stop = HealthRegistry(SystemClock()), asyncio.Event()
        stop.set()
        await notify_systemd(health, {"NOTIFY_SOCKET": "/nowhere/at/all"}, stop)
