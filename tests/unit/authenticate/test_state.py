from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.authenticate.core import state as flow
from gatehouse.authenticate.core.state import SignInRequest
from gatehouse.common.errors import InvalidTokenError
from tests.support.clock import SeededRng

KEY, OTHER = b"k" * 32, b"o" * 32
NOW = 1_800_000_000.0
REQUEST = SignInRequest(
    redirect_uri="https://app.example.com/x?y=1",
    idp_id="idp",
    callback_uri="https://app.example.com/.pomerium/callback/",
    programmatic=True,
    additional_hosts="a,b",
    login_digest="d" * 64,
    traceparent="tp",
    tracestate="ts",
    dashboard=True,
)


def sealed(request=REQUEST, token="token", key=KEY):
    return flow.seal_state(request, csrf_token=token, key=key, now_s=NOW, rng=SeededRng())


def test_state_comes_back_whole():
    opened = flow.open_state(sealed(), keys=(KEY,))
    assert opened.request == REQUEST
    assert opened.issued_at_s == NOW
    assert flow.matches_csrf(opened, "token")
    assert not flow.matches_csrf(opened, "tokem")


def test_state_hides_its_content_and_is_never_the_same_twice():
    rng = SeededRng()
    made = {
        flow.seal_state(REQUEST, csrf_token="t", key=KEY, now_s=NOW, rng=rng) for _ in range(10)
    }
    assert len(made) == 10
    assert not any(
        "app.example.com" in base64.urlsafe_b64decode(s + "==").decode("latin-1") for s in made
    )


def test_state_opens_with_any_accepted_key_and_no_other():
    assert flow.open_state(sealed(key=OTHER), keys=(KEY, OTHER)).request == REQUEST
    with pytest.raises(InvalidTokenError):
        flow.open_state(sealed(key=OTHER), keys=(KEY,))


@given(st.integers(min_value=0), st.integers(1, 255))
def test_a_changed_state_does_not_open(position, change):
    text = sealed(SignInRequest("https://app.example.com/", "idp"))
    data = bytearray(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    data[position % len(data)] ^= change
    changed = base64.urlsafe_b64encode(bytes(data)).rstrip(b"=").decode()
    with pytest.raises(InvalidTokenError):
        flow.open_state(changed, keys=(KEY,))


@given(st.text(max_size=200))
def test_r49_nonsense_does_not_open(text):
    for read in (
        lambda: flow.open_state(text, keys=(KEY,)),
        lambda: flow.open_csrf(text, name="n", keys=(KEY,), now_s=NOW),
        lambda: flow.open_pkce(text, name="n", keys=(KEY,), now_s=NOW, limit_s=900.0),
    ):
        with pytest.raises(InvalidTokenError):
            read()


def test_a_truncated_or_huge_state_does_not_open():
    text = sealed()
    for bad in (text[:-1], text[1:], text[: len(text) // 2], "", "A" * 40_000):
        with pytest.raises(InvalidTokenError):
            flow.open_state(bad, keys=(KEY,))


@pytest.mark.parametrize(
    ("age_s", "current"),
    [(0, True), (15 * 60, True), (15 * 60 + 1, False), (-60, True), (-61, False)],
)
def test_a_round_trip_may_take_15_minutes(age_s, current):
    assert flow.open_state(sealed(), keys=(KEY,)).is_current(NOW + age_s, 900.0) is current


def test_one_kind_of_sealed_value_is_not_another():
    rng = SeededRng()
    csrf = flow.seal_csrf("token", name="csrf", key=KEY, now_s=NOW, rng=rng)
    pkce = flow.seal_pkce(flow.new_pkce(rng), name="pkce", key=KEY, now_s=NOW, rng=rng)
    with pytest.raises(InvalidTokenError):
        flow.open_state(csrf, keys=(KEY,))
    with pytest.raises(InvalidTokenError):
        flow.open_csrf(pkce, name="csrf", keys=(KEY,), now_s=NOW)
    with pytest.raises(InvalidTokenError):
        flow.open_pkce(csrf, name="pkce", keys=(KEY,), now_s=NOW, limit_s=900.0)
    with pytest.raises(InvalidTokenError):  # the cookie of another sign-in
        flow.open_pkce(pkce, name="pkce2", keys=(KEY,), now_s=NOW, limit_s=900.0)


@pytest.mark.parametrize(
    ("age_s", "good"), [(0, True), (43_200, True), (43_201, False), (-61, False)]
)
def test_the_csrf_cookie_lives_twelve_hours(age_s, good):
    value = flow.seal_csrf("token", name="n", key=KEY, now_s=NOW, rng=SeededRng())
    if good:
        assert flow.open_csrf(value, name="n", keys=(KEY,), now_s=NOW + age_s) == "token"
    else:
        with pytest.raises(InvalidTokenError):
            flow.open_csrf(value, name="n", keys=(KEY,), now_s=NOW + age_s)


def test_r32_the_challenge_is_s256_of_a_fresh_verifier():
    rng = SeededRng()
    first, second = flow.new_pkce(rng), flow.new_pkce(rng)
    assert first.verifier != second.verifier
    assert len(first.verifier) == 43  # RFC 7636 section 4.1: 43 to 128
    digest = hashlib.sha256(first.verifier.encode()).digest()
    assert first.challenge == base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    assert first.nonce not in {first.verifier, first.challenge}


def test_r32_without_a_challenge_the_verifier_makes_the_nonce_and_is_never_shown():
    pkce = flow.new_pkce(SeededRng(), is_on=False)
    assert (pkce.challenge, pkce.proof) == (None, None)
    assert pkce.nonce == flow.new_pkce(SeededRng()).nonce
    value = flow.seal_pkce(pkce, name="n", key=KEY, now_s=NOW, rng=SeededRng())
    assert flow.open_pkce(value, name="n", keys=(KEY,), now_s=NOW, limit_s=900.0) == pkce


def test_r33_each_state_has_its_own_pkce_cookie():
    assert flow.pkce_cookie_name("_pomerium", "one") != flow.pkce_cookie_name("_pomerium", "two")
    assert flow.pkce_cookie_name("_pomerium", "one").startswith("_pomerium_pkce_")
    assert flow.csrf_cookie_name("_pomerium") == "__Host-_pomerium_csrf"


@pytest.mark.parametrize("age_s", [15 * 60 + 1, -61])
def test_an_old_pkce_cookie_does_not_open(age_s):
    value = flow.seal_pkce(
        flow.new_pkce(SeededRng()), name="n", key=KEY, now_s=NOW, rng=SeededRng()
    )
    with pytest.raises(InvalidTokenError):
        flow.open_pkce(value, name="n", keys=(KEY,), now_s=NOW + age_s, limit_s=900.0)
