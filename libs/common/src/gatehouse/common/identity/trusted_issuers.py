"""Whether a JWT of one of the configured `identity_providers` holds: checked here, by their keys.

The issuer is chosen by the token's unverified `iss` and nothing else of the token is believed
before its signature is. Keys come from `jwks_url` or, without one, from the issuer's discovery
document (OpenID Connect Discovery 1.0 section 4), of which only `issuer` and `jwks_uri` are used.
`kubernetes:///` is the cluster around us: its API server says what `iss` its tokens have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.errors import InvalidTokenError
from gatehouse.common.identity.cached import Cached
from gatehouse.common.identity.discovery import discovery_url
from gatehouse.common.identity.errors import MISCONFIGURED, RESPONSE, IdentityProviderError
from gatehouse.common.identity.id_token import MAX_ID_TOKEN_BYTES, is_subject, verify_signed
from gatehouse.common.identity.jwks import ProviderKeySet
from gatehouse.common.identity.kubernetes import CLUSTER, ClusterTransport
from gatehouse.common.identity.transport import ProviderTransport, endpoint_name
from gatehouse.common.jose.compact import CompactToken, parse_compact
from gatehouse.common.jose.times import check_times

DEFAULT_ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")
NBF_LEEWAY_S: Final = 60.0
"""Also how far `iat` may be ahead of our clock. `exp` has no leeway: it ends the session too."""
TOKEN_TYPES: Final = frozenset({"JWT", "AT+JWT", "APPLICATION/AT+JWT"})

_DISCOVERY_MAX_AGE_S: Final = 24 * 3600.0
_DISCOVERY_MIN_INTERVAL_S: Final = 30.0
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class TrustedIssuerSettings:
    """One value of `identity_providers`."""

    name: str
    issuer: str
    jwks_url: str  # "": found by discovery
    algorithms: tuple[str, ...]
    audiences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token that holds."""

    provider: str  # name of the issuer in the configuration
    subject: str
    expires_at_s: float
    claims: Mapping[str, Any] = field(repr=False)


def is_key_url(url: str) -> bool:
    """True for a URL that keys may be fetched from: https, or http on this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    return bool(host) and (
        parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)
    )


class TrustedIssuers:
    """The issuers of one configuration. Belongs to one event loop; the caller owns `http`."""

    def __init__(
        self,
        settings: Iterable[TrustedIssuerSettings],
        http: httpx.AsyncClient,
        clock: Clock,
        rng: Rng,
        *,
        previous: TrustedIssuers | None = None,
        cluster: ClusterTransport | None = None,
    ) -> None:
        """`previous`: keys of issuers that have not changed are taken over from there.

        `cluster`: how to ask the Kubernetes cluster, when it is one of the issuers.
        """
        self._http = http
        self._clock = clock
        self._cluster = cluster
        self._by_issuer: dict[str, _Issuer] = {}
        for one in settings:
            kept = previous.kept(one, http, cluster) if previous is not None else None
            if one.issuer == CLUSTER:
                assert cluster is not None
                made: _Issuer = _ClusterIssuer(one, cluster, clock, rng)
            else:
                made = _Issuer(one, ProviderTransport(http), clock, rng)
            self._by_issuer[one.issuer] = kept or made

    def kept(
        self,
        settings: TrustedIssuerSettings,
        http: httpx.AsyncClient,
        cluster: ClusterTransport | None,
    ) -> _Issuer | None:
        """What is known of an issuer that has not changed; for the next configuration."""
        known = self._by_issuer.get(settings.issuer)
        same_way = self._cluster is cluster if settings.issuer == CLUSTER else self._http is http
        return known if known is not None and known.settings == settings and same_way else None

    async def verify(self, raw: str, allowed: Collection[str] | None = None) -> IssuedToken:
        """Check a token. `allowed`: names of the issuers that count here; None: every one.

        Raises InvalidTokenError; IdentityProviderError when the issuer's keys cannot be had.
        """
        unverified = parse_compact(raw, max_bytes=MAX_ID_TOKEN_BYTES)
        issuer = unverified.claims.get("iss")
        if not isinstance(issuer, str):
            raise InvalidTokenError("token names no issuer", reason="token-issuer")
        found = self._by_issuer.get(issuer) if issuer != CLUSTER else None
        if found is None:
            found = self._by_issuer.get(CLUSTER)
        if found is None or (allowed is not None and found.settings.name not in allowed):
            raise InvalidTokenError("token is of no issuer trusted here", reason="token-issuer")
        if await found.issuer() != issuer:
            raise InvalidTokenError("token is of no issuer trusted here", reason="token-issuer")
        token = await found.signed(raw, unverified.header)
        stated = replace(found.settings, issuer=issuer)
        return _checked(token, stated, now_s=self._clock.now_s())


class _Issuer:
    def __init__(
        self,
        settings: TrustedIssuerSettings,
        transport: ProviderTransport,
        clock: Clock,
        rng: Rng,
    ) -> None:
        self.settings = settings
        self._transport = transport
        self._clock = clock
        self._rng = rng
        self._discovered = Cached(
            self._discover,
            clock,
            rng,
            max_age_s=_DISCOVERY_MAX_AGE_S,
            min_interval_s=_DISCOVERY_MIN_INTERVAL_S,
        )
        self._keys: tuple[str, ProviderKeySet] | None = None

    async def issuer(self) -> str:
        """The `iss` of its tokens."""
        return self.settings.issuer

    async def keys_url(self) -> str:
        """Where its keys are."""
        return self.settings.jwks_url or await self._discovered.get()

    async def signed(self, raw: str, header: Mapping[str, Any]) -> CompactToken:
        algorithm = header.get("alg")
        if algorithm not in self.settings.algorithms:  # before anything is fetched for it
            raise InvalidTokenError("token algorithm is not accepted", reason="token-algorithm")
        url = await self.keys_url()
        if self._keys is None or self._keys[0] != url:
            self._keys = (url, ProviderKeySet(self._transport, url, self._clock, self._rng))
        return await verify_signed(raw, self._keys[1], self.settings.algorithms, types=TOKEN_TYPES)

    async def _discover(self) -> str:
        where = discovery_url(self.settings.issuer)
        name = endpoint_name(where)
        response = await self._transport.get(where)
        if response.status != 200:
            raise IdentityProviderError(
                f"{name} answered {response.status}", retry_after_s=response.retry_after_s
            )
        document = response.json(name)
        if document.get("issuer") != self.settings.issuer:
            raise IdentityProviderError(
                f"{name} names another issuer than {self.settings.issuer!r}; the two must be "
                "equal to the letter",
                reason=MISCONFIGURED,
            )
        url = document.get("jwks_uri")
        https = self.settings.issuer.startswith("https://")
        if not isinstance(url, str) or not is_key_url(url) or (https and url[:8] != "https://"):
            raise IdentityProviderError(f"{name} has no https jwks_uri", reason=RESPONSE)
        return url


class _ClusterIssuer(_Issuer):
    def __init__(
        self,
        settings: TrustedIssuerSettings,
        transport: ClusterTransport,
        clock: Clock,
        rng: Rng,
    ) -> None:
        super().__init__(settings, transport, clock, rng)
        self._access = transport.access

    async def issuer(self) -> str:
        return await self._discovered.get()

    async def keys_url(self) -> str:
        return self._access.keys_url

    async def _discover(self) -> str:
        response = await self._transport.get(self._access.discovery_url)
        if response.status != 200:
            raise IdentityProviderError(
                f"the Kubernetes API server answered {response.status} about its issuer",
                retry_after_s=response.retry_after_s,
            )
        issuer = response.json("the Kubernetes API server").get("issuer")
        if not isinstance(issuer, str) or not issuer:
            raise IdentityProviderError(
                "the Kubernetes API server names no issuer", reason=RESPONSE
            )
        return issuer


def _checked(token: CompactToken, settings: TrustedIssuerSettings, *, now_s: float) -> IssuedToken:
    """The signature has been verified; the claims have not."""
    claims = token.claims
    if claims.get("iss") != settings.issuer:
        raise InvalidTokenError("token has another issuer", reason="token-issuer")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not is_subject(subject):
        raise InvalidTokenError("token has no usable sub", reason="token-subject")
    audience = claims.get("aud")
    named = audience if isinstance(audience, list) else [audience]
    if not any(isinstance(one, str) and one in settings.audiences for one in named):
        raise InvalidTokenError("token is for another audience", reason="token-audience")
    check_times(claims, now_s=now_s, nbf_leeway_s=NBF_LEEWAY_S)
    return IssuedToken(settings.name, subject, float(claims["exp"]), claims)
