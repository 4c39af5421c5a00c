from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gatehouse.common.errors import InvalidArgumentError, InvalidTokenError
from gatehouse.common.jose.hs256 import decode_hs256, encode_hs256

KEY = bytes(range(32))
OTHER = bytes(range(1, 33))


def forge(header: dict[str, Any], claims: bytes, key: bytes, digest: str = "sha256") -> str:
    """A JWT made without any library."""
    parts = [
        base64.urlsafe_b64encode(raw).rstrip(b"=") for raw in (json.dumps(header).encode(), claims)
    ]
    signature = hmac.digest(key, b".".join(parts), digest)
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def test_round_trip_and_interoperability() -> None:
    claims = {"sub": "u1", "n": 2**63, "list": ["a"], "text": "ü\x00"}
    token = encode_hs256(claims, KEY)
    assert decode_hs256(token, [KEY]) == claims
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}
    assert jwt.decode(token, KEY, algorithms=["HS256"]) == claims
    made_elsewhere = forge({"typ": "JWT", "alg": "HS256"}, b'{"sub":"u1"}', KEY)
    assert decode_hs256(made_elsewhere, [KEY]) == {"sub": "u1"}


def test_any_key_of_the_list_verifies() -> None:
    token = encode_hs256({"a": 1}, OTHER)
    assert decode_hs256(token, [KEY, OTHER]) == {"a": 1}
    for keys in ([KEY], []):
        with pytest.raises(InvalidTokenError, match="signature"):
            decode_hs256(token, keys)


def test_type_is_checked() -> None:
    token = encode_hs256({"a": 1}, KEY, typ="gatehouse-call")
    assert decode_hs256(token, [KEY], typ="gatehouse-call") == {"a": 1}
    assert decode_hs256(token, [KEY], typ=None) == {"a": 1}
    for typ in ("JWT", "", "Gatehouse-Call"):
        with pytest.raises(InvalidTokenError, match="type"):
            decode_hs256(token, [KEY], typ=typ)
    with pytest.raises(InvalidTokenError, match="type"):
        decode_hs256(forge({"alg": "HS256"}, b"{}", KEY), [KEY])


@pytest.mark.parametrize(
    ("header", "digest"),
    [
        ({"typ": "JWT", "alg": "HS384"}, "sha384"),
        ({"typ": "JWT", "alg": "HS512"}, "sha512"),
        ({"typ": "JWT", "alg": "hs256"}, "sha256"),
        ({"typ": "JWT", "alg": "none"}, "sha256"),
        ({"typ": "JWT", "alg": "None"}, "sha256"),
        ({"typ": "JWT", "alg": ""}, "sha256"),
        ({"typ": "JWT", "alg": "RS256"}, "sha256"),
        ({"typ": "JWT", "alg": "ES256"}, "sha256"),
        ({"typ": "JWT", "alg": "HS256", "jwk": {"kty": "oct", "k": "AAAA"}}, "sha256"),
        ({"typ": "JWT", "alg": "HS256", "jku": "https://evil.example"}, "sha256"),
        ({"typ": "JWT", "alg": "HS256", "crit": ["x"], "x": 1}, "sha256"),
    ],
)
def test_r37_only_plain_hs256(header: dict[str, Any], digest: str) -> None:
    with pytest.raises(InvalidTokenError) as caught:
        decode_hs256(forge(header, b"{}", KEY, digest), [KEY])
    expected = "token-malformed" if header["alg"] == "HS256" else "token-algorithm"
    assert caught.value.reason == expected


def test_r37_a_token_without_signature_is_refused() -> None:
    head, claims, _ = encode_hs256({"a": 1}, KEY).split(".")
    for bad in (f"{head}.{claims}.", f"{head}.{claims}", jwt.encode({"a": 1}, "", "none")):
        with pytest.raises(InvalidTokenError):
            decode_hs256(bad, [KEY])


def test_r37_a_public_key_is_no_secret() -> None:
    public = rsa.generate_private_key(65537, 2048).public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(InvalidTokenError):
        decode_hs256(forge({"typ": "JWT", "alg": "HS256"}, b"{}", pem), [KEY])


def test_r37_every_changed_character_is_noticed() -> None:
    token = encode_hs256({"sub": "u1"}, KEY)
    for index in range(len(token)):
        for other in "Aa0-.":
            changed = token[:index] + other + token[index + 1 :]
            if changed != token:
                with pytest.raises(InvalidTokenError):
                    decode_hs256(changed, [KEY])
        with pytest.raises(InvalidTokenError):
            decode_hs256(token[:index], [KEY])


def test_r37_duplicate_claims_are_refused_even_when_signed() -> None:
    with pytest.raises(InvalidTokenError, match="twice"):
        decode_hs256(forge({"typ": "JWT", "alg": "HS256"}, b'{"sub":"a","sub":"b"}', KEY), [KEY])


def test_large_tokens_are_refused_before_any_work() -> None:
    with pytest.raises(InvalidTokenError, match="longer"):
        decode_hs256(encode_hs256({"a": "x" * 20_000}, KEY), [KEY])


def test_short_keys_are_a_mistake_of_ours() -> None:
    with pytest.raises(InvalidArgumentError, match="32 bytes"):
        encode_hs256({}, b"short")
    with pytest.raises(InvalidArgumentError, match="32 bytes"):
        decode_hs256(encode_hs256({}, KEY), [b""])


def test_signature_is_plain_hmac() -> None:
    token = encode_hs256({"a": 1}, KEY)
    signing_input, _, signature = token.rpartition(".")
    expected = hmac.new(KEY, signing_input.encode(), hashlib.sha256).digest()
    assert base64.urlsafe_b64decode(signature + "=") == expected
