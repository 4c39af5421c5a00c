from __future__ import annotations

import json

from google.protobuf.struct_pb2 import ListValue

from gatehouse.common.databroker.person import Person
from gatehouse.common.pages import Link, render_user_info
from gatehouse.common.pages.user_info import Links, user_info_document, user_info_page
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User

SECRETS = ("raw-id-token-value", "access-token-value", "refresh-token-value")


def listed(*values):
    made = ListValue()
    made.extend(values)
    return made


def session(**claims):
    made = Session(id="s1", user_id="u1", idp_id="i")
    made.id_token.raw = SECRETS[0]
    made.oauth_token.access_token = SECRETS[1]
    made.oauth_token.refresh_token = SECRETS[2]
    made.expires_at.FromSeconds(1_800_000_000)
    for name, values in claims.items():
        made.claims[name].CopyFrom(listed(*values))
    return made


def test_r36_tokens_are_never_shown_even_where_a_provider_calls_them_claims():
    made = session(
        access_token=["anything"],
        refresh_token=["anything"],
        id_token=["anything"],
        odd=[f"Bearer {SECRETS[1]}", "kept"],
        nested=[{"deep": SECRETS[2]}],
        at_hash=["abc"],
    )
    user = User(id="u1")
    user.claims["odd"].CopyFrom(listed(SECRETS[2]))
    person = Person(user=user)
    page = user_info_page(made, person, host="h", links=Links(Link("Sign out", "/out")))
    document = render_user_info(page) + json.dumps(user_info_document(made, person))
    assert not [secret for secret in SECRETS if secret in document]
    assert [row.name for row in page.claims] == ["odd"]
    assert page.claims[0].values == ("kept",)


def test_claims_are_shown_as_text():
    page = user_info_page(
        session(n=[7.0, 1.5], b=[True, False], l=[["a", "b"]], o=[{"k": "v"}], z=[None, "x"]),
        Person(User(id="u1", name="Ada", email="ada@example.com")),
        host="h",
    )
    assert {row.name: row.values for row in page.claims} == {
        "n": ("7", "1.5"),
        "b": ("true", "false"),
        "l": ("a, b",),
        "o": ("k: v",),
        "z": ("", "x"),
    }
    assert (page.name, page.email, page.user_id, page.session_id) == (
        "Ada", "ada@example.com", "u1", "s1",
    )  # fmt: skip
    assert page.expires_at == "15 January 2027, 08:00 UTC"


def test_times_are_shown_as_people_read_them():
    made = session(
        exp=[1_800_000_000.0],
        auth_time=["1800000000"],
        updated_at=["2027-01-15", 1e18, -1, 1.5, "²"],
        number=[1_800_000_000.0],
    )
    page = user_info_page(made, Person(), host="h")
    assert {row.name: row.values for row in page.claims} == {
        "exp": ("1800000000 (15 January 2027, 08:00 UTC)",),
        "auth_time": ("1800000000 (15 January 2027, 08:00 UTC)",),
        "updated_at": ("2027-01-15", str(10**18), "-1", "1.5", "²"),
        "number": ("1800000000",),
    }
    document = json.dumps(user_info_document(made, Person()))
    assert '"exp": ["1800000000"]' in document  # programs read the claim as it is


def test_name_and_email_come_from_the_session_without_a_user_record():
    made = session(name=["Ada"], email=["a@example.com"])
    page = user_info_page(made, Person(), host="h")
    assert (page.name, page.email) == ("Ada", "a@example.com")
    assert "user" not in user_info_document(made, Person())


def test_the_directory_says_which_groups_and_which_address():
    person = Person(
        User(id="u1", email="old@example.com"),
        in_directory=True,
        directory_email="new@example.com",
        groups=(("g1", "Engineering"), ("g2", "g2")),
        more_groups=7,
    )
    page = user_info_page(session(), person, host="h")
    text = render_user_info(page)
    assert page.email == "new@example.com"
    assert ">Engineering <code>g1</code><" in text
    assert ">g2<" in text
    assert "and 7 more" in text
    assert user_info_document(session(), person)["directoryGroups"] == [
        {"id": "g1", "name": "Engineering"},
        {"id": "g2", "name": "g2"},
    ]


def test_whose_place_was_taken():
    own, other = session(email=["boss@example.com"]), session(email=["ann@example.com"])
    other.id, other.user_id = "s2", "u2"
    page = user_info_page(own, Person(), host="h", impersonated=other)
    assert (page.email, page.user_id, page.session_id) == ("ann@example.com", "u2", "s1")
    assert "in this person" in render_user_info(page)
    assert user_info_document(own, Person(), impersonated=other)["isImpersonated"] is True
