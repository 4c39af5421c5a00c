"""Answers who signs in at the demo: an OpenID provider that believes whoever presses a button.

For development only. It refuses to listen anywhere but on loopback, answers only requests that
call it by its own name, and says what it is on every page. Towards its client it is strict:
authorization code with PKCE S256, exact redirect URIs, client authentication, one-time codes.
Sources: OpenID Connect Core 1.0, Discovery 1.0, RP-Initiated Logout 1.0; RFC 6749, 7009, 7636.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_plus, urlencode, urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gatehouse.cli.demo.loopback import open_loopback, serve_listener
from gatehouse.cli.demo.pages import demo_page
from gatehouse.cli.demo.provider_grants import (
    Client,
    Grants,
    ProtocolError,
    SampleUser,
    Tokens,
    checked_request,
)
from gatehouse.cli.demo.provider_keys import ALGORITHMS, ProviderKeys, SigningAlg
from gatehouse.common.clock import Clock, Rng, SystemClock, SystemRng

SAMPLE_USERS: Final = (
    SampleUser(
        "u-ada",
        "ada@example.com",
        "Ada Lovelace",
        ("admins", "engineering"),
        "Administrator. May open every application here.",
    ),
    SampleUser(
        "u-grace",
        "grace@example.com",
        "Grace Hopper",
        ("engineering",),
        "Engineer. May open what any signed-in person may.",
    ),
    SampleUser(
        "u-mallory",
        "mallory@elsewhere.test",
        "Mallory",
        ("visitors",),
        "From another organization. See what policy makes of that.",
    ),
)

_MAX_BODY_BYTES: Final = 64 * 1024
_ID_TOKEN_TTL_S: Final = 3600

Endpoint = Callable[[Request], Awaitable[Response]]


class DevelopmentProvider:
    """The provider's endpoints. `issuer` is its base URL without a trailing slash."""

    def __init__(
        self,
        issuer: str,
        clients: Sequence[Client],
        *,
        users: Sequence[SampleUser] = SAMPLE_USERS,
        keys: ProviderKeys | None = None,
        alg: SigningAlg = "RS256",
        access_token_ttl_s: int = 3600,
        clock: Clock | None = None,
        rng: Rng | None = None,
    ) -> None:
        self.issuer = issuer
        self.grants = Grants(
            clock or SystemClock(), rng or SystemRng(), access_token_ttl_s=access_token_ttl_s
        )
        self._clients = {client.id: client for client in clients}
        self._users = {user.email: user for user in users}
        self._keys = keys or ProviderKeys()
        self._alg: SigningAlg = alg
        self._clock = clock or SystemClock()

    def app(self) -> ASGIApp:
        """Return the ASGI application."""

        def route(path: str, endpoint: Endpoint, *methods: str) -> Route:
            return Route(path, endpoint, methods=methods)

        inner = Starlette(
            routes=[
                route("/", self._home, "GET"),
                route("/.well-known/openid-configuration", self._discovery, "GET"),
                route("/jwks.json", self._jwks, "GET"),
                route("/authorize", self._authorize, "GET", "POST"),
                route("/choose", self._choose, "POST"),
                route("/token", self._token, "POST"),
                route("/userinfo", self._userinfo, "GET", "POST"),
                route("/revoke", self._revoke, "POST"),
                route("/logout", self._logout, "GET", "POST"),
            ],
            exception_handlers={ProtocolError: _protocol_error},
        )
        return _OwnNameOnly(inner, urlsplit(self.issuer).netloc)

    # Documents

    async def _home(self, _request: Request) -> Response:
        return _message(
            "This is the demo's identity provider",
            "Applications send you here to sign in. Open one of them to see it happen.",
            status=200,
        )

    async def _discovery(self, _request: Request) -> Response:
        return JSONResponse(
            {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "userinfo_endpoint": f"{self.issuer}/userinfo",
                "jwks_uri": f"{self.issuer}/jwks.json",
                "revocation_endpoint": f"{self.issuer}/revoke",
                "end_session_endpoint": f"{self.issuer}/logout",
                "response_types_supported": ["code"],
                "response_modes_supported": ["query"],
                "grant_types_supported": ["authorization_code", "refresh_token"],
                "code_challenge_methods_supported": ["S256"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": list(ALGORITHMS),
                "token_endpoint_auth_methods_supported": [
                    "client_secret_basic",
                    "client_secret_post",
                ],
                "scopes_supported": ["openid", "profile", "email", "groups", "offline_access"],
                "claims_supported": ["sub", *_claims(next(iter(self._users.values())))],
            }
        )

    async def _jwks(self, _request: Request) -> Response:
        return JSONResponse(self._keys.jwks(), headers={"cache-control": "max-age=60"})

    # The person's side

    async def _authorize(self, request: Request) -> Response:
        parameters, repeated = await _parameters(request)
        client = self._clients.get(parameters.get("client_id", ""))
        redirect_uri = parameters.get("redirect_uri", "")
        if client is None or repeated & {"client_id", "redirect_uri"}:
            return _message(
                "This application is not known here",
                "Its client_id is not registered with this provider. Nothing was sent to it.",
            )
        if redirect_uri not in client.redirect_uris:
            return _message(
                "This application asked to send you to an unregistered address",
                "Its redirect_uri must be, to the letter, one that is registered. "
                "Nothing was sent there.",
            )
        try:
            checked = checked_request(client, parameters, repeated)
        except ProtocolError as error:
            state = parameters.get("state", "")
            return _redirect(
                redirect_uri, error=error.error, error_description=error.description, state=state
            )
        return demo_page(
            "provider_sign_in.html.j2",
            users=list(self._users.values()),
            key=self.grants.remember(checked),
            application=urlsplit(redirect_uri).netloc,
            hint=parameters.get("login_hint", ""),
        )

    async def _choose(self, request: Request) -> Response:
        form, _ = await _parameters(request, body_only=True)
        checked = self.grants.take(form.get("request", ""))
        if checked is None:
            return _message(
                "This sign-in is over",
                "It was answered before, or more than 15 minutes have passed. "
                "Open the application again to start a new one.",
            )
        user = self._users.get(form.get("user", ""))
        if user is None:
            return _redirect(
                checked.redirect_uri,
                error="access_denied",
                error_description="the person chose not to sign in",
                state=checked.state,
            )
        code = self.grants.issue_code(checked, user)
        return _redirect(checked.redirect_uri, code=code, state=checked.state)

    async def _logout(self, request: Request) -> Response:
        parameters, _ = await _parameters(request)
        claims = self._keys.open_own(parameters.get("id_token_hint", ""), self.issuer)
        if claims is not None:
            self.grants.end(str(claims.get("sid", "")))
        audience = str(claims["aud"]) if claims is not None else ""
        client = self._clients.get(parameters.get("client_id", "") or audience)
        target = parameters.get("post_logout_redirect_uri", "")
        mismatched = audience not in {"", client.id if client else ""}
        if client is None or mismatched or target not in client.post_logout_redirect_uris:
            return _message(
                "You are signed out",
                "Nobody stays signed in at this provider: it asks each time.",
                status=200,
            )
        return _redirect(target, state=parameters.get("state", ""))

    # The client's side

    async def _token(self, request: Request) -> Response:
        form, repeated = await _parameters(request, body_only=True)
        client = self._authenticated(request, form)
        if repeated:
            raise ProtocolError("invalid_request", f"{min(repeated)} is given twice")
        match form.get("grant_type"):
            case "authorization_code":
                tokens = self.grants.redeem_code(
                    client,
                    code=form.get("code", ""),
                    redirect_uri=form.get("redirect_uri", ""),
                    code_verifier=form.get("code_verifier", ""),
                )
                nonce = tokens.grant.request.nonce
            case "refresh_token":
                tokens = self.grants.refresh(client, form.get("refresh_token", ""))
                nonce = ""
            case _:
                raise ProtocolError(
                    "unsupported_grant_type", "use authorization_code or refresh_token"
                )
        answer = {
            "access_token": tokens.access_token,
            "token_type": "Bearer",
            "expires_in": tokens.expires_in_s,
            "scope": " ".join(sorted(tokens.grant.request.scopes)),
            "id_token": self._id_token(client, tokens, nonce),
        }
        if tokens.refresh_token is not None:
            answer["refresh_token"] = tokens.refresh_token
        return JSONResponse(answer, headers={"cache-control": "no-store"})

    async def _userinfo(self, request: Request) -> Response:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        grant = self.grants.user_of(token.strip()) if scheme.lower() == "bearer" else None
        if grant is None:
            challenge = 'Bearer error="invalid_token"' if token else "Bearer"
            return Response(status_code=401, headers={"www-authenticate": challenge})
        return JSONResponse(
            {"sub": grant.user.subject, **_claims(grant.user)},
            headers={"cache-control": "no-store"},
        )

    async def _revoke(self, request: Request) -> Response:
        form, _ = await _parameters(request, body_only=True)
        self.grants.revoke(self._authenticated(request, form), form.get("token", ""))
        return Response(status_code=200)

    def _authenticated(self, request: Request, form: Mapping[str, str]) -> Client:
        """Return the client that the credentials, in header or body, prove (RFC 6749 2.3.1)."""
        basic = _basic(request.headers.get("authorization", ""))
        if basic is not None and "client_secret" in form:
            raise ProtocolError("invalid_request", "client credentials are given twice")
        given_id, given_secret = basic or (form.get("client_id", ""), form.get("client_secret", ""))
        client = self._clients.get(given_id)
        known = client.secret if client is not None else ""
        same = hmac.compare_digest(known.encode(), given_secret.encode())
        if client is None or not known or not same:
            raise ProtocolError("invalid_client", "client_id or client_secret is wrong", status=401)
        return client

    def _id_token(self, client: Client, tokens: Tokens, nonce: str) -> str:
        now = int(self._clock.now_s())
        grant = tokens.grant
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": grant.user.subject,
            "aud": client.id,
            "iat": now,
            "exp": now + _ID_TOKEN_TTL_S,
            "auth_time": grant.authenticated_at,
            "sid": grant.id,
            **_claims(grant.user),
        }
        if nonce:
            claims["nonce"] = nonce
        return self._keys.sign(claims, self._alg)


async def serve(
    stop: asyncio.Event,
    host: str,
    port: int,
    clients: Sequence[Client],
    *,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the provider at `http://localhost:<port>` until `stop`; `ready` gets the issuer.

    Port 0 takes any free one. Raises InvalidArgumentError when `host` is not loopback and
    FailedPreconditionError when the port is taken.
    """
    listener = open_loopback(host, port, what="the development identity provider")
    keys = await asyncio.to_thread(ProviderKeys)
    issuer = f"http://localhost:{listener.getsockname()[1]}"
    provider = DevelopmentProvider(issuer, clients, keys=keys)
    await serve_listener(
        provider.app(), listener, stop, None if ready is None else lambda: ready(issuer)
    )


class _OwnNameOnly:
    """Turns away requests made under another name: a page elsewhere may point its DNS name here."""

    def __init__(self, inner: ASGIApp, netloc: str) -> None:
        self._inner = inner
        self._netloc = netloc

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            hosts = [value for name, value in scope["headers"] if name == b"host"]
            if hosts != [self._netloc.encode()]:
                response = _message(
                    "Wrong address",
                    f"This development provider answers as {self._netloc} only.",
                    status=421,
                )
                await response(scope, receive, send)
                return
        await self._inner(scope, receive, send)


async def _parameters(
    request: Request, *, body_only: bool = False
) -> tuple[dict[str, str], frozenset[str]]:
    """Return the parameters of query or form, and the names given more than once."""
    text = "" if body_only else request.url.query
    if request.method == "POST":
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MAX_BODY_BYTES:
                raise ProtocolError("invalid_request", "the body is too large", status=413)
        try:
            text = "&".join(part for part in (text, body.decode()) if part)
        except UnicodeDecodeError:
            raise ProtocolError("invalid_request", "the body is not UTF-8") from None
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=100)
    except ValueError:
        raise ProtocolError("invalid_request", "there are too many parameters") from None
    names = [name for name, _ in pairs]
    return dict(pairs), frozenset(name for name in names if names.count(name) > 1)


def _basic(header: str) -> tuple[str, str] | None:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return unquote_plus(user), unquote_plus(password)


def _claims(user: SampleUser) -> dict[str, Any]:
    given, _, family = user.name.partition(" ")
    return {
        "name": user.name,
        "given_name": given,
        "family_name": family,
        "preferred_username": user.email.partition("@")[0],
        "email": user.email,
        "email_verified": True,
        "groups": list(user.groups),
    }


def _redirect(target: str, **parameters: str) -> Response:
    query = urlencode({name: value for name, value in parameters.items() if value})
    if not query:
        return RedirectResponse(target, status_code=303)
    return RedirectResponse(f"{target}{'&' if '?' in target else '?'}{query}", status_code=303)


def _message(title: str, text: str, *, status: int = 400) -> Response:
    return demo_page("provider_message.html.j2", status=status, title=title, text=text)


async def _protocol_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ProtocolError)
    headers = {"cache-control": "no-store"}
    if error.status == 401:
        headers["www-authenticate"] = 'Basic realm="development provider"'
    return JSONResponse(
        {"error": error.error, "error_description": error.description},
        status_code=error.status,
        headers=headers,
    )
