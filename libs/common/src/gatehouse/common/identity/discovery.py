"""What a provider says about itself (OpenID Connect Discovery 1.0), checked before use."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from gatehouse.common.identity.errors import MISCONFIGURED, RESPONSE, IdentityProviderError
from gatehouse.common.identity.transport import ProviderTransport, endpoint_name

WELL_KNOWN: Final = "/.well-known/openid-configuration"
ALLOWED_ALGORITHMS: Final = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip
"""Signature algorithms accepted for ID tokens; asymmetric ones only."""

_ENDPOINT: Final = re.compile(r"https?://[\x21-\x5b\x5d-\x7e]+")
_MAX_URL: Final = 2048


@dataclass(frozen=True, slots=True)
class ProviderMetadata:
    """The checked part of a discovery document."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None
    revocation_endpoint: str | None
    end_session_endpoint: str | None
    id_token_algorithms: tuple[str, ...]  # never empty, all of ALLOWED_ALGORITHMS
    token_auth_methods: tuple[str, ...]  # empty: the provider does not say
    supports_s256: bool


def discovery_url(url: str) -> str:
    """Where the document of the provider configured as `url` is."""
    return url.removesuffix("/") + WELL_KNOWN


def check_provider_url(url: str) -> None:
    """Raise IdentityProviderError unless `url` can be a provider's issuer URL."""
    if not _is_endpoint(url, allow_http=True) or "?" in url:
        raise IdentityProviderError(
            "identity provider URL must be absolute, https:// (http:// only for development), "
            "without user name, query or fragment",
            reason=MISCONFIGURED,
        )


async def fetch_metadata(
    transport: ProviderTransport,
    url: str,
    *,
    is_issuer: Callable[[str], bool] | None = None,
) -> ProviderMetadata:
    """Fetch and check the discovery document of the provider configured as `url`.

    `is_issuer` judges the document's issuer; without it, it must equal `url` byte for byte.
    """
    where = discovery_url(url)
    response = await transport.get(where)
    name = endpoint_name(where)
    if response.status != 200:
        raise IdentityProviderError(
            f"{name} answered {response.status}",
            reason=MISCONFIGURED if response.status in {401, 403, 404, 410} else None,
            retry_after_s=response.retry_after_s,
        )
    return parse_metadata(response.json(name), url=url, is_issuer=is_issuer)


def parse_metadata(
    document: Mapping[str, Any],
    *,
    url: str,
    is_issuer: Callable[[str], bool] | None = None,
) -> ProviderMetadata:
    """Check a discovery document. Raises IdentityProviderError.

    Endpoints must be https unless the operator configured the provider itself with http.
    """
    issuer = document.get("issuer")
    if not isinstance(issuer, str) or not (is_issuer or url.__eq__)(issuer):
        shown = issuer[:200] if isinstance(issuer, str) else "none"
        raise IdentityProviderError(
            f"identity provider names {shown!r} as its issuer, but idp_provider_url is {url!r}; "
            "the two must be equal to the letter",
            reason=MISCONFIGURED,
        )
    allow_http = url.startswith("http://")
    offered = document.get("id_token_signing_alg_values_supported", ["RS256"])
    algorithms = tuple(name for name in ALLOWED_ALGORITHMS if name in _texts(offered))
    if not algorithms:
        raise IdentityProviderError(
            "identity provider signs ID tokens with none of " + ", ".join(ALLOWED_ALGORITHMS),
            reason=MISCONFIGURED,
        )
    return ProviderMetadata(
        issuer=issuer,
        authorization_endpoint=_required(document, "authorization_endpoint", allow_http),
        token_endpoint=_required(document, "token_endpoint", allow_http),
        jwks_uri=_required(document, "jwks_uri", allow_http),
        userinfo_endpoint=_optional(document, "userinfo_endpoint", allow_http),
        revocation_endpoint=_optional(document, "revocation_endpoint", allow_http),
        end_session_endpoint=_optional(document, "end_session_endpoint", allow_http),
        id_token_algorithms=algorithms,
        token_auth_methods=_texts(document.get("token_endpoint_auth_methods_supported", [])),
        supports_s256="S256" in _texts(document.get("code_challenge_methods_supported", [])),
    )


def _required(document: Mapping[str, Any], name: str, allow_http: bool) -> str:
    value = _optional(document, name, allow_http)
    if value is None:
        raise IdentityProviderError(
            f"discovery document of the identity provider has no {name}", reason=RESPONSE
        )
    return value


def _optional(document: Mapping[str, Any], name: str, allow_http: bool) -> str | None:
    value = document.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not _is_endpoint(value, allow_http=allow_http):
        raise IdentityProviderError(
            f"discovery document of the identity provider has a {name} that is no https URL",
            reason=RESPONSE,
        )
    return value


def _is_endpoint(url: str, *, allow_http: bool) -> bool:
    if len(url) > _MAX_URL or not _ENDPOINT.fullmatch(url):
        return False
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    return (
        (parts.scheme == "https" or allow_http)
        and bool(parts.hostname)
        and "@" not in parts.netloc
        and "#" not in url
    )


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(item for item in value if isinstance(item, str))
