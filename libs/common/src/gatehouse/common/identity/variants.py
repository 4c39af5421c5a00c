"""Where well-known providers depart from plain OpenID Connect."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit

from gatehouse.common.identity.errors import MISCONFIGURED, IdentityProviderError

if TYPE_CHECKING:  # it does I/O, and configuration is read without
    from gatehouse.common.identity.discovery import ProviderMetadata

_TENANT: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TENANT_FIELD: Final = "{tenantid}"
# Microsoft's clouds: the host that signs people in, and the issuer of version 1 access tokens.
_MICROSOFT_CLOUDS: Final = {
    "login.microsoftonline.com": "https://sts.windows.net/",
    "login.microsoftonline.us": "https://sts.windows.net/",
    "login.partner.microsoftonline.cn": "https://sts.chinacloudapi.cn/",
}
_MICROSOFT_SHARED: Final = re.compile(
    r"(https://(?:"
    + "|".join(re.escape(host) for host in _MICROSOFT_CLOUDS)
    + r")/)(?:common|organizations|consumers)(/v2\.0/?)"
)

_Issuer = Callable[[str, str, Mapping[str, Any]], bool]  # iss, discovered issuer, all claims


def _same_issuer(issuer: str, discovered: str, _claims: Mapping[str, Any]) -> bool:
    return issuer == discovered


def _google_issuer(issuer: str, discovered: str, _claims: Mapping[str, Any]) -> bool:
    # Google signs tokens with and without the scheme
    return issuer in {discovered, discovered.removeprefix("https://")}


def _microsoft_issuer(issuer: str, discovered: str, claims: Mapping[str, Any]) -> bool:
    # multi-tenant endpoints publish a template that the token's own tenant completes
    tenant = claims.get("tid")
    if _TENANT_FIELD in discovered:
        if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
            return False
        discovered = discovered.replace(_TENANT_FIELD, tenant)
    return issuer == discovered


def _microsoft_access_issuer(issuer: str, discovered: str, claims: Mapping[str, Any]) -> bool:
    """Access tokens of version 1 name another issuer, with the same tenant in it."""
    if _microsoft_issuer(issuer, discovered, claims):
        return True
    parts = urlsplit(discovered)
    first, tenant = _MICROSOFT_CLOUDS.get(parts.netloc), claims.get("tid")
    own = parts.path.split("/")[1:2]
    return (
        first is not None
        and isinstance(tenant, str)
        and _TENANT.fullmatch(tenant) is not None
        and own in ([_TENANT_FIELD], [tenant])
        and issuer == f"{first}{tenant}/"
    )


def _microsoft_discovery(url: str, issuer: str) -> bool:
    shared = _MICROSOFT_SHARED.fullmatch(url)
    if shared:
        return issuer == f"{shared[1]}{_TENANT_FIELD}/v2.0"
    return issuer == url


def _is_microsoft_access_token(claims: Mapping[str, Any]) -> bool:
    """Its header says JWT like an ID token's; only access tokens have scopes, or are an app's."""
    return bool(_microsoft_scopes(claims)) or claims.get("idtyp") == "app"


def _has_microsoft_userinfo(claims: Mapping[str, Any]) -> bool:
    return "openid" in _microsoft_scopes(claims)


def _microsoft_scopes(claims: Mapping[str, Any]) -> list[str]:
    scopes = claims.get("scp")
    return scopes.split(" ") if isinstance(scopes, str) and scopes else []


def _same_discovery(url: str, issuer: str) -> bool:
    return issuer == url


def _unchanged(claims: dict[str, Any]) -> dict[str, Any]:
    return claims


def _ping_claims(claims: dict[str, Any]) -> dict[str, Any]:
    mail = claims.get("mail")
    if isinstance(mail, str) and "@" in mail:
        return {**claims, "email": mail}
    return claims


_FLAGS: Final = ("email_verified", "phone_number_verified", "is_private_email")


def _flags_as_booleans(claims: dict[str, Any]) -> dict[str, Any]:
    """Some providers write the text "true" where the standard has a boolean (Core 5.1)."""
    texts = {"true": True, "false": False}
    changed = {
        name: texts[claims[name]]
        for name in _FLAGS
        if isinstance(claims.get(name), str) and claims[name] in texts
    }
    return {**claims, **changed} if changed else claims


@dataclass(frozen=True, slots=True)
class SignOutRequest:
    """What a sign-out page of a provider's own kind is made from."""

    metadata: ProviderMetadata
    url: str  # the issuer URL in use
    client_id: str
    return_to: str


def _auth0_sign_out(request: SignOutRequest) -> str:
    query = urlencode({"client_id": request.client_id, "returnTo": request.return_to})
    return f"{request.url.removesuffix('/')}/v2/logout?{query}"


def _cognito_sign_out(request: SignOutRequest) -> str:
    query = urlencode({"client_id": request.client_id, "logout_uri": request.return_to})
    return f"{_sign_in_origin(request.metadata)}/logout?{query}"


def _cognito_revocation(metadata: ProviderMetadata) -> str:
    return f"{_sign_in_origin(metadata)}/oauth2/revoke"


def _sign_in_origin(metadata: ProviderMetadata) -> str:
    # the issuer is a regional API host; people sign in at the user pool's own domain
    parts = urlsplit(metadata.authorization_endpoint)
    return f"{parts.scheme}://{parts.netloc}"


@dataclass(frozen=True, slots=True)
class Variant:
    """One provider type: defaults and departures."""

    default_url: str = ""  # "" means that idp_provider_url is required
    scopes: tuple[str, ...] = ("openid", "profile", "email", "offline_access")
    fixed_scopes: bool = False  # configured ones are not used
    online_suffix: str = ""  # issuers that end so do not know offline_access
    request_params: Mapping[str, str] = field(default_factory=dict)  # configured ones replace them
    kept_params: Mapping[str, str] = field(default_factory=dict)  # always sent
    trailing_slash: bool = False  # the issuer ends in one, whatever was configured
    is_discovered_issuer: Callable[[str, str], bool] = _same_discovery  # url, document's issuer
    is_issuer: _Issuer = _same_issuer
    is_access_issuer: _Issuer | None = None  # of access tokens, where it differs
    # Whether a JWT's claims are an access token's; None: its header's typ must say so.
    is_access_token: Callable[[Mapping[str, Any]], bool] | None = None
    has_userinfo: Callable[[Mapping[str, Any]], bool] | None = None  # None: every access token
    adapt_claims: Callable[[dict[str, Any]], dict[str, Any]] = _unchanged  # ID token and userinfo
    sign_out_url: Callable[[SignOutRequest], str] | None = None
    # The provider sends people back to one registered page only, the signed-out page.
    has_fixed_return: bool = False
    revocation_url: Callable[[ProviderMetadata], str] | None = None  # where discovery names none
    gives_name_once: bool = False  # with the callback of the first sign-in, not in the ID token

    def url(self, configured: str) -> str:
        """The issuer URL to use for a configured one."""
        url = configured or self.default_url
        if self.trailing_slash and url and not url.endswith("/"):
            url += "/"
        return url

    def scopes_for(self, url: str, configured: tuple[str, ...]) -> tuple[str, ...]:
        """The scopes to ask for at an issuer URL."""
        if configured and not self.fixed_scopes:
            return configured
        if self.online_suffix and url.removesuffix("/").endswith(self.online_suffix):
            return tuple(scope for scope in self.scopes if scope != "offline_access")
        return self.scopes

    def params_for(self, configured: Mapping[str, str] | None) -> dict[str, str]:
        """The extra parameters of an authorization request."""
        chosen = self.request_params if configured is None else configured
        return {**chosen, **self.kept_params}


_WITHOUT_OFFLINE: Final = ("openid", "profile", "email")

VARIANTS: Final[Mapping[str, Variant]] = {
    "oidc": Variant(),
    "apple": Variant(
        default_url="https://appleid.apple.com",
        scopes=("name", "email"),
        # Apple insists on it as soon as a scope is asked for
        kept_params={"response_mode": "form_post"},
        adapt_claims=_flags_as_booleans,
        gives_name_once=True,
    ),
    "auth0": Variant(trailing_slash=True, sign_out_url=_auth0_sign_out),
    "azure": Variant(
        default_url="https://login.microsoftonline.com/common/v2.0",
        request_params={"prompt": "select_account"},
        is_discovered_issuer=_microsoft_discovery,
        is_issuer=_microsoft_issuer,
        is_access_issuer=_microsoft_access_issuer,
        is_access_token=_is_microsoft_access_token,
        has_userinfo=_has_microsoft_userinfo,
    ),
    "cognito": Variant(
        scopes=("openid", "email", "profile"),
        adapt_claims=_flags_as_booleans,
        sign_out_url=_cognito_sign_out,
        has_fixed_return=True,
        revocation_url=_cognito_revocation,
    ),
    "gitlab": Variant(default_url="https://gitlab.com", scopes=_WITHOUT_OFFLINE),
    "google": Variant(
        default_url="https://accounts.google.com",
        scopes=_WITHOUT_OFFLINE,
        request_params={"prompt": "select_account consent", "access_type": "offline"},
        is_issuer=_google_issuer,
    ),
    "okta": Variant(),
    "onelogin": Variant(
        default_url="https://openid-connect.onelogin.com/oidc",
        scopes=("openid", "profile", "email", "groups", "offline_access"),
        fixed_scopes=True,
        online_suffix="/oidc/2",
    ),
    "ping": Variant(adapt_claims=_ping_claims),
}


def signs_in_every_tenant(provider_type: str, configured_url: str) -> bool:
    """True when the issuer URL stands for the tenants of everybody, not for one of them."""
    variant = VARIANTS.get(provider_type)
    return (
        variant is not None
        and variant.is_issuer is _microsoft_issuer
        and _MICROSOFT_SHARED.fullmatch(variant.url(configured_url)) is not None
    )


def variant_of(provider_type: str) -> Variant:
    """The variant of an `idp_provider` value. Raises IdentityProviderError for an unknown one."""
    variant = VARIANTS.get(provider_type)
    if variant is not None:
        return variant
    known = ", ".join(sorted({*VARIANTS, "github"}))
    raise IdentityProviderError(
        f"identity provider type {provider_type[:40]!r} is unknown; "
        f"idp_provider must be one of {known}",
        reason=MISCONFIGURED,
    )
