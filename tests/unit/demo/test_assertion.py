from __future__ import annotations

import time

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from gatehouse.cli.demo.assertion import AssertionVerifier, Standing
from gatehouse.common.jose.keys import derive_signing_key, jwks, sign_jwt
from tests.support.clock import FakeClock

KEY = derive_signing_key(bytes(32))
NEXT_KEY = derive_signing_key(bytes(31) + b"x")
CLAIMS = {"iss": "app.localhost", "aud": "app.localhost", "sub": "u", "name": "Grace"}


class Keys:
    """A published key set that counts how often it is asked for."""

    def __init__(self, *keys) -> None:
        self.keys = list(keys)
        self.fetched = 0
        self.fails = False

    async def __call__(self):
        self.fetched += 1
        if self.fails:
            raise httpx.ConnectError("refused")
        return jwks(self.keys)


def assertion(key=KEY, **changes) -> str:
    now = int(time.time())  # noqa: TID251 - the library compares with the machine's clock
    claims = {"iat": now, "exp": now + 300, **CLAIMS, **changes}
    return sign_jwt({name: value for name, value in claims.items() if value is not None}, key)


@pytest.fixture
def keys():
    return Keys(KEY)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def verifier(keys, clock):
    return AssertionVerifier(keys, ["app.localhost", "admin.localhost"], clock)


async def test_a_good_one_is_believed(verifier):
    asker = await verifier.verify(assertion())
    assert (asker.standing, asker.name) == (Standing.VERIFIED, "Grace")
    asker = await verifier.verify(assertion(iss="https://app.localhost/"))
    assert asker.standing is Standing.VERIFIED


@pytest.mark.parametrize("value", [None, ""])
async def test_none_is_nobody(verifier, keys, value):
    assert (await verifier.verify(value)).standing is Standing.ABSENT
    assert keys.fetched == 0


def symmetric(alg: str) -> str:
    claims = {**CLAIMS, "exp": 9**11, "iat": 1}
    key = "" if alg == "none" else "k" * 64
    return jwt.encode(claims, key, algorithm=alg, headers={"kid": KEY.kid})


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: "nonsense", "no JWT"),
        (lambda: "a.b.c", "no JWT"),
        (lambda: assertion()[:-4] + "AAAA", "verification failed"),
        (lambda: assertion(aud="evil.localhost"), "[Aa]udience"),
        (lambda: assertion(aud="evil.localhost", iss="evil.localhost"), "[Aa]udience"),
        (lambda: assertion(iss="admin.localhost"), "another host"),
        (lambda: assertion(iss="https://evil.test/"), "another host"),
        (lambda: assertion(exp=int(time.time()) - 60), "expired"),  # noqa: TID251
        (lambda: assertion(exp=None), "exp"),
        (lambda: assertion(iss=None), "iss"),
        (lambda: assertion(NEXT_KEY), "not published"),
        (lambda: symmetric("HS256"), "algorithm"),
        (lambda: symmetric("none"), "algorithm"),
    ],
)
async def test_a_bad_one_is_refused_with_its_reason(verifier, made, reason):
    asker = await verifier.verify(made())
    assert asker.standing is Standing.REFUSED
    assert asker.claims == {}
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(asker.reason)


async def test_a_stranger_with_a_known_key_name_is_refused(verifier):
    stranger = ec.generate_private_key(ec.SECP256R1())
    forged = jwt.encode(
        {**CLAIMS, "iat": 1, "exp": 9**11}, stranger, algorithm="ES256", headers={"kid": KEY.kid}
    )
    assert (await verifier.verify(forged)).standing is Standing.REFUSED


async def test_keys_are_fetched_once_and_again_for_a_new_one(verifier, keys, clock):
    for _ in range(5):
        await verifier.verify(assertion())
    assert keys.fetched == 1
    keys.keys = [NEXT_KEY, KEY]
    assert (await verifier.verify(assertion(NEXT_KEY))).standing is Standing.REFUSED  # too soon
    assert keys.fetched == 1
    clock.advance(6)
    assert (await verifier.verify(assertion(NEXT_KEY))).standing is Standing.VERIFIED
    assert keys.fetched == 2


async def test_without_keys_nobody_is_believed(verifier, keys, clock):
    keys.fails = True
    asker = await verifier.verify(assertion())
    assert (asker.standing, asker.reason) == (
        Standing.REFUSED,
        "the keys cannot be had: ConnectError",
    )
    keys.fails = False
    clock.advance(6)
    assert (await verifier.verify(assertion())).standing is Standing.VERIFIED
