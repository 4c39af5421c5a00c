"""Which requests carry a bearer token to be read, and what becomes of one."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from gatehouse.authorize.core.bearer import (
    BearerPlan,
    CheckedToken,
    bearer_token,
    compile_bearer,
    expires_at_s,
    is_for,
    session_id_of,
    session_of,
    user_of,
)
from gatehouse.authorize.core.check_request import read_check_request
from gatehouse.common.config.issues import ConfigError, Issue
from gatehouse.common.config.model import BearerTokenFormat
from gatehouse.common.databroker.records import seconds_of
from gatehouse.common.identity.token_check import MAX_TOKEN_LENGTH, is_bearer_token
from gatehouse.pb.user_pb2 import User
from tests.support.check import Desk, check_request, resolved_settings, route, status_of
from tests.support.policy import NOW_S, policy_of

ANYONE = policy_of("allow: {or: [{authenticated_user: true}]}")
ISSUERS: dict[str, Any] = {
    "identity_providers": {"ci": {"issuer": "https://ci.example.com", "audiences": ["gatehouse"]}}
}
FORMATS = ("idp_access_token", "idp_identity_token", "jwt")
DAY_S = 86_400.0


def facts_of(**request: Any) -> Any:
    return read_check_request(check_request(**request), NOW_S)


def checked(**changes: Any) -> CheckedToken:
    values: dict[str, Any] = {
        "format": BearerTokenFormat.IDP_ACCESS_TOKEN,
        "issued_by": "idp-1",
        "token": "t0ken",
        "user_id": "u1",
        "expires_at_s": None,
        "claims": {"sub": "u1", "aud": "api", "a": {"b": [1, "x"]}, "email": "a@example.com"},
    }
    return CheckedToken(**(values | changes))


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer abc", "abc"),
        ("BEARER  abc ", "abc"),
        ("Bearer Pomerium-abc", "Pomerium-abc"),
        ("Pomerium abc", None),
        ("Bearer", None),
        ("Bearerabc", None),
        ("Basic abc", None),
        ("", None),
    ],
)
def test_the_scheme(header: str, token: str | None) -> None:
    assert bearer_token(facts_of(headers={"authorization": header})) == token


@pytest.mark.parametrize(
    ("token", "fine"),
    [
        ("abc.DEF-1_~+/==", True),
        ("", False),
        ("a b", False),
        ("a,b", False),
        ("=a", False),
        ("ä", False),
        ("a\n", False),
        ("x" * MAX_TOKEN_LENGTH, True),
        ("x" * (MAX_TOKEN_LENGTH + 1), False),
    ],
)
def test_what_can_be_a_token(token: str, fine: bool) -> None:
    assert is_bearer_token(token) is fine


@pytest.mark.parametrize(
    ("chosen", "namespace"),
    [
        ("idp_access_token", "0194f6f8-e760-76a0-8917-e28ac927a34d"),
        ("idp_identity_token", "0194f6f9-aec0-704e-bb4a-51054f17ad17"),
        ("jwt", "0195a000-a000-7000-8000-00000000a01a"),
    ],
)
def test_session_ids_follow_from_the_token(chosen: str, namespace: str) -> None:
    wanted = uuid.uuid5(uuid.uuid5(uuid.UUID(namespace), "who"), "token")
    assert session_id_of(BearerTokenFormat(chosen), "who", "token") == str(wanted)


def test_r33_session_ids_differ_by_format_issuer_and_token() -> None:
    ids = {
        session_id_of(BearerTokenFormat(chosen), who, token)
        for chosen in FORMATS
        for who in ("a", "b")
        for token in ("x", "y")
    }
    assert len(ids) == 12


@pytest.mark.parametrize(
    ("chosen", "exp_s", "wanted_s"),
    [
        ("idp_access_token", None, NOW_S + 100),
        ("idp_access_token", NOW_S + DAY_S, NOW_S + DAY_S),
        ("idp_identity_token", NOW_S + 10, NOW_S + 10),
        ("jwt", NOW_S + DAY_S, NOW_S + 100),
        ("jwt", NOW_S + 10, NOW_S + 10),
    ],
)
def test_when_the_session_ends(chosen: str, exp_s: float | None, wanted_s: float) -> None:
    token = checked(format=BearerTokenFormat(chosen), expires_at_s=exp_s)
    assert expires_at_s(token, now_s=NOW_S, expire_s=100) == wanted_s


@pytest.mark.parametrize("chosen", FORMATS)
def test_the_session_record(chosen: str) -> None:
    token = checked(format=BearerTokenFormat(chosen))
    session = session_of(token, now_s=NOW_S, expire_s=100)
    assert session.refresh_disabled
    assert session.id == session_id_of(token.format, "idp-1", "t0ken")
    assert session.idp_id == ("" if chosen == "jwt" else "idp-1")
    assert list(session.audience) == ["api"]
    assert session.claims["a.b"].values[1].string_value == "x"
    assert seconds_of(session.expires_at) == NOW_S + 100
    kept = {session.oauth_token.access_token, session.id_token.raw} - {""}
    assert kept == (set() if chosen == "jwt" else {"t0ken"})
    assert "t0ken" not in repr(token)


def test_the_user_keeps_what_the_token_is_silent_about() -> None:
    known = User(id="u1", name="Ada", email="old@example.com", device_credential_ids=["d"])
    known.claims["groups"].extend(["g"])
    user = user_of(checked(), known)
    assert (user.name, user.email) == ("Ada", "a@example.com")
    assert list(user.device_credential_ids) == ["d"]
    assert {"groups", "sub", "email", "a.b"} == set(user.claims)
    assert user_of(checked(claims={"sub": "u1"}), None).email == ""


@pytest.mark.parametrize(
    ("audiences", "stated", "fine"),
    [
        (None, (), True),
        (["api"], ("api",), True),
        (["api"], ("other", "api"), True),
        (["api"], ("other",), False),
        (["api"], (), False),
        (["api"], (7, None), False),
        ([], ("api",), False),
    ],
)
def test_r40_the_audience_rule(audiences: Any, stated: Any, fine: bool) -> None:
    names = None if audiences is None else frozenset(audiences)
    plan = BearerPlan(BearerTokenFormat.IDP_ACCESS_TOKEN, "idp-1", names)
    assert is_for(plan, stated) is fine


def test_a_route_speaks_before_the_global_key() -> None:
    issues: list[Issue] = []
    settings = resolved_settings(
        route(ANYONE, route_id="a" * 16),
        route(ANYONE, route_id="b" * 16, bearer_token_format="default"),
        route(
            ANYONE,
            route_id="c" * 16,
            bearer_token_format="idp_access_token",
            idp_access_token_allowed_audiences=["c"],
        ),
        bearer_token_format="jwt",
        idp_access_token_allowed_audiences=["g"],
        **ISSUERS,
    )
    plans = compile_bearer(settings, issues)
    assert issues == []
    assert plans.routes == {
        "a" * 16: BearerPlan(BearerTokenFormat.JWT),
        "c" * 16: BearerPlan(BearerTokenFormat.IDP_ACCESS_TOKEN, "idp-1", frozenset({"c"})),
    }
    assert plans.internal == BearerPlan(BearerTokenFormat.JWT)
    assert (plans.asks_authenticate, plans.asks_issuers) == (True, True)
    assert plans.of(facts_of(internal=True)) == plans.internal
    assert plans.of(facts_of(route_id="b" * 16)) is None


@pytest.mark.parametrize(
    ("keys", "changes", "message"),
    [
        ({"bearer_token_format": "jwt"}, {}, "jwt needs identity_providers"),
        (
            {"bearer_token_format": "idp_access_token"},
            {"authenticate_url": "http://auth.example.com"},
            "over verified TLS only",
        ),
        (
            {
                "bearer_token_format": "jwt",
                "identity_providers": {
                    "ci": {
                        "issuer": "https://ci.example.com",
                        "jwks_url": "http://ci.example.com/jwks",
                        "audiences": ["a"],
                    }
                },
            },
            {},
            "is not https",
        ),
    ],
)
def test_what_cannot_be_served_is_said(
    keys: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Desk(resolved_settings(route(ANYONE), **keys, **changes))


@pytest.mark.parametrize("cookie", ["_pomerium=anything", "a=b; _pomerium="])
def test_cookie_and_bearer_together_are_400_for_jwt(cookie: str) -> None:
    desk = Desk(resolved_settings(route(ANYONE, bearer_token_format="jwt"), **ISSUERS))
    headers = {"cookie": cookie, "authorization": "Bearer a.b.c"}
    assert status_of(desk.check(headers=headers)) == 400
    for alone in ({"cookie": cookie}, {"authorization": "Basic eA==", "cookie": cookie}):
        assert status_of(desk.check(headers=alone)) == 302
    idp = Desk(resolved_settings(route(ANYONE, bearer_token_format="idp_access_token")))
    facts = facts_of(headers=headers)
    assert idp.decider.prepare(facts, NOW_S).bearer is not None


def test_a_token_comes_before_a_cookie() -> None:
    desk = Desk(resolved_settings(route(ANYONE, bearer_token_format="idp_identity_token")))
    headers = desk.cookie("s1") | {"authorization": "bearer abc"}
    prepared = desk.decider.prepare(facts_of(headers=headers), NOW_S)
    assert prepared.handle is None
    assert prepared.bearer is not None
    assert prepared.bearer.token == "abc"
    assert "abc" not in repr(prepared.bearer)
