"""Masked copies between payloads."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import ListValue, Struct

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.databroker.core.patch import apply_mask
from gatehouse.pb.session_pb2 import IDToken, OAuthToken, Session
from gatehouse.pb.user_pb2 import User


def packed(message: Message, extra: bytes = b"") -> bytes:
    any_ = Any()
    any_.Pack(message)
    any_.value += extra
    return any_.SerializeToString()


def patched(held: Session, source: Session, *paths: str) -> Session:
    result = Any.FromString(apply_mask(packed(held), packed(source), paths))
    return Session.FromString(result.value)


def test_scalars_messages_and_lists() -> None:
    held = Session(id="a", user_id="u", audience=["x"], oauth_token=OAuthToken(access_token="1"))
    source = Session(user_id="v", audience=["y", "z"], id_token=IDToken(issuer="i"))
    assert patched(held, source, "user_id") == Session(
        id="a", user_id="v", audience=["x"], oauth_token=OAuthToken(access_token="1")
    )
    assert patched(held, source, "audience", "id_token").audience == ["y", "z"]
    assert patched(held, source, "id_token.issuer").id_token == IDToken(issuer="i")


def test_maps_are_taken_as_a_whole() -> None:
    held = Session(claims={"email": ListValue(), "name": ListValue()})
    source = Session(claims={"groups": ListValue()})
    source.claims["groups"].extend(["a", 1])
    assert patched(held, source, "claims") == source


def test_what_the_source_lacks_is_cleared() -> None:
    held = Session(
        id="a",
        audience=["x"],
        impersonate_session_id="",
        oauth_token=OAuthToken(access_token="1", refresh_token="2"),
        claims={"email": ListValue()},
    )
    empty = Session()
    paths = ("id", "audience", "impersonate_session_id", "claims", "oauth_token.access_token")
    assert patched(held, empty, *paths) == Session(oauth_token=OAuthToken(refresh_token="2"))
    assert patched(held, empty, "oauth_token") == Session(
        id="a", audience=["x"], impersonate_session_id="", claims={"email": ListValue()}
    )


def test_clearing_inside_an_absent_message_does_not_make_it() -> None:
    held = Session(id="a")
    assert not patched(held, Session(), "oauth_token.access_token").HasField("oauth_token")


def test_presence_is_a_value() -> None:
    source = Session(impersonate_session_id="")
    assert patched(Session(), source, "impersonate_session_id").HasField("impersonate_session_id")


def test_no_difference_gives_the_same_bytes() -> None:
    # Fields out of order: another encoding of the same message.
    odd = Any(
        type_url="type.googleapis.com/user.User", value=b"\x1a\x01n\x12\x01i"
    ).SerializeToString()
    assert apply_mask(odd, packed(User(name="n")), ("name",)) == odd
    assert apply_mask(odd, packed(User(name="other")), ()) == odd


def test_unknown_fields_stay() -> None:
    unknown = b"\xba\x3e\x03abc"
    result = Any.FromString(
        apply_mask(packed(User(name="n"), unknown), packed(User(name="m")), ("name",))
    )
    assert unknown in result.value
    assert User.FromString(result.value).name == "m"


def test_struct_payloads_are_patched_as_a_whole() -> None:
    held, source = Struct(), Struct()
    held.update({"a": 1})
    source.update({"b": 2})
    result = Any.FromString(apply_mask(packed(held), packed(source), ("fields",)))
    assert Struct.FromString(result.value) == source


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("nope", "nope"),
        ("", "''"),
        ("user_id.x", "user_id"),
        ("audience.x", "audience"),
        ("claims.email", "claims"),
        ("oauth_token.nope", "nope"),
        ("oauth_token.", "''"),
        (".", "''"),
        ("userId", "userId"),
    ],
)
def test_paths_that_do_not_fit(path: str, named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        patched(Session(), Session(), path)


def test_types_must_agree_and_be_known() -> None:
    with pytest.raises(InvalidArgumentError, match="agree"):
        apply_mask(packed(User()), packed(Session()), ("id",))
    unknown = Any(type_url="type.googleapis.com/no.Such").SerializeToString()
    with pytest.raises(InvalidArgumentError, match="Put the whole record"):
        apply_mask(unknown, unknown, ("id",))
    broken = Any(type_url="type.googleapis.com/user.User", value=b"\xff").SerializeToString()
    with pytest.raises(InvalidArgumentError, match="Put the whole record"):
        apply_mask(broken, packed(User()), ("id",))
