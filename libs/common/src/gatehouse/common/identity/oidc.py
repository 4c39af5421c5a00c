"""The client of an OpenID Connect provider: code flow, refresh, userinfo, revocation, sign-out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

import httpx
from authlib.common.urls import add_params_to_uri
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.errors import InvalidTokenError
from gatehouse.common.identity.cached import Cached
from gatehouse.common.identity.claims import (
    TOKEN_CLAIMS,
    check_subject,
    display_name,
    email_address,
    flatten_claims,
    merge_claims,
    name_given_once,
    user_id_of,
    without,
)
from gatehouse.common.identity.discovery import (
    ProviderMetadata,
    check_provider_url,
    fetch_metadata,
)
from gatehouse.common.identity.errors import (
    ACCESS_REFUSED,
    ID_TOKEN_REFUSED,
    LOGOUT_TOKEN_REFUSED,
    MISCONFIGURED,
    RESPONSE,
    SUBJECT_CHANGED,
    IdentityProviderError,
    IdentityRefusedError,
)
from gatehouse.common.identity.id_token import (
    NBF_LEEWAY_S,
    Expectation,
    has_audience,
    is_subject,
    verify_id_token,
    verify_signed,
)
from gatehouse.common.identity.jwks import ProviderKeySet
from gatehouse.common.identity.logout_token import TOKEN_TYPES as LOGOUT_TOKEN_TYPES
from gatehouse.common.identity.logout_token import LogoutToken, read_logout_claims
from gatehouse.common.identity.token_endpoint import TokenEndpoint, code_form, refresh_form
from gatehouse.common.identity.token_response import (
    add_form,
    failure,
    is_unrevocable,
    parse_tokens,
)
from gatehouse.common.identity.tokens import Identity, IdToken, OAuthTokens, RefreshedIdentity
from gatehouse.common.identity.transport import ProviderResponse, ProviderTransport, endpoint_name
from gatehouse.common.identity.variants import SignOutRequest, Variant
from gatehouse.common.jose.compact import CompactToken
from gatehouse.common.jose.times import check_times

if TYPE_CHECKING:
    from gatehouse.common.config.resolved import IdentityProviderSettings

METADATA_MAX_AGE_S: Final = 24 * 3600.0
METADATA_MIN_INTERVAL_S: Final = 30.0

_OWN_PARAMETERS: Final = frozenset({
    "response_type", "client_id", "redirect_uri", "scope", "state", "nonce", "code_challenge",
    "code_challenge_method", "request", "request_uri",
})  # fmt: skip

ACCESS_TOKEN_TYPES: Final = ("AT+JWT", "APPLICATION/AT+JWT")
"""RFC 9068 section 2.1."""
# A token that a program made up may be malformed for the provider (RFC 6750 section 3.1).
_TOKEN_REFUSALS: Final = frozenset({400, 401, 403})


class OidcProvider:
    """One configured provider of any type in `variants`. See `provider.Provider` for the calls."""

    def __init__(
        self,
        settings: IdentityProviderSettings,
        variant: Variant,
        http: httpx.AsyncClient,
        clock: Clock,
        rng: Rng,
    ) -> None:
        self._settings = settings
        self._variant = variant
        self._clock = clock
        self._rng = rng
        self._transport = ProviderTransport(http)
        self._url = variant.url(settings.url)
        if not self._url:
            raise IdentityProviderError(
                f"identity provider type {settings.type!r} needs idp_provider_url",
                reason=MISCONFIGURED,
            )
        check_provider_url(self._url)
        self._metadata = Cached(
            self._fetch_metadata,
            clock,
            rng,
            max_age_s=METADATA_MAX_AGE_S,
            min_interval_s=METADATA_MIN_INTERVAL_S,
        )
        self._key_set: tuple[str, ProviderKeySet] | None = None
        self._token_endpoint = TokenEndpoint(settings, self._transport)

    def __repr__(self) -> str:
        return f"OidcProvider({self._settings!r})"

    @property
    def id(self) -> str:
        """The idp id that binds sessions to this configuration."""
        return self._settings.id

    @property
    def has_fixed_return(self) -> bool:
        """Whether its sign-out page leads back to the signed-out page and nowhere else."""
        return self._variant.has_fixed_return

    async def authorization_url(
        self, *, redirect_uri: str, state: str, nonce: str, code_challenge: str | None
    ) -> str:
        """Where to send the browser; configured extras never replace the protocol's own."""
        metadata = await self._metadata.get()
        extras = self._variant.params_for(self._settings.request_params)
        params = {
            name: value for name, value in sorted(extras.items()) if name not in _OWN_PARAMETERS
        }
        if nonce:
            params["nonce"] = nonce
        if code_challenge is not None:
            params |= {"code_challenge": code_challenge, "code_challenge_method": "S256"}
        url: str = prepare_grant_uri(
            metadata.authorization_endpoint,
            self._settings.client_id,
            "code",
            redirect_uri,
            " ".join(self._variant.scopes_for(self._url, self._settings.scopes)),
            state,
            **params,
        )
        endpoint, _, query = url.partition("?")
        return f"{endpoint}?{query.replace('+', '%20')}"  # Apple takes a plus sign for itself

    async def exchange(
        self,
        *,
        code: str,
        redirect_uri: str,
        code_verifier: str | None,
        nonce: str | None,
        user_hint: str = "",
    ) -> Identity:
        """Redeem a code. Raises IdentityRefusedError or IdentityProviderError."""
        metadata = await self._metadata.get()
        answer = await self._token_endpoint.tokens(
            metadata, code_form(code=code, redirect_uri=redirect_uri, code_verifier=code_verifier)
        )
        tokens = parse_tokens(answer, now_s=self._clock.now_s())
        raw = answer.get("id_token")
        if not isinstance(raw, str) or not raw:
            raise IdentityProviderError(
                "token response has no ID token; is the scope openid requested?",
                reason=MISCONFIGURED,
            )
        id_claims = await self._verified(metadata, raw, nonce, tokens.access_token)
        userinfo = await self._userinfo(metadata, tokens.access_token)
        claims = merge_claims(id_claims, userinfo)
        name = display_name(claims)
        if self._variant.gives_name_once and not name:
            name = name_given_once(user_hint)  # never a claim: policies may ask for those
        return Identity(
            user_id=user_id_of(id_claims),
            subject=id_claims["sub"],
            name=name,
            email=email_address(claims),
            claims=flatten_claims(claims),
            user_claims=flatten_claims(without(claims, TOKEN_CLAIMS)),
            id_token=_id_token(raw, id_claims),
            tokens=tokens,
        )

    async def refresh(self, refresh_token: str, *, subject: str) -> RefreshedIdentity:
        """New tokens for `subject`. Raises IdentityRefusedError or IdentityProviderError."""
        metadata = await self._metadata.get()
        answer = await self._token_endpoint.tokens(metadata, refresh_form(refresh_token))
        tokens = parse_tokens(
            answer, now_s=self._clock.now_s(), previous_refresh_token=refresh_token
        )
        try:
            raw = answer.get("id_token")
            id_token, id_claims = await self._refreshed_id_token(metadata, raw, subject, tokens)
            userinfo = await self._userinfo(metadata, tokens.access_token)
            claims = merge_claims(id_claims, userinfo)
        except (IdentityProviderError, IdentityRefusedError) as error:
            if isinstance(error, IdentityRefusedError) and error.ends_session:
                raise
            return RefreshedIdentity.untold(tokens, error)
        return RefreshedIdentity.told(tokens, id_token, claims)

    async def userinfo(self, access_token: str, *, subject: str) -> dict[str, Any]:
        """Userinfo claims about `subject`. Raises IdentityRefusedError, IdentityProviderError."""
        claims = await self._userinfo(await self._metadata.get(), access_token)
        if claims is None:
            return {}
        check_subject(claims, subject)
        return claims

    async def verify_identity_token(self, raw: str) -> dict[str, Any]:
        """Claims of an ID token. Raises IdentityRefusedError or IdentityProviderError."""
        return await self._verified(await self._metadata.get(), raw, None, "")

    async def verify_access_token(self, raw: str) -> dict[str, Any]:
        """Claims of an access token. Raises IdentityRefusedError or IdentityProviderError.

        Userinfo decides. A token that is a JWT of the provider's (RFC 9068) must hold by itself as
        well, and says for whom and how long; without userinfo only one that says it is an access
        token is believed, so that no ID token passes for one.
        """
        metadata = await self._metadata.get()
        token = await self._access_jwt(metadata, raw)
        userinfo = None
        if self._has_userinfo(token):
            userinfo = await self._userinfo(metadata, raw, refusals=_TOKEN_REFUSALS)
        if token is None:
            if userinfo is None:
                raise IdentityProviderError(
                    "access tokens cannot be verified: the identity provider has no userinfo",
                    reason=MISCONFIGURED,
                )
            if not is_subject(userinfo.get("sub")):
                raise _no_access("userinfo names no usable subject")
            return userinfo
        if userinfo is not None:
            return merge_claims(token.claims, userinfo)
        if not self._is_access_token(token):
            raise _no_access("the token is no access token")
        return token.claims

    def _has_userinfo(self, token: CompactToken | None) -> bool:
        asks = self._variant.has_userinfo
        return token is None or asks is None or asks(token.claims)

    def _is_access_token(self, token: CompactToken) -> bool:
        if self._variant.is_access_token is not None:
            return self._variant.is_access_token(token.claims)
        return str(token.header.get("typ", "")).upper() in ACCESS_TOKEN_TYPES

    async def _access_jwt(self, metadata: ProviderMetadata, raw: str) -> CompactToken | None:
        """The token if it is a JWT that the provider signed; None when it can only be asked about.

        Raises IdentityRefusedError for one that it signed and that does not hold now.
        """
        try:
            token = await verify_signed(
                raw,
                self._keys(metadata),
                metadata.id_token_algorithms,
                types=("JWT", *ACCESS_TOKEN_TYPES),
            )
        except InvalidTokenError:
            return None
        issuer, claims = token.claims.get("iss"), token.claims
        try:
            check_times(claims, now_s=self._clock.now_s(), nbf_leeway_s=NBF_LEEWAY_S)
        except InvalidTokenError as error:
            raise _no_access(str(error)) from None
        is_issuer = self._variant.is_access_issuer or self._variant.is_issuer
        if not isinstance(issuer, str) or not is_issuer(issuer, metadata.issuer, claims):
            raise _no_access("the token has another issuer")
        if not is_subject(claims.get("sub")):
            raise _no_access("the token has no usable sub")
        return token

    async def revoke(self, *, access_token: str, refresh_token: str) -> bool:
        """Revoke both tokens, refresh token first (RFC 7009). Raises IdentityProviderError."""
        metadata = await self._metadata.get()
        endpoint = metadata.revocation_endpoint
        if endpoint is None and self._variant.revocation_url is not None:
            endpoint = self._variant.revocation_url(metadata)
        if endpoint is None:
            return False
        for hint, token in (("refresh_token", refresh_token), ("access_token", access_token)):
            if not token:
                continue
            form = add_form("", {"token": token, "token_type_hint": hint})
            response = await self._token_endpoint.post(metadata, endpoint, form)
            if response.status != 200 and not is_unrevocable(response):
                raise failure(endpoint_name(endpoint), response)
        return True

    async def verify_logout_token(self, raw: str) -> LogoutToken:
        """What a logout token asks for. Raises IdentityRefusedError or IdentityProviderError."""
        metadata = await self._metadata.get()
        try:
            token = await verify_signed(
                raw, self._keys(metadata), metadata.id_token_algorithms, types=LOGOUT_TOKEN_TYPES
            )
            return read_logout_claims(
                token.claims,
                client_id=self._settings.client_id,
                is_issuer=lambda issuer, claims: self._variant.is_issuer(
                    issuer, metadata.issuer, claims
                ),
                now_s=self._clock.now_s(),
            )
        except InvalidTokenError as error:
            raise IdentityRefusedError(
                str(error), reason=LOGOUT_TOKEN_REFUSED, ends_session=False, check=error.reason
            ) from None

    async def end_session_url(
        self, *, id_token_hint: str, post_logout_redirect_uri: str
    ) -> str | None:
        """Where to sign out at the provider (RP-initiated logout 1.0), if it offers that."""
        metadata = await self._metadata.get()
        if self._variant.sign_out_url is not None:
            return self._variant.sign_out_url(
                SignOutRequest(
                    metadata, self._url, self._settings.client_id, post_logout_redirect_uri
                )
            )
        endpoint = metadata.end_session_endpoint
        if endpoint is None:
            return None
        params = [("client_id", self._settings.client_id)]
        if id_token_hint:
            params.insert(0, ("id_token_hint", id_token_hint))
        if post_logout_redirect_uri:
            params.append(("post_logout_redirect_uri", post_logout_redirect_uri))
        url: str = add_params_to_uri(endpoint, params)
        return url

    async def _fetch_metadata(self) -> ProviderMetadata:
        return await fetch_metadata(
            self._transport,
            self._url,
            is_issuer=lambda issuer: self._variant.is_discovered_issuer(self._url, issuer),
        )

    def _keys(self, metadata: ProviderMetadata) -> ProviderKeySet:
        if self._key_set is None or self._key_set[0] != metadata.jwks_uri:
            key_set = ProviderKeySet(self._transport, metadata.jwks_uri, self._clock, self._rng)
            self._key_set = (metadata.jwks_uri, key_set)
        return self._key_set[1]

    async def _refreshed_id_token(
        self, metadata: ProviderMetadata, raw: object, subject: str, tokens: OAuthTokens
    ) -> tuple[IdToken | None, dict[str, Any]]:
        if not isinstance(raw, str) or not raw:
            return None, {"sub": subject}
        claims = await self._verified(metadata, raw, None, tokens.access_token)
        if claims["sub"] != subject:
            raise IdentityRefusedError(
                "refreshed ID token is about another subject", reason=SUBJECT_CHANGED
            )
        return _id_token(raw, claims), claims

    async def _verified(
        self, metadata: ProviderMetadata, raw: str, nonce: str | None, access_token: str
    ) -> dict[str, Any]:
        expected = Expectation(
            client_id=self._settings.client_id,
            is_issuer=lambda issuer, claims: self._variant.is_issuer(
                issuer, metadata.issuer, claims
            ),
            algorithms=metadata.id_token_algorithms,
            nonce=nonce,
            access_token=access_token,
        )
        try:
            claims = await verify_id_token(
                raw, self._keys(metadata), expected, now_s=self._clock.now_s()
            )
        except InvalidTokenError as error:
            raise IdentityRefusedError(
                f"ID token refused: {error}",
                reason=ID_TOKEN_REFUSED,
                ends_session=False,
                check=error.reason,
            ) from None
        return self._variant.adapt_claims(claims)

    async def _userinfo(
        self,
        metadata: ProviderMetadata,
        access_token: str,
        *,
        refusals: Collection[int] = (401, 403),
    ) -> dict[str, Any] | None:
        endpoint = metadata.userinfo_endpoint
        if endpoint is None:
            return None
        response = await self._transport.get(
            endpoint, headers={"Authorization": f"Bearer {access_token}"}
        )
        name = endpoint_name(endpoint)
        if response.status in refusals:
            raise IdentityRefusedError(
                f"{name} refused the access token ({response.status})", reason=ACCESS_REFUSED
            )
        if response.status != 200:
            raise failure(name, response)
        if response.content_type == "application/jwt":
            claims = await self._signed_userinfo(metadata, response)
        else:
            claims = response.json(name)
        return self._variant.adapt_claims(claims)

    async def _signed_userinfo(
        self, metadata: ProviderMetadata, response: ProviderResponse
    ) -> dict[str, Any]:
        try:
            claims = await self._verified_userinfo(metadata, response)
        except (InvalidTokenError, UnicodeDecodeError):
            raise IdentityProviderError(
                "signed userinfo does not verify", reason=RESPONSE
            ) from None
        return claims

    async def _verified_userinfo(
        self, metadata: ProviderMetadata, response: ProviderResponse
    ) -> dict[str, Any]:
        raw = response.body.decode("ascii").strip()
        token = await verify_signed(raw, self._keys(metadata), metadata.id_token_algorithms)
        claims, issuer = token.claims, token.claims.get("iss", metadata.issuer)
        if not isinstance(issuer, str) or not self._variant.is_issuer(
            issuer, metadata.issuer, claims
        ):
            raise InvalidTokenError("signed userinfo has another issuer", reason="token-issuer")
        if "aud" in claims and not has_audience(claims, self._settings.client_id):
            raise InvalidTokenError("signed userinfo is not for us", reason="token-audience")
        return claims


def _id_token(raw: str, claims: Mapping[str, Any]) -> IdToken:
    return IdToken(
        raw=raw,
        issuer=claims["iss"],
        subject=claims["sub"],
        expires_at_s=float(claims["exp"]),
        issued_at_s=float(claims["iat"]),
    )


def _no_access(message: str) -> IdentityRefusedError:
    return IdentityRefusedError(f"access token refused: {message}", reason=ACCESS_REFUSED)
