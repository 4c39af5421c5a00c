"""What stand-ins for identity providers have in common, and how they are served on loopback."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Final
from urllib.parse import parse_qs, unquote_plus, urlsplit

import httpx
import jwt

from gatehouse.common.clock import SystemClock
from gatehouse.common.config.resolved import IdentityProviderSettings
from tests.support.identity import CLIENT_ID, Asked, HostileProvider, Reply, at_hash, key_pair
from tests.support.identity import provider_settings as settings_at

SECRET: Final = "s3cret/with+odd characters:and%"
REDIRECT_URI: Final = "https://authenticate.localhost/oauth2/callback"


@functools.cache
def rsa_key() -> tuple[Any, dict[str, Any]]:
    """One key for all: making one takes long."""
    return key_pair("RS256", "rsa-1")


@dataclass(frozen=True)
class Grant:
    """What a code or a refresh token stands for."""

    query: Mapping[str, str]  # of the authorization request
    refresh: bool


class Dialect(HostileProvider):
    """Plain OpenID Connect, from which the providers below depart."""

    type: ClassVar[str] = "oidc"
    url: str = ""  # as configured; "": the type's default
    issuer_url: ClassVar[str]
    auth_methods: ClassVar[tuple[str, ...]] = ("client_secret_basic", "client_secret_post")
    scopes: ClassVar[frozenset[str]] = frozenset({"openid", "profile", "email", "offline_access"})
    offline_scope: ClassVar[bool] = True  # a refresh token comes only with offline_access
    rotates: ClassVar[bool] = False  # each refresh brings another refresh token
    revocable: ClassVar[frozenset[str]] = frozenset({"access_token", "refresh_token"})
    refusal_status: ClassVar[int] = 400
    endpoints: Mapping[str, str]  # URLs, by the names of discovery
    unlisted: ClassVar[frozenset[str]] = frozenset()  # served, and not in the discovery document
    extra_metadata: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __init__(self) -> None:
        super().__init__()
        self.private, public = rsa_key()
        self.published = [public]
        self.issuer = self.issuer_url
        self.client_id = CLIENT_ID
        self.client_secret = SECRET
        self.valid: dict[str, Grant] = {}  # refresh and access tokens
        self.revoked: list[str] = []
        self.broken: list[str] = []  # what a request did wrong, for tests that fail
        self._codes: dict[str, Grant] = {}
        self._number = itertools.count(1)

    def settings(self, **changes: Any) -> IdentityProviderSettings:
        return settings_at(
            self.url, **{"type": self.type, "client_secret": self.client_secret, **changes}
        )

    def move_to(self, origin: str) -> None:
        """Be found under this one origin instead of the provider's own host names."""
        self.issuer = moved(self.issuer, origin)
        self.endpoints = {name: moved(url, origin) for name, url in self.endpoints.items()}
        self.url = self.issuer

    # What a person's browser does

    def authorize(self, url: str) -> dict[str, str]:
        """Sign in and come back: the callback's parameters."""
        base, _, raw = url.partition("?")
        assert base == self.endpoints["authorization_endpoint"], base
        query = {name: values[0] for name, values in parse_qs(raw, strict_parsing=True).items()}
        assert query["response_type"] == "code"
        assert query["client_id"] == self.client_id
        unknown = set(query["scope"].split(" ")) - self.scopes
        if unknown:
            return {"error": "invalid_scope", "state": query["state"]}
        self.check_request(query)
        code = f"code-{next(self._number)}"
        self._codes[code] = Grant(query, refresh=self.grants_refresh(query))
        return {"code": code, "state": query["state"]}

    def check_request(self, query: Mapping[str, str]) -> None:
        """Assert what this provider insists on."""

    def grants_refresh(self, query: Mapping[str, str]) -> bool:
        return not self.offline_scope or "offline_access" in query["scope"].split(" ")

    # What it says

    def metadata(self) -> dict[str, Any]:
        listed = {name: url for name, url in self.endpoints.items() if name not in self.unlisted}
        return {
            "issuer": self.issuer,
            **listed,
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "token_endpoint_auth_methods_supported": list(self.auth_methods),
            **self.extra_metadata,
            **self.metadata_changes,
        }

    def person(self) -> dict[str, Any]:
        """Claims of the ID token about the person."""
        return {"sub": "user-1", "name": "Ada Example", "email": "ada@example.com"}

    def userinfo(self) -> dict[str, Any]:
        return self.person()

    def make_id_token(self, grant: Grant, access_token: str, *, refreshed: bool) -> str:
        now = int(SystemClock().now_s())
        claims = {
            "iss": self.issuer,
            "aud": self.client_id,
            "exp": now + 300,
            "iat": now,
            "at_hash": at_hash(access_token),
            **self.person(),
            **self.claims_changes,
        }
        if not refreshed and "nonce" in grant.query:
            claims["nonce"] = grant.query["nonce"]
        return jwt.encode(claims, self.private, algorithm="RS256", headers={"kid": "rsa-1"})

    def make_access_token(self) -> str:
        return f"access-{next(self._number)}"

    # How it answers

    def _answer(self, asked: Asked) -> Reply:
        url = f"{urlsplit(self.issuer).scheme}://{asked.headers['host']}{asked.path}"
        special = self.answers.get(url)
        if special is not None:
            return special if isinstance(special, Reply) else special(asked)
        if url == f"{self.discovery_url().rstrip('/')}/.well-known/openid-configuration":
            return Reply.of(self.metadata())
        handlers: dict[str, Callable[[Asked], Reply]] = {
            "jwks_uri": lambda _asked: Reply.of({"keys": self.published}),
            "token_endpoint": self.token,
            "userinfo_endpoint": self._userinfo,
            "revocation_endpoint": self.revoke,
        }
        for name, handler in handlers.items():
            if self.endpoints.get(name) == url:
                return handler(asked)
        self.broken.append(f"{asked.method} {url}")
        return Reply.of({"error": "not_found"}, 404)

    def discovery_url(self) -> str:
        return self.url or self.issuer

    def token(self, asked: Asked) -> Reply:
        form = asked.form
        if asked.method != "POST" or not self.is_client(asked):
            return self.error("invalid_client", 401)
        if form.get("grant_type") == "authorization_code":
            grant = self._codes.pop(form.get("code", ""), None)  # a code works once
            if grant is None or not is_redeemed_rightly(grant.query, form):
                return self.error("invalid_grant")
            return Reply.of(self.grant_tokens(grant, refreshed=False))
        if form.get("grant_type") == "refresh_token":
            spent = form.get("refresh_token", "")
            grant = self.valid.get(spent)
            if grant is None or not spent.startswith("refresh-"):
                return self.error("invalid_grant")
            if self.rotates:
                del self.valid[spent]
            return Reply.of(self.grant_tokens(grant, refreshed=True))
        return self.error("unsupported_grant_type")

    def grant_tokens(self, grant: Grant, *, refreshed: bool) -> dict[str, Any]:
        access_token = self.make_access_token()
        self.valid[access_token] = grant
        answer: dict[str, Any] = {
            "access_token": access_token,
            "token_type": "Bearer",
            "expires_in": 3600,
            "scope": grant.query["scope"],
            "id_token": self.make_id_token(grant, access_token, refreshed=refreshed),
        }
        if grant.refresh and (self.rotates or not refreshed):
            refresh_token = f"refresh-{next(self._number)}"
            self.valid[refresh_token] = grant
            answer["refresh_token"] = refresh_token
        return answer

    def is_client(self, asked: Asked) -> bool:
        """Whether the client has proved itself, in one of the ways taken here and in one only."""
        header, form = asked.headers.get("authorization", ""), asked.form
        if header.startswith("Basic "):
            if "client_secret_basic" not in self.auth_methods or "client_secret" in form:
                return False
            name, _, secret = base64.b64decode(header[6:]).decode().partition(":")
            return (unquote_plus(name), unquote_plus(secret)) == (
                self.client_id,
                self.client_secret,
            )
        return (
            "client_secret_post" in self.auth_methods
            and form.get("client_id") == self.client_id
            and self.is_secret(form.get("client_secret", ""))
        )

    def is_secret(self, given: str) -> bool:
        return given == self.client_secret

    def error(self, code: str, status: int = 0) -> Reply:
        """An error as this provider writes them."""
        body = {"error": code, "error_description": f"{code} it is"}
        return Reply.of(body, status or self.refusal_status)

    def _userinfo(self, asked: Asked) -> Reply:
        token = asked.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.valid or token.startswith("refresh-"):
            return Reply.of({"error": "invalid_token"}, 401)
        return Reply.of({**self.userinfo(), **self.userinfo_changes})

    def revoke(self, asked: Asked) -> Reply:
        if not self.is_client(asked):
            return self.error("invalid_client", 401)
        token = asked.form.get("token", "")
        kind = "refresh_token" if token.startswith("refresh-") else "access_token"
        if kind not in self.revocable:
            return self.error("unsupported_token_type", 400)
        self.valid.pop(token, None)
        self.revoked.append(kind)
        return Reply()


def moved(url: str, origin: str) -> str:
    return origin + urlsplit(url).path


def is_redeemed_rightly(query: Mapping[str, str], form: Mapping[str, str]) -> bool:
    verifier = form.get("code_verifier", "")
    digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
    challenge = query.get("code_challenge")
    return form.get("redirect_uri") == query["redirect_uri"] and (
        (challenge is None and not verifier)  # RFC 9700 section 4.8.2: no downgrade unnoticed
        or (query["code_challenge_method"], challenge) == ("S256", digest.rstrip(b"=").decode())
    )


class _Loopback(httpx.AsyncBaseTransport):
    """Every host is the stand-in; it is told which one was meant."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._inner = httpx.AsyncHTTPTransport(verify=False)  # plain HTTP, and no time lost

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url.copy_with(scheme="http", host="127.0.0.1", port=self._port)
        moved = httpx.Request(
            request.method,
            url,
            headers=request.headers,
            stream=request.stream,
            extensions=request.extensions,
        )
        return await self._inner.handle_async_request(moved)

    async def aclose(self) -> None:
        await self._inner.aclose()


@contextlib.asynccontextmanager
async def at_home(dialect: Dialect) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the dialect on loopback; gives a client to which it is the whole internet."""
    server = await asyncio.start_server(dialect.handle, "127.0.0.1", 0)
    try:
        transport = _Loopback(server.sockets[0].getsockname()[1])
        async with httpx.AsyncClient(transport=transport, trust_env=False) as http:
            yield http
    finally:
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def on_loopback(dialect: Dialect) -> AsyncIterator[str]:
    """Serve the dialect under an address of this machine's; gives its issuer URL."""
    server = await asyncio.start_server(dialect.handle, "127.0.0.1", 0)
    try:
        dialect.move_to(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        yield dialect.issuer
    finally:
        server.close()
        await server.wait_closed()


def query_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
