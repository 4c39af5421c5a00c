"""One configuration's decisions: from a request and an identity to the answer.

Nothing here waits: the edge looks the identity up between `prepare` and `answer`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from gatehouse.authorize.core.bearer import BearerRequest, bearer_token
from gatehouse.authorize.core.check_request import RequestFacts
from gatehouse.authorize.core.check_response import (
    allowed,
    denied,
    redirect,
    wants_sign_in_page,
    with_metadata,
)
from gatehouse.authorize.core.credentials import (
    HandleReader,
    Place,
    carries_token,
    find_credential,
    has_cookie,
)
from gatehouse.authorize.core.envelope import Basis, described_headers, envelope
from gatehouse.authorize.core.evaluator import (
    ROUTE_NOT_FOUND,
    Allow,
    Deny,
    EnrolDevice,
    Evaluation,
    Outcome,
    SignIn,
    decide,
    evaluate_internal,
)
from gatehouse.authorize.core.identity import ANONYMOUS, Identity
from gatehouse.authorize.core.identity_headers import (
    ASSERTION_FOR_HEADER,
    IMPERSONATED_GROUPS,
    NO_TOKENS,
    Assertion,
    AssertionSigner,
    Tokens,
    impersonated_groups,
    impersonated_user,
    request_headers,
    told_groups,
    verified_client_assertion,
)
from gatehouse.authorize.core.lru import LruCache
from gatehouse.authorize.core.route_plan import Plans, RoutePlan
from gatehouse.authorize.core.sign_in import (
    DEVICE_PATHS,
    device_redirect,
    session_page_url,
    sign_in_redirect,
)
from gatehouse.common.clock import Rng
from gatehouse.common.extauthz_context import ENVELOPE_FIELD
from gatehouse.common.session.handle import Handle
from gatehouse.common.session.query_params import SESSION

_RESPONSES: Final = 20_000
_ANONYMOUS_RESPONSES: Final = 512
_NOBODY_TO_IMPERSONATE: Final = (
    "This application needs to know your email address, and your session has none."
)

_TWO_CREDENTIALS: Final = (
    "The request holds both a session cookie and a bearer token; send only one of them."
)
_TOKEN_REFUSED: Final = "The bearer token of this request is not accepted here."  # noqa: S105


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known about a request before its identity is."""

    plan: RoutePlan | None  # None: Envoy named a route that this configuration does not have
    handle: Handle | None
    bearer: BearerRequest | None = None  # a provider's token, to be verified; there is no handle
    problem: str = ""  # not empty: answer 400
    has_credential: bool = False  # good or not
    good_until_s: float = math.inf  # when the handle ends by itself, Unix seconds


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to Envoy, and why."""

    response: Any
    evaluation: Evaluation | None  # None: refused before policy
    outcome: Outcome | None
    removed_groups: int = 0  # kept from the upstream by the groups filter
    headers_s: float | None = None  # what the headers for the upstream took; None: it gets nothing


@dataclass(frozen=True, slots=True)
class _Made:
    """An allow that may be given again while its assertion is the same."""

    response: Any
    assertion: Assertion | None
    headers: str  # as the envelope has them; "" when the route's decisions are not remembered

    @property
    def renew_at_s(self) -> float:
        return self.assertion.renew_at_s if self.assertion is not None else math.inf


def _unmeasured_s() -> float:
    return 0.0


class Decider:
    """Decides by one configuration. Everything that it remembers ends with it."""

    def __init__(
        self, plans: Plans, rng: Rng, monotonic_s: Callable[[], float] = _unmeasured_s
    ) -> None:
        """`monotonic_s` is for what is told of durations; no decision depends on it."""
        self.plans = plans
        self._rng = rng
        self._monotonic_s = monotonic_s
        self._handles = HandleReader(plans.shared_secrets)
        self._signer = AssertionSigner(plans.signing_keys[0], rng.uuid4)
        self._denied = functools.partial(denied, session_page=self._session_page)
        self._responses: LruCache[tuple[RoutePlan, Identity, str], _Made] = LruCache(_RESPONSES)
        nobody_inside = allowed(
            (), remove=plans.internal.headers.removed, metadata=_metadata(ANONYMOUS, plans.internal)
        )
        self._nobody_inside = _Made(nobody_inside, None, "")
        self._anonymous_responses: LruCache[tuple[RoutePlan, Identity, str], _Made] = LruCache(
            _ANONYMOUS_RESPONSES
        )

    def prepare(self, facts: RequestFacts, now_s: float) -> Prepared:
        """Find the route that Envoy chose, by its id, and the session the request names.

        The route is never matched anew (security R06). A handle bound to another identity
        provider than the route's is no handle here.
        """
        plan = self.plans.internal if facts.internal else self.plans.routes.get(facts.route_id)
        if plan is None or facts.problem:
            return Prepared(plan, None)
        reading = self.plans.bearer.of(facts)
        token = bearer_token(facts) if reading is not None else None
        if reading is not None and token is not None:
            if reading.excludes_cookie and has_cookie(facts, self.plans.cookie_name):
                return Prepared(plan, None, problem=_TWO_CREDENTIALS)
            return Prepared(plan, None, BearerRequest(reading, token), has_credential=True)
        credential = find_credential(facts, self.plans.cookie_name)
        handle = self._handles.read(credential, now_s) if credential is not None else None
        if handle is not None and handle.idp_id:
            fits = (
                handle.idp_id in self.plans.idp_ids
                if facts.internal
                else handle.idp_id == plan.idp_id
            )
            if not fits:
                handle = None
        if handle is not None and self.plans.cookie_audience:
            assert credential is not None
            if credential.place is Place.COOKIE and not handle.is_for(facts.hostname):
                handle = None
        if credential is None or handle is None:
            return Prepared(plan, None, has_credential=credential is not None)
        good_until_s = self._handles.good_until_s(credential)
        return Prepared(plan, handle, has_credential=True, good_until_s=good_until_s)

    def answer(
        self,
        facts: RequestFacts,
        prepared: Prepared,
        identity: Identity,
        now_s: float,
        tokens: Tokens = NO_TOKENS,
        basis: Basis | None = None,
    ) -> Answer:
        """Ask policy and build what Envoy is told. Whatever is raised here must deny.

        `basis` was taken before identity, tokens and records were looked up; without it an allow is
        not to be remembered.
        """
        metadata = _metadata(identity, prepared.plan)
        problem = facts.problem or prepared.problem
        if problem:
            response = self._denied(facts, 400, metadata=metadata, detail=problem)
            return Answer(response, None, None)
        plan = prepared.plan
        if plan is None:
            evaluation = ROUTE_NOT_FOUND
        elif facts.internal:
            evaluation = evaluate_internal(facts.path, identity)
        else:
            evaluation = plan.evaluate(facts, identity)
        outcome = decide(evaluation)
        removed_groups = 0
        headers_s: float | None = None
        if isinstance(outcome, EnrolDevice) and facts.path in DEVICE_PATHS:
            outcome = Allow(outcome.reasons)
            basis = None  # the path let it through, not the policy
        if isinstance(outcome, Allow):
            assert plan is not None
            if plan.headers.kubernetes_token and not impersonated_user(identity):
                # Without a user to impersonate the request would act as the account itself.
                response = self._denied(
                    facts, 403, metadata=metadata, detail=_NOBODY_TO_IMPERSONATE
                )
            else:
                started_s = self._monotonic_s()
                made = self._allowed(facts, plan, identity, tokens, now_s)
                headers_s = self._monotonic_s() - started_s
                response = made.response
                if basis is not None and _may_be_remembered(facts, prepared, plan, identity):
                    text = envelope(
                        plan,
                        identity,
                        basis,
                        ends_s=(prepared.good_until_s, evaluation.valid_until_s, made.renew_at_s),
                        now_s=now_s,
                        headers=made.headers,
                    )
                    response = with_metadata(response, ENVELOPE_FIELD, text) if text else response
            if plan.headers.groups_filter is not None:
                removed_groups = told_groups(identity, plan.headers.groups_filter)[1]
        elif isinstance(outcome, SignIn):
            response = self._sign_in(
                facts, plan, metadata, now_s, is_program=prepared.bearer is not None
            )
        elif isinstance(outcome, EnrolDevice):
            response = self._enrol(facts, outcome, metadata, now_s)
        else:
            response = self._denied(
                facts,
                outcome.status,
                metadata=metadata,
                email=identity.log_email,
                advice=_advice(plan, facts, identity, outcome),
            )
        return Answer(response, evaluation, outcome, removed_groups, headers_s)

    def refused_token(self, facts: RequestFacts, prepared: Prepared) -> Answer:
        """The answer to a bearer token that does not hold: policy is not asked."""
        metadata = _metadata(ANONYMOUS, prepared.plan)
        response = self._denied(facts, 403, metadata=metadata, detail=_TOKEN_REFUSED)
        return Answer(response, None, None)

    def _allowed(
        self,
        facts: RequestFacts,
        plan: RoutePlan,
        identity: Identity,
        tokens: Tokens,
        now_s: float,
    ) -> _Made:
        headers_plan = plan.headers
        if facts.internal and identity is ANONYMOUS:
            # Nobody to speak of, at a host that anybody may make up: nothing is signed or kept.
            return self._nobody_inside
        assertion = (
            self._signer.assertion(identity, facts.hostname, headers_plan, now_s)
            if plan.needs_assertion
            else None
        )
        is_own = plan.reads_request or plan.needs_tokens or bool(facts.client_assertion)
        key = (plan, identity, facts.hostname)
        responses = self._anonymous_responses if identity is ANONYMOUS else self._responses
        if not is_own:
            known = responses.get(key)
            if known is not None and known.assertion is assertion:
                return known
        headers = request_headers(headers_plan, identity, facts, assertion, tokens)
        if facts.client_assertion and headers_plan.passes_identity and not facts.internal:
            verified = verified_client_assertion(
                facts.client_assertion, self.plans.signing_keys, now_s
            )
            if verified is not None:
                headers.append((ASSERTION_FOR_HEADER, verified))
                headers.sort()
        metadata = _metadata(identity, plan)
        if headers_plan.kubernetes_token:
            metadata[IMPERSONATED_GROUPS] = impersonated_groups(identity, headers_plan)
        response = allowed(headers, remove=headers_plan.removed, metadata=metadata)
        described = described_headers(response.ok_response) if plan.inputs is not None else ""
        made = _Made(response, assertion, described)
        if not is_own:
            responses.put(key, made)
        return made

    def _sign_in(
        self,
        facts: RequestFacts,
        plan: RoutePlan | None,
        metadata: dict[str, object],
        now_s: float,
        *,
        is_program: bool,
    ) -> Any:
        plans = self.plans
        page = wants_sign_in_page(facts, carries_token=is_program or carries_token(facts))
        if plan is None or not page or not plans.authenticate_url:
            return self._denied(facts, 401, metadata=metadata)
        target = sign_in_redirect(
            facts,
            authenticate_url=plans.authenticate_url,
            idp_id=plan.idp_id or plans.idp_id_by_host.get(facts.hostname, plans.default_idp_id),
            additional_hosts=plan.depends_on,
            key=plans.shared_secrets[0],
            base_cookie_name=plans.cookie_name,
            now_s=now_s,
            rng=self._rng,
        )
        return redirect(facts, target.url, target.set_cookie, metadata=metadata)

    def _session_page(self, facts: RequestFacts) -> str:
        plans = self.plans
        return session_page_url(
            facts, authenticate_url=plans.authenticate_url, key=plans.shared_secrets[0]
        )

    def _enrol(
        self,
        facts: RequestFacts,
        outcome: EnrolDevice,
        metadata: dict[str, object],
        now_s: float,
    ) -> Any:
        if not wants_sign_in_page(facts, carries_token=carries_token(facts)):
            return self._denied(facts, 401, metadata=metadata)
        key = self.plans.shared_secrets[0]
        url = device_redirect(facts, outcome.device_type, key, now_s=now_s)
        return redirect(facts, url, metadata=metadata, what="Show your device")


def _advice(
    plan: RoutePlan | None, facts: RequestFacts, identity: Identity, outcome: Deny
) -> tuple[str, ...]:
    """What the administrator has to say to those refused by this route, if it may be said."""
    if plan is None or not plan.shows_details:
        return ()
    found = [f"Reasons: {', '.join(sorted(outcome.reasons)) or 'no rule lets you in'}."]
    for detail in plan.details:
        if detail.refuses(facts, identity):
            texts = (detail.explanation, detail.remediation)
            text = " ".join(part for part in texts if part)
            if text:
                found.append(f"{detail.name}: {text}" if detail.name else text)
    return tuple(found)


def _may_be_remembered(
    facts: RequestFacts, prepared: Prepared, plan: RoutePlan, identity: Identity
) -> bool:
    """True when an equal request would be answered so, but for records, time and configuration.

    A credential that means nobody is never kept as a key: it may come to mean somebody.
    """
    return (
        plan.inputs is not None
        and not facts.internal
        and bool(plan.checksum)
        and facts.route_checksum == plan.checksum  # Envoy's configuration is ours
        and not facts.client_assertion
        and SESSION not in facts.query
        and (identity.has_session if prepared.has_credential else identity is ANONYMOUS)
    )


def _metadata(identity: Identity, plan: RoutePlan | None) -> dict[str, object]:
    """For the access log; nothing secret."""
    found: dict[str, object] = {}
    if plan is not None and plan.id:
        found["route-id"] = plan.id
    if identity is not ANONYMOUS:
        found["session-id"] = identity.session_id
        found["user"] = identity.log_user_id
    return found
