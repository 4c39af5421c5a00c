"""Envoy's Authorization service: one `Check` for each request (spec: authorize)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import grpc.aio
from envoy.service.auth.v3 import external_auth_pb2_grpc

from gatehouse.authorize.core.bearer import BearerRequest
from gatehouse.authorize.core.check_request import read_check_request
from gatehouse.authorize.core.decision import Decider
from gatehouse.authorize.core.evaluator import Allow
from gatehouse.authorize.core.identity import ANONYMOUS
from gatehouse.authorize.core.identity_headers import NO_TOKENS
from gatehouse.authorize.core.route_plan import Plans, RoutePlan
from gatehouse.authorize.edge.access_recorder import AccessRecorder
from gatehouse.authorize.edge.authorize_log import AuthorizeLog, Line
from gatehouse.authorize.edge.bearer_sessions import BearerSessions
from gatehouse.authorize.edge.google_tokens import GoogleTokens
from gatehouse.authorize.edge.replica_feed import IdentitySource
from gatehouse.authorize.edge.token_verifiers import TokenVerifiers
from gatehouse.authorize.errors import CannotKnowError
from gatehouse.common.clock import Clock, Rng
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.observability.metrics import (
    ALLOWALS,
    AUTHORIZE_LOG_MS,
    DENIALS,
    EVALUATION_MS,
    EVALUATIONS,
    HEADER_EVALUATION_MS,
    HEADER_EVALUATIONS,
)
from gatehouse.common.session.handle import Handle

_TROUBLE_LOG_INTERVAL_S: Final = 10.0

_log = get_logger("authorize")


@dataclass(frozen=True, slots=True)
class InForce:
    """All that belongs to one configuration; swapped as one."""

    decider: Decider
    log: AuthorizeLog
    verifiers: TokenVerifiers | None = None  # None: no route reads bearer tokens


def build_in_force(
    plans: Plans, clock: Clock, rng: Rng, verifiers: TokenVerifiers | None = None
) -> InForce:
    """A configuration ready to be put in force."""
    decider = Decider(plans, rng, clock.monotonic_s)
    return InForce(decider, AuthorizeLog(plans.log_fields, rng.uuid4), verifiers)


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
        access: AccessRecorder | None = None,
    ) -> None:
        self._in_force = initial
        self._source = source
        self._clock = clock
        self._google = google
        self._bearers = bearers
        self._access = access
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
        basis = self._source.basis(decider.plans.max_staleness_s)
        handle = prepared.handle
        if prepared.bearer is not None:
            handle = await self._bearer_handle(in_force, prepared.bearer)
            if handle is None:
                return decider.refused_token(facts, prepared).response
        identity = ANONYMOUS
        if handle is not None:
            max_staleness_s = decider.plans.max_staleness_s
            held = self._source.held(handle, now_s, max_staleness_s)
            if held is None:
                basis = None  # what was asked for belongs to no version of the copy
                held = await self._source.fetch(handle, now_s, max_staleness_s)
            identity = held
        if prepared.handle is not None and self._access is not None:
            self._access.note(identity, now_s)
        tokens = NO_TOKENS
        if prepared.plan is not None and prepared.plan.needs_tokens:
            tokens = await self._source.tokens(identity)
        if prepared.plan is not None and prepared.plan.headers.serverless_audience:
            tokens = replace(tokens, serverless=await self._serverless(prepared.plan, decider))
        if prepared.plan is not None and prepared.plan.policy.records:
            facts.records = await self._source.external(
                prepared.plan.policy.records, identity, decider.plans.max_staleness_s
            )
        started_s = self._clock.monotonic_s()
        answer = decider.answer(facts, prepared, identity, now_s, tokens, basis)
        if answer.evaluation is not None:
            EVALUATIONS.inc()
            (ALLOWALS if isinstance(answer.outcome, Allow) else DENIALS).inc()
            EVALUATION_MS.observe((self._clock.monotonic_s() - started_s) * 1000.0)
            if answer.headers_s is not None:
                HEADER_EVALUATIONS.inc()
                HEADER_EVALUATION_MS.observe(answer.headers_s * 1000.0)
            written_s = self._clock.monotonic_s()
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
            AUTHORIZE_LOG_MS.observe((self._clock.monotonic_s() - written_s) * 1000.0)
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
