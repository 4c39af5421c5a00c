"""Envoy's Authorization service: one `Check` for each request (spec: authorize)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc.aio
from envoy.service.auth.v3 import external_auth_pb2_grpc

from gatehouse.authorize.core.check_request import read_check_request
from gatehouse.authorize.core.decision import Decider
from gatehouse.authorize.core.identity import ANONYMOUS, Identity
from gatehouse.authorize.core.identity_headers import NO_TOKENS
from gatehouse.authorize.core.route_plan import Plans
from gatehouse.authorize.edge.authorize_log import AuthorizeLog, Line
from gatehouse.authorize.edge.replica_feed import IdentitySource
from gatehouse.common.clock import Clock, Rng
from gatehouse.common.session.handle import Handle


@dataclass(frozen=True, slots=True)
class InForce:
    """All that belongs to one configuration; swapped as one."""

    decider: Decider
    log: AuthorizeLog


def build_in_force(plans: Plans, rng: Rng) -> InForce:
    """A configuration ready to be put in force."""
    return InForce(Decider(plans, rng), AuthorizeLog(plans.log_fields))


class ExtAuthz(external_auth_pb2_grpc.AuthorizationServicer):  # type: ignore[misc]  # untyped base
    """Answers Check.

    A request is decided wholly by the configuration it met first. Errors are raised, for the server
    to turn into a status: CannotKnowError is UNAVAILABLE, so that Envoy asks another replica;
    anything unexpected is INTERNAL. Envoy answers both with 503, never with "allowed".
    """

    def __init__(self, initial: InForce, source: IdentitySource, clock: Clock) -> None:
        self._in_force = initial
        self._source = source
        self._clock = clock

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
        facts = read_check_request(request, now_s)
        prepared = decider.prepare(facts, now_s)
        identity = (
            await self._identity(prepared.handle, decider.plans.max_staleness_s, now_s)
            if prepared.handle is not None
            else ANONYMOUS
        )
        tokens = NO_TOKENS
        if prepared.plan is not None and prepared.plan.needs_tokens:
            tokens = await self._source.tokens(identity)
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

    async def _identity(self, handle: Handle, max_staleness_s: float, now_s: float) -> Identity:
        held = self._source.held(handle, now_s, max_staleness_s)
        if held is not None:
            return held
        return await self._source.fetch(handle, now_s, max_staleness_s)
