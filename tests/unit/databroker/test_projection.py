"""What a stream shows of a record: everything, no tokens, or the key alone."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.struct_pb2 import ListValue, Struct
from google.protobuf.timestamp_pb2 import Timestamp

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.databroker.core.projection import accept_projection, project
from gatehouse.databroker.core.records import StoredRecord
from gatehouse.pb.databroker_pb2 import FULL, KEYS_ONLY, WITHOUT_TOKENS, Record
from gatehouse.pb.session_pb2 import IDToken, OAuthToken, Session
from gatehouse.pb.user_pb2 import User
from tests.support.storage import packed

SESSION = "type.googleapis.com/session.Session"
SECRETS = (b"at-secret", b"rt-secret", b"id-secret")


def session() -> Session:
    made = Session(
        id="s",
        user_id="u",
        expires_at=Timestamp(seconds=99),
        accessed_at=Timestamp(seconds=5),
        id_token=IDToken(issuer="https://idp", subject="u", raw="id-secret"),
        oauth_token=OAuthToken(
            access_token="at-secret", refresh_token="rt-secret", expires_at=Timestamp(seconds=50)
        ),
        idp_id="main",
    )
    made.claims["groups"].CopyFrom(ListValue())
    made.claims["groups"].extend(["a", "b"])
    return made


def stored(data: bytes, type_: str = SESSION, deleted_at_us: int | None = None) -> StoredRecord:
    return StoredRecord(7, type_, "s", data, 3_000_000, deleted_at_us)


def payload(record: Record) -> Session:
    made = Session()
    assert record.data.Unpack(made)
    return made


def test_full_is_the_record_itself() -> None:
    record = stored(packed(session()))
    assert project(record, FULL) == record.to_message()


def test_without_tokens_keeps_everything_else() -> None:
    shown = project(stored(packed(session())), WITHOUT_TOKENS)
    assert not any(secret in shown.SerializeToString() for secret in SECRETS)
    expected = session()
    expected.id_token.raw = ""
    expected.oauth_token.access_token = expected.oauth_token.refresh_token = ""
    expected.oauth_token.has_refresh_token = True
    expected.ClearField("accessed_at")
    assert payload(shown) == expected
    assert (shown.version, shown.type, shown.id) == (7, SESSION, "s")
    assert shown.modified_at.ToMicroseconds() == 3_000_000


def test_without_tokens_says_when_there_is_nothing_to_refresh_with() -> None:
    made = session()
    made.oauth_token.refresh_token = ""
    made.oauth_token.has_refresh_token = True  # as a client may have written it
    shown = project(stored(packed(made)), WITHOUT_TOKENS)
    assert not payload(shown).oauth_token.has_refresh_token
    bare = payload(project(stored(packed(Session(id="s"))), WITHOUT_TOKENS))
    assert bare == Session(id="s")


def test_a_session_under_another_type_is_stripped_too() -> None:
    shown = project(stored(packed(session()), "somebody.else/Thing"), WITHOUT_TOKENS)
    assert not any(secret in shown.SerializeToString() for secret in SECRETS)


def test_fields_of_a_newer_release_are_left_out() -> None:
    # Field 1234 of the session and of its token, both strings.
    field = bytes([0x92, 0x4D, len(b"at-secret")]) + b"at-secret"
    token = OAuthToken.FromString(field)
    value = Session(id="s", oauth_token=token).SerializeToString() + field
    data = Any(type_url=SESSION, value=value).SerializeToString()
    assert b"at-secret" in project(stored(data), FULL).SerializeToString()
    assert b"at-secret" not in project(stored(data), WITHOUT_TOKENS).SerializeToString()


@pytest.mark.parametrize(
    "data",
    [
        Any(type_url=SESSION, value=b"\xff at-secret").SerializeToString(),
        Any(type_url="t/oauth21.UpstreamMCPToken", value=b"at-secret").SerializeToString(),
        Any(type_url="t/oauth21.PendingUpstreamAuth", value=b"at-secret").SerializeToString(),
    ],
)
def test_what_cannot_be_looked_into_has_no_data(data: bytes) -> None:
    shown = project(stored(data), WITHOUT_TOKENS)
    assert not shown.HasField("data")
    assert shown.version == 7


def test_other_types_come_whole() -> None:
    user = stored(packed(User(id="u", name="U")), "type.googleapis.com/user.User")
    assert project(user, WITHOUT_TOKENS) == user.to_message()
    data = Struct()
    data.update({"email": "a@example.com"})
    record = stored(packed(data), "pomerium.io/DirectoryUser")
    assert project(record, WITHOUT_TOKENS) == record.to_message()


def test_a_tombstone_keeps_its_type_url() -> None:
    record = stored(Any(type_url=SESSION).SerializeToString(), deleted_at_us=9_000_000)
    assert project(record, WITHOUT_TOKENS) == record.to_message()


@pytest.mark.parametrize("deleted_at_us", [None, 9_000_001])
def test_keys_only_is_version_type_id_and_times(deleted_at_us: int | None) -> None:
    shown = project(stored(packed(session()), deleted_at_us=deleted_at_us), KEYS_ONLY)
    expected = Record(version=7, type=SESSION, id="s")
    expected.modified_at.FromMicroseconds(stored(b"").modified_at_us)
    if deleted_at_us is not None:
        expected.deleted_at.FromMicroseconds(deleted_at_us)
    assert shown == expected


def test_an_unknown_projection_is_refused() -> None:
    assert [accept_projection(value) for value in (0, 1, 2)] == [FULL, WITHOUT_TOKENS, KEYS_ONLY]
    with pytest.raises(InvalidArgumentError, match="projection 3 is unknown"):
        accept_projection(3)
