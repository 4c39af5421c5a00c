from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from gatehouse.common.identity.errors import IdentityProviderError
from gatehouse.common.identity.jwks import parse_jwks, select_keys
from tests.support.identity import key_pair

RSA = key_pair("RS256", "rsa")[1]
P256 = key_pair("ES256", "p256")[1]
P384 = key_pair("ES384", "p384")[1]
ED = key_pair("EdDSA", "ed")[1]


def kids(*keys: dict[str, Any]) -> list[str | None]:
    return [key.kid for key in parse_jwks({"keys": list(keys)})]


def test_usable_keys_of_every_type() -> None:
    keys = parse_jwks({"keys": [RSA, P256, P384, ED]})
    assert [sorted(key.algorithms) for key in keys] == [
        ["PS256", "PS384", "PS512", "RS256", "RS384", "RS512"],
        ["ES256"],
        ["ES384"],
        ["EdDSA"],
    ]


@pytest.mark.parametrize(
    "key",
    [
        {"kty": "oct", "k": "AAAA", "kid": "x"},
        {"kty": "EC", "crv": "secp256k1", "x": P256["x"], "y": P256["y"]},
        {**P256, "use": "enc"},
        {**P256, "key_ops": ["encrypt"]},
        {**P256, "key_ops": "verify"},
        {**P256, "alg": "ES384"},
        {**P256, "alg": 7},
        {**P256, "kid": 7},
        {**P256, "x": "AAAA"},
        {**P256, "x": None},
        {**P256, "crv": ["P-256"]},
        {**P256, "y": P256["x"]},  # not on the curve
        {**RSA, "n": "AQAB"},
        {**RSA, "n": 7},
        {**RSA, "alg": "HS256"},
        {"kty": "RSA"},
        {"kty": ["RSA"]},
        {},
        "key",
        None,
    ],
)
def test_r37_unusable_keys_are_left_out(key: Any) -> None:
    assert kids(P384, key, ED) == ["p384", "ed"]


def test_short_rsa_keys_are_left_out() -> None:
    short = rsa.generate_private_key(65537, 1024).public_key().public_numbers()
    n = base64.urlsafe_b64encode(short.n.to_bytes(128, "big")).rstrip(b"=").decode()
    assert kids({"kty": "RSA", "n": n, "e": "AQAB", "kid": "short"}) == []


def test_private_members_are_not_taken() -> None:
    private, public = key_pair("ES256")
    secret = private.private_numbers().private_value.to_bytes(32, "big")
    d = base64.urlsafe_b64encode(secret).rstrip(b"=").decode()
    (key,) = parse_jwks({"keys": [{**public, "d": d}]})
    assert isinstance(key.public_key, ec.EllipticCurvePublicKey)


@pytest.mark.parametrize("document", [{}, {"keys": {}}, {"keys": "x"}, {"keys": [P256] * 101}])
def test_a_document_that_is_no_key_set(document: dict[str, Any]) -> None:
    with pytest.raises(IdentityProviderError):
        parse_jwks(document)


def test_selection() -> None:
    unnamed = {name: value for name, value in P256.items() if name != "kid"}
    keys = parse_jwks({"keys": [RSA, P256, unnamed, {**RSA, "kid": "rs", "alg": "RS256"}]})
    assert [key.kid for key in select_keys(keys, "rsa", "PS256")] == ["rsa"]
    assert select_keys(keys, "rsa", "ES256") == ()
    assert select_keys(keys, "other", "ES256") == ()
    assert [key.kid for key in select_keys(keys, None, "ES256")] == ["p256", None]
    assert [key.kid for key in select_keys(keys, None, "RS512")] == ["rsa"]
    assert [key.kid for key in select_keys(keys, None, "RS256")] == ["rsa", "rs"]
