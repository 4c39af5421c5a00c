"""The keys that sign identity JWTs, and what the world needs to verify them.

One algorithm per key type: P-256 signs ES256, RSA signs RS256. Everything else is refused at load.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gatehouse.common.errors import InvalidArgumentError, InvalidTokenError
from gatehouse.common.jose.compact import base64url_encode, parse_compact

MIN_RSA_BITS: Final = 2048
MAX_PEM_BYTES: Final = 1024 * 1024

_PEM_BLOCK: Final = re.compile(
    rb"-----BEGIN (?P<label>[A-Z0-9 ]+)-----\r?\n.*?-----END (?P=label)-----", re.DOTALL
)
_PRIVATE_LABELS: Final = frozenset({b"EC PRIVATE KEY", b"RSA PRIVATE KEY", b"PRIVATE KEY"})
_PARAMETER_LABELS: Final = frozenset({b"EC PARAMETERS"})  # `openssl ecparam -genkey` writes one
_DERIVED_INFO: Final = b"derived-jwt-signing-key"
_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_JWS: Final = jwt.PyJWS(algorithms=["ES256", "RS256"])


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One private key, its only algorithm, and its name in key sets."""

    alg: Literal["ES256", "RS256"]
    kid: str  # hex of the RFC 7638 SHA-256 thumbprint
    private_key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = field(repr=False)


def load_signing_keys(pem: bytes) -> tuple[SigningKey, ...]:
    """Keys of a PEM text, or of the base64 of one; several blocks keep their order.

    Accepts SEC 1, PKCS#1 and PKCS#8 blocks. Raises InvalidArgumentError, never with key material.
    """
    if len(pem) > MAX_PEM_BYTES:
        raise InvalidArgumentError(f"signing key is larger than {MAX_PEM_BYTES} bytes")
    text = pem.strip()
    if not text.startswith(b"-----BEGIN"):
        text = _decode_base64(text)
    keys: dict[str, SigningKey] = {}
    for match in _PEM_BLOCK.finditer(text):
        label = match["label"]
        if label in _PARAMETER_LABELS:
            continue
        if label not in _PRIVATE_LABELS:
            raise InvalidArgumentError(
                f"signing key holds a {label.decode('ascii')} block; "
                "it must be an unencrypted EC (P-256) or RSA private key"
            )
        key = _signing_key(match[0] + b"\n")
        keys.setdefault(key.kid, key)
    if not keys:
        raise InvalidArgumentError(
            "signing key holds no private key; it must be PEM, or base64 of PEM"
        )
    return tuple(keys.values())


def derive_signing_key(shared_secret: bytes) -> SigningKey:
    """The P-256 key used when no `signing_key` is set: the same on every replica.

    HKDF-SHA256 without salt, 40 bytes (so that the modulo is unbiased, FIPS 186-5 A.2.1).
    """
    stream = HKDF(algorithm=SHA256(), length=40, salt=None, info=_DERIVED_INFO).derive(
        shared_secret
    )
    scalar = int.from_bytes(stream, "big") % (_P256_ORDER - 1) + 1
    return _from_private_key(ec.derive_private_key(scalar, ec.SECP256R1()))


def jwks(keys: Sequence[SigningKey]) -> dict[str, list[dict[str, str]]]:
    """The JSON Web Key Set (RFC 7517) of the public halves."""
    return {
        "keys": [
            {**_public_members(key.private_key), "use": "sig", "alg": key.alg, "kid": key.kid}
            for key in keys
        ]
    }


def sign_jwt(claims: Mapping[str, Any], key: SigningKey) -> str:
    """Sign `claims` as a compact JWT with header members alg, kid and typ `JWT`."""
    payload = json.dumps(dict(claims), separators=(",", ":"), allow_nan=False).encode("utf-8")
    return _JWS.encode(
        payload, key.private_key, algorithm=key.alg, headers={"typ": "JWT", "kid": key.kid}
    )


def verify_jwt(token: str, keys: Sequence[SigningKey]) -> dict[str, Any]:
    """Claims of a token that one of our own `keys` signed. Raises InvalidTokenError.

    The header's kid picks the key and the key dictates the algorithm. Times, issuer and audience
    are the caller's to check.
    """
    parsed = parse_compact(token)
    if parsed.header.get("typ") != "JWT":
        raise InvalidTokenError("token type is not JWT", reason="token-type")
    kid = parsed.header.get("kid")
    key = next((key for key in keys if key.kid == kid), None)
    if key is None:
        raise InvalidTokenError("token is signed by an unknown key", reason="token-key")
    if parsed.header["alg"] != key.alg:
        raise InvalidTokenError("token algorithm is not that of its key", reason="token-algorithm")
    try:
        _JWS.decode_complete(token, key.private_key.public_key(), algorithms=[key.alg])
    except jwt.InvalidTokenError:
        raise InvalidTokenError(
            "token signature does not verify", reason="token-signature"
        ) from None
    return parsed.claims


def _decode_base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True).strip()
    except binascii.Error:
        raise InvalidArgumentError("signing key is neither PEM nor base64 of PEM") from None


def _signing_key(block: bytes) -> SigningKey:
    try:
        private_key = load_pem_private_key(block, password=None)
    except TypeError:
        raise InvalidArgumentError("signing key is encrypted; give it without password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidArgumentError("signing key cannot be read; is the PEM complete?") from None
    if not isinstance(private_key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise InvalidArgumentError("signing key must be EC (P-256) or RSA")
    return _from_private_key(private_key)


def _from_private_key(
    private_key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
) -> SigningKey:
    if isinstance(private_key, rsa.RSAPrivateKey):
        if private_key.key_size < MIN_RSA_BITS:
            raise InvalidArgumentError(
                f"signing key has {private_key.key_size} bits; RSA needs {MIN_RSA_BITS} or more"
            )
        return SigningKey("RS256", _thumbprint(private_key), private_key)
    if not isinstance(private_key.curve, ec.SECP256R1):
        raise InvalidArgumentError(
            f"signing key is on curve {private_key.curve.name}; ES256 needs P-256 (prime256v1)"
        )
    return SigningKey("ES256", _thumbprint(private_key), private_key)


def _public_members(
    private_key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
) -> dict[str, str]:
    if isinstance(private_key, rsa.RSAPrivateKey):
        rsa_numbers = private_key.public_key().public_numbers()
        return {"kty": "RSA", "n": _unsigned(rsa_numbers.n), "e": _unsigned(rsa_numbers.e)}
    ec_numbers = private_key.public_key().public_numbers()
    return {
        "kty": "EC",
        "crv": "P-256",
        "x": _unsigned(ec_numbers.x, 32),
        "y": _unsigned(ec_numbers.y, 32),
    }


def _unsigned(number: int, length: int | None = None) -> str:
    size = length if length is not None else (number.bit_length() + 7) // 8
    return base64url_encode(number.to_bytes(size, "big"))


def _thumbprint(private_key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    members = json.dumps(_public_members(private_key), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(members.encode("ascii")).hexdigest()
