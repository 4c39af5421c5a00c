"""The shared-secret JWT: what is minted, and everything that must be refused."""

from __future__ import annotations

import base64
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from gatehouse.common.errors import FailedPreconditionError, UnauthenticatedError
from gatehouse.common.jose.hs256 import encode_hs256
from gatehouse.common.rpc.credentials import (
    JWT_KEY,
    SERVICE_JWT_KEY,
    SERVICE_JWT_TYPE,
    VERIFIED_KEPT,
    Caller,
    ServiceCredentials,
    VerifiedTokens,
    verify_call,
)
from tests.support.clock import FakeClock

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
NOW = 1_800_000_000


def credentials(
    clock: FakeClock | None = None, secrets: tuple[bytes, ...] = (KEY,)
) -> ServiceCredentials:
    return ServiceCredentials("proxy", lambda: secrets, clock or FakeClock(NOW))


def plain(claims: dict[str, Any], key: bytes = KEY, **header: Any) -> str:
    return jwt.encode(claims, key, algorithm="HS256", headers=header or None)


def verify(*pairs: tuple[str, str | bytes], secrets: tuple[bytes, ...] = (KEY,)) -> Caller:
    return verify_call(pairs, secrets, "databroker", NOW)


def refused(*pairs: tuple[str, str | bytes], secrets: tuple[bytes, ...] = (KEY,)) -> str:
    with pytest.raises(UnauthenticatedError) as caught:
        verify(*pairs, secrets=secrets)
    return caught.value.reason


def raw_token(header: object, claims: object, key: bytes = KEY) -> str:
    def part(value: object) -> str:
        text = value if isinstance(value, str) else json.dumps(value)
        return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()

    signed = f"{part(header)}.{part(claims)}"
    tag = hmac.digest(key, signed.encode(), "sha256")
    return f"{signed}.{base64.urlsafe_b64encode(tag).rstrip(b'=').decode()}"


def test_mints_exactly_exp_an_hour_ahead() -> None:
    (name, token), (service_name, service_token) = credentials().metadata("databroker")
    assert (name, service_name) == ("jwt", "gatehouse-jwt")
    claims = jwt.decode(token, KEY, algorithms=["HS256"], options={"verify_exp": False})
    assert claims == {"exp": NOW + 3600}
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}
    claims = jwt.decode(
        service_token,
        KEY,
        algorithms=["HS256"],
        audience="databroker",
        options={"verify_exp": False},
    )
    assert claims == {"aud": "databroker", "sub": "proxy", "exp": NOW + 3600}
    assert jwt.get_unverified_header(service_token)["typ"] == SERVICE_JWT_TYPE


def test_round_trip_names_the_caller() -> None:
    assert verify(*credentials().metadata("databroker")) == Caller("proxy")


def test_a_peer_without_our_token_is_accepted_and_nameless() -> None:
    assert verify((JWT_KEY, credentials().service_jwt())) == Caller(None)


def test_tokens_follow_clock_and_secret() -> None:
    clock = FakeClock(NOW)
    keys: list[tuple[bytes, ...]] = [(KEY,)]
    minting = ServiceCredentials("proxy", lambda: keys[0], clock)
    first = minting.service_jwt()
    assert minting.service_jwt() == first
    clock.advance(1)
    second = minting.service_jwt()
    assert second != first
    keys[0] = (OTHER_KEY, KEY)
    third = minting.service_jwt()
    assert verify((JWT_KEY, third), secrets=(OTHER_KEY,)) == Caller(None)
    assert refused((JWT_KEY, third)) == "bad-credential"


def test_audiences_do_not_share_a_cached_token() -> None:
    minting = credentials()
    broker, authorize = minting.metadata("databroker"), minting.metadata("authorize")
    assert broker[0] == authorize[0]
    assert broker[1] != authorize[1]


def test_previous_secret_is_still_accepted() -> None:
    old = credentials(secrets=(OTHER_KEY,)).metadata("databroker")
    assert verify(*old, secrets=(KEY, OTHER_KEY)) == Caller("proxy")


def test_no_secret_mints_nothing_and_admits_nobody() -> None:
    with pytest.raises(FailedPreconditionError, match="shared_secret"):
        credentials(secrets=()).service_jwt()
    token = credentials().service_jwt()
    assert refused((JWT_KEY, token), secrets=()) == "no-shared-secret"
    assert refused((JWT_KEY, token), secrets=(KEY, b"")) == "no-shared-secret"


def test_missing() -> None:
    assert refused() == "no-credential"
    assert refused(("authorization", f"Bearer {credentials().service_jwt()}")) == "no-credential"
    assert refused((SERVICE_JWT_KEY, credentials().metadata("databroker")[1][1])) == "no-credential"


@pytest.mark.parametrize("exp", [NOW - 1, NOW, 0, -1])
def test_expired_without_leeway(exp: int) -> None:
    assert refused((JWT_KEY, plain({"exp": exp}))) == "expired"
    assert verify((JWT_KEY, plain({"exp": NOW + 1}))) == Caller(None)


def test_expired_says_how_long_ago_so_that_skew_is_seen() -> None:
    with pytest.raises(UnauthenticatedError, match=r"expired 4000 s ago.*clocks") as caught:
        verify((JWT_KEY, plain({"exp": NOW - 4000})))
    assert caught.value.public_message == "invalid JWT"


@pytest.mark.parametrize(
    "extra",
    [
        {"sub": "someone"},
        {"iat": NOW},
        {"aud": "databroker"},
        {"nbf": 0},
        {"jti": "1"},
        {"iss": "pomerium"},
    ],
)
def test_r39_any_further_claim_is_refused(extra: dict[str, Any]) -> None:
    """A service account's token is signed with the same secret and has a future exp."""
    assert refused((JWT_KEY, plain({"exp": NOW + 60, **extra}))) == "bad-claims"


@pytest.mark.parametrize(
    "claims", [{}, {"exp": "soon"}, {"exp": True}, {"exp": None}, {"exp": [NOW + 5]}, {"iat": NOW}]
)
def test_exp_must_be_there_and_a_number(claims: dict[str, Any]) -> None:
    token = raw_token({"alg": "HS256", "typ": "JWT"}, claims)
    assert refused((JWT_KEY, token)) in {"bad-claims", "bad-credential"}


@pytest.mark.parametrize("text", ['{"exp":1e999}', '{"exp":NaN}', '{"exp":Infinity}', "[]", '"x"'])
def test_exp_must_be_a_time(text: str) -> None:
    token = raw_token({"alg": "HS256", "typ": "JWT"}, text)
    assert refused((JWT_KEY, token)) in {"bad-claims", "bad-credential"}


def test_duplicate_claims_are_refused() -> None:
    text = f'{{"exp":1,"exp":{NOW + 60}}}'
    assert refused((JWT_KEY, raw_token({"alg": "HS256", "typ": "JWT"}, text))) == "bad-credential"


def test_wrong_key() -> None:
    assert refused((JWT_KEY, plain({"exp": NOW + 60}, OTHER_KEY))) == "bad-credential"


def test_alg_none() -> None:
    token = jwt.encode({"exp": NOW + 60}, "", algorithm="none")
    assert refused((JWT_KEY, token)) == "bad-credential"
    unsigned = raw_token({"alg": "none", "typ": "JWT"}, {"exp": NOW + 60})
    assert refused((JWT_KEY, unsigned)) == "bad-credential"


def test_alg_rs256() -> None:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    token = jwt.encode({"exp": NOW + 60}, private, algorithm="RS256")
    assert refused((JWT_KEY, token)) == "bad-credential"


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_other_hmac(algorithm: str) -> None:
    key = KEY + KEY
    token = jwt.encode({"exp": NOW + 60}, key, algorithm=algorithm)
    assert refused((JWT_KEY, token), secrets=(key,)) == "bad-credential"


@pytest.mark.parametrize("token", ["", ".", "a.b.c", "x" * 20_000, "é.é.é", "a.b.c.d.e"])
def test_not_a_token(token: str) -> None:
    assert refused((JWT_KEY, token)) == "bad-credential"


def test_truncated_and_altered() -> None:
    token = credentials().service_jwt()
    assert refused((JWT_KEY, token[:-1])) == "bad-credential"
    head, body, _tag = token.split(".")
    assert refused((JWT_KEY, f"{head}.{body}.")) == "bad-credential"


def test_two_tokens_are_refused_even_when_both_are_good() -> None:
    token = credentials().service_jwt()
    assert refused((JWT_KEY, token), (JWT_KEY, token)) == "bad-credential"
    assert refused((JWT_KEY, token.encode())) == "bad-credential"


def test_r39_tokens_do_not_stand_in_for_each_other() -> None:
    (_, token), (_, service_token) = credentials().metadata("databroker")
    assert refused((JWT_KEY, service_token)) == "bad-credential"
    assert refused((JWT_KEY, token), (SERVICE_JWT_KEY, token)) == "bad-credential"


def test_r39_token_for_another_service_is_refused() -> None:
    assert refused(*credentials().metadata("authorize")) == "wrong-audience"
    pairs = credentials().metadata("authorize")
    assert verify_call(pairs, (KEY,), ("databroker", "authorize"), NOW) == Caller("proxy")


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"sub": "proxy", "exp": NOW + 60}, "bad-claims"),
        ({"aud": "databroker", "exp": NOW + 60}, "bad-claims"),
        ({"aud": "databroker", "sub": "proxy"}, "bad-claims"),
        ({"aud": "databroker", "sub": "", "exp": NOW + 60}, "bad-claims"),
        ({"aud": "databroker", "sub": 7, "exp": NOW + 60}, "bad-claims"),
        ({"aud": ["databroker"], "sub": "proxy", "exp": NOW + 60}, "wrong-audience"),
        ({"aud": "databroker", "sub": "proxy", "exp": NOW + 60, "adm": 1}, "bad-claims"),
        ({"aud": "databroker", "sub": "proxy", "exp": NOW}, "expired"),
    ],
)
def test_r39_service_token_claims(claims: dict[str, Any], reason: str) -> None:
    token = raw_token({"alg": "HS256", "typ": SERVICE_JWT_TYPE}, claims)
    pairs = ((JWT_KEY, credentials().service_jwt()), (SERVICE_JWT_KEY, token))
    assert refused(*pairs) == reason


def test_a_good_service_token_does_not_replace_the_plain_one() -> None:
    service = credentials().metadata("databroker")[1]
    assert refused((JWT_KEY, plain({"exp": NOW - 1})), service) == "expired"


def test_r59_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyJWT's HMAC verification goes through hmac.compare_digest."""
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def spy(one: bytes, two: bytes) -> bool:
        compared.append((one, two))
        return real(one, two)

    monkeypatch.setattr("hmac.compare_digest", spy)
    assert refused((JWT_KEY, plain({"exp": NOW + 60}, OTHER_KEY))) == "bad-credential"
    assert compared, "no constant-time comparison took place"


def test_the_log_text_holds_no_token() -> None:
    token = plain({"exp": NOW + 60}, OTHER_KEY)
    with pytest.raises(UnauthenticatedError) as caught:
        verify((JWT_KEY, token))
    assert token not in str(caught.value)
    assert token.split(".")[2] not in str(caught.value)


def test_r39_a_remembered_token_still_expires_and_dies_with_its_secret():
    remembered = VerifiedTokens()
    key, other = b"k" * 32, b"o" * 32
    token = encode_hs256({"exp": 2_000}, key)
    metadata = (("jwt", token),)
    for _ in range(2):
        assert verify_call(metadata, (key,), "databroker", 1_999.0, remembered).subject is None
    with pytest.raises(UnauthenticatedError):
        verify_call(metadata, (key,), "databroker", 2_000.0, remembered)
    with pytest.raises(UnauthenticatedError):
        verify_call(metadata, (other,), "databroker", 1_000.0, remembered)
    assert verify_call(metadata, (other, key), "databroker", 1_000.0, remembered).subject is None
    forged = token[:-4] + ("AAAA" if not token.endswith("AAAA") else "BBBB")
    with pytest.raises(UnauthenticatedError):
        verify_call((("jwt", forged),), (key,), "databroker", 1_000.0, remembered)


def test_remembered_tokens_are_bounded():
    remembered = VerifiedTokens()
    key = b"k" * 32
    for number in range(VERIFIED_KEPT + 10):
        token = encode_hs256({"exp": 10_000 + number}, key)
        verify_call((("jwt", token),), (key,), "databroker", 1.0, remembered)
    assert len(remembered._claims) <= VERIFIED_KEPT
