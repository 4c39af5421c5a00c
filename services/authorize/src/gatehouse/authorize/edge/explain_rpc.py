"""Why a session may or may not do something, on the live records: for operators, administrators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc.aio
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from gatehouse.authorize.core.administrators import may_ask
from gatehouse.authorize.core.chosen_route import chosen_route, usual_facts
from gatehouse.authorize.core.explain import explain
from gatehouse.authorize.core.explain_answer import explain_answer
from gatehouse.authorize.core.identity import ANONYMOUS, Identity
from gatehouse.authorize.core.route_plan import Plans
from gatehouse.authorize.core.supposition import suppose
from gatehouse.authorize.edge.asked_about import check_caller, live_identity
from gatehouse.authorize.edge.replica_feed import IdentitySource
from gatehouse.common.clock import Clock
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.policy.errors import PolicyError
from gatehouse.common.rpc.allow_list import OPERATOR, PROXY
from gatehouse.pb import authorize_pb2, authorize_pb2_grpc

_MAX_SESSIONS: Final = 20  # that are told of
_MAX_IP: Final = 64

_log = get_logger("authorize")

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
        check_caller(context, settings, now_s, only=OPERATOR, what="explanations")
        supposed = _Supposed(settings, request.route, request.facts, now_s)
        identity = ANONYMOUS
        if request.session_id:
            identity = await live_identity(
                self._source, request.session_id, now_s, settings.settings.max_staleness
            )
        return await self._explained(supposed, identity)

    async def Answer(  # noqa: N802 - gRPC's name
        self,
        request: authorize_pb2.Question,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> authorize_pb2.Answered:
        """Explain one decision to an administrator. Raises GatehouseError.

        Whoever may not ask learns nothing of the question, not even what is wrong with it.
        """
        settings, policy = self._settings_of(), self._plans_of().explain_policy
        now_s = self._clock.now_s()
        check_caller(context, settings, now_s, only=PROXY, what="answers")
        if policy is None:
            raise FailedPreconditionError("explain_policy is not set: nobody may ask")
        max_staleness_s = settings.settings.max_staleness
        asker = await live_identity(self._source, request.session_id, now_s, max_staleness_s)
        told = {"user": asker.log_user_id, "session_id": asker.session_id}
        if not may_ask(policy, asker, ip=request.ip[:_MAX_IP], now_s=now_s):
            _log.warning("explanation refused", **told)
            raise PermissionDeniedError("explain_policy does not let this session ask")
        if not request.route:
            return authorize_pb2.Answered()
        try:
            supposed = _Supposed(settings, request.route, request.facts, now_s)
            sessions, identity = await self._meant(request.who, now_s, max_staleness_s)
        except (InvalidArgumentError, NotFoundError) as error:
            return authorize_pb2.Answered(problem=str(error))
        explanation = await self._explained(supposed, identity)
        _log.info(
            "decision explained",
            **told,
            about_user=identity.user_id,
            about_session_id=identity.session_id,
            route_id=explanation.route_id,
            outcome=explanation.outcome,
        )
        return authorize_pb2.Answered(explanation=explanation, session_id=sessions)

    async def _meant(
        self, who: str, now_s: float, max_staleness_s: float
    ) -> tuple[Sequence[str], Identity]:
        """The sessions that somebody means, and the identity of the first of them."""
        if not who:
            return (), ANONYMOUS
        try:
            identity = await live_identity(self._source, who, now_s, max_staleness_s)
        except NotFoundError:
            sessions = await self._source.sessions_of(who, now_s)
            if not sessions:
                raise NotFoundError(
                    f"no live session is {who!r} or of a user of that id or email address"
                ) from None
            identity = await live_identity(self._source, sessions[0], now_s, max_staleness_s)
            return sessions[:_MAX_SESSIONS], identity
        return (identity.session_id,), identity

    async def _explained(
        self, supposed: _Supposed, identity: Identity
    ) -> authorize_pb2.ExplainResponse:
        route, request = supposed.route, supposed.request
        plan = self._plans_of().routes.get(route.id)
        if plan is not None and plan.policy.records:
            request.records = await self._source.external(
                plan.policy.records, identity, self._settings_of().settings.max_staleness
            )
        return explain_answer(explain(supposed.policy, request, identity), route, identity)


class _Supposed:
    """A route, its policy, and a request to it. Raises NotFoundError, InvalidArgumentError."""

    def __init__(
        self, settings: ResolvedSettings, wanted: str, described: Struct, now_s: float
    ) -> None:
        route = chosen_route(settings.routes, wanted)
        if route is None:
            raise NotFoundError(
                f"no single route is {wanted[:256]!r}; give its id, name, from or number"
            )
        facts = {**usual_facts(settings, route), **MessageToDict(described)}
        unknown = sorted(facts.keys() - REQUEST_FACTS)
        if unknown:
            raise InvalidArgumentError(
                f"facts: {', '.join(unknown)[:256]}: only the request is described, by "
                f"{', '.join(sorted(REQUEST_FACTS))}; who asks is the session"
            )
        self.route = route
        try:
            self.policy = settings.policy_in_force(route)
            self.request = suppose(facts, self.policy, now_s=now_s).request
        except PolicyError as error:
            raise InvalidArgumentError(f"facts: {error}") from error
