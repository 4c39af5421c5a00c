"""How Google Cloud is asked for a token that says who calls, and how long that token lasts.

https://cloud.google.com/run/docs/authenticating/service-to-service
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gatehouse.common.config.values import decode_base64
from gatehouse.common.errors import InvalidArgumentError, InvalidTokenError
from gatehouse.common.jose.compact import parse_compact
from gatehouse.common.jose.keys import SigningKey, sign_jwt

TOKEN_URL: Final = "https://oauth2.googleapis.com/token"  # noqa: S105 - a URL
METADATA_HOST: Final = "metadata.google.internal"
METADATA_HEADERS: Final = {"Metadata-Flavor": "Google"}
_METADATA_PATH: Final = "/computeMetadata/v1/instance/service-accounts/default/identity"
_GRANT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"  # RFC 7523 section 2.1
_ASSERTION_LIFETIME_S: Final = 3600
_MAX_HELD_S: Final = 45 * 60
_SPARE_S: Final = 60  # a token this close to its end is not sent any more
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """The account whose key was given."""

    email: str
    token_url: str
    key: SigningKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class IdentityToken:
    """A token of Google's, sent on as it is."""

    text: str = field(repr=False)
    renew_at_s: float  # Unix seconds: from then on a new one is wanted
    ends_at_s: float  # from then on this one is not sent


def parse_account(text: str) -> ServiceAccount:
    """The account of a key file, as JSON or base64 of it.

    Raises InvalidArgumentError, never with key material.
    """
    raw = text.strip()
    decoded = raw.encode() if raw.startswith("{") else decode_base64(raw)
    try:
        values: Any = json.loads(decoded or b"")
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InvalidArgumentError("is not a JSON object or its base64")
    email, pem = values.get("client_email"), values.get("private_key")
    if not isinstance(email, str) or not email or not isinstance(pem, str):
        raise InvalidArgumentError("has no client_email or private_key")
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except Exception:  # noqa: BLE001 - many kinds of errors, all meaning: no key of use
        key = None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise InvalidArgumentError("its private_key is not an unencrypted RSA key in PEM")
    token_url = values.get("token_uri") or TOKEN_URL
    parts = urlsplit(token_url if isinstance(token_url, str) else "")
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise InvalidArgumentError("its token_uri is not an https URL")
    key_id = values.get("private_key_id")
    return ServiceAccount(
        email, token_url, SigningKey("RS256", key_id if isinstance(key_id, str) else "", key)
    )


def token_form(account: ServiceAccount, audience: str, now_s: float) -> str:
    """The form that exchanges a statement signed by the account for a token (RFC 7523)."""
    issued_at = int(now_s)
    claims = {
        "iss": account.email,
        "sub": account.email,
        "aud": account.token_url,
        "iat": issued_at,
        "exp": issued_at + _ASSERTION_LIFETIME_S,
        "target_audience": audience,
    }
    return urlencode({"grant_type": _GRANT, "assertion": sign_jwt(claims, account.key)})


def metadata_url(host: str, audience: str) -> str:
    """Where a machine of Google's asks for a token of the account it runs as."""
    return f"http://{host}{_METADATA_PATH}?audience={quote(audience, safe='')}&format=full"


def identity_token(text: str, now_s: float) -> IdentityToken:
    """A token with the times it may be used. Raises InvalidTokenError for what is none.

    Its signature is for the upstream to verify.
    """
    parsed = parse_compact(text)
    ends = parsed.claims.get("exp")
    if isinstance(ends, bool) or not isinstance(ends, int | float) or not math.isfinite(ends):
        raise InvalidTokenError("the token has no exp")
    life_s = ends - now_s
    if life_s <= _SPARE_S:
        raise InvalidTokenError("the token has ended, or is about to")
    return IdentityToken(text, now_s + min(life_s * 0.75, _MAX_HELD_S), ends - _SPARE_S)
