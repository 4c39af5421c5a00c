"""Wires authorize: configuration in, replica fed, Check served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import grpc.aio
from envoy.service.auth.v3 import external_auth_pb2_grpc

from gatehouse.authorize.core.records import RecordReader
from gatehouse.authorize.core.route_plan import compile_plans
from gatehouse.authorize.edge.access_recorder import AccessRecorder
from gatehouse.authorize.edge.bearer_sessions import BearerSessions
from gatehouse.authorize.edge.explain_rpc import ExplainServicer
from gatehouse.authorize.edge.ext_authz import ExtAuthz, InForce, build_in_force
from gatehouse.authorize.edge.google_tokens import GoogleTokens
from gatehouse.authorize.edge.portal_rpc import PortalServicer
from gatehouse.authorize.edge.replica_feed import IdentitySource
from gatehouse.authorize.edge.token_verifiers import VerifierPool
from gatehouse.authorize.edge.worker_pool import WorkerPool
from gatehouse.common.config.hub import Commit
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.connection import DatabrokerConnection
from gatehouse.common.databroker.replica import Replica
from gatehouse.common.databroker.syncer import INITIAL_SYNC_CHECK, ReplicaFeed
from gatehouse.common.identity.http_client import http_client
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.runtime.context import ProcessContext
from gatehouse.pb import authorize_pb2_grpc
from gatehouse.pb.databroker_pb2 import WITHOUT_TOKENS

SERVICE_CHECK: Final = "authorize.service"
# A decision is remembered only if the copy is known to be as new as the change table: the sooner
# that is known of types in which nothing happens, the better.
_HEARTBEAT_S: Final = 1.0


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
        first = build_in_force(
            plans, ctx.clock, ctx.rng, self._verifiers.make(settings, plans.bearer)
        )
        _report(first)
        reader = RecordReader()
        self._replica = Replica(reader.decoders)
        self._databroker = DatabrokerConnection(ctx, self.name)
        self._client = DatabrokerClient(self._databroker, clock=ctx.clock)
        self._source = source = IdentitySource(
            self._replica, reader, lambda: self._client, ctx.clock
        )
        google = GoogleTokens(ctx.clock, lambda: http_client(ctx.config.current.ca_bundle_pem))
        bearers = BearerSessions(source, lambda: self._client, ctx.clock)
        self._access = AccessRecorder(lambda: self._client, ctx.rng)
        self._servicer = ExtAuthz(first, source, ctx.clock, google, bearers, self._access)
        self._external = source.hold(first.decider.plans.record_types)
        self._external_changed = asyncio.Event()
        starts_workers = settings.settings.authorize_workers > 1 and ctx.worker == 0
        self._workers = WorkerPool(ctx) if starts_workers else None
        ctx.config.join(self.name, self._prepare)
        if self._workers is not None:
            ctx.config.lead(self._workers.prepare)

    def register_grpc(self, server: grpc.aio.Server) -> None:
        """Serve envoy.service.auth.v3.Authorization and the services of gatehouse.authorize.v1."""
        external_auth_pb2_grpc.add_AuthorizationServicer_to_server(self._servicer, server)
        in_force = (
            lambda: self._ctx.config.current,
            lambda: self._servicer.in_force.decider.plans,
            self._source,
            self._ctx.clock,
        )
        explain, portal = ExplainServicer(*in_force), PortalServicer(*in_force)
        authorize_pb2_grpc.add_ExplainServiceServicer_to_server(explain, server)
        authorize_pb2_grpc.add_PortalServiceServicer_to_server(portal, server)

    async def run(self, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        """Follow the databroker; ready once there is a complete copy of its records."""
        synced = asyncio.Event()
        unsubscribe = self._replica.subscribe(
            lambda _change: synced.set() if self._replica.ready else None
        )
        try:
            async with asyncio.TaskGroup() as group:
                # The last access times are written when all else has stopped.
                written = asyncio.Event()
                group.create_task(self._databroker.run(written), name="databroker channel")
                access = group.create_task(self._access.run(stop), name="access times")
                feed = ReplicaFeed(
                    self._client,
                    self._replica,
                    self._ctx.clock,
                    self._ctx.rng,
                    self._ctx.health,
                    projection=WITHOUT_TOKENS,
                    heartbeat_s=_HEARTBEAT_S,
                )
                group.create_task(feed.run(stop), name="authorize follows databroker")
                group.create_task(self._follow_external(stop), name="authorize follows records")
                workers_ready = asyncio.Event()
                if self._workers is not None:
                    group.create_task(self._workers.run(stop, workers_ready.set), name="workers")
                await _first(group, stop, synced)
                unsubscribe()
                if self._workers is not None:
                    await _first(group, stop, workers_ready)
                if not stop.is_set():
                    if self._workers is not None:
                        self._workers.serve()
                    self._ctx.health.set_running(SERVICE_CHECK)
                    ready()
                await stop.wait()
                await access
                written.set()
        finally:
            unsubscribe()
            await self._verifiers.close()

    async def drain(self) -> None:
        """Nothing to finish: Envoy's requests are answered until the server stops."""
        if self._workers is not None:
            self._workers.terminate()

    async def _prepare(self, settings: ResolvedSettings) -> Commit:
        # Off the event loop: checks go on while thousands of routes compile.
        before = self._servicer.in_force.decider.plans
        plans = await asyncio.to_thread(compile_plans, settings, before)
        verifiers = self._verifiers.make(settings, plans.bearer)
        new = build_in_force(plans, self._ctx.clock, self._ctx.rng, verifiers)
        move = await self._databroker.prepare(settings)

        def commit() -> None:
            move()
            self._servicer.put_in_force(new)
            external = self._source.hold(plans.record_types)
            if external is not None:
                self._external = external
                self._external_changed.set()
            _report(new)

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
                        projection=WITHOUT_TOKENS,
                        heartbeat_s=_HEARTBEAT_S,
                    )
                    group.create_task(feed.run(ended), name="external records feed")
                await _first(group, stop, self._external_changed)
                ended.set()


def _report(in_force: InForce) -> None:
    """Say what of a configuration that is now in force does not work."""
    in_force.log.report_unknown()
    for issue in in_force.decider.plans.left_out:
        get_logger("authorize").error("route left out: its requests are refused", issue=str(issue))


async def _first(group: asyncio.TaskGroup, *events: asyncio.Event) -> None:
    """Wait until any of the events is set."""
    waiting = [group.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
