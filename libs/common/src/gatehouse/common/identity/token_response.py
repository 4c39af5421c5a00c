"""What a provider's answer to a token request means (RFC 6749 section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote_plus

from gatehouse.common.identity.errors import (
    GRANT_REFUSED,
    MISCONFIGURED,
    RESPONSE,
    IdentityProviderError,
    IdentityRefusedError,
)
from gatehouse.common.identity.tokens import OAuthTokens
from gatehouse.common.identity.transport import ProviderResponse

MAX_TOKEN_LENGTH: Final = 64 * 1024
MAX_EXPIRES_IN_S: Final = 10.0 * 366 * 86400

# Refusals of the grant itself (RFC 6749 section 5.2, RFC 6750 section 3.1). Other error codes speak
# of us or of the provider's state, and must not cost anyone their session.
_GRANT_ERRORS: Final = frozenset(
    {"invalid_grant", "invalid_token", "unauthorized_client"}
    # GitHub's own names for a code that does not hold, and for a person it does not vouch for
    | {"bad_verification_code", "bad_refresh_token", "unverified_user_email"}
)
_TRANSIENT_ERRORS: Final = frozenset({"temporarily_unavailable", "server_error", "slow_down"})


def parse_tokens(
    answer: Mapping[str, Any], *, now_s: float, previous_refresh_token: str = ""
) -> OAuthTokens:
    """The tokens of a successful response. Raises IdentityProviderError for a nonsensical one."""
    access_token = _token(answer, "access_token")
    if not access_token:
        raise IdentityProviderError("token response has no access token", reason=RESPONSE)
    token_type = answer.get("token_type", "Bearer")
    if not isinstance(token_type, str) or token_type.lower() != "bearer":
        raise IdentityProviderError(
            "token response has a token_type other than Bearer", reason=RESPONSE
        )
    lifetime_s = _expires_in_s(answer.get("expires_in"))
    return OAuthTokens(
        access_token=access_token,
        token_type="Bearer",  # noqa: S106 - the scheme's name
        refresh_token=_token(answer, "refresh_token") or previous_refresh_token,
        expires_at_s=None if lifetime_s is None else now_s + lifetime_s,
    )


def failure(name: str, response: ProviderResponse) -> IdentityProviderError | IdentityRefusedError:
    """The error that a failed request to the endpoint `name` amounts to."""
    error = _oauth_error(response)
    message = f"{name} answered {response.status}" + (f" {error}" if error else "")
    if response.status == 429 or response.status >= 500 or error in _TRANSIENT_ERRORS:
        return IdentityProviderError(message, retry_after_s=response.retry_after_s)
    if error in _GRANT_ERRORS:
        return IdentityRefusedError(message, reason=GRANT_REFUSED, oauth_error=error)
    return IdentityProviderError(message, reason=MISCONFIGURED if error else RESPONSE)


def is_grant_refusal(response: ProviderResponse) -> bool:
    """True when the provider knew us, and refused what we presented."""
    return _oauth_error(response) == "invalid_grant"


def is_unrevocable(response: ProviderResponse) -> bool:
    """True when the provider does not revoke that kind of token (RFC 7009 section 2.2.1)."""
    return response.status == 400 and _oauth_error(response) == "unsupported_token_type"


def add_form(form: str, fields: Mapping[str, str]) -> str:
    """`form` with `fields` appended, form-encoded."""
    pairs = [f"{quote_plus(name)}={quote_plus(value)}" for name, value in fields.items()]
    return "&".join(([form] if form else []) + pairs)


def _token(answer: Mapping[str, Any], name: str) -> str:
    value = answer.get(name) or ""
    if (
        not isinstance(value, str)
        or len(value) > MAX_TOKEN_LENGTH
        or not (value.isascii() and value.isprintable())
        or " " in value
    ):
        raise IdentityProviderError(f"token response has an unusable {name}", reason=RESPONSE)
    return value


def _expires_in_s(value: object) -> float | None:
    if isinstance(value, str) and value.isascii() and value.isdigit():  # some send text
        value = int(value[:12])
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return None
    return float(min(value, MAX_EXPIRES_IN_S))


def _oauth_error(response: ProviderResponse) -> str:
    """The error code of an OAuth error response, or ""."""
    try:
        error = response.json("error response").get("error")
    except IdentityProviderError:
        return ""
    if not isinstance(error, str) or len(error) > 64 or not error.isprintable():
        return ""
    return error
