"""Whether a signed sign-out link was made for the session it is used on.

Anybody can have a sign-out link signed: no session is needed to ask for one. Followed by somebody
else's browser it must not end that person's session without a question (security R34). So a link
carries the digest of the session it was made for, and any other session is asked first.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

_CONTEXT: Final = b"gatehouse sign-out\x00"


def sign_out_digest(session_id: str) -> str:
    """What a link for this session carries; says nothing about the id."""
    return hashlib.sha256(_CONTEXT + session_id.encode()).hexdigest()


def is_meant(digest: str, session_id: str) -> bool:
    """True when a link with this digest was made for this session."""
    return hmac.compare_digest(digest.encode(), sign_out_digest(session_id).encode())
