"""The two ways in which an identity provider fails us.

Transient or operational trouble must never end a session; a refusal by the provider must.
"""

from __future__ import annotations

from gatehouse.common.errors import UnauthenticatedError, UnavailableError


class IdentityProviderError(UnavailableError):
    """The provider is away, overloaded, misbehaving or misconfigured; the user is not to blame.

    `reason` is `identity-provider-unavailable`, `identity-provider-response` (an answer that makes
    no sense) or `identity-provider-misconfigured` (trying again will not help until an operator
    acts). `retry_after_s` is what the provider asked for, if it did.
    """

    default_reason = "identity-provider-unavailable"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        retry_after_s: float | None = None,
        **fields: object,
    ) -> None:
        super().__init__(
            message,
            reason=reason,
            public_message="The identity provider could not complete the request.",
            **fields,
        )
        self.retry_after_s = retry_after_s


class IdentityRefusedError(UnauthenticatedError):
    """The provider, or a check of what it sent, says that this sign-in or session does not hold.

    `reason` is `grant-refused`, `access-refused`, `subject-changed`, `id-token-refused` or
    `logout-token-refused`.
    `ends_session` tells a background refresh whether an existing session must go: false where
    only an ID token failed its checks, which on refresh is no proof against the user.
    """

    default_reason = "grant-refused"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        ends_session: bool = True,
        **fields: object,
    ) -> None:
        super().__init__(
            message,
            reason=reason,
            public_message="The identity provider did not confirm the sign-in.",
            **fields,
        )
        self.ends_session = ends_session


RESPONSE = "identity-provider-response"
MISCONFIGURED = "identity-provider-misconfigured"
GRANT_REFUSED = "grant-refused"
ACCESS_REFUSED = "access-refused"
SUBJECT_CHANGED = "subject-changed"
ID_TOKEN_REFUSED = "id-token-refused"  # noqa: S105 - a reason, not a secret
LOGOUT_TOKEN_REFUSED = "logout-token-refused"  # noqa: S105 - likewise
