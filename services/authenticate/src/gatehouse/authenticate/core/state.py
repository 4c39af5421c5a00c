"""What travels through the browser while it is away at the identity provider.

- `state`: the essentials of the sign-in, sealed with the cookie secret. It names the CSRF token by
  its hash, so it is of use only in the browser that holds the CSRF cookie.
- the CSRF cookie: host-only, reused by later sign-ins of the same browser.
- the PKCE cookie: one for each state, so that sign-ins in parallel share nothing (security R33).
- the return cookie: where a sign-out ends, for providers that know one return address only.

Times are Unix seconds. Everything that does not open raises InvalidTokenError.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import xxhash

from gatehouse.common.clock import Rng
from gatehouse.common.errors import InvalidTokenError
from gatehouse.common.jose.aead import open_sealed, seal
from gatehouse.common.session.cookies import bare_name

CLOCK_LEEWAY_S: Final = 60.0  # another replica's clock may be ahead
CSRF_LIFETIME_S: Final = 12 * 3600.0
RETURN_LIFETIME_S: Final = 5 * 60.0

_STATE_AD: Final = b"gatehouse sign-in state 1"
_NONCE_BYTES: Final = 24
_SIZE_LIMIT: Final = 32 * 1024
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class SignInRequest:
    """What a sign-in is for. Every field was checked before it got here."""

    redirect_uri: str  # where the person wants to be in the end
    idp_id: str
    callback_uri: str = ""  # empty: the callback path on the redirect's host
    programmatic: bool = False
    additional_hosts: str = ""  # comma list
    login_digest: str = ""  # binds the callback to the browser that asked
    traceparent: str = ""
    tracestate: str = ""
    dashboard: bool = False  # redirect_uri is authenticate's own user-info page


@dataclass(frozen=True, slots=True)
class OpenedState:
    """A state of ours; whether it is still young enough is `is_current`'s to say."""

    request: SignInRequest
    csrf_digest: str
    issued_at_s: float

    def is_current(self, now_s: float, limit_s: float) -> bool:
        """True while the round trip is within its limit."""
        return -CLOCK_LEEWAY_S <= now_s - self.issued_at_s <= limit_s


@dataclass(frozen=True, slots=True)
class Pkce:
    """A code verifier with what is derived from it (RFC 7636; the nonce is OIDC Core 3.1.2.1)."""

    verifier: str
    is_on: bool = True  # else the verifier stays here, and only makes the nonce

    @property
    def challenge(self) -> str | None:
        """S256 of the verifier, for the authorization request."""
        return _digest(self.verifier) if self.is_on else None

    @property
    def proof(self) -> str | None:
        """What the token endpoint is shown; as the request was, whatever was set meanwhile."""
        return self.verifier if self.is_on else None

    @property
    def nonce(self) -> str:
        """Ties the ID token to this browser's verifier without showing it."""
        return _digest(f"nonce {self.verifier}")


def new_pkce(rng: Rng, *, is_on: bool = True) -> Pkce:
    """A fresh 43-character verifier."""
    return Pkce(_encode(rng.token_bytes(32)), is_on)


def seal_state(
    request: SignInRequest, *, csrf_token: str, key: bytes, now_s: float, rng: Rng
) -> str:
    """The `state` parameter for a sign-in that begins now."""
    content: dict[str, Any] = {
        "v": _VERSION,
        "t": int(now_s),
        "c": _digest(csrf_token),
        "r": request.redirect_uri,
        "i": request.idp_id,
    }
    optional: dict[str, str | bool] = {
        "u": request.callback_uri,
        "p": request.programmatic,
        "h": request.additional_hosts,
        "l": request.login_digest,
        "tp": request.traceparent,
        "ts": request.tracestate,
        "d": request.dashboard,
    }
    content.update({name: value for name, value in optional.items() if value})
    return _seal(content, key=key, rng=rng, ad=_STATE_AD)


def open_state(text: str, *, keys: Sequence[bytes]) -> OpenedState:
    """The reverse of `seal_state`. Raises InvalidTokenError for anything not sealed by us."""
    content = _open(text, keys=keys, ad=_STATE_AD, what="state")
    if content.get("v") != _VERSION:
        raise InvalidTokenError("state: of another version")
    request = SignInRequest(
        redirect_uri=_text(content, "r"),
        idp_id=_text(content, "i"),
        callback_uri=_text(content, "u"),
        programmatic=content.get("p") is True,
        additional_hosts=_text(content, "h"),
        login_digest=_text(content, "l"),
        traceparent=_text(content, "tp"),
        tracestate=_text(content, "ts"),
        dashboard=content.get("d") is True,
    )
    return OpenedState(request, _text(content, "c"), _number(content, "t"))


def matches_csrf(state: OpenedState, csrf_token: str) -> bool:
    """True when the browser holds the CSRF token the state was made for; constant time."""
    return hmac.compare_digest(state.csrf_digest.encode(), _digest(csrf_token).encode())


def csrf_cookie_name(base: str) -> str:
    """Host-only by its prefix: no sibling domain can plant one (RFC 6265bis section 4.1.3)."""
    return f"__Host-{bare_name(base)}_csrf"


def new_csrf_token(rng: Rng) -> str:
    """A fresh CSRF token."""
    return _encode(rng.token_bytes(32))


def seal_csrf(token: str, *, name: str, key: bytes, now_s: float, rng: Rng) -> str:
    """The CSRF cookie's value."""
    return _seal({"k": token, "t": int(now_s)}, key=key, rng=rng, ad=name.encode())


def open_csrf(value: str, *, name: str, keys: Sequence[bytes], now_s: float) -> str:
    """The token in a CSRF cookie. Raises InvalidTokenError if forged or older than 12 h."""
    content = _open(value, keys=keys, ad=name.encode(), what="CSRF cookie")
    age_s = now_s - _number(content, "t")
    if not -CLOCK_LEEWAY_S <= age_s <= CSRF_LIFETIME_S:
        raise InvalidTokenError("CSRF cookie: too old")
    token = _text(content, "k")
    if not token:
        raise InvalidTokenError("CSRF cookie: empty")
    return token


def pkce_cookie_name(base: str, state: str) -> str:
    """Each state has a cookie of its own."""
    return f"{bare_name(base)}_pkce_{xxhash.xxh3_64_intdigest(state.encode())}"


def seal_pkce(pkce: Pkce, *, name: str, key: bytes, now_s: float, rng: Rng) -> str:
    """The PKCE cookie's value."""
    content: dict[str, Any] = {"v": pkce.verifier, "iat": int(now_s)}
    if not pkce.is_on:
        content["off"] = True
    return _seal(content, key=key, rng=rng, ad=name.encode())


def open_pkce(
    value: str, *, name: str, keys: Sequence[bytes], now_s: float, limit_s: float
) -> Pkce:
    """The verifier in a PKCE cookie. Raises InvalidTokenError if forged or past the limit."""
    content = _open(value, keys=keys, ad=name.encode(), what="PKCE cookie")
    age_s = now_s - _number(content, "iat")
    if not -CLOCK_LEEWAY_S <= age_s <= limit_s:
        raise InvalidTokenError("PKCE cookie: too old")
    verifier = _text(content, "v")
    if not verifier:
        raise InvalidTokenError("PKCE cookie: empty")
    return Pkce(verifier, is_on=content.get("off") is not True)


def return_cookie_name(base: str) -> str:
    """Keeps where a sign-out is to end while the provider signs the person out."""
    return f"{bare_name(base)}_signed_out_redirect_uri"


def origin_cookie_name(base: str) -> str:
    """Keeps which page somebody came from to the page about their session."""
    return f"{bare_name(base)}_dashboard_redirect_uri"


def seal_return(target: str, *, name: str, key: bytes, now_s: float, rng: Rng) -> str:
    """The return cookie's value."""
    return _seal({"r": target, "t": int(now_s)}, key=key, rng=rng, ad=name.encode())


def open_return(value: str, *, name: str, keys: Sequence[bytes], now_s: float) -> str:
    """The target in a return cookie. Raises InvalidTokenError if forged or older than 5 min."""
    content = _open(value, keys=keys, ad=name.encode(), what="return cookie")
    age_s = now_s - _number(content, "t")
    if not -CLOCK_LEEWAY_S <= age_s <= RETURN_LIFETIME_S:
        raise InvalidTokenError("return cookie: too old")
    return _text(content, "r")


def _digest(text: str) -> str:
    return _encode(hashlib.sha256(text.encode()).digest())


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _seal(content: Mapping[str, Any], *, key: bytes, rng: Rng, ad: bytes) -> str:
    plaintext = json.dumps(content, separators=(",", ":")).encode()
    return _encode(seal(key, plaintext, nonce=rng.token_bytes(_NONCE_BYTES), ad=ad))


def _open(text: str, *, keys: Sequence[bytes], ad: bytes, what: str) -> dict[str, Any]:
    if not text or len(text) > _SIZE_LIMIT:
        raise InvalidTokenError(f"{what}: missing or too long")
    try:
        sealed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidTokenError(f"{what}: not base64url") from error
    content = json.loads(open_sealed(keys, sealed, ad=ad))
    if not isinstance(content, dict):
        raise InvalidTokenError(f"{what}: unexpected content")
    return content


def _text(content: Mapping[str, Any], name: str) -> str:
    value = content.get(name, "")
    if not isinstance(value, str):
        raise InvalidTokenError("unexpected content")
    return value


def _number(content: Mapping[str, Any], name: str) -> float:
    value = content.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidTokenError("unexpected content")
    return float(value)
