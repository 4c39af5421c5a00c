"""The probe matrix over HTTP: before the start is complete, running, in trouble, stopping."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import structlog

from gatehouse.common.clock import SystemClock
from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.common.runtime.probes import serve_probes

PATHS = ("/startupz", "/readyz", "/healthz", "/status")


class Probed:
    """A registry, and a client of its probes."""

    def __init__(self) -> None:
        self.health = HealthRegistry(SystemClock())
        self.port = 0
        self.bound = asyncio.Event()
        self.client: httpx.AsyncClient

    def on_bound(self, port: int) -> None:
        self.port = port
        self.bound.set()

    async def statuses(self) -> list[int]:
        return [(await self.client.get(path)).status_code for path in PATHS]


@pytest.fixture
async def probed() -> AsyncIterator[Probed]:
    one = Probed()
    one.health.expect("storage.backend")
    one.health.expect("proxy.service")
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve_probes("127.0.0.1:0", one.health, stop, bound=one.on_bound))
        await one.bound.wait()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{one.port}") as client:
            one.client = client
            yield one
        stop.set()


async def test_matrix(probed: Probed) -> None:
    health = probed.health
    assert await probed.statuses() == [503, 503, 200, 200]
    health.set_running("storage.backend")
    assert await probed.statuses() == [503, 503, 200, 200]
    health.set_running("proxy.service")
    assert await probed.statuses() == [200, 200, 200, 200]
    health.set_error("storage.backend", "connection refused")
    assert await probed.statuses() == [200, 503, 200, 200]
    health.set_running("storage.backend")
    assert await probed.statuses() == [200, 200, 200, 200]
    health.set_error("xds.listener", "one refused, the last good one is in force")
    assert await probed.statuses() == [200, 200, 200, 200]
    health.terminate()
    assert await probed.statuses() == [200, 503, 200, 200]


async def test_bodies(probed: Probed) -> None:
    probed.health.set_running("storage.backend", backend="sqlite", path="x.db")
    probed.health.set_error("xds.listener", "refused")
    response = await probed.client.get("/readyz")
    assert response.headers["content-type"] == "application/json"
    expected = {
        "storage.backend": {
            "status": "RUNNING",
            "attributes": [
                {"Key": "backend", "Value": "sqlite"},
                {"Key": "path", "Value": "x.db"},
            ],
        },
        "xds.listener": {"status": "UNKNOWN", "error": "refused"},
    }
    assert response.json() == {**expected, "proxy.service": {"status": "UNAVAILABLE"}}
    status = (await probed.client.get("/status")).json()
    assert status == {"statuses": expected, "checks": ["proxy.service", "storage.backend"]}


@pytest.mark.parametrize("path", PATHS)
async def test_methods(probed: Probed, path: str) -> None:
    get = await probed.client.get(path)
    head = await probed.client.head(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        response = await probed.client.request(method, path)
        assert response.status_code == 405, method


async def test_r59_nothing_else_is_served(probed: Probed) -> None:
    for path in ("/", "/debug/pprof/", "/metrics", "/config_dump", "/healthz/x", "/%2e%2e/status"):
        assert (await probed.client.get(path)).status_code == 404


async def test_an_address_in_use_is_a_warning_that_names_the_key(probed: Probed) -> None:
    with structlog.testing.capture_logs() as logs:
        await serve_probes(f"127.0.0.1:{probed.port}", probed.health, asyncio.Event())
    (line,) = logs
    assert (line["log_level"], line["key"]) == ("warning", "health_check_addr")
    assert str(probed.port) in line["error"]


@pytest.mark.parametrize("address", ["", "28080", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000"])
async def test_an_address_that_is_none(probed: Probed, address: str) -> None:
    with pytest.raises(InvalidArgumentError, match="health_check_addr"):
        await serve_probes(address, probed.health, asyncio.Event())
