"""The OpenRoutes RPC: the proxy's pages ask which routes a session may open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc.aio

from gatehouse.authorize.core.identity import Identity
from gatehouse.authorize.core.portal import MAX_ROUTES, opening, start_request
from gatehouse.authorize.core.route_plan import Plans
from gatehouse.authorize.edge.asked_about import check_caller, live_identity
from gatehouse.authorize.edge.replica_feed import IdentitySource
from gatehouse.common.clock import Clock
from gatehouse.common.config.resolved import ResolvedRoute, ResolvedSettings
from gatehouse.common.errors import (
    InvalidArgumentError,
)
from gatehouse.common.rpc.allow_list import PROXY
from gatehouse.pb import authorize_pb2, authorize_pb2_grpc

_AT_ONCE: Final = 2  # questions that are worked on; each may ask ten thousand policies
_BETWEEN_CHECKS: Final = 50  # policies asked before requests get their turn again
_MAX_IP: Final = 64


class PortalServicer(authorize_pb2_grpc.PortalServiceServicer):
    """Answers by the configuration in force and the records that decisions rest on."""

    def __init__(
        self,
        settings_of: Callable[[], ResolvedSettings],
        plans_of: Callable[[], Plans],
        source: IdentitySource,
        clock: Clock,
    ) -> None:
        self._settings_of = settings_of
        self._plans_of = plans_of
        self._source = source
        self._clock = clock
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._known: tuple[ResolvedSettings | None, Mapping[str, ResolvedRoute]] = (None, {})

    async def OpenRoutes(  # noqa: N802 - gRPC's name
        self,
        request: authorize_pb2.OpenRoutesRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> authorize_pb2.OpenRoutesResponse:
        """Ask every policy. Raises GatehouseError, for the server to turn into a status."""
        settings = self._settings_of()
        now_s = self._clock.now_s()
        check_caller(context, settings, now_s, only=PROXY, what="open routes")
        if len(request.route_id) > MAX_ROUTES:
            raise InvalidArgumentError(
                f"route_id: {len(request.route_id)} routes, at most {MAX_ROUTES} in one call"
            )
        if len(request.ip) > _MAX_IP:
            raise InvalidArgumentError(f"ip is longer than {_MAX_IP}")
        identity = await live_identity(
            self._source, request.session_id, now_s, settings.settings.max_staleness
        )
        async with self._turns:
            return await self._opened(request, identity, now_s)

    async def _opened(
        self, request: authorize_pb2.OpenRoutesRequest, identity: Identity, now_s: float
    ) -> authorize_pb2.OpenRoutesResponse:
        plans, routes = self._plans_of().routes, self._routes()
        max_staleness_s = self._settings_of().settings.max_staleness
        answer = authorize_pb2.OpenRoutesResponse()
        for number, route_id in enumerate(request.route_id, start=1):
            route, plan = routes.get(route_id), plans.get(route_id)
            if route is None or plan is None:
                continue
            facts = start_request(route, ip=request.ip, now_s=now_s)
            if plan.policy.records:
                facts.records = await self._source.external(
                    plan.policy.records, identity, max_staleness_s
                )
            found = opening(plan, facts, identity)
            if found != "closed":
                answer.route_id.append(route_id)
            if found == "device":
                answer.device_route_id.append(route_id)
            if number % _BETWEEN_CHECKS == 0:
                await asyncio.sleep(0)
        return answer

    def _routes(self) -> Mapping[str, ResolvedRoute]:
        """Routes by id; the first of equal ids is the one in force."""
        settings = self._settings_of()
        if self._known[0] is not settings:
            self._known = (settings, {route.id: route for route in reversed(settings.routes)})
        return self._known[1]
