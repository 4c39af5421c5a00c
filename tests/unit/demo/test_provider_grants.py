from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.cli.demo.identity_provider import SAMPLE_USERS
from gatehouse.cli.demo.provider_grants import (
    CODE_TTL_S,
    PENDING_TTL_S,
    Bounded,
    Grants,
    ProtocolError,
    checked_request,
    verifies,
)
from tests.support.clock import FakeClock, SeededRng
from tests.support.development_provider import CLIENT, REDIRECT, REQUEST, VERIFIER

USER = SAMPLE_USERS[1]


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def grants(clock):
    return Grants(clock, SeededRng(), access_token_ttl_s=600)


def redeem(grants, code):
    return grants.redeem_code(CLIENT, code=code, redirect_uri=REDIRECT, code_verifier=VERIFIER)


def test_a_code_lives_a_minute(grants, clock):
    request = checked_request(CLIENT, REQUEST)
    code = grants.issue_code(request, USER)
    clock.advance(CODE_TTL_S - 1)
    assert redeem(grants, code).grant.user == USER
    late = grants.issue_code(request, USER)
    clock.advance(CODE_TTL_S)
    with pytest.raises(ProtocolError, match="expired"):
        redeem(grants, late)


def test_a_page_waits_a_quarter_of_an_hour(grants, clock):
    request = checked_request(CLIENT, REQUEST)
    key, late = grants.remember(request), grants.remember(request)
    clock.advance(PENDING_TTL_S - 1)
    assert grants.take(key) == request
    assert grants.take(key) is None
    clock.advance(1)
    assert grants.take(late) is None


def test_an_access_token_ends_by_itself(grants, clock):
    tokens = redeem(grants, grants.issue_code(checked_request(CLIENT, REQUEST), USER))
    assert grants.user_of(tokens.access_token) is tokens.grant
    clock.advance(600)
    assert grants.user_of(tokens.access_token) is None
    assert tokens.refresh_token
    renewed = grants.refresh(CLIENT, tokens.refresh_token)
    assert grants.user_of(renewed.access_token) is tokens.grant


def test_a_code_of_an_ended_grant_gives_nothing(grants):
    tokens = redeem(grants, grants.issue_code(checked_request(CLIENT, REQUEST), USER))
    grants.end(tokens.grant.id)
    grants.end("unknown")
    with pytest.raises(ProtocolError):
        grants.refresh(CLIENT, tokens.refresh_token)


def test_secrets_do_not_show(grants):
    assert CLIENT.secret not in repr(CLIENT)


@given(st.lists(st.integers(0, 40), max_size=80))
def test_a_bounded_store_holds_the_newest(keys):
    store: Bounded[int] = Bounded(FakeClock(), ttl_s=10, limit=5)
    for key in keys:
        store.put(str(key), key)
        assert len(store) <= 5
    newest = list(dict.fromkeys(reversed(keys)))[:5]
    assert [store.get(str(key)) for key in newest] == newest


def test_the_example_of_rfc_7636_appendix_b():
    verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
    assert verifies(challenge, verifier)
    assert not verifies(challenge.lower(), verifier)
    assert not verifies(challenge + "=", verifier)
    assert not verifies("", verifier)


@given(st.text("abcXYZ019-._~", min_size=43, max_size=128))
def test_every_verifier_fits_its_own_challenge_only(verifier):
    digest = hashlib.sha256(verifier.encode()).digest()
    challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    assert verifies(challenge, verifier)
    assert not verifies(challenge, verifier[:-1] + ("a" if verifier[-1] != "a" else "b"))
    assert not verifies(verifier, verifier)


@pytest.mark.parametrize("verifier", ["", "a" * 42, "a" * 129, "a" * 42 + "!", "a" * 42 + "é"])
def test_verifiers_out_of_form_never_fit(verifier):
    digest = hashlib.sha256(verifier.encode()).digest()
    challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    assert not verifies(challenge, verifier)
