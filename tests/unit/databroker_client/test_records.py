from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.common.databroker.records import (
    is_deleted,
    record_of,
    seconds_of,
    timestamp_of,
    tombstone_of,
    type_url_of,
    unpack,
)
from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.ids import SESSION, USER
from gatehouse.pb.databroker_pb2 import Record
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User


def test_type_urls_match_the_known_ones():
    assert type_url_of(Session) == SESSION
    assert type_url_of(User()) == USER


def test_a_message_survives_the_round_trip():
    session = Session(id="s", user_id="u")
    session.claims["groups"].append("admins")
    made = record_of(session, "s")
    assert (made.type, made.id, made.version, is_deleted(made)) == (SESSION, "s", 0, False)
    assert unpack(made, Session) == session


def test_equal_messages_make_equal_bytes():
    keys = [f"k{n}" for n in range(20)]
    one, other = Session(), Session()
    for key in keys:
        one.claims[key].append(key)
    for key in reversed(keys):
        other.claims[key].append(key)
    assert record_of(one, "s").data.value == record_of(other, "s").data.value


def test_a_payload_of_another_type_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"user\.User, expected .*session\.Session"):
        unpack(record_of(User(id="u"), "u"), Session)


def test_an_empty_payload_is_refused():
    with pytest.raises(InvalidArgumentError, match="holds nothing"):
        unpack(Record(type=SESSION, id="s"), Session)


def test_a_broken_payload_is_refused_without_showing_it():
    made = record_of(Session(), "s")
    made.data.value = b"\xffsecret"
    with pytest.raises(InvalidArgumentError, match="does not parse") as caught:
        unpack(made, Session)
    assert "secret" not in str(caught.value)
    assert caught.value.reason == "record-unreadable"


def test_a_tombstone_names_what_it_deletes():
    made = tombstone_of(SESSION, "s", now_s=1_700_000_000.25)
    assert is_deleted(made)
    assert (made.type, made.id) == (SESSION, "s")
    assert seconds_of(made.deleted_at) == 1_700_000_000.25


@given(st.floats(0, 4e9))
def test_times_keep_their_microseconds(unix_s):
    made = timestamp_of(unix_s)
    assert 0 <= made.nanos < 1_000_000_000
    assert seconds_of(made) == pytest.approx(unix_s, abs=1e-6)
