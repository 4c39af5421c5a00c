"""Everything about a configuration that does not change from request to request, worked out once.

`compile_plans` does all that can fail; what it returns is immutable and is swapped in as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from gatehouse.authorize.core.bearer import BearerPlans, compile_bearer
from gatehouse.authorize.core.check_request import ForwardedFor, RequestFacts
from gatehouse.authorize.core.client_trust import ClientTrust, Verdicts
from gatehouse.authorize.core.evaluator import CompiledPolicy, Evaluation
from gatehouse.authorize.core.google_identity import ServiceAccount, parse_account
from gatehouse.authorize.core.identity import Identity
from gatehouse.authorize.core.lru import LruCache
from gatehouse.common.config.decision_inputs import DecisionDeclarations, DecisionInputs
from gatehouse.common.config.documents import parse_yaml_value
from gatehouse.common.config.header_templates import Source, Template, parse_template
from gatehouse.common.config.issues import ConfigError, Issue, Severity
from gatehouse.common.config.model import (
    JWTIssuerFormat,
    LoadBalancingPolicy,
)
from gatehouse.common.config.resolved import ResolvedRoute, ResolvedSettings
from gatehouse.common.config.route_checks import depends_on_host
from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.ids import TypeUrl
from gatehouse.common.jose.keys import SigningKey
from gatehouse.common.policy.ast import Policy
from gatehouse.common.policy.errors import PolicyError, format_path
from gatehouse.common.policy.facts import Fact
from gatehouse.common.policy.legacy import route_policy
from gatehouse.common.policy.parser import parse_policy

_HASHING: Final = frozenset({LoadBalancingPolicy.RING_HASH, LoadBalancingPolicy.MAGLEV})
_PER_REQUEST: Final = frozenset(
    {
        Source.REQUEST_HEADER,
        Source.CERTIFICATE_FINGERPRINT,
        Source.CERTIFICATE_DNS_NAMES,
        Source.CERTIFICATE_EMAILS,
    }
)
_TOKENS: Final = frozenset({Source.ACCESS_TOKEN, Source.ID_TOKEN})
_JUDGED_CHAINS: Final = 2000
SERVERLESS_HEADER: Final = "x-serverless-authorization"


@dataclass(frozen=True, slots=True, eq=False)
class HeaderPlan:
    """Which request headers an allowed request gets."""

    claim_headers: tuple[tuple[str, str], ...]  # lower-case header name, claim
    extra_claims: tuple[str, ...]  # claims added to the assertion
    issuer_is_uri: bool
    passes_identity: bool  # the upstream sees assertion and claim headers
    set_headers: tuple[tuple[str, Template], ...] = ()
    routing_key: bool = False
    removed: tuple[str, ...] = ()  # client copies that must not get through
    kubernetes_token: str = field(default="", repr=False)  # of the account that impersonates
    groups_filter: frozenset[str] | None = None  # directory groups told; None: all
    serverless_audience: str = ""  # Google's token for this URL goes along; "": none does
    sets_authorization: bool = False  # the route says what Authorization the upstream gets

    @property
    def needs_assertion(self) -> bool:
        """True when somebody can see the assertion; else it is not signed."""
        return self.passes_identity or self._uses(frozenset({Source.JWT}))

    @property
    def needs_tokens(self) -> bool:
        """True when a template asks for tokens of the identity provider."""
        return self._uses(_TOKENS)

    @property
    def reads_request(self) -> bool:
        """True when the headers depend on more than identity and host."""
        return bool(self.serverless_audience) or self._uses(_PER_REQUEST)

    def _uses(self, sources: frozenset[Source]) -> bool:
        return any(
            reference.source in sources
            for _, template in self.set_headers
            for reference in template.references
        )


@dataclass(frozen=True, slots=True, eq=False)
class Detail:
    """One attached policy of a route whose refusals are explained on the page."""

    name: str
    policy: CompiledPolicy
    explanation: str
    remediation: str

    def refuses(self, facts: RequestFacts, identity: Identity) -> bool:
        """True when this policy itself says no, or says who may come in and it is nobody of these.

        One that only denies, and does not here, has nothing to explain.
        """
        evaluation = self.policy.evaluate(facts, identity)
        if evaluation.deny.value:
            return True
        lets_in = any(group.action == "allow" for group in self.policy.groups)
        return lets_in and not evaluation.allow.value


@dataclass(frozen=True, slots=True, eq=False)
class RoutePlan:
    """One route, ready for decisions. Hashed and compared by object."""

    id: str
    checksum: str
    name: str  # as people know it: cluster-stat-name
    policy: CompiledPolicy
    idp_id: str  # "" when no identity provider is set
    depends_on: tuple[str, ...]
    headers: HeaderPlan
    needs_assertion: bool
    needs_tokens: bool
    reads_request: bool
    shows_details: bool = False
    details: tuple[Detail, ...] = ()
    client_trust: ClientTrust | None = None  # None: every client certificate is as good as any
    inputs: DecisionInputs | None = None  # what decisions depend on; None: never remembered

    def evaluate(self, facts: RequestFacts, identity: Identity) -> Evaluation:
        """Ask the policy, with the client certificate judged by the route's authorities.

        Raises UnreadableCertificateError, and what a criterion raises: both must deny.
        """
        trust = self.client_trust
        if trust is None or Fact.CERTIFICATE_VALIDITY not in self.policy.reads:
            return self.policy.evaluate(facts, identity)
        if not facts.certificate_presented:
            facts.certificate_valid = False
            return self.policy.evaluate(facts, identity)
        judgement = trust.judge(facts.certificate_chain, facts.now_s)
        facts.certificate_valid = judgement.is_valid
        evaluation = self.policy.evaluate(facts, identity)
        if judgement.until_s < evaluation.valid_until_s:
            return replace(evaluation, valid_until_s=judgement.until_s)
        return evaluation


@dataclass(frozen=True, slots=True, eq=False)
class Plans:
    """One configuration."""

    generation: str
    routes: Mapping[str, RoutePlan]
    internal: RoutePlan  # our own pages: no policy, assertion always
    idp_ids: frozenset[str]  # of all providers in use
    idp_id_by_host: Mapping[str, str]  # for sign-in on our own pages
    default_idp_id: str
    google_account: ServiceAccount | None  # None: the account of the machine
    shared_secrets: tuple[bytes, ...] = field(repr=False)
    signing_keys: tuple[SigningKey, ...]
    cookie_name: str
    cookie_audience: bool  # whether a cookie counts on the hosts it was made for alone
    authenticate_url: str
    log_fields: tuple[str, ...]
    max_staleness_s: float  # 0: no limit
    bearer: BearerPlans
    forwarded: ForwardedFor
    record_types: frozenset[TypeUrl] = frozenset()  # of external data sources, used by policies
    left_out: tuple[Issue, ...] = ()  # stored routes whose policy cannot be used: nobody gets in
    explain_policy: CompiledPolicy | None = None  # who may ask for explanations; None: nobody
    made: Made | None = field(default=None, repr=False)  # for those of the next configuration


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What plans were made of: a route that did not change keeps its plan, where all else equals.

    Route objects are immutable; one is kept with its plan, so that its identity stays its own.
    """

    basis: object  # everything but the routes that a plan is made of
    plans: Mapping[int, tuple[ResolvedRoute, RoutePlan]]  # by id() of the route object
    trusts: _Trusts


def compile_plans(settings: ResolvedSettings, before: Plans | None = None) -> Plans:
    """Compile every route. ConfigError holds all that is wrong, with each route's key.

    A bad policy of a stored route is no reason to refuse the rest: that route alone is left out.
    `before` are any earlier plans, whose equal parts are used again; they change no decision.
    """
    issues = list(_global_issues(settings))
    left_out: list[Issue] = []
    google_account = _google_account(settings, issues)
    bearer = compile_bearer(settings, issues)
    routes: dict[str, RoutePlan] = {}
    idp_by_host: dict[str, str] = {}
    basis = (
        settings.without_routes(),
        settings.refuses_bad_certificates,
        tuple(key.kid for key in settings.signing_keys),
    )
    known = before.made if before is not None else None
    if known is not None and known.basis != basis:
        known = None
    trusts = _Trusts(settings, None if known is None else known.trusts)
    declarations = DecisionDeclarations(settings)
    made: dict[int, tuple[ResolvedRoute, RoutePlan]] = {}
    for route in settings.routes:
        plan: RoutePlan | None
        if known is not None and id(route) in known.plans:
            plan = known.plans[id(route)][1]
        else:
            found = left_out if route.is_stored else issues
            plan = _route_plan(settings, route, trusts, declarations, found)
        if plan is not None:
            made[id(route)] = (route, plan)
            routes.setdefault(route.id, plan)  # the first of equal ids is the one in force
            if plan.idp_id and not route.from_url.is_wildcard:
                idp_by_host.setdefault(route.from_url.host, plan.idp_id)
    if issues:
        raise ConfigError(tuple(issues))
    default = settings.identity_provider.id if settings.identity_provider is not None else ""
    idp_ids = {plan.idp_id for plan in routes.values()} | {default}
    return Plans(
        generation=settings.generation,
        forwarded=ForwardedFor(
            settings.settings.xff_num_trusted_hops, not settings.settings.skip_xff_append
        ),
        routes=routes,
        internal=_internal_plan(settings),
        idp_ids=frozenset(idp_ids - {""}),
        idp_id_by_host=idp_by_host,
        default_idp_id=default,
        google_account=google_account,
        bearer=bearer,
        shared_secrets=settings.shared_secrets,
        signing_keys=settings.signing_keys,
        cookie_name=settings.settings.cookie_name,
        cookie_audience=settings.settings.cookie_audience,
        authenticate_url=settings.authenticate_url,
        log_fields=tuple(settings.settings.authorize_log_fields),
        max_staleness_s=settings.settings.max_staleness,
        record_types=frozenset(
            need.type_url for plan in routes.values() for need in plan.policy.records
        ),
        left_out=tuple(left_out),
        explain_policy=(
            CompiledPolicy(settings.explain_policy) if settings.explain_policy is not None else None
        ),
        made=Made(basis, made, trusts),
    )


class _Trusts:
    """The authorities of each route; routes with the same share what is known of chains."""

    def __init__(self, settings: ResolvedSettings, before: _Trusts | None = None) -> None:
        """`before`: those of equal global keys."""
        self._settings = settings
        self._before: Mapping[bytes, ClientTrust] = {} if before is None else before.made
        self.made: dict[bytes, ClientTrust] = {}
        self.verdicts: Verdicts = LruCache(_JUDGED_CHAINS) if before is None else before.verdicts

    def of(self, route: ResolvedRoute) -> ClientTrust | None:
        """None when neither the route nor the configuration names an authority."""
        settings = self._settings
        pem = route.tls_downstream_client_ca_pem
        if pem is None:
            pem = settings.downstream_mtls_ca_pem
        if pem is None:
            return None
        if pem not in self.made and pem in self._before:
            self.made[pem] = self._before[pem]
        if pem not in self.made:
            mtls = settings.settings.downstream_mtls
            self.made[pem] = ClientTrust(
                pem,
                settings.downstream_mtls_crl_pem or b"",
                max_depth=mtls.max_verify_depth,
                names=[pair for entry in mtls.match_subject_alt_names for pair in entry.items()],
                verdicts=self.verdicts,
            )
        return self.made[pem]


def _route_plan(
    settings: ResolvedSettings,
    route: ResolvedRoute,
    trusts: _Trusts,
    declarations: DecisionDeclarations,
    issues: list[Issue],
) -> RoutePlan | None:
    try:
        policy = CompiledPolicy(settings.policy_in_force(route))
    except PolicyError as error:
        issues.extend(
            _issue(route, f"policy.{format_path(p.path)}".rstrip("."), p.message)
            for p in error.problems
        )
        return None
    headers = _header_plan(settings, route)
    provider = route.identity_provider
    return RoutePlan(
        id=route.id,
        checksum=str(route.checksum),
        name=route.settings.name,
        policy=policy,
        idp_id=provider.id if provider is not None else "",
        depends_on=tuple(_host_of(entry) for entry in route.settings.depends_on),
        headers=headers,
        needs_assertion=headers.needs_assertion,
        needs_tokens=headers.needs_tokens,
        reads_request=headers.reads_request,
        shows_details=route.settings.show_error_details,
        details=tuple(_details(route)) if route.settings.show_error_details else (),
        client_trust=trusts.of(route),
        inputs=declarations.of(route),
    )


def _details(route: ResolvedRoute) -> Iterator[Detail]:
    for sub in route.settings.sub_policies:
        written: Policy | None = None
        if sub.source_ppl:  # part of the route's policy already: it can be read
            written = parse_policy(parse_yaml_value(sub.source_ppl)[0])
        policy = route_policy(
            embedded=written,
            allowed_users=sub.allowed_users,
            allowed_domains=sub.allowed_domains,
            allowed_idp_claims=sub.allowed_idp_claims,
        )
        yield Detail(sub.name or sub.id, CompiledPolicy(policy), sub.explanation, sub.remediation)


def _internal_plan(settings: ResolvedSettings) -> RoutePlan:
    headers = HeaderPlan(
        claim_headers=(),
        extra_claims=tuple(settings.settings.jwt_claims_headers.values()),
        issuer_is_uri=settings.settings.jwt_issuer_format is JWTIssuerFormat.URI,
        passes_identity=True,
    )
    return RoutePlan(
        id="",
        checksum="",
        name="",
        policy=CompiledPolicy(Policy()),
        idp_id="",
        depends_on=(),
        headers=headers,
        needs_assertion=True,
        needs_tokens=False,
        reads_request=False,
    )


def _header_plan(settings: ResolvedSettings, route: ResolvedRoute) -> HeaderPlan:
    everywhere, here = settings.settings, route.settings
    claim_headers = tuple(
        (name.lower(), claim) for name, claim in everywhere.jwt_claims_headers.items()
    )
    passes = here.pass_identity_headers
    if passes is None:
        passes = bool(everywhere.pass_identity_headers)
    issuer = here.jwt_issuer_format or everywhere.jwt_issuer_format
    groups = frozenset((*everywhere.jwt_groups_filter, *here.jwt_groups_filter))
    kubernetes_token = route.kubernetes_service_account_token or ""
    set_headers = tuple(
        (name.lower(), parse_template(text))
        for name, text in (here.set_request_headers or {}).items()
    )
    audience = _serverless_audience(route)
    serverless = (SERVERLESS_HEADER,) if audience else ()
    return HeaderPlan(
        claim_headers=claim_headers if passes else (),
        extra_claims=tuple(everywhere.jwt_claims_headers.values()),
        issuer_is_uri=issuer is JWTIssuerFormat.URI,
        passes_identity=passes,
        set_headers=set_headers,
        routing_key=here.load_balancing_policy in _HASHING,
        removed=(*(() if passes else (name for name, _ in claim_headers)), *serverless),
        kubernetes_token=kubernetes_token,
        groups_filter=groups or None,
        serverless_audience=audience,
        sets_authorization=bool(kubernetes_token)
        or any(name == "authorization" for name, _ in set_headers),
    )


def _serverless_audience(route: ResolvedRoute) -> str:
    """Whom Google's token is for: the host of the last upstream."""
    if not route.settings.enable_google_cloud_serverless_authentication or not route.upstreams:
        return ""
    return f"https://{route.upstreams[-1].host}"


def _host_of(entry: str) -> str:
    return depends_on_host(entry) or entry


def _google_account(settings: ResolvedSettings, issues: list[Issue]) -> ServiceAccount | None:
    """The configured account, when a route needs one."""
    key = "google_cloud_serverless_authentication_service_account"
    text = settings.settings.google_cloud_serverless_authentication_service_account
    if not text.get_secret_value().strip() or not any(
        route.settings.enable_google_cloud_serverless_authentication for route in settings.routes
    ):
        return None
    try:
        return parse_account(text.get_secret_value())
    except InvalidArgumentError as error:
        issues.append(Issue(Severity.ERROR, key, str(error), fix="the key file that Google gave"))
        return None


def _global_issues(settings: ResolvedSettings) -> Iterator[Issue]:
    if not settings.signing_keys:
        yield Issue(Severity.ERROR, "signing_key", "there is no key to sign assertions with")


def _issue(route: ResolvedRoute, key: str, message: str, fix: str = "") -> Issue:
    return Issue(
        Severity.ERROR, f"route {route.id} ({route.settings.from_}).{key}", message, fix=fix
    )
