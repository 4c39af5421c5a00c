"""Whether a callback comes to the browser that asked for the sign-in.

A callback URL carries a session. Without a tie to the browser, anyone could make a victim's browser
follow a callback URL of their own and work in the attacker's session (session fixation). So the
route host gives the browser a nonce before the sign-in, only a digest of the nonce travels through
the signed URLs, and the callback is honoured only where cookie and digest agree.

The cookie's `__Host-` prefix keeps out one that another host of the same domain has planted: the
attacker knows the nonce of their own sign-in, and a plain cookie for the whole domain would carry
it into the victim's browser (RFC 6265bis section 4.1.3.2). The prefix demands the path `/`, so the
cookie comes along with every request, and one serves all sign-ins of the browser: a page whose
fifty images are all sent to sign in leaves one cookie, not fifty. Each sign-in has a digest of its
own all the same, by a salt; the callback burns the digest.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from gatehouse.common.clock import Rng
from gatehouse.common.jose.compact import base64url_encode
from gatehouse.common.session.cookies import bare_name, cookie_values, set_cookie

MAX_AGE_S: Final = 3600
"""Lifetime of the binding cookie: as long as the slowest sign-in may take."""

_SALT_BYTES: Final = 16
_DIGEST: Final = re.compile(r"[0-9a-f]{96}")
_NONCE: Final = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class LoginBinding:
    """A nonce for the browser's cookie and a digest of it for the signed URLs of one sign-in."""

    nonce: str = field(repr=False)  # 32 random bytes, base64url
    digest: str  # hex: a salt, then the HMAC-SHA256 of the salt's text under the nonce


def new_login_binding(rng: Rng, nonce: str | None = None) -> LoginBinding:
    """Bind a sign-in that begins now to the browser that holds `nonce`; None: it holds none yet."""
    held = base64url_encode(rng.token_bytes(32)) if nonce is None else nonce
    salt = rng.token_bytes(_SALT_BYTES).hex()
    return LoginBinding(nonce=held, digest=salt + _proof(held, salt))


def cookie_name(base: str) -> str:
    """Name of the binding cookie, where `base` is the session cookie's."""
    return f"__Host-{bare_name(base)}_login_binding"


def binding_cookie(base: str, binding: LoginBinding) -> str:
    """Set-Cookie that gives the browser the nonce, or lengthens its life."""
    return set_cookie(
        cookie_name(base),
        binding.nonce,
        path="/",
        max_age_s=MAX_AGE_S,
        http_only=True,
        same_site="lax",
    )


def held_nonce(cookie_lines: Sequence[str], base: str) -> str | None:
    """The nonce that the browser holds; None if there is none, a malformed one, or several."""
    values = set(cookie_values(cookie_lines, cookie_name(base)))
    value = values.pop() if len(values) == 1 else ""
    return value if _NONCE.fullmatch(value) else None


def is_digest(text: str) -> bool:
    """Whether `text` has the form of a digest."""
    return _DIGEST.fullmatch(text) is not None


def matches(nonce: str, digest: str) -> bool:
    """True when `digest` was made from `nonce`; takes the same time wherever they differ."""
    if not _NONCE.fullmatch(nonce) or not is_digest(digest):
        return False
    salt, proof = digest[: 2 * _SALT_BYTES], digest[2 * _SALT_BYTES :]
    return hmac.compare_digest(_proof(nonce, salt), proof)


def _proof(nonce: str, salt: str) -> str:
    return hmac.new(nonce.encode("ascii"), salt.encode("ascii"), hashlib.sha256).hexdigest()
