"""What a sign-in or a refresh at an identity provider yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from gatehouse.common.errors import GatehouseError
from gatehouse.common.identity.claims import (
    REFRESH_FILTERED,
    TOKEN_CLAIMS,
    FlatClaims,
    display_name,
    email_address,
    flatten_claims,
    without,
)


@dataclass(frozen=True, slots=True)
class OAuthTokens:
    """Tokens of a token response (RFC 6749 section 5.1)."""

    access_token: str = field(repr=False)
    token_type: str
    refresh_token: str = field(repr=False)  # "" when there is none
    expires_at_s: float | None  # Unix time; None when the provider does not say


@dataclass(frozen=True, slots=True)
class IdToken:
    """A verified ID token."""

    raw: str = field(repr=False)
    issuer: str
    subject: str
    expires_at_s: float  # Unix time
    issued_at_s: float  # Unix time


@dataclass(frozen=True, slots=True)
class Identity:
    """Who signed in. `claims` are for the session record, `user_claims` for the user record.

    None of the claims means anything to Gatehouse itself: `jti`, `idp_id` and the like are data.
    """

    user_id: str  # oid, else sub, of the ID token
    subject: str  # sub of the ID token, or what stands for one
    name: str
    email: str  # "" unless it is one plain address
    claims: FlatClaims
    user_claims: FlatClaims  # the same without claims about the token
    id_token: IdToken | None  # None: the provider has none (GitHub)
    tokens: OAuthTokens


@dataclass(frozen=True, slots=True)
class RefreshedIdentity:
    """What a refresh brought.

    The tokens must be stored in any case: the provider may have burned the old refresh token.
    With a `problem` the rest is incomplete and must not replace what is known already.
    """

    tokens: OAuthTokens  # the refresh token is the new one, or the old one if none came
    id_token: IdToken | None  # None: the provider returned none, or none that verifies
    name: str
    email: str
    claims: FlatClaims  # without iss, sub, exp and iat
    user_claims: FlatClaims
    problem: GatehouseError | None = None  # why claims could not be had; never a refusal

    @classmethod
    def told(cls, tokens: OAuthTokens, id_token: IdToken | None, claims: Mapping[str, Any]) -> Self:
        """Tokens, and the claims that came with them or were asked for."""
        return cls(
            tokens=tokens,
            id_token=id_token,
            name=display_name(claims),
            email=email_address(claims),
            claims=flatten_claims(without(claims, REFRESH_FILTERED)),
            user_claims=flatten_claims(without(claims, TOKEN_CLAIMS)),
        )

    @classmethod
    def untold(cls, tokens: OAuthTokens, problem: GatehouseError) -> Self:
        """Tokens alone."""
        return cls(tokens, None, "", "", {}, {}, problem=problem)
