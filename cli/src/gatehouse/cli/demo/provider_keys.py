"""Answers how the development identity provider signs, and how others may check it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final, Literal

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

SigningAlg = Literal["RS256", "ES256"]

# RFC 7638 section 3.2: what the thumbprint of an EC or RSA key is made of.
_REQUIRED_MEMBERS: Final = ("crv", "e", "kty", "n", "x", "y")
ALGORITHMS: Final[tuple[SigningAlg, ...]] = ("RS256", "ES256")


class ProviderKeys:
    """One fresh key pair per algorithm; they live as long as the process."""

    def __init__(self) -> None:
        rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        ec_key = ec.generate_private_key(ec.SECP256R1())
        self._private: dict[SigningAlg, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey] = {
            "RS256": rsa_key,
            "ES256": ec_key,
        }
        self._public: dict[SigningAlg, dict[str, Any]] = {
            "RS256": _published(RSAAlgorithm.to_jwk(rsa_key.public_key(), as_dict=True), "RS256"),
            "ES256": _published(ECAlgorithm.to_jwk(ec_key.public_key(), as_dict=True), "ES256"),
        }

    def jwks(self) -> dict[str, list[dict[str, Any]]]:
        """Return the public keys (RFC 7517)."""
        return {"keys": list(self._public.values())}

    def sign(self, claims: Mapping[str, Any], alg: SigningAlg) -> str:
        """Return a signed JWT that names its key."""
        headers = {"kid": self._public[alg]["kid"]}
        return jwt.encode(dict(claims), self._private[alg], algorithm=alg, headers=headers)

    def open_own(self, token: str, issuer: str) -> dict[str, Any] | None:
        """Return the claims of an ID token signed here, expired or not; None for any other."""
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            alg = next(alg for alg in ALGORITHMS if self._public[alg]["kid"] == kid)
            return jwt.decode(
                token,
                self._private[alg].public_key(),
                algorithms=[alg],
                issuer=issuer,
                options={"verify_exp": False, "verify_aud": False},
            )
        except (jwt.InvalidTokenError, StopIteration):
            return None


def _published(key: Mapping[str, Any], alg: SigningAlg) -> dict[str, Any]:
    members: dict[str, Any] = {
        name: key[name] for name in ("crv", "e", "kty", "n", "x", "y") if name in key
    }
    canonical = json.dumps(members, separators=(",", ":"), sort_keys=True).encode()
    thumbprint = base64.urlsafe_b64encode(hashlib.sha256(canonical).digest()).rstrip(b"=").decode()
    return {**members, "alg": alg, "use": "sig", "kid": thumbprint}
