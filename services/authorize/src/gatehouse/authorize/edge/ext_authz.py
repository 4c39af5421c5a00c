"""Envoy's Authorization service: one `Check` for each request (spec: authorize)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import grpc.aio
from envoy.service.auth.v3 import external_auth_pb2_grpc

from gatehouse.authorize.core.bearer import BearerRequest
from gatehouse.authorize.core.check_request import read_check_request
from gatehouse.authorize.core.decision import Decider
from gatehouse.authorize.core.identity import ANONYMOUS, Identity
from gatehouse.authorize.core.identity_headers import NO_TOKENS
from gatehouse.authorize.core.route_plan import Plans, RoutePlan
from gatehouse.authorize.edge.authorize_log import AuthorizeLog, Line
from gatehouse.authorize.edge.bearer_sessions import BearerSessions
from gatehouse.authorize.edge.google_tokens import GoogleTokens
from gatehouse.authorize.edge.replica_feed import IdentitySource
from gatehouse.authorize.edge.token_verifiers import TokenVerifiers
from gatehouse.authorize.errors import CannotKnowError
from gatehouse.common.clock import Clock, Rng
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.session.handle import Handle

_TROUBLE_LOG_INTERVAL_S: Final = 10.0

_log = get_logger("authorize")


@dataclass(frozen=True, slots=True)
class InForce:
    """All that belongs to one configuration; swapped as one."""

    decider: Decider
    log: AuthorizeLog
    verifiers: TokenVerifiers | None = None  # None: no route reads bearer tokens


def build_in_force(plans: Plans, rng: Rng, verifiers: TokenVerifiers | None = None) -> InForce:
    """A configuration ready to be put in force."""
    return InForce(Decider(plans, rng), AuthorizeLog(plans.log_fields), verifiers)


class ExtAuthz(external_auth_pb2_grpc.AuthorizationServicer):  # type: ignore[misc]  # untyped base
    """Answers Check.

    A request is decided wholly by the configuration it met first. Errors are raised, for the server
    to turn into a status: CannotKnowError is UNAVAILABLE, so that Envoy asks another replica;
    anything unexpected is INTERNAL. Envoy answers both with 503, never with "allowed".
    """

    def __init__(
        self,
        initial: InForce,
        source: IdentitySource,
        clock: Clock,
        google: GoogleTokens | None = None,
        bearers: BearerSessions | None = None,
    ) -> None:
        self._in_force = initial
        self._source = source
        self._clock = clock
        self._google = google
        self._bearers = bearers
        self._next_trouble_log_s = 0.0  # monotonic

    @property
    def in_force(self) -> InForce:
        """The configuration that decides now."""
        return self._in_force

    def put_in_force(self, new: InForce) -> None:
        """Decide by `new` from the next request on."""
        self._in_force = new

    async def Check(  # noqa: N802 - gRPC's name
        self, request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Any:
        """Decide one request. Waits only when the copy of the records cannot answer."""
        del context
        in_force = self._in_force
        decider = in_force.decider
        now_s = self._clock.now_s()
        facts = read_check_request(request, now_s, decider.plans.forwarded)
        prepared = decider.prepare(facts, now_s)
        handle = prepared.handle
        if prepared.bearer is not None:
            handle = await self._bearer_handle(in_force, prepared.bearer)
            if handle is None:
                return decider.refused_token(facts, prepared).response
        identity = (
            await self._identity(handle, decider.plans.max_staleness_s, now_s)
            if handle is not None
            else ANONYMOUS
        )
        tokens = NO_TOKENS
        if prepared.plan is not None and prepared.plan.needs_tokens:
            tokens = await self._source.tokens(identity)
        if prepared.plan is not None and prepared.plan.headers.serverless_audience:
            tokens = replace(tokens, serverless=await self._serverless(prepared.plan, decider))
        if prepared.plan is not None and prepared.plan.policy.records:
            facts.records = await self._source.external(
                prepared.plan.policy.records, identity, decider.plans.max_staleness_s
            )
        answer = decider.answer(facts, prepared, identity, now_s, tokens)
        if answer.evaluation is not None:
            in_force.log.write(
                Line(
                    facts,
                    identity,
                    prepared.plan,
                    answer.evaluation,
                    self._source.versions(),
                    now_s,
                    answer.removed_groups,
                )
            )
        return answer.response

    async def _bearer_handle(self, in_force: InForce, request: BearerRequest) -> Handle | None:
        assert self._bearers is not None
        assert in_force.verifiers is not None
        plans = in_force.decider.plans
        try:
            return await self._bearers.handle(
                request,
                in_force.verifiers,
                expire_s=plans.bearer.expire_s,
                max_staleness_s=plans.max_staleness_s,
            )
        except CannotKnowError as error:
            now_s = self._clock.monotonic_s()
            if now_s >= self._next_trouble_log_s:
                self._next_trouble_log_s = now_s + _TROUBLE_LOG_INTERVAL_S
                _log.warning("bearer tokens cannot be verified", error=str(error))
            raise

    async def _serverless(self, plan: RoutePlan, decider: Decider) -> str:
        if self._google is None:
            return ""
        account = decider.plans.google_account
        return await self._google.token(account, plan.headers.serverless_audience)

    async def _identity(self, handle: Handle, max_staleness_s: float, now_s: float) -> Identity:
        held = self._source.held(handle, now_s, max_staleness_s)
        if held is not None:
            return held
        return await self._source.fetch(handle, now_s, max_staleness_s)
