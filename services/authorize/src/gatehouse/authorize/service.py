"""Wires authorize: configuration in, replica fed, Check served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import grpc.aio
from envoy.service.auth.v3 import external_auth_pb2_grpc

from gatehouse.authorize.core.records import RecordReader
from gatehouse.authorize.core.route_plan import compile_plans
from gatehouse.authorize.edge.bearer_sessions import BearerSessions
from gatehouse.authorize.edge.explain_rpc import ExplainServicer
from gatehouse.authorize.edge.ext_authz import ExtAuthz, build_in_force
from gatehouse.authorize.edge.google_tokens import GoogleTokens
from gatehouse.authorize.edge.replica_feed import IdentitySource
from gatehouse.authorize.edge.token_verifiers import VerifierPool
from gatehouse.common.config.hub import Commit
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.connection import DatabrokerConnection
from gatehouse.common.databroker.replica import Replica
from gatehouse.common.databroker.syncer import INITIAL_SYNC_CHECK, ReplicaFeed
from gatehouse.common.identity.http_client import http_client
from gatehouse.common.runtime.context import ProcessContext
from gatehouse.pb import authorize_pb2_grpc

SERVICE_CHECK: Final = "authorize.service"


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
        self._verifiers = VerifierPool(ctx, self.name)
        plans = compile_plans(settings)
        first = build_in_force(plans, ctx.rng, self._verifiers.make(settings, plans.bearer))
        first.log.report_unknown()
        reader = RecordReader()
        self._replica = Replica(reader.decoders)
        self._databroker = DatabrokerConnection(ctx, self.name)
        self._client = DatabrokerClient(self._databroker, clock=ctx.clock)
        self._source = source = IdentitySource(
            self._replica, reader, lambda: self._client, ctx.clock
        )
        google = GoogleTokens(ctx.clock, lambda: http_client(ctx.config.current.ca_bundle_pem))
        bearers = BearerSessions(source, lambda: self._client, ctx.clock)
        self._servicer = ExtAuthz(first, source, ctx.clock, google, bearers)
        self._external = source.hold(first.decider.plans.record_types)
        self._external_changed = asyncio.Event()
        ctx.config.join(self.name, self._prepare)

    def register_grpc(self, server: grpc.aio.Server) -> None:
        """Serve envoy.service.auth.v3.Authorization and gatehouse.authorize.v1.ExplainService."""
        external_auth_pb2_grpc.add_AuthorizationServicer_to_server(self._servicer, server)
        explain = ExplainServicer(
            lambda: self._ctx.config.current,
            lambda: self._servicer.in_force.decider.plans,
            self._source,
            self._ctx.clock,
        )
        authorize_pb2_grpc.add_ExplainServiceServicer_to_server(explain, server)

    async def run(self, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        """Follow the databroker; ready once there is a complete copy of its records."""
        synced = asyncio.Event()
        unsubscribe = self._replica.subscribe(
            lambda _change: synced.set() if self._replica.ready else None
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._databroker.run(stop), name="databroker channel")
                feed = ReplicaFeed(
                    self._client, self._replica, self._ctx.clock, self._ctx.rng, self._ctx.health
                )
                group.create_task(feed.run(stop), name="authorize follows databroker")
                group.create_task(self._follow_external(stop), name="authorize follows records")
                await _first(group, stop, synced)
                unsubscribe()
                if not stop.is_set():
                    self._ctx.health.set_running(SERVICE_CHECK)
                    ready()
                await stop.wait()
        finally:
            unsubscribe()
            await self._verifiers.close()

    async def drain(self) -> None:
        """Nothing to finish: Envoy's requests are answered until the server stops."""

    async def _prepare(self, settings: ResolvedSettings) -> Commit:
        # Off the event loop: checks go on while thousands of routes compile.
        plans = await asyncio.to_thread(compile_plans, settings)
        verifiers = self._verifiers.make(settings, plans.bearer)
        new = build_in_force(plans, self._ctx.rng, verifiers)
        move = await self._databroker.prepare(settings)

        def commit() -> None:
            move()
            self._servicer.put_in_force(new)
            external = self._source.hold(plans.record_types)
            if external is not None:
                self._external = external
                self._external_changed.set()
            new.log.report_unknown()

        return commit

    async def _follow_external(self, stop: asyncio.Event) -> None:
        """Feed the copy of what external data sources keep, when policies ask for any."""
        while not stop.is_set():
            self._external_changed.clear()
            replica = self._external
            ended = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                if replica is not None and replica.types:
                    feed = ReplicaFeed(
                        self._client,
                        replica,
                        self._ctx.clock,
                        self._ctx.rng,
                    )
                    group.create_task(feed.run(ended), name="external records feed")
                await _first(group, stop, self._external_changed)
                ended.set()


async def _first(group: asyncio.TaskGroup, *events: asyncio.Event) -> None:
    """Wait until any of the events is set."""
    waiting = [group.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
