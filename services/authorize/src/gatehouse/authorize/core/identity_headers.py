"""What an upstream is told about who asks: the signed assertion and the headers around it.

An assertion is signed once per identity, audience and renewal period, not once per request (design
D10): signing is the dearest thing a check can do.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from gatehouse.authorize.core.check_request import RequestFacts
from gatehouse.authorize.core.claims import claim_text
from gatehouse.authorize.core.client_certificate import leaf_facts
from gatehouse.authorize.core.identity import ANONYMOUS, Identity
from gatehouse.authorize.core.lru import LruCache
from gatehouse.authorize.core.route_plan import SERVERLESS_HEADER, HeaderPlan
from gatehouse.common.config.header_templates import Reference, Source
from gatehouse.common.errors import InvalidTokenError
from gatehouse.common.jose.keys import SigningKey, sign_jwt, verify_jwt
from gatehouse.common.jose.times import check_times

ASSERTION_HEADER: Final = "x-pomerium-jwt-assertion"
ASSERTION_FOR_HEADER: Final = "x-pomerium-jwt-assertion-for"
ROUTING_KEY_HEADER: Final = "x-pomerium-routing-key"
# In the answer's metadata: the groups that become one Impersonate-Group header each.
IMPERSONATED_GROUPS: Final = "impersonate-groups"

LIFETIME_S: Final = 300
RENEW_AFTER_S: Final = 60

_BASE_CLAIMS: Final = frozenset(
    {"iss", "aud", "jti", "iat", "exp", "sub", "user", "email", "groups", "sid", "name"}
)
# A header value may hold no control characters (RFC 9110 section 5.5); claims come from outside.
_NOT_IN_HEADERS: Final = re.compile(r"[\x00-\x1f\x7f]")
# As the filter after authorize has it, which removes them.
_OUR_AUTHORIZATION: Final = re.compile(r"pomerium |bearer\s+pomerium-", re.IGNORECASE)
_MAX_CLIENT_ASSERTION: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Assertion:
    """A signed statement of who asks, and what it says."""

    jwt: str = field(repr=False)
    claims: Mapping[str, Any]
    renew_at_s: float  # Unix seconds


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens that others gave: the session's of its identity provider, and ours of Google."""

    access_token: str = field(default="", repr=False)
    id_token: str = field(default="", repr=False)
    serverless: str = field(default="", repr=False)


NO_TOKENS: Final = Tokens()


# What an assertion depends on: identity, host, issuer as URL, extra claims, groups filter.
_Signed: TypeAlias = tuple[Identity, str, bool, tuple[str, ...], frozenset[str] | None]


_ANONYMOUS_KEPT: Final = 512


class AssertionSigner:
    """Signs assertions and remembers them for a renewal period. Bounded."""

    def __init__(
        self, key: SigningKey, new_id: Callable[[], str], *, capacity: int = 50_000
    ) -> None:
        self._key = key
        self._new_id = new_id
        self._signed: LruCache[_Signed, Assertion] = LruCache(capacity)
        # Nobody's assertions apart: who has no session must not push out those of who has.
        self._anonymous: LruCache[_Signed, Assertion] = LruCache(_ANONYMOUS_KEPT)

    def assertion(
        self, identity: Identity, hostname: str, plan: HeaderPlan, now_s: float
    ) -> Assertion:
        """The assertion for this identity at this host, at most RENEW_AFTER_S old.

        Raises what the signing library raises; the request must then fail.
        """
        key = (identity, hostname, plan.issuer_is_uri, plan.extra_claims, plan.groups_filter)
        kept = self._anonymous if identity is ANONYMOUS else self._signed
        known = kept.get(key)
        # Also when the clock was set back: an assertion from the future verifies nowhere.
        if known is not None and 0 < known.renew_at_s - now_s <= RENEW_AFTER_S:
            return known
        claims = assertion_claims(
            identity,
            hostname,
            issuer_is_uri=plan.issuer_is_uri,
            extra_claims=plan.extra_claims,
            groups=told_groups(identity, plan.groups_filter)[0],
            now_s=now_s,
            token_id=self._new_id(),
        )
        made = Assertion(sign_jwt(claims, self._key), claims, now_s + RENEW_AFTER_S)
        kept.put(key, made)
        return made


def assertion_claims(
    identity: Identity,
    hostname: str,
    *,
    issuer_is_uri: bool,
    extra_claims: Sequence[str],
    groups: Sequence[str],
    now_s: float,
    token_id: str,
) -> dict[str, Any]:
    """The claims of an assertion. Anonymous requests get one too, with an empty identity."""
    issued_at = int(now_s)
    name = identity.header_claim("name")
    claims: dict[str, Any] = {
        "iss": f"https://{hostname}/" if issuer_is_uri else hostname,
        "aud": hostname,
        "jti": token_id,
        "iat": issued_at,
        "exp": issued_at + LIFETIME_S,
        "sub": identity.user_id,
        "user": identity.user_id,
        "email": identity.assertion_email,
        "groups": list(groups),
        "sid": identity.session_id,
        "name": claim_text(name) if name is not None else "",
    }
    for claim in extra_claims:
        values = identity.header_claim(claim) if claim not in _BASE_CLAIMS else None
        if values is not None:
            claims[claim] = claim_text(values)
    return claims


def told_groups(
    identity: Identity, groups_filter: frozenset[str] | None
) -> tuple[tuple[str, ...], int]:
    """The groups an upstream is told, and how many the filter took away.

    The filter is over ids of directory groups; groups that come from a claim are not filtered.
    """
    ids = identity.group_ids
    if groups_filter is None or not ids:
        return identity.header_groups, 0
    kept = tuple(group_id for group_id in ids if group_id in groups_filter)
    names = (
        group.name
        for group in identity.subject.groups
        if group is not None and group.name and group.id in groups_filter
    )
    return (*kept, *names), len(ids) - len(kept)


def impersonated_user(identity: Identity) -> str:
    """Whom a Kubernetes API is to take the request for; "" when a header cannot say it."""
    email = identity.assertion_email
    return email if _fits_a_header(email) else ""


def impersonated_groups(identity: Identity, plan: HeaderPlan) -> list[str]:
    """The groups that go with the user, without those that would arrive as others."""
    return [
        group for group in told_groups(identity, plan.groups_filter)[0] if _fits_a_header(group)
    ]


def request_headers(
    plan: HeaderPlan,
    identity: Identity,
    facts: RequestFacts,
    assertion: Assertion | None,
    tokens: Tokens = NO_TOKENS,
) -> list[tuple[str, str]]:
    """The headers to set, sorted by name, repeated names joined with a comma.

    `assertion` is None only when nothing of it can be seen (`needs_assertion` is false).
    """
    headers: dict[str, str] = {}
    for name, value in _headers(plan, identity, facts, assertion, tokens):
        clean = _NOT_IN_HEADERS.sub(" ", value)
        headers[name] = f"{headers[name]},{clean}" if name in headers else clean
    return sorted(headers.items())


def verified_client_assertion(token: str, keys: Sequence[SigningKey], now_s: float) -> str | None:
    """What the client sent as assertion, if we signed it and it still holds; else None."""
    if not token or len(token) > _MAX_CLIENT_ASSERTION:
        return None
    try:
        check_times(verify_jwt(token, keys), now_s=now_s, nbf_leeway_s=60)
    except InvalidTokenError:
        return None
    return token


def _headers(
    plan: HeaderPlan,
    identity: Identity,
    facts: RequestFacts,
    assertion: Assertion | None,
    tokens: Tokens,
) -> Iterator[tuple[str, str]]:
    if plan.passes_identity:
        assert assertion is not None
        yield ASSERTION_HEADER, assertion.jwt
        for name, claim in plan.claim_headers:
            yield name, _text(assertion.claims.get(claim))
    if plan.kubernetes_token:
        # Groups follow one line each, from the metadata of the answer: names may hold commas.
        yield "authorization", f"Bearer {plan.kubernetes_token}"
        yield "impersonate-user", impersonated_user(identity)
    if tokens.serverless:
        bearer = f"Bearer {tokens.serverless}"
        yield SERVERLESS_HEADER, bearer
        if not plan.sets_authorization and not _has_own_authorization(facts):
            yield "authorization", bearer
    if plan.routing_key and identity.session_id:
        # Nobody's key would be one for all of them: without it Envoy takes the client's address.
        yield ROUTING_KEY_HEADER, hashlib.sha256(identity.session_id.encode()).hexdigest()

    def resolve(reference: Reference) -> str:
        return _resolve(reference, facts, assertion, tokens)

    for name, template in plan.set_headers:
        yield name, template.render(resolve)


def _fits_a_header(value: str) -> bool:
    """False for what arrives changed: without blanks at its ends, or without its controls."""
    return bool(value) and value == value.strip() and not _NOT_IN_HEADERS.search(value)


def _has_own_authorization(facts: RequestFacts) -> bool:
    """True when the client sent credentials for the upstream, besides any of ours."""
    parts = (part.strip() for part in facts.headers.get("authorization", "").split(","))
    return any(part and not _OUR_AUTHORIZATION.match(part) for part in parts)


def _resolve(
    reference: Reference, facts: RequestFacts, assertion: Assertion | None, tokens: Tokens
) -> str:
    match reference.source:
        case Source.JWT:
            assert assertion is not None
            return assertion.jwt
        case Source.ACCESS_TOKEN:
            return tokens.access_token
        case Source.ID_TOKEN:
            return tokens.id_token
        case Source.REQUEST_HEADER:
            return facts.headers.get(reference.name, "")
        case Source.NOTHING:
            return ""
    leaf = leaf_facts(facts.certificate_chain) if facts.certificate_presented else None
    if leaf is None:
        return ""
    if reference.source is Source.CERTIFICATE_FINGERPRINT:
        return leaf.fingerprint
    names = (
        leaf.dns_names if reference.source is Source.CERTIFICATE_DNS_NAMES else leaf.email_addresses
    )
    return ",".join(name for name in names if "," not in name)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return "" if value is None else str(value)
