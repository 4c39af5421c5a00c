"""Whether a callback comes to the browser that asked for the sign-in.

A callback URL carries a session. Without a tie to the browser, anyone could make a victim's browser
follow a callback URL of their own and work in the attacker's session (session fixation). So the
route host gives the browser a nonce before the sign-in, only the nonce's digest travels through
the signed URLs, and the callback is honoured only where cookie and digest agree.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import Final

from gatehouse.common.clock import Rng
from gatehouse.common.errors import InvalidTokenError
from gatehouse.common.jose.compact import base64url_encode

MAX_AGE_S: Final = 900
"""Lifetime of the binding cookie."""
COOKIE_PATH: Final = "/.pomerium/callback/"

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NONCE: Final = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class LoginBinding:
    """A nonce for the browser's cookie and its digest for the signed URLs."""

    nonce: str = field(repr=False)  # 32 random bytes, base64url
    digest: str  # hex SHA-256 of the nonce's text


def new_login_binding(rng: Rng) -> LoginBinding:
    """Make a fresh binding; one for each redirect to the sign-in page."""
    nonce = base64url_encode(rng.token_bytes(32))
    return LoginBinding(nonce=nonce, digest=_digest(nonce))


def cookie_name(base: str, digest: str) -> str:
    """Name of the binding cookie: one per sign-in, so that tabs do not disturb each other.

    Raises InvalidTokenError when `digest` is not one.
    """
    if not _DIGEST.fullmatch(digest):
        raise InvalidTokenError("login binding is not a digest", reason="login-binding")
    return f"{base}_login_{digest[:16]}"


def matches(nonce: str, digest: str) -> bool:
    """True when `digest` was made from `nonce`; takes the same time wherever they differ."""
    if not _NONCE.fullmatch(nonce) or not _DIGEST.fullmatch(digest):
        return False
    return hmac.compare_digest(_digest(nonce), digest)


def _digest(nonce: str) -> str:
    return hashlib.sha256(nonce.encode("ascii")).hexdigest()
