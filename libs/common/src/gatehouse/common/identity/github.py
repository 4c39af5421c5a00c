"""The client of GitHub, which speaks OAuth 2.0 and tells about people through its REST API.

There is no discovery and no ID token: who signed in is what the API says of the access token's
owner. https://docs.github.com/en/apps/oauth-apps/building-oauth-apps/authorizing-oauth-apps
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

import httpx
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri

from gatehouse.common.clock import Clock
from gatehouse.common.identity.claims import (
    TOKEN_CLAIMS,
    check_subject,
    display_name,
    email_address,
    flatten_claims,
    without,
)
from gatehouse.common.identity.discovery import check_provider_url
from gatehouse.common.identity.errors import (
    ACCESS_REFUSED,
    LOGOUT_TOKEN_REFUSED,
    MISCONFIGURED,
    RESPONSE,
    IdentityProviderError,
    IdentityRefusedError,
)
from gatehouse.common.identity.id_token import is_subject
from gatehouse.common.identity.token_endpoint import basic, code_form, read_tokens, refresh_form
from gatehouse.common.identity.token_response import add_form, failure, parse_tokens
from gatehouse.common.identity.tokens import Identity, OAuthTokens, RefreshedIdentity
from gatehouse.common.identity.transport import ProviderResponse, ProviderTransport, endpoint_name

if TYPE_CHECKING:
    from gatehouse.common.config.resolved import IdentityProviderSettings
    from gatehouse.common.identity.logout_token import LogoutToken

DEFAULT_URL: Final = "https://github.com"
SCOPES: Final = ("user:email", "read:org")
CLAIMS_LIFETIME_S: Final = 3600

_PUBLIC_API: Final = "https://api.github.com"
_RESIDENT_DOMAIN: Final = ".ghe.com"  # GitHub Enterprise Cloud with data residency
_API_VERSION: Final = "2022-11-28"


def api_url(url: str) -> str:
    """Where the REST API of the GitHub at `url` is: github.com, ghe.com, or a server of one's own.

    https://docs.github.com/en/enterprise-server/rest/quickstart
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if url == DEFAULT_URL:
        return _PUBLIC_API
    if host.endswith(_RESIDENT_DOMAIN):
        return f"{parts.scheme}://api.{parts.netloc}"
    return f"{url}/api/v3"


class GithubProvider:
    """One configured GitHub. See `provider.Provider` for the calls."""

    def __init__(
        self, settings: IdentityProviderSettings, http: httpx.AsyncClient, clock: Clock
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._transport = ProviderTransport(http)
        self._url = (settings.url or DEFAULT_URL).rstrip("/")
        check_provider_url(self._url)
        self._api = api_url(self._url)

    def __repr__(self) -> str:
        return f"GithubProvider({self._settings!r})"

    @property
    def id(self) -> str:
        """The idp id that binds sessions to this configuration."""
        return self._settings.id

    @property
    def has_fixed_return(self) -> bool:
        """There is no sign-out page to return from."""
        return False

    async def authorization_url(
        self, *, redirect_uri: str, state: str, nonce: str, code_challenge: str | None
    ) -> str:
        """Where to send the browser. The nonce has no place: there is no ID token to hold it."""
        del nonce
        params = {"access_type": "offline"}
        if code_challenge is not None:
            params |= {"code_challenge": code_challenge, "code_challenge_method": "S256"}
        url: str = prepare_grant_uri(
            f"{self._url}/login/oauth/authorize",
            self._settings.client_id,
            "code",
            redirect_uri,
            " ".join(self._settings.scopes or SCOPES),
            state,
            **params,
        )
        return url

    async def exchange(
        self,
        *,
        code: str,
        redirect_uri: str,
        code_verifier: str | None,
        nonce: str | None,
        user_hint: str = "",
    ) -> Identity:
        """Redeem a code and ask the API whose it was."""
        del nonce, user_hint
        tokens = await self._tokens(
            code_form(code=code, redirect_uri=redirect_uri, code_verifier=code_verifier)
        )
        claims = await self._claims(tokens.access_token)
        return Identity(
            user_id=claims["sub"],
            subject=claims["sub"],
            name=display_name(claims),
            email=email_address(claims),
            claims=flatten_claims(claims),
            user_claims=flatten_claims(without(claims, TOKEN_CLAIMS)),
            id_token=None,
            tokens=tokens,
        )

    async def refresh(self, refresh_token: str, *, subject: str) -> RefreshedIdentity:
        """New tokens, where an app's tokens expire at all; others are never refreshed."""
        tokens = await self._tokens(
            refresh_form(refresh_token), previous_refresh_token=refresh_token
        )
        try:
            claims = await self.userinfo(tokens.access_token, subject=subject)
        except IdentityProviderError as error:
            return RefreshedIdentity.untold(tokens, error)
        return RefreshedIdentity.told(tokens, None, claims)

    async def userinfo(self, access_token: str, *, subject: str) -> dict[str, Any]:
        """What the API says about the token's owner, who must be `subject`."""
        claims = await self._claims(access_token)
        check_subject(claims, subject)
        return claims

    async def verify_identity_token(self, raw: str) -> dict[str, Any]:
        """GitHub has no identity tokens."""
        del raw
        raise IdentityRefusedError("GitHub issues no identity tokens", ends_session=False)

    async def verify_access_token(self, raw: str) -> dict[str, Any]:
        """Claims of an access token that was issued to this very application."""
        response = await self._about_token("POST", raw)
        if response.status in {404, 422}:
            raise IdentityRefusedError(
                "the access token is not one of this application", reason=ACCESS_REFUSED
            )
        if response.status != 200:
            raise failure(endpoint_name(f"{self._api}/applications"), response)
        return await self._claims(raw)

    async def verify_logout_token(self, raw: str) -> LogoutToken:
        """GitHub tells nobody that somebody signed out."""
        del raw
        raise IdentityRefusedError(
            "GitHub issues no logout tokens", reason=LOGOUT_TOKEN_REFUSED, ends_session=False
        )

    async def revoke(self, *, access_token: str, refresh_token: str) -> bool:
        """Delete this access token, and no other of the person's tokens for the application."""
        del refresh_token  # goes with its access token
        if not access_token:
            return False
        response = await self._about_token("DELETE", access_token)
        if response.status not in {204, 404, 422}:  # the last two: there is none any more
            raise failure(endpoint_name(f"{self._api}/applications"), response)
        return True

    async def end_session_url(
        self, *, id_token_hint: str, post_logout_redirect_uri: str
    ) -> str | None:
        """GitHub has no page that signs somebody out and comes back."""
        del id_token_hint, post_logout_redirect_uri
        return None

    async def _tokens(self, form: str, *, previous_refresh_token: str = "") -> OAuthTokens:
        endpoint = f"{self._url}/login/oauth/access_token"
        credentials = {
            "client_id": self._settings.client_id,
            "client_secret": self._settings.client_secret,
        }
        response = await self._transport.post_form(endpoint, add_form(form, credentials))
        return parse_tokens(
            read_tokens(endpoint, response),
            now_s=self._clock.now_s(),
            previous_refresh_token=previous_refresh_token,
        )

    async def _claims(self, access_token: str) -> dict[str, Any]:
        """The person as claims. Raises IdentityRefusedError when the token does not hold."""
        user_url = f"{self._api}/user"
        response = await self._api_get(user_url, access_token)
        user = response.json(endpoint_name(user_url))
        now_s = int(self._clock.now_s())
        login = user.get("login")
        found = {
            "sub": _subject(user),
            "user": login,
            "preferred_username": login,
            "name": user.get("name"),
            "picture": user.get("avatar_url"),
            "profile": user.get("html_url"),
            "website": user.get("blog"),
        }
        claims = {name: value for name, value in found.items() if isinstance(value, str) and value}
        return {
            **claims,
            "email": await self._email(access_token),
            "iat": now_s,
            "nbf": now_s,
            "exp": now_s + CLAIMS_LIFETIME_S,
        }

    async def _email(self, access_token: str) -> str:
        """The address that is primary and verified; "" when there is none or it may not be seen."""
        url = f"{self._api}/user/emails"
        response = await self._api_get(url, access_token, unseen=(403, 404))
        if response.status != 200:
            return ""
        for item in response.json_list(endpoint_name(url)):
            if isinstance(item, dict) and item.get("primary") is True and item.get("verified"):
                return email_address(item) if item["verified"] is True else ""
        return ""

    async def _api_get(
        self, url: str, access_token: str, *, unseen: tuple[int, ...] = ()
    ) -> ProviderResponse:
        response = await self._transport.get(
            url, headers={**_API_HEADERS, "Authorization": f"Bearer {access_token}"}
        )
        name = endpoint_name(url)
        if response.status == 401:
            raise IdentityRefusedError(f"{name} refused the access token", reason=ACCESS_REFUSED)
        if response.status in unseen and response.retry_after_s is None:
            return response
        if response.status != 200:
            # 403 among them: that is how the API says that somebody asked too often
            raise IdentityProviderError(
                f"{name} answered {response.status}", retry_after_s=response.retry_after_s
            )
        return response

    async def _about_token(self, method: str, access_token: str) -> ProviderResponse:
        """Ask about, or delete, one token of this application."""
        if not self._settings.client_secret:
            raise IdentityProviderError(
                "GitHub needs idp_client_secret for this", reason=MISCONFIGURED
            )
        client_id = self._settings.client_id
        return await self._transport.send_json(
            method,
            f"{self._api}/applications/{quote(client_id, safe='')}/token",
            json.dumps({"access_token": access_token}).encode(),
            headers={
                **_API_HEADERS,
                "Authorization": basic(client_id, self._settings.client_secret),
            },
        )


_API_HEADERS: Final[Mapping[str, str]] = {
    "Accept": "application/vnd.github+json",
    "User-Agent": "gatehouse",  # the API refuses requests without one
    "X-GitHub-Api-Version": _API_VERSION,
}


def _subject(user: Mapping[str, Any]) -> str:
    """The account's global node id, else its number; never its name, which can change hands."""
    node_id, number = user.get("node_id"), user.get("id")
    if isinstance(node_id, str) and is_subject(node_id):
        return node_id
    if isinstance(number, int) and not isinstance(number, bool):
        return str(number)
    raise IdentityProviderError("GitHub's answer names no account", reason=RESPONSE)
