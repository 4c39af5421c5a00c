"""Whether a logout token proves that a provider ended a session (OIDC Back-Channel Logout 1.0)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gatehouse.common.errors import InvalidTokenError
from gatehouse.common.identity.id_token import NBF_LEEWAY_S, has_audience, is_subject
from gatehouse.common.jose.times import check_times, numeric_date

EVENT: Final = "http://schemas.openid.net/event/backchannel-logout"
TOKEN_TYPES: Final = ("JWT", "LOGOUT+JWT", "APPLICATION/LOGOUT+JWT")
MAX_AGE_S: Final = 600.0
"""From `iat`: how long a provider may try to deliver one, and how long ids must be remembered."""
EXP_LEEWAY_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class LogoutToken:
    """A verified logout token: end this session of the provider's, or all of this subject."""

    issuer: str
    token_id: str  # jti; a token works once
    subject: str  # "" when only a session is named
    session_id: str  # sid; "" when all of the subject's sessions are meant


def read_logout_claims(
    claims: Mapping[str, Any],
    *,
    client_id: str,
    is_issuer: Callable[[str, Mapping[str, Any]], bool],
    now_s: float,
) -> LogoutToken:
    """Check every claim rule of section 2.6; the signature is taken as verified.

    Raises InvalidTokenError.
    """
    issuer = claims.get("iss")
    if not isinstance(issuer, str) or not is_issuer(issuer, claims):
        raise _refused("has another issuer", "token-issuer")
    if not has_audience(claims, client_id):
        raise _refused("is for another audience", "token-audience")
    _check_events(claims.get("events"))
    if "nonce" in claims:  # what an ID token has, and a logout token must not
        raise _refused("has a nonce", "token-nonce")
    issued_at = numeric_date(claims, "iat")
    if issued_at is None:
        raise _refused("has no iat", "token-times")
    # Some providers leave exp out: the age limit stands in for it.
    check_times(
        claims,
        now_s=now_s,
        exp_leeway_s=EXP_LEEWAY_S,
        nbf_leeway_s=NBF_LEEWAY_S,
        require_exp=False,
    )
    if now_s - issued_at > MAX_AGE_S:
        raise _refused(f"is older than {MAX_AGE_S:g} s", "token-expired")
    token_id = claims.get("jti")
    if not isinstance(token_id, str) or not is_subject(token_id):
        raise _refused("has no usable jti", "token-id")
    subject, session_id = _name(claims, "sub"), _name(claims, "sid")
    if not subject and not session_id:
        raise _refused("names neither sub nor sid", "token-subject")
    return LogoutToken(issuer, token_id, subject, session_id)


def _check_events(events: object) -> None:
    if not isinstance(events, dict) or not isinstance(events.get(EVENT), dict):
        raise _refused("is about another event", "token-event")


def _name(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or not is_subject(value):
        raise _refused(f"has an unusable {name}", "token-subject")
    return value


def _refused(what: str, reason: str) -> InvalidTokenError:
    return InvalidTokenError(f"logout token {what}", reason=reason)
