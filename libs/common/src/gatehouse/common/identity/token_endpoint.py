"""How a client proves who it is at a provider's endpoints (RFC 6749 section 2.3)."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote_plus

from authlib.oauth2.rfc6749.parameters import prepare_token_request

from gatehouse.common.identity.discovery import ProviderMetadata
from gatehouse.common.identity.errors import GRANT_REFUSED, IdentityRefusedError
from gatehouse.common.identity.token_response import add_form, failure, is_grant_refusal
from gatehouse.common.identity.transport import ProviderResponse, ProviderTransport, endpoint_name

if TYPE_CHECKING:
    from gatehouse.common.config.resolved import IdentityProviderSettings

_AuthStyle = Literal["none", "basic", "post"]


class TokenEndpoint:
    """Sends authenticated forms; finds out once which style of authentication is taken."""

    def __init__(self, settings: IdentityProviderSettings, transport: ProviderTransport) -> None:
        self._settings = settings
        self._transport = transport
        self._style: _AuthStyle | None = None if settings.client_secret else "none"

    async def tokens(self, metadata: ProviderMetadata, form: str) -> dict[str, Any]:
        """The answer to a token request. Raises IdentityRefusedError, IdentityProviderError."""
        endpoint = metadata.token_endpoint
        return read_tokens(endpoint, await self.post(metadata, endpoint, form))

    async def post(self, metadata: ProviderMetadata, endpoint: str, form: str) -> ProviderResponse:
        """The answer to a form, whatever it is."""
        if self._style is not None:
            return await self._post_with(self._style, endpoint, form)
        methods = metadata.token_auth_methods
        styles: tuple[_AuthStyle, ...] = ("basic", "post")
        if "client_secret_post" in methods and "client_secret_basic" not in methods:
            styles = ("post", "basic")
        response = await self._post_with(styles[0], endpoint, form)
        if response.status == 200 or is_grant_refusal(response):
            self._style = styles[0]
        elif 400 <= response.status < 500 and response.status != 429:
            second = await self._post_with(styles[1], endpoint, form)
            if second.status == 200 or is_grant_refusal(second):
                self._style = styles[1]
                return second
        return response

    async def _post_with(self, style: _AuthStyle, endpoint: str, form: str) -> ProviderResponse:
        client_id, secret = self._settings.client_id, self._settings.client_secret
        if style == "basic":
            headers = {"Authorization": basic(client_id, secret)}
            return await self._transport.post_form(endpoint, form, headers=headers)
        credentials = {"client_id": client_id}
        if style == "post":
            credentials["client_secret"] = secret
        return await self._transport.post_form(endpoint, add_form(form, credentials))


def code_form(*, code: str, redirect_uri: str, code_verifier: str | None) -> str:
    """The form that redeems an authorization code. Raises IdentityRefusedError without a code."""
    if not code:
        raise IdentityRefusedError("authorization code is empty", reason=GRANT_REFUSED)
    form: str = prepare_token_request(
        "authorization_code", redirect_uri=redirect_uri, code=code, code_verifier=code_verifier
    )
    return form


def refresh_form(refresh_token: str) -> str:
    """The form of a refresh. Raises IdentityRefusedError without a refresh token."""
    if not refresh_token:
        raise IdentityRefusedError("session has no refresh token", reason=GRANT_REFUSED)
    form: str = prepare_token_request("refresh_token", refresh_token=refresh_token)
    return form


def basic(client_id: str, secret: str) -> str:
    """An Authorization header; both parts are form-encoded before they are joined."""
    joined = f"{quote_plus(client_id)}:{quote_plus(secret)}".encode("ascii")
    return f"Basic {base64.b64encode(joined).decode('ascii')}"


def read_tokens(endpoint: str, response: ProviderResponse) -> dict[str, Any]:
    """The JSON of a successful token response; some providers answer 200 with an error."""
    name = endpoint_name(endpoint)
    if response.status != 200:
        raise failure(name, response)
    answer = response.json(name)
    if "error" in answer:
        raise failure(name, response)
    return answer
