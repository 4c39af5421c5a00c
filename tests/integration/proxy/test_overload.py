"""What Envoy does when memory runs out or somebody takes all connections of a side listener."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from gatehouse.proxy.edge.memory import write_saturation
from tests.support.envoy import Proxy, eventually, proxy
from tests.support.ports import free_ports
from tests.support.upstream import EchoUpstream


@pytest.fixture
def upstream() -> Iterator[EchoUpstream]:
    with EchoUpstream().running() as running:
        yield running


async def status(running: Proxy) -> int:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"{running.url}/", headers={"host": "a.example.com"})
    return answer.status_code


def config(upstream: EchoUpstream, **keys: object) -> dict[str, object]:
    route = {
        "from": "http://a.example.com",
        "to": upstream.url,
        "allow_public_unauthenticated_access": True,
    }
    return {"routes": [route], **keys}


async def test_requests_are_refused_while_memory_is_full(upstream: EchoUpstream):
    async with proxy(config(upstream)) as running:
        assert await status(running) == 200
        # Kept open: at this point Envoy takes no new connections either.
        async with httpx.AsyncClient(trust_env=False) as client:

            async def asked() -> int:
                answer = await client.get(f"{running.url}/", headers={"host": "a.example.com"})
                return answer.status_code

            assert await asked() == 200
            full = running.run_dir / "memory-saturation"
            write_saturation(full, 0.995)

            async def sheds() -> bool:
                actions = await running.admin.overload_actions()
                return actions["stop_accepting_requests"] == 100

            await eventually(sheds)
            before = len(upstream.requests)
            assert await asked() == 503
            assert len(upstream.requests) == before
        write_saturation(full, 0.0)

        async def recovered() -> bool:
            return set((await running.admin.overload_actions()).values()) == {0}

        await eventually(recovered)
        assert await status(running) == 200


async def test_side_listeners_take_a_bounded_number_of_connections(upstream: EchoUpstream):
    port, admin = free_ports(2)
    keys = {"metrics_address": f"127.0.0.1:{port}", "envoy_admin_address": f"127.0.0.1:{admin}"}
    async with proxy(config(upstream, **keys)) as running:
        for address in (port, admin):
            held = [await asyncio.open_connection("127.0.0.1", address) for _ in range(100)]
            async with asyncio.timeout(60):
                reader, writer = await asyncio.open_connection("127.0.0.1", address)
                assert await reader.read() == b""
            for _, one in [*held, (reader, writer)]:
                one.close()
        assert await status(running) == 200


async def test_r58_side_listeners_do_not_wait_for_slow_readers(upstream: EchoUpstream):
    """Each of them ends a request that never comes, as the public listener does."""
    ports = free_ports(3)
    keys = {
        "timeout_read": "500ms",
        "metrics_address": f"127.0.0.1:{ports[0]}",
        "envoy_admin_address": f"127.0.0.1:{ports[1]}",
        "http_redirect_addr": f"127.0.0.1:{ports[2]}",
    }
    async with proxy(config(upstream, **keys)):
        for port in ports:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\nX-Slow: ")
            async with asyncio.timeout(60):
                answer = await reader.read()
            assert answer == b"" or b" 408 " in answer.partition(b"\r\n")[0]
            writer.close()
