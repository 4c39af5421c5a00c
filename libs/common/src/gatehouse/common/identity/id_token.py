"""Whether an ID token proves the sign-in that was asked for (OpenID Connect Core 3.1.3.7)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt

from gatehouse.common.errors import InvalidTokenError
from gatehouse.common.identity.discovery import ALLOWED_ALGORITHMS
from gatehouse.common.identity.jwks import ProviderKey, ProviderKeySet
from gatehouse.common.jose.compact import CompactToken, base64url_encode, parse_compact
from gatehouse.common.jose.times import check_times, numeric_date

EXP_LEEWAY_S: Final = 30.0
NBF_LEEWAY_S: Final = 300.0
"""Also how far `iat` may be ahead of our clock."""
MAX_ID_TOKEN_BYTES: Final = 64 * 1024
"""Providers put group lists into ID tokens."""
MAX_SUBJECT_LENGTH: Final = 255

_JWS: Final = jwt.PyJWS(algorithms=list(ALLOWED_ALGORITHMS))


@dataclass(frozen=True, slots=True)
class Expectation:
    """What an ID token must agree with."""

    client_id: str
    is_issuer: Callable[[str, Mapping[str, Any]], bool]  # gets iss and all claims
    algorithms: Collection[str]
    nonce: str | None  # None: none was sent (refresh)
    access_token: str  # for at_hash; "" when there is none


async def verify_signed(
    raw: str,
    key_set: ProviderKeySet,
    algorithms: Collection[str],
    *,
    types: Collection[str] = ("JWT",),
) -> CompactToken:
    """Check form, algorithm and signature of a provider's JWT. Raises InvalidTokenError.

    `types`: what the header's `typ`, if there is one, may say, in capitals.
    Raises IdentityProviderError when the provider's keys cannot be had.
    """
    token = parse_compact(raw, max_bytes=MAX_ID_TOKEN_BYTES)
    algorithm, kid, typ = (token.header.get(name) for name in ("alg", "kid", "typ"))
    if algorithm not in algorithms or algorithm not in ALLOWED_ALGORITHMS:
        raise InvalidTokenError("token algorithm is not accepted", reason="token-algorithm")
    if kid is not None and not isinstance(kid, str):
        raise InvalidTokenError("token key id is not a string", reason="token-key")
    if typ is not None and not (isinstance(typ, str) and typ.upper() in types):
        raise InvalidTokenError("token type is not accepted", reason="token-type")
    keys = await key_set.candidates(kid, algorithm)
    if not _is_signed(raw, algorithm, keys):
        # Providers change a key and call it as before, or never gave it a name.
        renewed = await key_set.renewed_candidates(kid, algorithm)
        if renewed == keys or not _is_signed(raw, algorithm, renewed):
            raise InvalidTokenError("token signature does not verify", reason="token-signature")
    return token


async def verify_id_token(
    raw: str, key_set: ProviderKeySet, expected: Expectation, *, now_s: float
) -> dict[str, Any]:
    """Claims of a valid ID token.

    Raises InvalidTokenError; IdentityProviderError when the provider's keys cannot be had.
    """
    token = await verify_signed(raw, key_set, expected.algorithms)
    check_id_token_claims(token, expected, now_s=now_s)
    return token.claims


def check_id_token_claims(token: CompactToken, expected: Expectation, *, now_s: float) -> None:
    """Check every claim rule; the signature is taken as verified. Raises InvalidTokenError."""
    claims = token.claims
    issuer = claims.get("iss")
    if not isinstance(issuer, str) or not expected.is_issuer(issuer, claims):
        raise _refused("has another issuer", "token-issuer")
    if not is_subject(claims.get("sub")):
        raise _refused("has no usable sub", "token-subject")
    _check_audience(claims, expected.client_id)
    if "events" in claims:  # a logout token, which must never pass for an ID token
        raise _refused("is about an event", "token-event")
    if numeric_date(claims, "iat") is None:
        raise _refused("has no iat", "token-times")
    check_times(claims, now_s=now_s, exp_leeway_s=EXP_LEEWAY_S, nbf_leeway_s=NBF_LEEWAY_S)
    if expected.nonce is not None:
        nonce = claims.get("nonce")
        if not isinstance(nonce, str) or not _same(nonce, expected.nonce):
            raise _refused("answers another request (nonce)", "token-nonce")
    _check_access_token_hash(token, expected.access_token)


def is_subject(value: object) -> bool:
    """True for a usable subject: 1 to 255 printable characters."""
    return isinstance(value, str) and 0 < len(value) <= MAX_SUBJECT_LENGTH and value.isprintable()


def has_audience(claims: Mapping[str, Any], client_id: str) -> bool:
    """True when `aud`, a string or a list, holds the client id."""
    audience = claims.get("aud")
    return client_id == audience or (isinstance(audience, list) and client_id in audience)


def _is_signed(raw: str, algorithm: str, keys: Sequence[ProviderKey]) -> bool:
    for key in keys:
        try:
            _JWS.decode_complete(raw, key.public_key, algorithms=[algorithm])
        except jwt.PyJWTError:
            continue
        return True
    return False


def _check_audience(claims: Mapping[str, Any], client_id: str) -> None:
    if not has_audience(claims, client_id):
        raise _refused("is for another audience", "token-audience")
    authorized_party = claims.get("azp")
    audience = claims["aud"]
    if authorized_party is None:
        if isinstance(audience, list) and any(other != client_id for other in audience):
            raise _refused("is for several audiences without azp", "token-audience")
    elif authorized_party != client_id:
        raise _refused("was issued to another client (azp)", "token-audience")


def _check_access_token_hash(token: CompactToken, access_token: str) -> None:
    # Core 3.1.3.6. EdDSA is left out: providers differ on which hash goes with it.
    stated = token.claims.get("at_hash")
    algorithm = token.header["alg"]
    if stated is None or not access_token or algorithm == "EdDSA":
        return
    digest = hashlib.new(f"sha{algorithm[-3:]}", access_token.encode("utf-8")).digest()
    actual = base64url_encode(digest[: len(digest) // 2])
    if not isinstance(stated, str) or not _same(stated.rstrip("="), actual):
        raise _refused("belongs to another access token (at_hash)", "token-access-token")


def _same(left: str, right: str) -> bool:
    return hmac.compare_digest(left.encode("utf-8"), right.encode("utf-8"))


def _refused(what: str, reason: str) -> InvalidTokenError:
    return InvalidTokenError(f"ID token {what}", reason=reason)
