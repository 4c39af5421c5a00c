from __future__ import annotations

from google.protobuf.struct_pb2 import ListValue

from gatehouse.common.pages import Link, render_user_info
from gatehouse.common.pages.user_info import user_info_page
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
    page = user_info_page(
        session(
            access_token=["anything"],
            refresh_token=["anything"],
            id_token=["anything"],
            odd=[f"Bearer {SECRETS[1]}", "kept"],
            nested=[{"deep": SECRETS[2]}],
            at_hash=["abc"],
        ),
        None,
        host="h",
        sign_out=Link("Sign out", "/out"),
    )
    document = render_user_info(page)
    assert not [secret for secret in SECRETS if secret in document]
    assert [row.name for row in page.claims] == ["odd"]
    assert page.claims[0].values == ("kept",)


def test_claims_are_shown_as_text():
    page = user_info_page(
        session(n=[7.0, 1.5], b=[True, False], l=[["a", "b"]], o=[{"k": "v"}], z=[None, "x"]),
        User(id="u1", name="Ada", email="ada@example.com"),
        host="h",
        sign_out=None,
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


def test_name_and_email_come_from_the_session_without_a_user_record():
    page = user_info_page(
        session(name=["Ada"], email=["a@example.com"]), None, host="h", sign_out=None
    )
    assert (page.name, page.email) == ("Ada", "a@example.com")
