"""Where well-known providers depart from plain OpenID Connect."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

from gatehouse.common.identity.errors import MISCONFIGURED, IdentityProviderError

_TENANT: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TENANT_FIELD: Final = "{tenantid}"
_MICROSOFT_SHARED: Final = re.compile(
    r"(https://login\.microsoftonline\.com/)(?:common|organizations|consumers)(/v2\.0/?)"
)


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


def _microsoft_discovery(url: str, issuer: str) -> bool:
    shared = _MICROSOFT_SHARED.fullmatch(url)
    if shared:
        return issuer == f"{shared[1]}{_TENANT_FIELD}/v2.0"
    return issuer == url


def _same_discovery(url: str, issuer: str) -> bool:
    return issuer == url


def _unchanged(claims: dict[str, Any]) -> dict[str, Any]:
    return claims


def _ping_userinfo(claims: dict[str, Any]) -> dict[str, Any]:
    mail = claims.get("mail")
    if isinstance(mail, str) and "@" in mail:
        return {**claims, "email": mail}
    return claims


def _auth0_sign_out(url: str, client_id: str, return_to: str) -> str:
    query = urlencode({"client_id": client_id, "returnTo": return_to})
    return f"{url.removesuffix('/')}/v2/logout?{query}"


@dataclass(frozen=True, slots=True)
class Variant:
    """One provider type: defaults and departures."""

    default_url: str = ""  # "" means that idp_provider_url is required
    scopes: tuple[str, ...] = ("openid", "profile", "email", "offline_access")
    request_params: Mapping[str, str] = field(default_factory=dict)
    trailing_slash: bool = False  # the issuer ends in one, whatever was configured
    is_discovered_issuer: Callable[[str, str], bool] = _same_discovery  # url, document's issuer
    is_issuer: Callable[[str, str, Mapping[str, Any]], bool] = _same_issuer
    adapt_userinfo: Callable[[dict[str, Any]], dict[str, Any]] = _unchanged
    sign_out_url: Callable[[str, str, str], str] | None = None  # url, client id, return URL

    def url(self, configured: str) -> str:
        """The issuer URL to use for a configured one."""
        url = configured or self.default_url
        if self.trailing_slash and url and not url.endswith("/"):
            url += "/"
        return url


_WITHOUT_OFFLINE: Final = ("openid", "profile", "email")

VARIANTS: Final[Mapping[str, Variant]] = {
    "oidc": Variant(),
    "auth0": Variant(trailing_slash=True, sign_out_url=_auth0_sign_out),
    "azure": Variant(
        default_url="https://login.microsoftonline.com/common/v2.0",
        request_params={"prompt": "select_account"},
        is_discovered_issuer=_microsoft_discovery,
        is_issuer=_microsoft_issuer,
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
    ),
    "ping": Variant(adapt_userinfo=_ping_userinfo),
}

_KNOWN_ELSEWHERE: Final = frozenset({"apple", "cognito", "github", "hosted"})


def variant_of(provider_type: str) -> Variant:
    """The variant of an `idp_provider` value. Raises IdentityProviderError for an unknown one."""
    variant = VARIANTS.get(provider_type)
    if variant is not None:
        return variant
    known = ", ".join(sorted(VARIANTS))
    what = "is not available yet" if provider_type in _KNOWN_ELSEWHERE else "is unknown"
    raise IdentityProviderError(
        f"identity provider type {provider_type[:40]!r} {what}; "
        f"idp_provider must be one of {known}",
        reason=MISCONFIGURED,
    )
