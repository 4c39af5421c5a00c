"""With which public keys a provider signs, and which of them fits a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import jwt

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.errors import InvalidTokenError
from gatehouse.common.identity.cached import Cached
from gatehouse.common.identity.errors import RESPONSE, IdentityProviderError
from gatehouse.common.identity.transport import ProviderTransport, endpoint_name

MAX_KEYS: Final = 100
MAX_AGE_S: Final = 3600.0
MIN_REFETCH_INTERVAL_S: Final = 10.0
"""Tokens with unknown key ids cause no more than one fetch in this time."""
MIN_RSA_BITS: Final = 2048

_PUBLIC_MEMBERS: Final = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_CURVE_ALGORITHM: Final = {
    ("EC", "P-256"): "ES256",
    ("EC", "P-384"): "ES384",
    ("EC", "P-521"): "ES512",
    ("OKP", "Ed25519"): "EdDSA",
}
_RSA_ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})


@dataclass(frozen=True, slots=True)
class ProviderKey:
    """One public key and the algorithms it may verify."""

    kid: str | None
    algorithms: frozenset[str]
    public_key: Any = field(repr=False)


def parse_jwks(document: Mapping[str, Any]) -> tuple[ProviderKey, ...]:
    """The usable signature keys of a key set (RFC 7517); others are left out.

    Left out: symmetric, private-only, short and malformed keys, and keys meant for something else.
    """
    listed = document.get("keys")
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise IdentityProviderError(
            f"key set of the identity provider has no list of at most {MAX_KEYS} keys",
            reason=RESPONSE,
        )
    keys = (_parse_key(item) for item in listed if isinstance(item, dict))
    return tuple(key for key in keys if key is not None)


def select_keys(
    keys: tuple[ProviderKey, ...], kid: str | None, algorithm: str
) -> tuple[ProviderKey, ...]:
    """The keys a token may have been signed with: those of its key id, all if it names none."""
    return tuple(
        key for key in keys if algorithm in key.algorithms and (kid is None or key.kid == kid)
    )


class ProviderKeySet:
    """A provider's keys, fetched when first needed and again when none of them fits."""

    def __init__(self, transport: ProviderTransport, jwks_uri: str, clock: Clock, rng: Rng) -> None:
        self._transport = transport
        self._jwks_uri = jwks_uri
        self._cached = Cached(
            self._fetch,
            clock,
            rng,
            max_age_s=MAX_AGE_S,
            min_interval_s=MIN_REFETCH_INTERVAL_S,
        )

    async def candidates(self, kid: str | None, algorithm: str) -> tuple[ProviderKey, ...]:
        """Keys that may verify such a token.

        Raises InvalidTokenError when the provider has none, IdentityProviderError when it cannot
        be asked.
        """
        found = select_keys(await self._cached.get(), kid, algorithm)
        if not found:
            found = await self.renewed_candidates(kid, algorithm)
        if not found:
            raise InvalidTokenError(
                "token is signed by a key that the identity provider does not publish",
                reason="token-key",
            )
        return found

    async def renewed_candidates(self, kid: str | None, algorithm: str) -> tuple[ProviderKey, ...]:
        """The same of keys that are fetched again, unless that was done just now; none is fine."""
        return select_keys(await self._cached.renewed(), kid, algorithm)

    async def _fetch(self) -> tuple[ProviderKey, ...]:
        name = endpoint_name(self._jwks_uri)
        response = await self._transport.get(self._jwks_uri)
        if response.status != 200:
            raise IdentityProviderError(
                f"{name} answered {response.status}", retry_after_s=response.retry_after_s
            )
        return parse_jwks(response.json(name))


def _parse_key(item: Mapping[str, Any]) -> ProviderKey | None:
    kty, kid, operations = item.get("kty"), item.get("kid"), item.get("key_ops", ["verify"])
    if not isinstance(kty, str) or kty not in _PUBLIC_MEMBERS:
        return None
    if item.get("use", "sig") != "sig" or not (kid is None or isinstance(kid, str)):
        return None
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    fitting = _fitting_algorithms(kty, item.get("crv"))
    declared = item.get("alg")
    if declared is not None:
        fitting = frozenset(name for name in fitting if name == declared)
    if not fitting:
        return None
    members = {name: item[name] for name in _PUBLIC_MEMBERS[kty] if name in item}
    try:
        key = jwt.PyJWK({"kty": kty, **members}, algorithm=min(fitting)).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if kty == "RSA" and key.key_size < MIN_RSA_BITS:
        return None
    return ProviderKey(kid=kid, algorithms=fitting, public_key=key)


def _fitting_algorithms(kty: str, curve: object) -> frozenset[str]:
    if kty == "RSA":
        return _RSA_ALGORITHMS
    algorithm = _CURVE_ALGORITHM.get((kty, curve)) if isinstance(curve, str) else None
    return frozenset() if algorithm is None else frozenset({algorithm})
