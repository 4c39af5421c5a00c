from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.common.identity.claims import (
    TOKEN_CLAIMS,
    check_subject,
    display_name,
    email_address,
    flatten_claims,
    merge_claims,
    user_id_of,
)
from gatehouse.common.identity.errors import SUBJECT_CHANGED, IdentityRefusedError


@pytest.mark.parametrize(
    ("claims", "flat"),
    [
        ({}, {}),
        ({"a": {"b": 1}}, {"a.b": [1]}),
        ({"a": "x", "d": None}, {"a": ["x"], "d": [None]}),
        ({"b": ["y", {"c": 1}]}, {"b": ["y", {"c": 1}]}),
        ({"a": {"b": {"c": [1]}, "d": True}}, {"a.b.c": [1], "a.d": [True]}),
        ({"a": {}}, {}),
        ({"a.b": 1, "a": {"b": 2}}, {"a.b": [1]}),
        ({"a": {"b": 2}, "a.b": 1}, {"a.b": [1]}),
        ({"groups": []}, {"groups": []}),
    ],
)  # fmt: skip
def test_flatten(claims: dict[str, Any], flat: dict[str, list[Any]]) -> None:
    assert flatten_claims(claims) == flat


def test_flatten_is_bounded_in_depth() -> None:
    nested: dict[str, Any] = {"end": 1}
    for _ in range(5000):
        nested = {"a": nested}
    assert flatten_claims({**nested, "b": 2}) == {"b": [2]}


def test_lists_are_copies() -> None:
    groups = ["a"]
    flat = flatten_claims({"groups": groups})
    groups.append("b")
    assert flat == {"groups": ["a"]}


def test_userinfo_wins_except_for_who_the_user_is_and_what_the_token_is() -> None:
    id_claims = {"sub": "s", "oid": "o", "name": "old", "iss": "i", "exp": 1, "only": 1}
    userinfo = {
        "sub": "s", "oid": "other", "name": "new", "iss": "x", "exp": 2, "aud": "x", "jti": "x",
        "nonce": "x", "sid": "x", "more": 2,
    }  # fmt: skip
    assert merge_claims(id_claims, userinfo) == {
        "sub": "s", "oid": "o", "name": "new", "iss": "i", "exp": 1, "only": 1, "more": 2,
    }  # fmt: skip
    assert merge_claims(id_claims, None) == id_claims
    assert "oid" not in merge_claims({"sub": "s"}, {"sub": "s", "oid": "o"})
    assert "sub" not in TOKEN_CLAIMS


@pytest.mark.parametrize("subject", ["S", "s ", "", None, 1, ["s"], "s\x00"])
def test_another_subject_is_refused(subject: object) -> None:
    with pytest.raises(IdentityRefusedError) as caught:
        merge_claims({"sub": "s"}, {"sub": subject})
    assert caught.value.reason == SUBJECT_CHANGED
    assert caught.value.ends_session
    with pytest.raises(IdentityRefusedError):
        check_subject({}, "s")
    with pytest.raises(IdentityRefusedError):
        check_subject({"sub": ""}, "")
    with pytest.raises(IdentityRefusedError):
        check_subject({}, None)


@pytest.mark.parametrize(
    ("claims", "user_id"),
    [
        ({"sub": "s"}, "s"),
        ({"sub": "s", "oid": "o"}, "o"),
        ({"sub": "s", "oid": ""}, "s"),
        ({"sub": "s", "oid": None}, "s"),
        ({"sub": "s", "oid": 7}, "s"),
        ({"sub": "s", "oid": "o\n"}, "s"),
    ],
)
def test_user_id(claims: dict[str, Any], user_id: str) -> None:
    assert user_id_of(claims) == user_id


def test_no_user_without_subject() -> None:
    for claims in ({}, {"sub": ""}, {"sub": 1}, {"sub": "a" * 256}):
        with pytest.raises(IdentityRefusedError):
            user_id_of(claims)


@pytest.mark.parametrize(
    ("email", "result"),
    [
        ("user@example.com", "user@example.com"),
        ("User@Example.COM", "User@Example.COM"),
        ("a@evil.com@corp.com", ""),
        ("@corp.com", ""),
        ("a@", ""),
        ("@", ""),
        ("a", ""),
        ("", ""),
        ("a@corp.com\n", ""),
        ("a@corp.com\r\nx", ""),
        ("a\x00@corp.com", ""),
        ("a@corp.com\x00", ""),
        ("a @corp.com", ""),
        ("a@corp.com ", ""),
        ("a@corp\u2028.com", ""),
        ("a@corp.com\u200b", ""),
        ("a" * 320 + "@corp.com", ""),
        (None, ""),
        (["a@corp.com"], ""),
        ({"a": "a@corp.com"}, ""),
        (True, ""),
    ],
)
def test_r41_only_one_plain_address_is_an_email(email: object, result: str) -> None:
    assert email_address({"email": email}) == result


def test_display_name() -> None:
    assert display_name({"name": "Zoë Ünal"}) == "Zoë Ünal"
    assert display_name({}) == display_name({"name": 7}) == display_name({"name": "a\nb"}) == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=5))
def test_flat_claims_are_lists_without_nested_objects_as_values(claims: dict[str, Any]) -> None:
    for value in flatten_claims(claims).values():
        assert isinstance(value, list)
