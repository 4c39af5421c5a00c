"""Answers what the development identity provider has granted: codes, tokens, and their end.

Rules without I/O: RFC 6749 (codes, refresh), RFC 7636 (PKCE, S256 only), RFC 7009 (revocation) and
the replay rules of RFC 9700: a code or refresh token used twice ends everything granted from it.
All stores are bounded; the oldest entries make room.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from gatehouse.common.clock import Clock, Rng

V = TypeVar("V")

PENDING_TTL_S: Final = 900.0
CODE_TTL_S: Final = 60.0
_STORE_LIMIT: Final = 1000
_CHALLENGE: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_VERIFIER: Final = re.compile(r"[A-Za-z0-9._~-]{43,128}")


@dataclass(frozen=True, slots=True)
class SampleUser:
    """Somebody to sign in as."""

    subject: str
    email: str
    name: str
    groups: tuple[str, ...]
    about: str  # one line for the page


@dataclass(frozen=True, slots=True)
class Client:
    """A relying party. URIs are compared as whole strings."""

    id: str
    secret: str = field(repr=False)
    redirect_uris: frozenset[str]
    post_logout_redirect_uris: frozenset[str]


@dataclass(frozen=True, slots=True)
class AuthorizationRequest:
    """A checked authorization request that waits for a person's choice."""

    client_id: str
    redirect_uri: str
    state: str
    nonce: str
    scopes: frozenset[str]
    code_challenge: str


@dataclass(slots=True)
class Grant:
    """One sign-in of one person at one client; what its tokens live and die with."""

    id: str
    request: AuthorizationRequest
    user: SampleUser
    authenticated_at: int
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a token response carries besides the ID token."""

    grant: Grant
    access_token: str
    expires_in_s: int
    refresh_token: str | None


class ProtocolError(Exception):
    """An OAuth error response: `error` is a registered code, `description` is for developers."""

    def __init__(self, error: str, description: str, *, status: int = 400) -> None:
        super().__init__(f"{error}: {description}")
        self.error = error
        self.description = description
        self.status = status


class Bounded(Generic[V]):
    """A mapping with a size limit and an age limit."""

    def __init__(self, clock: Clock, *, ttl_s: float, limit: int = _STORE_LIMIT) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._limit = limit
        self._values: OrderedDict[str, tuple[float, V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def put(self, key: str, value: V) -> None:
        """Store; the oldest goes when there is no room."""
        self._values[key] = (self._clock.monotonic_s() + self._ttl_s, value)
        self._values.move_to_end(key)
        while len(self._values) > self._limit:
            self._values.popitem(last=False)

    def get(self, key: str) -> V | None:
        """Return the value unless it is too old."""
        found = self._values.get(key)
        if found is None or found[0] <= self._clock.monotonic_s():
            return None
        return found[1]

    def pop(self, key: str) -> V | None:
        """Take the value out."""
        value = self.get(key)
        self._values.pop(key, None)
        return value


@dataclass(slots=True)
class _Code:
    grant: Grant
    used: bool = False


@dataclass(slots=True)
class _Refresh:
    grant: Grant
    used: bool = False


class Grants:
    """Everything granted and still good."""

    def __init__(
        self,
        clock: Clock,
        rng: Rng,
        *,
        access_token_ttl_s: int = 3600,
        refresh_token_ttl_s: int = 14 * 24 * 3600,
    ) -> None:
        self._clock = clock
        self._rng = rng
        self._access_token_ttl_s = access_token_ttl_s
        self._pending: Bounded[AuthorizationRequest] = Bounded(clock, ttl_s=PENDING_TTL_S)
        # Used codes stay until their time is over, so that a replay is known for what it is.
        self._codes: Bounded[_Code] = Bounded(clock, ttl_s=CODE_TTL_S)
        self._access: Bounded[Grant] = Bounded(clock, ttl_s=access_token_ttl_s)
        self._refresh: Bounded[_Refresh] = Bounded(clock, ttl_s=refresh_token_ttl_s)
        self._grants: Bounded[Grant] = Bounded(clock, ttl_s=refresh_token_ttl_s)

    def remember(self, request: AuthorizationRequest) -> str:
        """Keep a checked request while the person chooses; returns the key for the form."""
        key = self._token()
        self._pending.put(key, request)
        return key

    def take(self, key: str) -> AuthorizationRequest | None:
        """Return a remembered request, once."""
        return self._pending.pop(key)

    def issue_code(self, request: AuthorizationRequest, user: SampleUser) -> str:
        """Grant the sign-in and return its code."""
        grant = Grant(self._token(), request, user, int(self._clock.now_s()))
        self._grants.put(grant.id, grant)
        code = self._token()
        self._codes.put(code, _Code(grant))
        return code

    def redeem_code(
        self, client: Client, *, code: str, redirect_uri: str, code_verifier: str
    ) -> Tokens:
        """Exchange a code. Raises ProtocolError invalid_grant for whatever does not fit."""
        found = self._codes.get(code)
        if found is None or found.grant.request.client_id != client.id:
            raise ProtocolError("invalid_grant", "the code is unknown, expired or not yours")
        if found.used:
            self.end(found.grant.id)
            raise ProtocolError("invalid_grant", "the code was used before; its tokens are revoked")
        found.used = True  # also when what follows fails: one try
        request = found.grant.request
        if redirect_uri != request.redirect_uri:
            raise ProtocolError("invalid_grant", "redirect_uri is not that of the request")
        if not verifies(request.code_challenge, code_verifier):
            raise ProtocolError("invalid_grant", "code_verifier does not fit code_challenge")
        return self._tokens(found.grant)

    def refresh(self, client: Client, refresh_token: str) -> Tokens:
        """Exchange a refresh token for new tokens; the old one is good no more."""
        found = self._refresh.get(refresh_token)
        if found is None or found.grant.request.client_id != client.id or found.grant.ended:
            raise ProtocolError("invalid_grant", "the refresh token is unknown, expired or revoked")
        if found.used:
            self.end(found.grant.id)
            raise ProtocolError(
                "invalid_grant", "the refresh token was used before; its successors are revoked"
            )
        found.used = True
        return self._tokens(found.grant)

    def user_of(self, access_token: str) -> Grant | None:
        """Return the grant of a good access token."""
        grant = self._access.get(access_token)
        return None if grant is None or grant.ended else grant

    def revoke(self, client: Client, token: str) -> None:
        """Revoke a token of the client's; a refresh token takes the whole grant with it."""
        refresh = self._refresh.get(token)
        if refresh is not None and refresh.grant.request.client_id == client.id:
            self.end(refresh.grant.id)
        access = self._access.get(token)
        if access is not None and access.request.client_id == client.id:
            self._access.pop(token)

    def end(self, grant_id: str) -> None:
        """End a grant and with it every token made from it."""
        grant = self._grants.get(grant_id)
        if grant is not None:
            grant.ended = True

    def _tokens(self, grant: Grant) -> Tokens:
        if grant.ended:
            raise ProtocolError("invalid_grant", "the sign-in was ended")
        access_token = self._token()
        self._access.put(access_token, grant)
        refresh_token = None
        if "offline_access" in grant.request.scopes:
            refresh_token = self._token()
            self._refresh.put(refresh_token, _Refresh(grant))
        return Tokens(grant, access_token, self._access_token_ttl_s, refresh_token)

    def _token(self) -> str:
        return base64.urlsafe_b64encode(self._rng.token_bytes(32)).rstrip(b"=").decode()


def verifies(code_challenge: str, code_verifier: str) -> bool:
    """Tell whether the S256 challenge was made from the verifier (RFC 7636 section 4.6)."""
    if _VERIFIER.fullmatch(code_verifier) is None:
        return False
    digest = hashlib.sha256(code_verifier.encode()).digest()
    made = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    return hmac.compare_digest(made, code_challenge)


def checked_request(
    client: Client, parameters: Mapping[str, str], repeated: frozenset[str] = frozenset()
) -> AuthorizationRequest:
    """Check an authorization request of a known client with a registered redirect URI.

    `repeated`: names given more than once. Raises ProtocolError; the error may be sent to the
    redirect URI.
    """
    if repeated:
        raise ProtocolError("invalid_request", f"{min(repeated)} is given twice")
    if "request" in parameters or "request_uri" in parameters:
        raise ProtocolError("request_not_supported", "request objects are not supported")
    if parameters.get("response_type") != "code":
        raise ProtocolError("unsupported_response_type", "response_type must be code")
    if parameters.get("response_mode", "query") != "query":
        raise ProtocolError("invalid_request", "response_mode must be query")
    scopes = frozenset(parameters.get("scope", "").split())
    if "openid" not in scopes:
        raise ProtocolError("invalid_scope", "scope must hold openid")
    if parameters.get("code_challenge_method") != "S256":
        raise ProtocolError(
            "invalid_request", "PKCE is required: code_challenge_method must be S256"
        )
    challenge = parameters.get("code_challenge", "")
    if _CHALLENGE.fullmatch(challenge) is None:
        raise ProtocolError("invalid_request", "code_challenge must be 43 base64url characters")
    if parameters.get("prompt") == "none":
        raise ProtocolError("login_required", "nobody stays signed in at this provider")
    return AuthorizationRequest(
        client_id=client.id,
        redirect_uri=parameters["redirect_uri"],
        state=parameters.get("state", ""),
        nonce=parameters.get("nonce", ""),
        scopes=scopes,
        code_challenge=challenge,
    )
