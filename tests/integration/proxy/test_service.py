"""The whole service in a process context: start, reload, drain, stop, and the ways to fail."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.config.hub import ConfigHub
from gatehouse.common.runtime.context import ProcessContext
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.proxy.errors import EnvoyRefusedError, SnapshotError
from gatehouse.proxy.service import ProxyService, build
from tests.support.clock import FakeClock
from tests.support.envoy import (
    Authorize,
    authorize_server,
    eventually,
    resolved,
    short_directory,
)
from tests.support.ports import free_ports
from tests.support.raw_http import http1, swallow
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e


@pytest.fixture
def upstream() -> Iterator[EchoUpstream]:
    with EchoUpstream().running() as running:
        yield running


@dataclass
class Running:
    service: ProxyService
    context: ProcessContext
    authorize: Authorize
    port: int
    base: dict[str, Any]
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    def config(self, **keys: Any) -> Any:
        return resolved({**self.base, **keys})


@contextlib.asynccontextmanager
async def prepared(
    config: Mapping[str, Any], *, clock: Any = None, grace_s: float = 10.0
) -> AsyncIterator[Running]:
    """A service, not yet running, with an authorize for it to ask."""
    authorize = Authorize()
    with short_directory() as run_dir:
        async with authorize_server(authorize, "127.0.0.1:0") as authorize_port:
            (port,) = free_ports(1)
            base = {
                "services": "proxy",
                "insecure_server": True,
                "address": f"127.0.0.1:{port}",
                "authorize_service_url": f"http://127.0.0.1:{authorize_port}",
                "databroker_service_url": "http://127.0.0.1:1",
                **config,
            }
            clock = clock or SystemClock()
            context = ProcessContext(
                config=ConfigHub(resolved(base)),
                health=HealthRegistry(clock),
                clock=clock,
                rng=SystemRng(),
                run_dir=run_dir,
                grace_s=grace_s,
            )
            service = build(context)
            service.register_grpc(grpc.aio.server())
            yield Running(service, context, authorize, port, base)


@contextlib.asynccontextmanager
async def started(config: Mapping[str, Any], **options: Any) -> AsyncIterator[Running]:
    async with prepared(config, **options) as running, asyncio.TaskGroup() as tasks:
        tasks.create_task(running.service.run(running.stop, running.ready.set))
        try:
            async with asyncio.timeout(20):
                await running.ready.wait()
            yield running
        finally:
            running.stop.set()


def routes(upstream: EchoUpstream, **keys: Any) -> dict[str, Any]:
    return {
        "routes": [
            {
                "from": "http://app.example.com",
                "to": upstream.url,
                "allow_public_unauthenticated_access": True,
                **keys,
            }
        ]
    }


def envoy_pid(run_dir: Path) -> int:
    """The Envoy that was started for this run directory."""
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):
                if f"{run_dir}/envoy-bootstrap.pb".encode() in (process / "cmdline").read_bytes():
                    return int(process.name)
    return 0


async def test_it_is_ready_once_envoy_serves_and_stops_cleanly(upstream: EchoUpstream):
    async with started(routes(upstream)) as running:
        assert running.context.health.ready()
        answer = await http1(running.port)
        assert answer.status == 200
        token = running.authorize.metadata[-1]["jwt"]
        assert token.count(".") == 2
        assert (await http1(running.port, "/ping")).status == 200
        assert (await http1(running.port, "/.well-known/pomerium")).status == 200
        pid = envoy_pid(running.context.run_dir)
        assert pid
        loop = asyncio.get_running_loop()
        before = loop.time()
    assert loop.time() - before < 12
    assert envoy_pid(running.context.run_dir) == 0


async def test_a_reload_takes_effect_and_a_bad_one_changes_nothing(upstream: EchoUpstream):
    async with started(routes(upstream)) as running:
        hub = running.context.config
        await hub.apply(running.config(**routes(upstream, prefix="/only")))

        async def elsewhere_gone() -> bool:
            return (await http1(running.port, "/other")).status == 404

        await eventually(elsewhere_gone)
        good = hub.current
        secure = running.config(
            routes=[{**routes(upstream)["routes"][0], "to": "http://name.internal"}]
        )
        keys = secure.settings.model_copy(update={"dns_resolvers": ("nonsense",)})
        with pytest.raises(SnapshotError, match="nonsense"):
            await hub.apply(replace(secure, settings=keys))
        assert hub.current is good
        assert (await http1(running.port, "/only")).status == 200


async def test_a_crashed_envoy_shows_in_health_and_comes_back(upstream: EchoUpstream):
    async with started(routes(upstream)) as running:
        health = running.context.health
        pid = envoy_pid(running.context.run_dir)
        errors: list[str] = []
        health.subscribe(lambda: errors.append(health.snapshot().records["envoy.server"].error))
        os.kill(pid, signal.SIGKILL)

        async def back() -> bool:
            return "envoy was ended by SIGKILL" in errors and health.ready()

        await eventually(back)
        assert (await http1(running.port)).status == 200
        assert envoy_pid(running.context.run_dir) != pid


async def test_draining_waits_for_requests_and_not_beyond_the_grace(upstream: EchoUpstream):
    released = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await released.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        writer.close()

    server = await asyncio.start_server(slow, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    config = {"routes": [{**routes(upstream)["routes"][0], "to": url}]}
    async with server, started(config, grace_s=20.0) as running, asyncio.TaskGroup() as tasks:
        request = tasks.create_task(http1(running.port))
        admin = running.service._admin

        async def active() -> bool:
            return await admin.active_requests() == 1

        await eventually(active)
        drain = tasks.create_task(running.service.drain())
        await asyncio.wait((drain,), timeout=0.5)
        assert not drain.done()
        released.set()
        answer = await request
        assert answer.status == 200
        assert answer.headers["connection"] == "close"
        async with asyncio.timeout(60):
            await drain


async def test_a_drain_ends_although_a_request_is_stuck(upstream: EchoUpstream):
    stuck = await asyncio.start_server(swallow, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{stuck.sockets[0].getsockname()[1]}"
    config = {"routes": [{**routes(upstream)["routes"][0], "to": url}]}
    async with stuck, started(config, grace_s=4.0) as running, asyncio.TaskGroup() as tasks:
        request = tasks.create_task(http1(running.port))
        admin = running.service._admin

        async def active() -> bool:
            return await admin.active_requests() == 1

        await eventually(active)
        async with asyncio.timeout(30):
            await running.service.drain()
        running.stop.set()
        await asyncio.wait((request,))


async def test_an_address_that_is_taken_ends_the_start_with_a_reason(upstream: EchoUpstream):
    async with prepared(routes(upstream)) as running:
        taken = await asyncio.start_server(swallow, "127.0.0.1", running.port)
        async with taken:
            with pytest.raises(ExceptionGroup) as caught:
                async with asyncio.timeout(20):
                    await running.service.run(running.stop, running.ready.set)
            (error,) = caught.value.exceptions
            assert isinstance(error, EnvoyRefusedError)
            assert "http-ingress" in str(error)
        assert not running.ready.is_set()
        assert not envoy_pid(running.context.run_dir)


@pytest.mark.parametrize("follows", [True, False])
async def test_envoys_threads_follow_the_usable_processors_unless_a_flag_says_no(
    upstream: EchoUpstream, *, follows: bool
):
    flags = {"set_envoy_concurrency_to_go_max_procs": follows}
    async with started({**routes(upstream), "runtime_flags": flags}) as running:
        pid = envoy_pid(running.context.run_dir)
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")  # noqa: ASYNC240
        assert ("--concurrency" in words) is follows


async def test_the_log_level_of_a_running_envoy_follows_the_settings(upstream: EchoUpstream):
    async with started({**routes(upstream), "proxy_log_level": "error"}) as running:
        hub = running.context.config
        await hub.apply(running.config(**routes(upstream), proxy_log_level="critical"))
        admin = running.service._admin

        async def changed() -> bool:
            text = await admin._call("POST", "/logging")
            return b"  main: critical" in text

        await eventually(changed)


async def test_the_service_token_is_renewed_before_it_ends(
    upstream: EchoUpstream, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gatehouse.proxy.service._RENEWAL_CHECK_S", 0.05)
    clock = FakeClock()
    async with started(routes(upstream), clock=clock) as running:
        assert (await http1(running.port)).status == 200
        first = running.authorize.metadata[-1]["jwt"]
        await running.context.config.apply(running.config(**routes(upstream, prefix="/")))
        assert (await http1(running.port)).status == 200
        assert running.authorize.metadata[-1]["jwt"] == first
        clock.advance(1801)

        async def renewed() -> bool:
            assert (await http1(running.port)).status == 200
            return running.authorize.metadata[-1]["jwt"] != first

        await eventually(renewed)
