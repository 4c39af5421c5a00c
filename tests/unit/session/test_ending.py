from __future__ import annotations

import pytest

from gatehouse.common.databroker.records import record_of, tombstone_of, unpack
from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.ids import SESSION, USER
from gatehouse.common.session.ending import Ending, plan_ending
from gatehouse.pb.databroker_pb2 import Record
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User

NOW = 1_800_000_000.0


def record(id_: str, *, user: str = "u1", idp: str = "i1", sid: str = "", sub: str = "") -> Record:
    session = Session(id=id_, user_id=user, idp_id=idp, idp_session_id=sid)
    session.id_token.subject = sub
    session.oauth_token.refresh_token = "r"
    return record_of(session, id_)


RECORDS = [
    record("a", sid="p1", sub="s1"),
    record("b", sid="p2", sub="s1"),
    record("c", idp="i2", sid="p1", sub="s1"),
    record("d", user="u2", sid="p1", sub="s2"),
]


@pytest.mark.parametrize(
    ("ending", "ids"),
    [
        (Ending(user_id="u1"), "abc"),
        (Ending(user_id="u1", except_id="b"), "ac"),
        (Ending(user_id="u1", idp_ids=frozenset({"i1"})), "ab"),
        (Ending(user_id="u1", idp_ids=frozenset()), ""),
        (Ending(provider_session="p1"), "acd"),
        (Ending(provider_session="p1", idp_ids=frozenset({"i1"})), "ad"),
        (Ending(provider_session="p1", idp_ids=frozenset({"i1"}), subject="s1"), "a"),
        (Ending(subject="s1", idp_ids=frozenset({"i1"})), "ab"),
        (Ending(subject="s2", idp_ids=frozenset({"i1", "i2"})), "d"),
        (Ending(user_id="nobody"), ""),
    ],
)
def test_every_part_that_is_set_must_fit(ending: Ending, ids: str) -> None:
    plan = plan_ending(RECORDS, ending, now_s=NOW)
    assert "".join(session.id for session in plan.sessions) == ids
    assert "".join(one.id for one in plan.tombstones) == ids


def test_tombstones_keep_what_they_end() -> None:
    (tombstone,) = plan_ending(RECORDS[:1], Ending(user_id="u1"), now_s=NOW).tombstones
    assert tombstone.deleted_at.seconds == NOW
    assert unpack(tombstone, Session).oauth_token.refresh_token == "r"
    assert not RECORDS[0].HasField("deleted_at")


def test_nothing_ends_everybody() -> None:
    for parts in ({}, {"subject": "s1"}, {"idp_ids": frozenset({"i1"})}, {"except_id": "a"}):
        with pytest.raises(InvalidArgumentError):
            Ending(**parts)


def test_what_is_no_session_is_left_alone() -> None:
    user = record_of(User(id="u1"), "u1")
    assert user.type == USER
    broken = Record(type=SESSION, id="x")
    broken.data.type_url = "type.googleapis.com/session.Session"
    broken.data.value = b"\xff"
    misnamed = record("a")
    misnamed.id = "other"
    gone = tombstone_of(SESSION, "y", now_s=NOW)
    plan = plan_ending([user, broken, misnamed, gone], Ending(user_id="u1"), now_s=NOW)
    assert plan.sessions == plan.tombstones == ()


def test_the_query_is_by_what_is_indexed() -> None:
    assert Ending(user_id="u1", subject="s").query() == {"user_id": "u1"}
    assert Ending(user_id="u1", provider_session="p").query() == {"idp_session_id": "p"}
    of_provider = Ending(subject="s", idp_ids=frozenset({"i1"}))
    assert of_provider.query() == {"id_token.subject": "s"}
