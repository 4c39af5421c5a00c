"""The ADS server over its real socket, with a scripted client where Envoy would not do it."""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.rpc import status_pb2

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.proxy.core.xds.resource import CLUSTER, LISTENER, ROUTE_CONFIGURATION
from gatehouse.proxy.core.xds.snapshot import Snapshot, build_snapshot
from gatehouse.proxy.edge.ads import AdsServer
from tests.support.envoy import environment, resolved, short_directory


def snapshot(**keys: Any) -> Snapshot:
    settings = resolved(
        {
            "insecure_server": True,
            "routes": [
                {
                    "from": "http://app.example.com",
                    "to": "http://127.0.0.1:1",
                    "allow_public_unauthenticated_access": True,
                    **keys,
                }
            ],
        }
    )
    return build_snapshot(settings, environment("/run/gatehouse"))


class Client:
    """One stream."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def send(self, type_url: str, **fields: Any) -> None:
        await self._call.write(discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, **fields))

    async def receive(self) -> discovery_pb2.DeltaDiscoveryResponse:
        async with asyncio.timeout(60):
            response = await self._call.read()
        assert response is not grpc.aio.EOF
        return response

    async def silent(self) -> bool:
        """Whether nothing comes for a moment."""
        try:
            async with asyncio.timeout(0.2):
                await self._call.read()
        except TimeoutError:
            return True
        return False


class Served:
    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.health = HealthRegistry(SystemClock())
        self.ads = AdsServer(self.health, SystemClock(), SystemRng())
        self.stop = asyncio.Event()
        self.stub: Any = None

    def open(self) -> Client:
        return Client(self.stub.DeltaAggregatedResources())


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    with short_directory() as directory:
        served = Served(directory / "xds.sock")
        ready = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(served.ads.run(served.socket, served.stop, ready.set))
            await ready.wait()
            async with grpc.aio.insecure_channel(f"unix:{served.socket}") as channel:
                served.stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
                yield served
            served.stop.set()


async def test_a_stream_waits_for_the_first_snapshot():
    async with serving() as served:
        client = served.open()
        await client.send(CLUSTER)
        await asyncio.sleep(0.05)
        first = snapshot()
        served.ads.publish(first)
        response = await client.receive()
        assert response.type_url == CLUSTER
        assert response.system_version_info == first.version
        assert {each.name for each in response.resources} == first.resources[CLUSTER].keys()


async def test_what_a_client_kept_is_not_sent_again():
    async with serving() as served:
        first = snapshot()
        served.ads.publish(first)
        client = served.open()
        kept = {name: each.version for name, each in first.resources[CLUSTER].items()}
        await client.send(CLUSTER, initial_resource_versions={**kept, "gone": "1"})
        listeners = {name: each.version for name, each in first.resources[LISTENER].items()}
        await client.send(LISTENER, initial_resource_versions=listeners)
        response = await client.receive()
        assert list(response.resources) == []
        assert list(response.removed_resources) == ["gone"]


async def test_a_refusal_shows_in_health_and_an_ack_clears_it():
    async with serving() as served:
        served.ads.publish(snapshot())
        client = served.open()
        await client.send(ROUTE_CONFIGURATION, resource_names_subscribe=["main"])
        response = await client.receive()
        error = status_pb2.Status(code=13, message="main: no")
        await client.send(ROUTE_CONFIGURATION, response_nonce=response.nonce, error_detail=error)
        await served.ads.wait_for(lambda ads: bool(ads.refusals), 60)
        record = served.health.snapshot().records["xds.route-configuration"]
        assert record.error == "main: no"
        served.ads.publish(snapshot(prefix="/other"))
        response = await client.receive()
        await client.send(ROUTE_CONFIGURATION, response_nonce="stale", error_detail=error)
        await client.send(ROUTE_CONFIGURATION, response_nonce=response.nonce)
        await served.ads.wait_for(lambda ads: not ads.refusals, 60)
        assert served.health.snapshot().records["xds.route-configuration"].healthy


async def test_other_types_and_the_other_method_are_not_served():
    async with serving() as served:
        served.ads.publish(snapshot())
        client = served.open()
        await client.send("type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment")
        assert await client.silent()
        call = served.stub.StreamAggregatedResources()
        await call.write(discovery_pb2.DiscoveryRequest(type_url=CLUSTER))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_socket_is_private_and_streams_end_promptly_on_stop():
    loop = asyncio.get_running_loop()
    async with serving() as served:
        assert stat.S_IMODE(served.socket.stat().st_mode) == 0o600
        served.ads.publish(snapshot())
        client = served.open()
        await client.send(CLUSTER)
        await client.receive()
        started = loop.time()
        served.stop.set()
        with pytest.raises((grpc.aio.AioRpcError, AssertionError)):
            await client.receive()
        assert loop.time() - started < 8
    assert not served.socket.exists()
