"""A real databroker and a real authorize, each behind a gRPC server of its own on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from envoy.service.auth.v3 import external_auth_pb2_grpc

from gatehouse.authorize.service import AuthorizeService
from gatehouse.authorize.service import build as build_authorize
from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.config.hub import ConfigHub
from gatehouse.common.config.resolved import ListenAddress, ResolvedSettings, ServiceName
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.extauthz_context import DATABROKER_SERVICE
from gatehouse.common.rpc.channel import BalancedChannel
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.common.rpc.server import GrpcServer
from gatehouse.common.runtime.context import ProcessContext, Service
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.databroker.service import build as build_databroker
from tests.support.check import SECRET, resolved_settings

LOOPBACK = ListenAddress("127.0.0.1", 0)


class Node:
    """One process's worth of one service."""

    def __init__(self, settings: ResolvedSettings, run_dir: Path) -> None:
        run_dir.mkdir(mode=0o700, exist_ok=True)
        clock = SystemClock()
        self.hub = ConfigHub(settings)
        self.health = HealthRegistry(clock)
        for service in settings.services:
            checks = {
                ServiceName.DATABROKER: ("storage.backend",),
                ServiceName.AUTHORIZE: ("authorize.service",),
            }
            self.health.add_service(str(service), checks[service])
        self.context = ProcessContext(self.hub, self.health, clock, SystemRng(), run_dir, 5.0)
        self.stop = asyncio.Event()
        self.ready = asyncio.Event()
        self.port = 0

    @asynccontextmanager
    async def running(self, build: Any, *, wait: bool = True) -> AsyncIterator[Service]:
        service: Service = build(self.context)
        server = GrpcServer(
            lambda: self.hub.current.shared_secrets, self.health, self.context.clock
        )
        service.register_grpc(server.server)
        self.port = await server.start(unix_socket=None, address=LOOPBACK)
        try:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(service.run(self.stop, self.ready.set))
                if wait:
                    async with asyncio.timeout(60):
                        await self.ready.wait()
                try:
                    yield service
                finally:
                    self.stop.set()
                    async with asyncio.timeout(60):
                        await task
        finally:
            await server.stop(1.0)


def channel_to(port: int, audience: str, health_service: str, subject: str) -> BalancedChannel:
    clock = SystemClock()
    return BalancedChannel(
        [f"http://127.0.0.1:{port}"],
        audience=audience,
        health_service=health_service,
        credentials=ServiceCredentials(subject, lambda: (SECRET,), clock),
        ca_pem=None,
        clock=clock,
        rng=SystemRng(),
    )


@asynccontextmanager
async def running_databroker(directory: Path) -> AsyncIterator[Node]:
    settings = resolved_settings(services=frozenset({ServiceName.DATABROKER}))
    node = Node(settings, directory)
    async with node.running(build_databroker):
        yield node


@asynccontextmanager
async def writer_to(port: int) -> AsyncIterator[DatabrokerClient]:
    channel = channel_to(port, "databroker", DATABROKER_SERVICE, "operator")
    try:
        yield DatabrokerClient(channel)
    finally:
        await channel.close()


class Checker:
    """Envoy's side of authorize."""

    def __init__(self, channel: grpc.aio.Channel, node: Node, service: AuthorizeService) -> None:
        self.node = node
        self.service = service
        self._stub = external_auth_pb2_grpc.AuthorizationStub(channel)

    async def check(self, request: Any) -> Any:
        return await self._stub.Check(request, timeout=60)

    async def code(self, request: Any) -> grpc.StatusCode:
        """The status of a Check that must fail."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.check(request)
        return caught.value.code()


@asynccontextmanager
async def running_authorize(
    directory: Path, settings: ResolvedSettings, *, wait: bool = True
) -> AsyncIterator[Checker]:
    node = Node(settings, directory)
    async with node.running(build_authorize, wait=wait) as service:
        assert isinstance(service, AuthorizeService)
        channel = channel_to(node.port, "authorize", "", "proxy")
        try:
            yield Checker(await channel.ready_channel(5), node, service)
        finally:
            await channel.close()
