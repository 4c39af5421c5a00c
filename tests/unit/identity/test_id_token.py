from __future__ import annotations

from typing import Any

import pytest

from gatehouse.common.errors import InvalidTokenError
from gatehouse.common.identity.id_token import Expectation, check_id_token_claims
from gatehouse.common.jose.compact import CompactToken
from tests.support.identity import at_hash

NOW = 1_700_000_000.0
ISSUER = "https://idp.example.com"
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "sub": "user-1",
    "aud": "client",
    "exp": NOW + 300,
    "iat": NOW,
    "nonce": "n",
}
EXPECTED = Expectation(
    client_id="client",
    is_issuer=lambda issuer, _claims: issuer == ISSUER,
    algorithms=("ES256",),
    nonce="n",
    access_token="at",
)


def check(changes: dict[str, Any], alg: str = "ES256", expected: Expectation = EXPECTED) -> None:
    claims = {name: value for name, value in {**CLAIMS, **changes}.items() if value != "absent"}
    check_id_token_claims(CompactToken({"alg": alg}, claims, b"", b""), expected, now_s=NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"aud": ["client"]},
        {"aud": ["client", "other"], "azp": "client"},
        {"azp": "client"},
        {"exp": NOW - 29},
        {"iat": NOW + 299},
        {"iat": NOW - 86400},
        {"nbf": NOW + 299},
        {"at_hash": at_hash("at")},
        {"sub": "a" * 255},
        {"sub": "ü"},
    ],
)
def test_accepts(changes: dict[str, Any]) -> None:
    check(changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": "absent"}, "token-issuer"),
        ({"iss": ISSUER + "/"}, "token-issuer"),
        ({"iss": [ISSUER]}, "token-issuer"),
        ({"iss": "https://evil.example"}, "token-issuer"),
        ({"sub": "absent"}, "token-subject"),
        ({"sub": ""}, "token-subject"),
        ({"sub": 1}, "token-subject"),
        ({"sub": "a\nb"}, "token-subject"),
        ({"sub": "a" * 256}, "token-subject"),
        ({"aud": "absent"}, "token-audience"),
        ({"aud": "other"}, "token-audience"),
        ({"aud": "client2"}, "token-audience"),
        ({"aud": []}, "token-audience"),
        ({"aud": {"client": 1}}, "token-audience"),
        ({"aud": ["client", "other"]}, "token-audience"),
        ({"aud": ["client", "other"], "azp": "other"}, "token-audience"),
        ({"azp": "other"}, "token-audience"),
        ({"azp": ["client"]}, "token-audience"),
        ({"exp": "absent"}, "token-times"),
        ({"exp": NOW - 30}, "token-expired"),
        ({"exp": "later"}, "token-times"),
        ({"exp": 1e18}, "token-times"),
        ({"iat": "absent"}, "token-times"),
        ({"iat": NOW + 301}, "token-not-yet-valid"),
        ({"iat": -1}, "token-times"),
        ({"nbf": NOW + 301}, "token-not-yet-valid"),
        ({"nonce": "absent"}, "token-nonce"),
        ({"nonce": "N"}, "token-nonce"),
        ({"nonce": ""}, "token-nonce"),
        ({"nonce": ["n"]}, "token-nonce"),
        ({"nonce": "ü"}, "token-nonce"),
        ({"at_hash": at_hash("other")}, "token-access-token"),
        ({"at_hash": ""}, "token-access-token"),
        ({"at_hash": 1}, "token-access-token"),
        ({"at_hash": at_hash("at", "sha512")}, "token-access-token"),
    ],
)
def test_r38_refuses(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidTokenError) as caught:
        check(changes)
    assert caught.value.reason == reason


def test_hash_follows_the_algorithm() -> None:
    for alg, digest in (("RS384", "sha384"), ("PS512", "sha512"), ("ES256", "sha256")):
        check({"at_hash": at_hash("at", digest)}, alg=alg)


def test_no_nonce_is_asked_for_where_none_was_sent() -> None:
    expected = Expectation("client", EXPECTED.is_issuer, ("ES256",), None, "")
    check({"nonce": "absent"}, expected=expected)
    check({"nonce": "anything", "at_hash": "anything"}, expected=expected)
