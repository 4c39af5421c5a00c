from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from gatehouse.common.errors import InvalidArgumentError, InvalidTokenError
from gatehouse.common.jose.hs256 import encode_hs256
from gatehouse.common.jose.keys import (
    SigningKey,
    derive_signing_key,
    jwks,
    load_signing_keys,
    sign_jwt,
    verify_jwt,
)

P256 = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)


def pem(key: Any, form: PrivateFormat = PrivateFormat.PKCS8) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, form, NoEncryption()))


EC_KEY = load_signing_keys(pem(P256))[0]
RSA_KEY = load_signing_keys(pem(RSA))[0]


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize(("key", "alg"), [(P256, "ES256"), (RSA, "RS256")])
def test_loads_every_private_form(key: Any, alg: str, form: PrivateFormat) -> None:
    text = pem(key, form)
    wrapped = base64.encodebytes(text)
    for given in (text, text.replace(b"\n", b"\r\n"), base64.b64encode(text), b" \n" + wrapped):
        (loaded,) = load_signing_keys(given)
        assert loaded.alg == alg
        assert loaded.private_key.private_numbers() == key.private_numbers()


def test_several_blocks_keep_their_order_and_lose_repetitions() -> None:
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    noise = b"some comment\n" + parameters
    both = noise + pem(RSA) + b"\n" + pem(P256, PrivateFormat.TraditionalOpenSSL) + pem(RSA)
    with pytest.raises(InvalidArgumentError):  # does not start with a block: taken for base64
        load_signing_keys(both)
    keys = load_signing_keys(both.removeprefix(b"some comment\n"))
    assert [key.alg for key in keys] == ["RS256", "ES256"]
    assert [key.kid for key in keys] == [RSA_KEY.kid, EC_KEY.kid]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "no private key"),
        (b"not a key!", "neither PEM nor base64"),
        (base64.b64encode(b"hello"), "no private key"),
        (pem(ec.generate_private_key(ec.SECP384R1())), "secp384r1"),
        (pem(ec.generate_private_key(ec.SECP521R1())), "secp521r1"),
        (pem(ec.generate_private_key(ec.SECP256K1())), "secp256k1"),
        (pem(rsa.generate_private_key(65537, 1024)), "1024"),
        (pem(ed25519.Ed25519PrivateKey.generate()), "EC .P-256. or RSA"),
        (
            P256.private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
            ),
            "ENCRYPTED PRIVATE KEY",
        ),
        (
            P256.private_bytes(
                Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"pass")
            ),
            "encrypted",
        ),
        (
            P256.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "PUBLIC KEY block",
        ),
        (pem(P256).replace(b"MIG", b"MIH"), "cannot be read"),
        (pem(P256)[:80], "no private key"),
        (b"-----BEGIN " * 100_000, "larger than"),
    ],
    ids=itertools.count(),
)
def test_refuses_other_keys_and_says_why(text: bytes, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        load_signing_keys(text)
    body = text.replace(b"\n", b"")[40:80].decode(errors="replace")
    assert not body or body not in str(caught.value)


def test_derived_key_is_what_the_specification_says() -> None:
    secret = bytes(range(32))
    # HKDF (RFC 5869) by hand: no salt, two blocks, 40 bytes
    extracted = hmac.digest(bytes(32), secret, "sha256")
    info = b"derived-jwt-signing-key"
    first = hmac.digest(extracted, info + b"\x01", "sha256")
    second = hmac.digest(extracted, first + info + b"\x02", "sha256")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    scalar = int.from_bytes((first + second)[:40], "big") % (order - 1) + 1
    derived = derive_signing_key(secret).private_key
    assert isinstance(derived, ec.EllipticCurvePrivateKey)
    assert derived.private_numbers().private_value == scalar


def test_derived_key_never_changes() -> None:
    """A changed vector means that every upstream loses the key it trusts."""
    assert jwks([derive_signing_key(bytes(32))]) == {
        "keys": [
            {
                "kty": "EC",
                "crv": "P-256",
                "x": "vtX3_FY7ysMww7a05IAHrclc8W83bgqelopuPVUIOKA",
                "y": "U4pYkH1kn0iSX5t5x1Jy57jF3kWdyZz9Lhs_Lkuo2s4",
                "use": "sig",
                "alg": "ES256",
                "kid": "3a8cd442a4b539651cb3ec0b569cb937e0060e6474ab55649e14f28c02db3d41",
            }
        ]
    }


def test_kid_is_the_hex_thumbprint() -> None:
    # the example of RFC 7638 section 3.1
    n = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECP"
        "ebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY"
        "368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0f"
        "M4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    members = json.dumps({"e": "AQAB", "kty": "RSA", "n": n}, separators=(",", ":"))
    assert base64.urlsafe_b64encode(hashlib.sha256(members.encode()).digest()) == (
        b"NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs="
    )
    for key in (EC_KEY, RSA_KEY):
        (public,) = jwks([key])["keys"]
        required = {
            name: public[name] for name in ("crv", "e", "kty", "n", "x", "y") if name in public
        }
        canonical = json.dumps(required, sort_keys=True, separators=(",", ":"))
        assert key.kid == hashlib.sha256(canonical.encode()).hexdigest() == public["kid"]


@pytest.mark.parametrize("key", [EC_KEY, RSA_KEY], ids=["ES256", "RS256"])
def test_signs_what_others_verify(key: SigningKey) -> None:
    token = sign_jwt({"sub": "u1", "groups": []}, key)
    assert verify_jwt(token, [EC_KEY, RSA_KEY]) == {"sub": "u1", "groups": []}
    (public,) = jwks([key])["keys"]
    assert jwt.decode(token, jwt.PyJWK(public), algorithms=[key.alg]) == {"sub": "u1", "groups": []}
    assert jwt.get_unverified_header(token) == {"alg": key.alg, "kid": key.kid, "typ": "JWT"}


def test_the_key_set_holds_no_private_member() -> None:
    for public in jwks([EC_KEY, RSA_KEY])["keys"]:
        assert set(public) <= {"kty", "crv", "x", "y", "n", "e", "use", "alg", "kid"}


def test_repr_shows_no_key() -> None:
    assert "private" not in repr(EC_KEY)


def _with_header(key: Any, alg: str, **headers: Any) -> str:
    return jwt.encode({"sub": "u1"}, key, algorithm=alg, headers=headers)


def _public_pem(key: Any) -> bytes:
    public = key.public_key()
    return bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def test_r37_algorithm_confusion() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    p384 = ec.generate_private_key(ec.SECP384R1())
    # HS256 keyed with our public key, by hand: libraries refuse to make it
    head = base64.urlsafe_b64encode(
        json.dumps({"alg": "HS256", "typ": "JWT", "kid": RSA_KEY.kid}).encode()
    ).rstrip(b"=")
    mac = hmac.digest(_public_pem(RSA), head + b".e30", "sha256")
    confused = (head + b".e30." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()
    hostile = {
        "hs256 with public key": confused,
        "hs256": encode_hs256({"sub": "u1"}, bytes(32)),
        "none": jwt.encode({"sub": "u1"}, "", "none", headers={"kid": EC_KEY.kid}),
        "foreign key, our kid": _with_header(other, "ES256", kid=EC_KEY.kid),
        "our key, foreign kid": _with_header(P256, "ES256", kid="0" * 64),
        "our key, no kid": _with_header(P256, "ES256"),
        "P-384": _with_header(p384, "ES384", kid=EC_KEY.kid),
        "RSA kid on EC token": _with_header(P256, "ES256", kid=RSA_KEY.kid),
        "PS256": _with_header(RSA, "PS256", kid=RSA_KEY.kid),
        "RS512": _with_header(RSA, "RS512", kid=RSA_KEY.kid),
        "jwk header": _with_header(other, "ES256", kid=EC_KEY.kid, jwk=jwks([EC_KEY])["keys"][0]),
        "jku header": _with_header(P256, "ES256", kid=EC_KEY.kid, jku="https://evil.example/jwks"),
        "wrong typ": _with_header(P256, "ES256", kid=EC_KEY.kid, typ="at+jwt"),
        "empty": "",
        "two dots": "..",
    }
    for name, token in hostile.items():
        with pytest.raises(InvalidTokenError):
            pytest.fail(f"{name}: {verify_jwt(token, [EC_KEY, RSA_KEY])}")
    assert verify_jwt(_with_header(P256, "ES256", kid=EC_KEY.kid), [EC_KEY]) == {"sub": "u1"}


def test_r37_a_public_zero_signature_is_refused() -> None:
    """CVE-2022-21449: r = s = 0."""
    head, claims, _ = sign_jwt({"sub": "u1"}, EC_KEY).split(".")
    zero = base64.urlsafe_b64encode(bytes(64)).rstrip(b"=").decode()
    with pytest.raises(InvalidTokenError):
        verify_jwt(f"{head}.{claims}.{zero}", [EC_KEY])


def test_r37_the_key_dictates_the_algorithm() -> None:
    for algorithm in ("PS256", "RS512"):
        with pytest.raises(InvalidTokenError) as caught:
            verify_jwt(_with_header(RSA, algorithm, kid=RSA_KEY.kid), [EC_KEY, RSA_KEY])
        assert caught.value.reason == "token-algorithm"
