"""Whether a token's time claims hold at a given moment (RFC 7519 section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gatehouse.common.errors import InvalidTokenError

_LAST_SECOND: Final = 253_402_300_799  # 9999-12-31T23:59:59Z


def numeric_date(claims: Mapping[str, Any], name: str) -> int | float | None:
    """A NumericDate claim in Unix seconds, or None when absent.

    Raises InvalidTokenError for anything else than a number from 0 to the year 9999.
    """
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidTokenError(f"token claim {name} is not a number", reason="token-times")
    if not 0 <= value <= _LAST_SECOND:
        raise InvalidTokenError(f"token claim {name} is out of range", reason="token-times")
    return value


def check_times(
    claims: Mapping[str, Any],
    *,
    now_s: float,
    exp_leeway_s: float = 0,
    nbf_leeway_s: float = 0,
    require_exp: bool = True,
) -> None:
    """Refuse expired, not yet valid and future-dated tokens (InvalidTokenError).

    `iat` is optional; if present it may be ahead of `now_s` by no more than `nbf_leeway_s`.
    """
    expires_at = numeric_date(claims, "exp")
    if expires_at is None:
        if require_exp:
            raise InvalidTokenError("token has no exp", reason="token-times")
    elif now_s >= expires_at + exp_leeway_s:
        raise InvalidTokenError("token is expired", reason="token-expired")
    for name in ("nbf", "iat"):
        moment = numeric_date(claims, name)
        if moment is not None and now_s < moment - nbf_leeway_s:
            raise InvalidTokenError(f"token {name} is in the future", reason="token-not-yet-valid")
