"""Whether a session record is still good at a given moment."""

from __future__ import annotations

from typing import Final

from gatehouse.pb.session_pb2 import Session

# Times before 1971 are unset: protobuf's zero, and the year 1 that other software writes.
_FIRST_REAL_SECOND: Final = 31_536_000

EXPIRED: Final = "session-expired"
TOKEN_EXPIRED: Final = "oauth-token-expired"  # noqa: S105 - a reason, not a secret


def session_problem(
    expires_at_s: float | None,
    token_expires_at_s: float | None,
    refreshable: bool,
    now_s: float,
) -> str | None:
    """Why the session may not be used, as a stable token, or None if it may. No leeway.

    `refreshable` means that refresh is on for the session and a refresh token is there: then the
    age of its OAuth token does not matter.
    """
    if _is_past(expires_at_s, now_s):
        return EXPIRED
    if not refreshable and _is_past(token_expires_at_s, now_s):
        return TOKEN_EXPIRED
    return None


def record_problem(session: Session, now_s: float) -> str | None:
    """`session_problem` of a session record."""
    token = session.oauth_token
    has_token_expiry = session.HasField("oauth_token") and token.HasField("expires_at")
    return session_problem(
        _end_s(session),
        float(token.expires_at.seconds) if has_token_expiry else None,
        bool(token.refresh_token) and not session.refresh_disabled,
        now_s,
    )


def has_expired(session: Session, now_s: float) -> bool:
    """Whether a session has ended by its own time; those that stand for it need no tokens of it."""
    return _is_past(_end_s(session), now_s)


def _end_s(session: Session) -> float | None:
    return float(session.expires_at.seconds) if session.HasField("expires_at") else None


def _is_past(moment_s: float | None, now_s: float) -> bool:
    return moment_s is not None and moment_s >= _FIRST_REAL_SECOND and moment_s <= now_s
