"""Which routes take a provider's bearer token instead of a sign-in, and what becomes of one.

(spec: authorize, external tokens.) Verifying needs a network and is done by `edge/bearer_sessions`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.struct_pb2 import ListValue

from gatehouse.authorize.core.check_request import RequestFacts
from gatehouse.common.config.issues import Issue, Severity
from gatehouse.common.config.model import BearerTokenFormat
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.databroker.records import timestamp_of
from gatehouse.common.identity.claims import display_name, email_address, flatten_claims
from gatehouse.common.identity.trusted_issuers import (
    DEFAULT_ALGORITHMS,
    TrustedIssuerSettings,
    is_key_url,
)
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User

READ_FORMATS: Final = frozenset(
    {
        BearerTokenFormat.IDP_ACCESS_TOKEN,
        BearerTokenFormat.IDP_IDENTITY_TOKEN,
        BearerTokenFormat.JWT,
    }
)
_NAMESPACES: Final[Mapping[BearerTokenFormat, uuid.UUID]] = {
    BearerTokenFormat.IDP_ACCESS_TOKEN: uuid.UUID("0194f6f8-e760-76a0-8917-e28ac927a34d"),
    BearerTokenFormat.IDP_IDENTITY_TOKEN: uuid.UUID("0194f6f9-aec0-704e-bb4a-51054f17ad17"),
    BearerTokenFormat.JWT: uuid.UUID("0195a000-a000-7000-8000-00000000a01a"),
}
_SCHEME: Final = "bearer "
_OWN_PREFIX: Final = "Pomerium-"  # of our own handles: no provider must get to see one


@dataclass(frozen=True, slots=True)
class BearerPlan:
    """How one route reads bearer tokens."""

    format: BearerTokenFormat
    idp_id: str = ""  # whose tokens, for the two idp formats
    audiences: frozenset[str] | None = None  # of access tokens; None: any
    issuers: frozenset[str] | None = None  # for jwt, by name; None: every one

    @property
    def excludes_cookie(self) -> bool:
        """True when a request may not hold a session cookie beside a token."""
        return self.format is BearerTokenFormat.JWT


@dataclass(frozen=True, slots=True)
class BearerPlans:
    """One configuration's."""

    routes: Mapping[str, BearerPlan] = field(default_factory=dict)  # by route id
    internal: BearerPlan | None = None  # our own pages
    issuers: tuple[TrustedIssuerSettings, ...] = ()
    expire_s: float = 0.0  # of a session whose token does not say

    def of(self, facts: RequestFacts) -> BearerPlan | None:
        """The plan for a request; None when the header belongs to the upstream."""
        return self.internal if facts.internal else self.routes.get(facts.route_id)

    def _formats(self) -> set[BearerTokenFormat]:
        internal = (self.internal,) if self.internal is not None else ()
        return {plan.format for plan in (*self.routes.values(), *internal)}

    @property
    def asks_authenticate(self) -> bool:
        """True when some tokens are verified by authenticate."""
        return bool(self._formats() - {BearerTokenFormat.JWT})

    @property
    def asks_issuers(self) -> bool:
        """True when some tokens are verified here."""
        return BearerTokenFormat.JWT in self._formats()


@dataclass(frozen=True, slots=True)
class BearerRequest:
    """A token to be looked at, and how. Nothing about it is verified."""

    plan: BearerPlan
    token: str = field(repr=False)

    @property
    def is_ours(self) -> bool:
        """True for one of our own handles: never sent to anybody."""
        return self.token.startswith(_OWN_PREFIX)


@dataclass(frozen=True, slots=True)
class CheckedToken:
    """A token that holds."""

    format: BearerTokenFormat
    issued_by: str  # idp id, or name of the trusted issuer
    token: str = field(repr=False)
    user_id: str
    expires_at_s: float | None  # None: it does not say
    claims: Mapping[str, Any] = field(repr=False)


def compile_bearer(settings: ResolvedSettings, issues: list[Issue]) -> BearerPlans:
    """How each route reads bearer tokens; what cannot be, goes to `issues`."""
    everywhere = settings.settings
    routes: dict[str, BearerPlan] = {}
    for index, route in enumerate(settings.routes):
        here = route.settings
        chosen = here.bearer_token_format or everywhere.bearer_token_format
        if chosen not in READ_FORMATS:
            continue
        provider = route.identity_provider
        audiences = here.idp_access_token_allowed_audiences
        if audiences is None:
            audiences = everywhere.idp_access_token_allowed_audiences
        names = here.identity_providers
        where = f"routes[{index}].bearer_token_format"
        if chosen is not BearerTokenFormat.JWT and provider is None:
            issues.append(_error(where, f"{chosen} needs an identity provider", "set idp_provider"))
        plan = _plan(chosen, provider.id if provider is not None else "", audiences, names)
        routes.setdefault(route.id, plan)
    internal: BearerPlan | None = None
    if everywhere.bearer_token_format in READ_FORMATS:
        internal = _plan(
            everywhere.bearer_token_format,
            settings.identity_provider.id if settings.identity_provider is not None else "",
            everywhere.idp_access_token_allowed_audiences,
            None,
        )
        if internal.format is not BearerTokenFormat.JWT and not internal.idp_id:
            internal = None
    plans = BearerPlans(routes, internal, tuple(_issuers(settings)), everywhere.cookie_expire)
    issues.extend(_problems(settings, plans))
    return plans


def _plan(
    chosen: BearerTokenFormat,
    idp_id: str,
    audiences: Sequence[str] | None,
    names: Sequence[str] | None,
) -> BearerPlan:
    if chosen is BearerTokenFormat.JWT:
        # An empty list of a route is no list: the key is there to narrow.
        return BearerPlan(chosen, issuers=frozenset(n.lower() for n in names) if names else None)
    if chosen is BearerTokenFormat.IDP_IDENTITY_TOKEN:
        return BearerPlan(chosen, idp_id)
    return BearerPlan(chosen, idp_id, None if audiences is None else frozenset(audiences))


def _issuers(settings: ResolvedSettings) -> Iterator[TrustedIssuerSettings]:
    for name, one in settings.settings.identity_providers.items():
        algorithms = one.supported_algs or DEFAULT_ALGORITHMS
        yield TrustedIssuerSettings(name, one.issuer, one.jwks_url, algorithms, one.audiences)


def _problems(settings: ResolvedSettings, plans: BearerPlans) -> Iterator[Issue]:
    if plans.asks_issuers and not plans.issuers:
        yield _error("bearer_token_format", "jwt needs identity_providers", "add them")
    if plans.asks_issuers:
        for one in plans.issuers:
            if one.jwks_url and not is_key_url(one.jwks_url):
                where = f"identity_providers.{one.name}.jwks_url"
                yield _error(where, "is not https", "an https URL")
    if plans.asks_authenticate and not settings.authenticate_internal_url.startswith("https://"):
        yield _error(
            "authenticate_internal_service_url",
            "tokens are sent to authenticate over verified TLS only",
            "an https URL of authenticate",
        )


def _error(where: str, message: str, fix: str) -> Issue:
    return Issue(Severity.ERROR, where, message, fix=fix)


def bearer_token(facts: RequestFacts) -> str | None:
    """What follows `Bearer ` in the Authorization header, the scheme in any case; None: no such."""
    value = facts.headers.get("authorization", "")
    return value[len(_SCHEME) :].strip(" ") if value[: len(_SCHEME)].lower() == _SCHEME else None


def session_id_of(chosen: BearerTokenFormat, issued_by: str, token: str) -> str:
    """The id of the session that a token stands for, the same on every replica.

    `issued_by`: idp id, or name of the trusted issuer.
    """
    return str(uuid.uuid5(uuid.uuid5(_NAMESPACES[chosen], issued_by), token))


def is_for(plan: BearerPlan, audience: Sequence[object]) -> bool:
    """True when a session of that audience (its claim `aud`) may be used on a route.

    Judged for each request: two routes of one provider may want different audiences.
    """
    if plan.audiences is None:
        return True
    return any(isinstance(one, str) and one in plan.audiences for one in audience)


def expires_at_s(checked: CheckedToken, *, now_s: float, expire_s: float) -> float:
    """When the session of a token ends, Unix seconds."""
    latest_s = now_s + expire_s
    if checked.expires_at_s is None:
        return latest_s
    if checked.format is BearerTokenFormat.JWT:
        return min(checked.expires_at_s, latest_s)
    return checked.expires_at_s


def session_of(checked: CheckedToken, *, now_s: float, expire_s: float) -> Session:
    """The session record. Times are Unix seconds."""
    ends_s = expires_at_s(checked, now_s=now_s, expire_s=expire_s)
    is_jwt = checked.format is BearerTokenFormat.JWT
    session = Session(
        id=session_id_of(checked.format, checked.issued_by, checked.token),
        user_id=checked.user_id,
        issued_at=timestamp_of(now_s),
        accessed_at=timestamp_of(now_s),
        expires_at=timestamp_of(ends_s),
        audience=[one for one in audience_of(checked.claims) if isinstance(one, str)],
        idp_id="" if is_jwt else checked.issued_by,
        refresh_disabled=True,
    )
    _set_claims(session.claims, flatten_claims(checked.claims))
    if checked.format is BearerTokenFormat.IDP_ACCESS_TOKEN:
        session.oauth_token.access_token = checked.token
        session.oauth_token.token_type = "Bearer"  # noqa: S105 - the scheme's name
        session.oauth_token.expires_at.CopyFrom(timestamp_of(ends_s))
    elif checked.format is BearerTokenFormat.IDP_IDENTITY_TOKEN:
        session.id_token.raw = checked.token
        session.id_token.issuer = str(checked.claims.get("iss", ""))
        session.id_token.subject = str(checked.claims.get("sub", ""))
        session.id_token.expires_at.CopyFrom(timestamp_of(ends_s))
    return session


def user_of(checked: CheckedToken, known: User | None) -> User:
    """The user record after this token.

    A token tells what its scopes let it tell. What it is silent about stays as a sign-in left it:
    a program with a narrow token must not take away what its user's browser sessions rest on.
    """
    user = User()
    if known is not None:
        user.CopyFrom(known)
    user.id = checked.user_id
    user.name = display_name(checked.claims) or user.name
    user.email = email_address(checked.claims) or user.email
    about_person = {
        name: values for name, values in checked.claims.items() if name not in _ABOUT_TOKEN
    }
    _set_claims(user.claims, flatten_claims(about_person))
    return user


def audience_of(claims: Mapping[str, Any]) -> list[object]:
    """The values of `aud`, one or several."""
    audience = claims.get("aud", [])
    return list(audience) if isinstance(audience, list) else [audience]


def _set_claims(target: Any, claims: Mapping[str, Sequence[Any]]) -> None:
    for name, values in claims.items():
        entry = ListValue()
        entry.extend(list(values))
        target[name].CopyFrom(entry)


_ABOUT_TOKEN: Final = frozenset(
    {"iss", "aud", "exp", "iat", "nbf", "jti", "nonce", "azp", "at_hash", "scope", "scp"}
)
