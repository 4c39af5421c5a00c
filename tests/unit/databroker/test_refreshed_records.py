"""What a refresh makes of a session and its user."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gatehouse.common.databroker.records import timestamp_of
from gatehouse.common.identity.errors import IdentityProviderError
from gatehouse.common.identity.tokens import IdToken, OAuthTokens, RefreshedIdentity
from gatehouse.common.jose.compact import base64url_encode
from gatehouse.databroker.core.refreshed_records import (
    access_token_is_good,
    after_check,
    after_refresh,
    facts_of,
    subject_of,
    user_after,
)
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User

NOW_S = 1_800_000_000.0
TOKENS = OAuthTokens("new-access", "Bearer", "new-refresh", NOW_S + 3_600)


def raw(claims: dict[str, Any]) -> str:
    return f"e30.{base64url_encode(json.dumps(claims).encode())}.sig"


def session(id_claims: dict[str, Any] | None = None, **claims: list[Any]) -> Session:
    made = Session(id="s", user_id="u", idp_id="idp", audience=["app"])
    made.expires_at.CopyFrom(timestamp_of(NOW_S + 50_000))
    made.oauth_token.access_token = "old-access"
    made.oauth_token.refresh_token = "old-refresh"
    made.oauth_token.expires_at.CopyFrom(timestamp_of(NOW_S + 60))
    if id_claims is not None:
        made.id_token.raw = raw(id_claims)
        made.id_token.subject = id_claims["sub"]
        made.id_token.expires_at.CopyFrom(timestamp_of(NOW_S + 30))
    for name, values in claims.items():
        made.claims[name].extend(values)
    return made


def claims_of(record: Session | User) -> dict[str, list[Any]]:
    return {name: list(entry) for name, entry in record.claims.items()}


def refreshed(id_token: IdToken | None = None, **claims: list[Any]) -> RefreshedIdentity:
    return RefreshedIdentity(TOKENS, id_token, "", "", claims, {})


ID_TOKEN = IdToken("new-raw", "iss", "sub", NOW_S + 3_600, NOW_S)


def test_tokens_and_claims_are_replaced() -> None:
    before = session({"sub": "sub"}, sub=["sub"], iat=[1], groups=["staff"], dropped=["x"])
    after, paths = after_refresh(
        before, refreshed(ID_TOKEN, groups=["ops"], aud=["gatehouse"]), at_id_token_expiry=True
    )
    assert paths == ("oauth_token", "id_token", "claims")
    assert after.oauth_token.access_token == "new-access"
    assert after.oauth_token.refresh_token == "new-refresh"
    assert after.id_token.raw == "new-raw"
    assert claims_of(after) == {
        "sub": ["sub"],
        "iat": [1],
        "groups": ["ops"],
        "aud": ["gatehouse"],
    }
    assert after.expires_at == before.expires_at
    assert before.oauth_token.access_token == "old-access"  # the input is not touched


def test_without_a_new_id_token_the_old_ones_claims_stay_and_userinfos_follow() -> None:
    before = session(
        {"sub": "sub", "groups": ["staff"], "name": "A"},
        sub=["sub"],
        groups=["staff"],
        name=["A"],
        department=["gone from userinfo"],
    )
    after, _ = after_refresh(
        before, refreshed(None, name=["B"], aud=["x"]), at_id_token_expiry=True
    )
    assert claims_of(after) == {"sub": ["sub"], "groups": ["staff"], "name": ["B"]}
    assert after.id_token.raw == before.id_token.raw  # a hint for sign-out
    assert not after.id_token.HasField("expires_at")  # and no reason for more refreshes
    kept, _ = after_refresh(before, refreshed(None), at_id_token_expiry=False)
    assert kept.id_token == before.id_token


def test_with_a_problem_only_the_tokens_are_taken() -> None:
    before = session({"sub": "sub"}, groups=["staff"])
    answer = RefreshedIdentity(TOKENS, None, "", "", {}, {}, problem=IdentityProviderError("x"))
    after, paths = after_refresh(before, answer, at_id_token_expiry=True)
    assert paths == ("oauth_token",)
    assert after.id_token == before.id_token
    assert claims_of(after) == {"groups": ["staff"]}


def test_claims_that_are_too_big_are_left_out() -> None:
    before = session({"sub": "sub"}, groups=["staff"])
    after, paths = after_refresh(
        before, refreshed(ID_TOKEN, groups=["x" * (600 << 10)]), at_id_token_expiry=True
    )
    assert paths == ("oauth_token", "id_token")
    assert claims_of(after) == {"groups": ["staff"]}


def test_a_check_replaces_what_userinfo_had_said() -> None:
    before = session({"sub": "sub", "oid": "o"}, sub=["sub"], oid=["o"], groups=["staff"])
    after, paths = after_check(before, {"sub": "sub", "oid": "evil", "org": {"team": "core"}})
    assert paths == ("claims",)
    assert claims_of(after) == {"sub": ["sub"], "oid": ["o"], "org.team": ["core"]}
    assert after.oauth_token == before.oauth_token


def test_a_check_that_brings_nothing_new_changes_nothing() -> None:
    before = session({"sub": "sub"}, sub=["sub"], groups=["staff"], level=[1.0])
    assert after_check(before, {"sub": "sub", "groups": ["staff"], "level": 1}) == (before, ())
    assert after_check(before, {}) == (before, ())  # no userinfo endpoint


def test_a_check_of_a_session_without_an_id_token() -> None:
    """Claims about the token are those of the answer, new each time: no reason to write."""
    before = session(None, sub=["s"], user=["ada"], email=["a@b"], iat=[1.0], exp=[2.0])
    told = {"sub": "s", "user": "ada", "email": "a@b", "iat": 7, "exp": 8, "nbf": 7}
    assert after_check(before, told) == (before, ())
    after, _ = after_check(before, {**told, "email": ""})
    assert claims_of(after) == {**claims_of(before), "email": [""]}
    assert subject_of(before) == "s"


def test_a_name_that_was_told_once_is_kept() -> None:
    user = User(id="u", name="Ada", email="a@b.c")
    after = user_after(user, session(sub=["sub"], email=["new@b.c"]))
    assert (after.name, after.email) == ("Ada", "new@b.c")
    assert user_after(user, session(sub=["sub"])).email == ""


def test_the_user_follows_the_session() -> None:
    user = User(id="u", name="Old", email="old@example.com", device_credential_ids=["d"])
    user.claims["dropped"].extend(["x"])
    after = user_after(
        user,
        session(sub=["sub"], name=["New"], email=["new@example.com"], aud=["x"], groups=["ops"]),
    )
    assert (after.name, after.email) == ("New", "new@example.com")
    assert claims_of(after) == {
        "sub": ["sub"],
        "name": ["New"],
        "email": ["new@example.com"],
        "groups": ["ops"],
    }
    assert list(after.device_credential_ids) == ["d"]
    assert user_after(after, session(None, **claims_of(after))) is after


def test_an_email_that_is_withdrawn_no_longer_grants_anything() -> None:
    user = User(id="u", name="N", email="old@example.com")
    assert user_after(user, session(name=["N"], email=["a@b, c@d"])).email == ""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: None, NOW_S + 30),  # the ID token's comes first
        (lambda s: s.id_token.ClearField("expires_at"), NOW_S + 60),
        (lambda s: setattr(s, "refresh_disabled", True), None),
        (lambda s: s.oauth_token.ClearField("refresh_token"), None),
        (lambda s: s.oauth_token.expires_at.FromSeconds(-62_135_596_800), NOW_S + 30),  # year 1
    ],
)
def test_when_tokens_must_be_renewed(change: Any, expected: float | None) -> None:
    made = session({"sub": "sub"})
    change(made)
    facts = facts_of(made, "s", 3, at_id_token_expiry=True)
    assert facts.renew_by_s == expected
    assert facts.expires_at_s == NOW_S + 50_000
    assert facts.is_checkable is not made.refresh_disabled


def test_the_id_tokens_expiry_counts_only_with_the_flag() -> None:
    facts = facts_of(session({"sub": "sub"}), "s", 3, at_id_token_expiry=False)
    assert facts.renew_by_s == NOW_S + 60


def test_the_subject() -> None:
    assert subject_of(session({"sub": "token"}, sub=["claim"])) == "token"
    assert subject_of(session(sub=["claim"])) == "claim"
    assert subject_of(session()) == ""


def test_an_access_token_of_unknown_age_is_good() -> None:
    made = session()
    assert access_token_is_good(made, NOW_S)
    assert not access_token_is_good(made, NOW_S + 60)
    made.oauth_token.ClearField("expires_at")
    assert access_token_is_good(made, NOW_S + 1e6)
