"""What the debug server shows, where it listens, and what it keeps to itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from gatehouse.common.config.hub import ConfigHub
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.runtime.debug_server import serve_debug
from tests.support.envoy import SHARED_SECRET, eventually, resolved, short_directory
from tests.support.ports import free_ports

ROUTE = {
    "from": "http://a.example.com",
    "to": "http://127.0.0.1:1",
    "allow_public_unauthenticated_access": True,
    "set_request_headers": {"X-Plain-Name": "hidden-value"},
}


def settings(**keys: Any) -> ResolvedSettings:
    return resolved({"insecure_server": True, "routes": [ROUTE], **keys})


@contextlib.asynccontextmanager
async def debugged(first: ResolvedSettings) -> AsyncIterator[tuple[ConfigHub, Path]]:
    hub, stop = ConfigHub(first), asyncio.Event()
    with short_directory() as directory:
        socket = directory / "debug.sock"
        async with asyncio.TaskGroup() as group:
            group.create_task(serve_debug(hub, socket, stop), name="the debug server")
            try:
                yield hub, socket
            finally:
                stop.set()


async def read(path: str, *, socket: Path | None = None, port: int = 0) -> httpx.Response:
    transport = None if socket is None else httpx.AsyncHTTPTransport(uds=str(socket))
    async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
        return await client.get(f"http://127.0.0.1:{port or 80}{path}")


async def answers(**where: Any) -> bool:
    try:
        return (await read("/debug/pprof/cmdline", **where)).status_code == 200
    except httpx.HTTPError:
        return False


async def test_stacks_tasks_and_profiles_on_a_private_socket():
    async with debugged(settings()) as (_, socket):
        await eventually(lambda: answers(socket=socket))
        assert socket.stat().st_mode & 0o077 == 0
        assert "debug_server.py" in (await read("/debug/py/threads", socket=socket)).text
        assert "the debug server" in (await read("/debug/py/tasks", socket=socket)).text
        profile = await read("/debug/py/profile?seconds=0.2", socket=socket)
        assert all(line.rpartition(" ")[2].isdecimal() for line in profile.text.splitlines())
        assert "base_events.py" in profile.text
        assert (await read("/debug/py/allocations?seconds=0.1", socket=socket)).status_code == 200
        for wrong in ("0", "-1", "61", "nan", "x"):
            path = f"/debug/py/profile?seconds={wrong}"
            assert (await read(path, socket=socket)).status_code == 400


async def test_one_measurement_at_a_time():
    async with debugged(settings()) as (_, socket):
        await eventually(lambda: answers(socket=socket))
        path = "/debug/py/profile?seconds=1"
        found = await asyncio.gather(*(read(path, socket=socket) for _ in range(3)))
        assert sorted(answer.status_code for answer in found) == [200, 409, 409]


async def test_settings_are_shown_on_request_and_without_secrets():
    async with debugged(settings()) as (hub, socket):
        await eventually(lambda: answers(socket=socket))
        for path in ("/", "/config_dump", "/version"):
            assert (await read(path, socket=socket)).status_code == 404
        flagged = settings(runtime_flags={"debug_admin_endpoints": True})
        await hub.apply(flagged)
        shown = await read("/config_dump", socket=socket)
        assert shown.json()["settings"]["routes"][0]["from_"] == "http://a.example.com"
        for hidden in (SHARED_SECRET, "hidden-value", "not-a-secret"):
            assert hidden not in shown.text
        assert "python" in (await read("/version", socket=socket)).json()


async def test_a_changed_address_applies_at_once():
    (port,) = free_ports(1)
    async with debugged(settings()) as (hub, socket):
        await eventually(lambda: answers(socket=socket))
        moved = settings(debug_address=f"127.0.0.1:{port}")
        await hub.apply(moved)
        await eventually(lambda: answers(port=port))
        assert not await answers(socket=socket)
        await hub.apply(replace(moved, generation="other"))
        assert await answers(port=port)
