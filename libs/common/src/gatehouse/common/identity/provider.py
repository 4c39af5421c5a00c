"""What the services ask of an identity provider, and which class answers for which type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import httpx

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.identity.errors import IdentityProviderError, IdentityRefusedError
from gatehouse.common.identity.github import GithubProvider
from gatehouse.common.identity.logout_token import LogoutToken
from gatehouse.common.identity.oidc import OidcProvider
from gatehouse.common.identity.tokens import Identity, IdToken, OAuthTokens, RefreshedIdentity
from gatehouse.common.identity.variants import variant_of

if TYPE_CHECKING:
    from gatehouse.common.config.resolved import IdentityProviderSettings

__all__ = [
    "IdToken",
    "Identity",
    "IdentityProviderError",
    "IdentityRefusedError",
    "LogoutToken",
    "OAuthTokens",
    "Provider",
    "RefreshedIdentity",
    "make_provider",
]


class Provider(Protocol):
    """One configured identity provider.

    Every call may raise IdentityProviderError (try again later; no fault of the user's) and, where
    it says so, IdentityRefusedError. Each HTTP request ends within 10 s. Safe for concurrent use
    within one event loop.
    """

    @property
    def id(self) -> str:
        """The idp id that binds sessions to this configuration."""
        ...

    @property
    def has_fixed_return(self) -> bool:
        """Whether its sign-out page leads back to the signed-out page and nowhere else."""
        ...

    async def authorization_url(
        self, *, redirect_uri: str, state: str, nonce: str, code_challenge: str | None
    ) -> str:
        """Where to send the browser. `code_challenge` is S256; None leaves PKCE out."""
        ...

    async def exchange(
        self,
        *,
        code: str,
        redirect_uri: str,
        code_verifier: str | None,
        nonce: str | None,
        user_hint: str = "",
    ) -> Identity:
        """Redeem an authorization code, verify the ID token, ask userinfo. May refuse.

        `user_hint` is the `user` field of the callback, unsigned, as one provider sends it.
        """
        ...

    async def refresh(self, refresh_token: str, *, subject: str) -> RefreshedIdentity:
        """New tokens and claims for the user whose ID token's `sub` is `subject`. May refuse."""
        ...

    async def userinfo(self, access_token: str, *, subject: str) -> dict[str, Any]:
        """Userinfo claims as sent, `sub` checked; empty without a userinfo endpoint. May refuse."""
        ...

    async def verify_identity_token(self, raw: str) -> dict[str, Any]:
        """Claims of an ID token that a program presents as its own credential. May refuse."""
        ...

    async def verify_access_token(self, raw: str) -> dict[str, Any]:
        """Claims of an access token: userinfo's, and the token's own where it verifies. May refuse.

        No audience is checked: `aud` is among the claims when the provider vouches for one.
        """
        ...

    async def revoke(self, *, access_token: str, refresh_token: str) -> bool:
        """Revoke the refresh token, then the access token; False without such an endpoint."""
        ...

    async def verify_logout_token(self, raw: str) -> LogoutToken:
        """What a logout token of OIDC Back-Channel Logout asks for. May refuse."""
        ...

    async def end_session_url(
        self, *, id_token_hint: str, post_logout_redirect_uri: str
    ) -> str | None:
        """Where to send the browser to sign out at the provider; None if it has no such page."""
        ...


def make_provider(
    settings: IdentityProviderSettings, http: httpx.AsyncClient, clock: Clock, rng: Rng
) -> Provider:
    """The client of one configured provider; makes no request yet.

    The caller owns `http`: its TLS roots, pool limits and closing. Raises IdentityProviderError
    with reason `identity-provider-misconfigured` for an unknown type or an unusable URL.
    """
    if settings.type == "github":
        return GithubProvider(settings, http, clock)
    return OidcProvider(settings, variant_of(settings.type), http, clock, rng)
