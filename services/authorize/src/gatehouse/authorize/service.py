"""Wires authorize: configuration in, replica fed, Check served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Final

import grpc.aio
from envoy.service.auth.v3 import external_auth_pb2_grpc

from gatehouse.authorize.core.records import RecordReader
from gatehouse.authorize.core.route_plan import compile_plans
from gatehouse.authorize.edge.ext_authz import ExtAuthz, build_in_force
from gatehouse.authorize.edge.replica_feed import IdentitySource
from gatehouse.common.config.hub import Commit
from gatehouse.common.config.issues import ConfigError, Issue, Severity
from gatehouse.common.config.resolved import ResolvedSettings, ServiceName
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.replica import Replica
from gatehouse.common.databroker.syncer import INITIAL_SYNC_CHECK, ReplicaFeed
from gatehouse.common.extauthz_context import DATABROKER_SERVICE
from gatehouse.common.ids import TypeUrl
from gatehouse.common.rpc.channel import BalancedChannel
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.common.runtime.context import ProcessContext
from gatehouse.pb.databroker_pb2 import SyncLatestResponse, SyncResponse

SERVICE_CHECK: Final = "authorize.service"
CLOSE_GRACE_S: Final = 5.0  # for calls under way over a connection that was replaced


@dataclass(frozen=True, slots=True)
class _Target:
    """Which databroker to follow, and how to trust it."""

    urls: tuple[str, ...]
    ca_pem: bytes | None
    override_name: str
    lookup_family: str


@dataclass(frozen=True, slots=True)
class _Connection:
    target: _Target
    channel: BalancedChannel
    client: DatabrokerClient


def build(ctx: ProcessContext) -> AuthorizeService:
    """Make the service from the settings in force. ConfigError when they cannot be used."""
    return AuthorizeService(ctx)


class AuthorizeService:
    """One of the four services (runtime.context.Service)."""

    name = "authorize"

    def __init__(self, ctx: ProcessContext) -> None:
        self._ctx = ctx
        ctx.health.expect(SERVICE_CHECK)
        ctx.health.expect(INITIAL_SYNC_CHECK)
        settings = ctx.config.current
        first = build_in_force(compile_plans(settings), ctx.rng)
        first.log.report_unknown()
        self._secrets = settings.shared_secrets
        reader = RecordReader()
        self._replica = Replica(reader.decoders)
        self._credentials = ServiceCredentials(self.name, lambda: self._secrets, ctx.clock)
        self._connection = self._connect(_target(ctx, settings))
        self._reconnect = asyncio.Event()
        self._source = source = IdentitySource(
            self._replica, reader, lambda: self._connection.client, ctx.clock
        )
        self._servicer = ExtAuthz(first, source, ctx.clock)
        self._external = source.hold(first.decider.plans.record_types)
        self._external_changed = asyncio.Event()
        ctx.config.join(self.name, self._prepare)

    def register_grpc(self, server: grpc.aio.Server) -> None:
        """Serve envoy.service.auth.v3.Authorization."""
        external_auth_pb2_grpc.add_AuthorizationServicer_to_server(self._servicer, server)

    async def run(self, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        """Follow the databroker; ready once there is a complete copy of its records."""
        synced = asyncio.Event()
        unsubscribe = self._replica.subscribe(
            lambda _change: synced.set() if self._replica.ready else None
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(stop), name="authorize follows databroker")
                group.create_task(self._follow_external(stop), name="authorize follows records")
                await _first(group, stop, synced)
                unsubscribe()
                if not stop.is_set():
                    self._ctx.health.set_running(SERVICE_CHECK)
                    ready()
                await stop.wait()
        finally:
            unsubscribe()
            await self._connection.channel.close()

    async def drain(self) -> None:
        """Nothing to finish: Envoy's requests are answered until the server stops."""

    async def _prepare(self, settings: ResolvedSettings) -> Commit:
        # Off the event loop: checks go on while thousands of routes compile.
        plans = await asyncio.to_thread(compile_plans, settings)
        new = build_in_force(plans, self._ctx.rng)
        target = _target(self._ctx, settings)
        moved = self._connect(target) if target != self._connection.target else None

        def commit() -> None:
            self._servicer.put_in_force(new)
            external = self._source.hold(plans.record_types)
            if external is not None:
                self._external = external
                self._external_changed.set()
            self._secrets = settings.shared_secrets
            if moved is not None:
                self._connection = moved
                self._reconnect.set()
            new.log.report_unknown()

        return commit

    async def _follow(self, stop: asyncio.Event) -> None:
        """Feed the replica over the connection of the moment; the copy outlives a change of it."""
        while not stop.is_set():
            self._reconnect.clear()
            connection = self._connection
            ended = asyncio.Event()
            feed = ReplicaFeed(
                connection.client,
                self._replica,
                self._ctx.clock,
                self._ctx.rng,
                self._ctx.health,
            )
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(connection.channel.run(ended), name="databroker channel")
                    group.create_task(feed.run(ended), name="databroker feed")
                    await _first(group, stop, self._reconnect)
                    ended.set()
            finally:
                if connection is not self._connection:
                    await connection.channel.close(CLOSE_GRACE_S)

    async def _follow_external(self, stop: asyncio.Event) -> None:
        """Feed the copy of what external data sources keep, when policies ask for any."""
        while not stop.is_set():
            self._external_changed.clear()
            replica = self._external
            ended = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                if replica is not None and replica.types:
                    feed = ReplicaFeed(
                        _Streams(lambda: self._connection.client),
                        replica,
                        self._ctx.clock,
                        self._ctx.rng,
                    )
                    group.create_task(feed.run(ended), name="external records feed")
                await _first(group, stop, self._external_changed)
                ended.set()

    def _connect(self, target: _Target) -> _Connection:
        channel = BalancedChannel(
            target.urls,
            audience="databroker",
            health_service=DATABROKER_SERVICE,
            credentials=self._credentials,
            ca_pem=target.ca_pem,
            override_name=target.override_name,
            lookup_family=target.lookup_family,
            clock=self._ctx.clock,
            rng=self._ctx.rng,
        )
        return _Connection(target, channel, DatabrokerClient(channel))


class _Streams:
    """Streams over the connection of the moment (databroker.syncer.Streams)."""

    def __init__(self, client: Callable[[], DatabrokerClient]) -> None:
        self._client = client

    def sync(
        self,
        server_version: int,
        record_version: int,
        type_url: TypeUrl,
        heartbeat_s: float | None = None,
    ) -> AsyncGenerator[SyncResponse, None]:
        return self._client().sync(server_version, record_version, type_url, heartbeat_s)

    def sync_latest(self, type_url: TypeUrl) -> AsyncGenerator[SyncLatestResponse, None]:
        return self._client().sync_latest(type_url)


def _target(ctx: ProcessContext, settings: ResolvedSettings) -> _Target:
    urls = (
        (f"unix://{ctx.grpc_socket}",)
        if settings.runs(ServiceName.DATABROKER)
        else settings.databroker_urls
    )
    if not urls:
        raise ConfigError(
            (
                Issue(
                    Severity.ERROR,
                    "databroker_service_url",
                    "authorize has no databroker to follow",
                    fix="set it, or run databroker in the same process",
                ),
            )
        )
    return _Target(
        urls=urls,
        ca_pem=settings.ca_bundle_pem,
        override_name=settings.settings.override_certificate_name,
        lookup_family=str(settings.settings.dns_lookup_family),
    )


async def _first(group: asyncio.TaskGroup, *events: asyncio.Event) -> None:
    """Wait until any of the events is set."""
    waiting = [group.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
