"""The Explain RPC: operators ask why a session may or may not do something, on the live records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc.aio
from google.protobuf.json_format import MessageToDict

from gatehouse.authorize.core.explain import explain
from gatehouse.authorize.core.explain_answer import explain_answer
from gatehouse.authorize.core.identity import ANONYMOUS, Identity
from gatehouse.authorize.core.route_plan import Plans
from gatehouse.authorize.core.supposition import suppose
from gatehouse.authorize.edge.replica_feed import IdentitySource
from gatehouse.common.clock import Clock
from gatehouse.common.config.resolved import ResolvedRoute, ResolvedSettings
from gatehouse.common.errors import (
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from gatehouse.common.policy.errors import PolicyError
from gatehouse.common.rpc.allow_list import OPERATOR
from gatehouse.common.rpc.credentials import verify_call
from gatehouse.common.session.handle import MAX_ID_LENGTH, Handle
from gatehouse.pb import authorize_pb2, authorize_pb2_grpc

REQUEST_FACTS: Final = frozenset({"method", "path", "host", "ip", "headers", "time", "certificate"})


class ExplainServicer(authorize_pb2_grpc.ExplainServiceServicer):
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

    async def Explain(  # noqa: N802 - gRPC's name
        self,
        request: authorize_pb2.ExplainRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> authorize_pb2.ExplainResponse:
        """Explain one decision. Raises GatehouseError, for the server to turn into a status."""
        settings = self._settings_of()
        now_s = self._clock.now_s()
        # The server's list lets a caller pass that does not say who it is: this one must.
        caller = verify_call(
            context.invocation_metadata() or (), settings.shared_secrets, "authorize", now_s
        )
        if caller.subject is None:
            raise UnauthenticatedError("explain is for operators: the call must say who calls")
        if caller.subject != OPERATOR:
            raise PermissionDeniedError(f"{caller.subject!r} may not ask for explanations")
        route = chosen_route(settings.routes, request.route)
        if route is None:
            raise NotFoundError(
                f"no single route is {request.route[:256]!r}; give its id, name, from or number"
            )
        facts = {"host": route.from_url.host, **MessageToDict(request.facts)}
        unknown = sorted(facts.keys() - REQUEST_FACTS)
        if unknown:
            raise InvalidArgumentError(
                f"facts: {', '.join(unknown)[:256]}: only the request is described, by "
                f"{', '.join(sorted(REQUEST_FACTS))}; who asks is the session"
            )
        try:
            described = suppose(facts, route.policy, now_s=now_s).request
        except PolicyError as error:
            raise InvalidArgumentError(f"facts: {error}") from error
        max_staleness_s = settings.settings.max_staleness
        identity = await self._identity(request.session_id, max_staleness_s, now_s)
        plan = self._plans_of().routes.get(route.id)
        if plan is not None and plan.policy.records:
            described.records = await self._source.external(
                plan.policy.records, identity, max_staleness_s
            )
        return explain_answer(explain(route.policy, described, identity), route, identity)

    async def _identity(self, session_id: str, max_staleness_s: float, now_s: float) -> Identity:
        if not session_id:
            return ANONYMOUS
        if len(session_id) > MAX_ID_LENGTH:
            raise InvalidArgumentError(f"session_id is longer than {MAX_ID_LENGTH}")
        handle = Handle(session_id, "", "", None, None, "", (), 0, "api")
        identity = self._source.held(handle, now_s, max_staleness_s)
        if identity is None:
            identity = await self._source.fetch(handle, now_s, max_staleness_s)
        if identity is ANONYMOUS:
            raise NotFoundError("there is no live session or service account of that id")
        return identity


def chosen_route(routes: Sequence[ResolvedRoute], wanted: str) -> ResolvedRoute | None:
    """The one route with this id, name, `from` URL or number; None when there is not one."""
    text = wanted.rstrip("/")
    for found in (
        [one for one in routes if one.id == text],
        [one for one in routes if text and one.settings.name == text],
        [one for one in routes if one.settings.from_.rstrip("/") == text],
        [one for one in routes if str(one.index) == text],
    ):
        if found:
            return found[0] if len(found) == 1 else None
    return None
