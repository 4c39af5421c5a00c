"""Who verifies bearer tokens: authenticate for those of sign-in providers, we for trusted issuers.

One object belongs to one configuration; HTTP clients and fetched keys outlive it when nothing
about them has changed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from gatehouse.authorize.core.bearer import BearerPlans, BearerRequest, CheckedToken
from gatehouse.authorize.errors import CannotKnowError
from gatehouse.common.clock import Clock
from gatehouse.common.config.issues import ConfigError, Issue, Severity
from gatehouse.common.config.model import BearerTokenFormat
from gatehouse.common.config.resolved import ResolvedSettings, ServiceName
from gatehouse.common.errors import GatehouseError, InvalidArgumentError, InvalidTokenError
from gatehouse.common.identity.claims import user_id_of
from gatehouse.common.identity.errors import IdentityProviderError, IdentityRefusedError
from gatehouse.common.identity.http_client import close_all, http_client, tls_context
from gatehouse.common.identity.kubernetes import CLUSTER, ClusterTransport, cluster_access
from gatehouse.common.identity.token_check import (
    AUDIENCE,
    Question,
    TokenKind,
    encode_question,
    read_verdict,
)
from gatehouse.common.identity.transport import ProviderTransport
from gatehouse.common.identity.trusted_issuers import TrustedIssuers
from gatehouse.common.jose.times import numeric_date
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.common.runtime.context import ProcessContext

VERIFY_TIMEOUT_S: Final = 9.0  # Envoy's patience with a Check is 10 s
_KINDS: Final = {
    BearerTokenFormat.IDP_ACCESS_TOKEN: TokenKind.ACCESS,
    BearerTokenFormat.IDP_IDENTITY_TOKEN: TokenKind.IDENTITY,
}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where authenticate is asked."""

    url: str
    socket: str  # "": over TLS
    ca_pem: bytes | None


class VerifierPool:
    """Makes the verifiers of each configuration, and closes their clients at the end."""

    def __init__(self, context: ProcessContext, subject: str) -> None:
        self._context = context
        self._credentials = ServiceCredentials(
            subject, lambda: context.config.current.shared_secrets, context.clock
        )
        self._opened: list[httpx.AsyncClient] = []
        self._authenticate: tuple[_Place, httpx.AsyncClient] | None = None
        self._outside: tuple[bytes | None, httpx.AsyncClient] | None = None
        self._issuers: TrustedIssuers | None = None
        self._cluster: ClusterTransport | None = None

    def make(self, settings: ResolvedSettings, plans: BearerPlans) -> TokenVerifiers:
        """Verifiers for a configuration that may come into force; nothing is asked yet."""
        context = self._context
        authenticate: AuthenticateClient | None = None
        if plans.asks_authenticate:
            place = self._place(settings)
            if self._authenticate is None or self._authenticate[0] != place:
                self._authenticate = (place, self._opened_client(_to_authenticate(place)))
            authenticate = AuthenticateClient(self._authenticate[1], place.url, self._credentials)
        if plans.asks_issuers:
            ca_pem = settings.ca_bundle_pem
            if self._outside is None or self._outside[0] != ca_pem:
                self._outside = (ca_pem, self._opened_client(http_client(ca_pem)))
            self._issuers = TrustedIssuers(
                plans.issuers,
                self._outside[1],
                context.clock,
                context.rng,
                previous=self._issuers,
                cluster=self._cluster_of(plans),
            )
        return TokenVerifiers(
            authenticate, self._issuers if plans.asks_issuers else None, context.clock
        )

    def _cluster_of(self, plans: BearerPlans) -> ClusterTransport | None:
        """How to ask the cluster around us, when its tokens are trusted. ConfigError."""
        names = [one.name for one in plans.issuers if one.issuer == CLUSTER]
        if not names:
            return None
        try:
            access = cluster_access(os.environ)
        except InvalidArgumentError as error:
            where = f"identity_providers.{names[0]}.issuer"
            fix = "leave it out, or give the cluster's issuer and its jwks_url"
            raise ConfigError((Issue(Severity.ERROR, where, str(error), fix),)) from None
        if self._cluster is None or self._cluster.access != access:
            client = self._opened_client(http_client(access.ca_pem))
            self._cluster = ClusterTransport(client, access)
        return self._cluster

    async def close(self) -> None:
        """Close every client there was: requests of an old configuration may have used it."""
        await close_all(self._opened)

    def _place(self, settings: ResolvedSettings) -> _Place:
        url = settings.authenticate_internal_url.rstrip("/")
        if settings.runs(ServiceName.AUTHENTICATE) and settings.runs(ServiceName.PROXY):
            # Behind Envoy in this process it listens on a socket of its own.
            plain = f"http://{urlsplit(url).netloc}"
            return _Place(plain, str(self._context.authenticate_http_socket), None)
        return _Place(url, "", settings.ca_bundle_pem)

    def _opened_client(self, client: httpx.AsyncClient) -> httpx.AsyncClient:
        self._opened.append(client)
        return client


class AuthenticateClient:
    """Asks authenticate about tokens."""

    def __init__(self, http: httpx.AsyncClient, url: str, credentials: ServiceCredentials) -> None:
        self._transport = ProviderTransport(http, timeout_s=VERIFY_TIMEOUT_S)
        self._url = url
        self._credentials = credentials

    async def claims(self, question: Question) -> dict[str, Any] | None:
        """The claims of a token that holds; None for one that does not. CannotKnowError."""
        try:
            response = await self._transport.post_json(
                self._url + question.kind.path,
                encode_question(question),
                headers=dict(self._credentials.metadata(AUDIENCE)),
            )
            if response.status == 200:
                return read_verdict(response.json("authenticate"))
        except GatehouseError as error:
            raise CannotKnowError(f"authenticate cannot be asked: {error}") from error
        raise CannotKnowError(f"authenticate answered {response.status} about a token")


class TokenVerifiers:
    """The verifiers of one configuration."""

    def __init__(
        self,
        authenticate: AuthenticateClient | None,
        issuers: TrustedIssuers | None,
        clock: Clock,
    ) -> None:
        self._authenticate = authenticate
        self._issuers = issuers
        self._clock = clock

    async def by_issuer(self, request: BearerRequest) -> CheckedToken:
        """Verify a `jwt`. Raises InvalidTokenError, CannotKnowError."""
        assert self._issuers is not None
        try:
            token = await self._issuers.verify(request.token, request.plan.issuers)
        except IdentityProviderError as error:
            raise CannotKnowError(f"a token's issuer cannot be asked: {error}") from error
        return CheckedToken(
            format=BearerTokenFormat.JWT,
            issued_by=token.provider,
            token=request.token,
            user_id=f"{token.provider}/{token.subject}",
            expires_at_s=token.expires_at_s,
            claims=token.claims,
        )

    async def by_authenticate(self, request: BearerRequest) -> CheckedToken:
        """Verify a sign-in provider's token. Raises InvalidTokenError, CannotKnowError."""
        assert self._authenticate is not None
        plan = request.plan
        claims = await self._authenticate.claims(
            Question(_KINDS[plan.format], request.token, plan.idp_id)
        )
        if claims is None:
            raise InvalidTokenError("the identity provider does not confirm the token")
        try:
            user_id = user_id_of(claims)
        except IdentityRefusedError as error:
            raise InvalidTokenError(str(error)) from error
        ends_s = numeric_date(claims, "exp")
        if ends_s is not None and ends_s <= self._clock.now_s():
            raise InvalidTokenError("the token is expired", reason="token-expired")
        return CheckedToken(
            format=plan.format,
            issued_by=plan.idp_id,
            token=request.token,
            user_id=user_id,
            expires_at_s=None if ends_s is None else float(ends_s),
            claims=claims,
        )


class _NamedLoopback(httpx.AsyncHTTPTransport):
    """Names below `localhost` are this machine (RFC 6761 section 6.3), whatever DNS says.

    The certificate is still verified for the name.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        if host.endswith(".localhost"):
            request.extensions["sni_hostname"] = host
            request.url = request.url.copy_with(host="127.0.0.1")
        return await super().handle_async_request(request)


def _to_authenticate(place: _Place) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=16)
    transport = (
        httpx.AsyncHTTPTransport(uds=place.socket, limits=limits)
        if place.socket
        else _NamedLoopback(verify=tls_context(place.ca_pem), limits=limits)
    )
    return httpx.AsyncClient(transport=transport, timeout=10.0, follow_redirects=False)
