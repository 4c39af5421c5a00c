"""The storage contract, queries, options and indexes: the same on all three stores."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from gatehouse.common.errors import ResourceExhaustedError
from gatehouse.databroker.core.options import BUILT_IN, TypeRules
from gatehouse.databroker.core.query import MAX_SCANNED, accept_query
from gatehouse.databroker.edge.backends.base import QueryAnswer
from gatehouse.pb.session_pb2 import IDToken, Session, SessionBindingRequest
from gatehouse.pb.user_pb2 import User
from tests.support.storage import StorageCase, incoming

SESSION = "type.googleapis.com/session.Session"
USER = "type.googleapis.com/user.User"
NETWORK = "pomerium.io/Network"


def struct(value: dict[str, Any]) -> Struct:
    made = Struct()
    made.update(value)
    return made


async def ask(
    case: StorageCase,
    type_: str,
    filter_: dict[str, Any] | None = None,
    *,
    text: str = "",
    offset: int = 0,
    limit: int = 100,
) -> QueryAnswer:
    return await case.storage.query(
        accept_query(
            type_=type_, filter_=struct(filter_ or {}), text=text, offset=offset, limit=limit
        )
    )


async def ids(case: StorageCase, type_: str, filter_: dict[str, Any], **more: Any) -> list[str]:
    answer = await ask(case, type_, filter_, **more)
    assert answer.total >= len(answer.records)
    return [record.id for record in answer.records]


async def fill(case: StorageCase) -> None:
    await case.put(
        incoming(
            SESSION,
            "s1",
            Session(
                id="s1",
                user_id="ann",
                id_token=IDToken(issuer="https://idp", subject="1"),
                expires_at=Timestamp(seconds=1_700_000_000),
                refresh_disabled=True,
            ),
        ),
        incoming(SESSION, "s2", Session(id="s2", user_id="bob")),
        incoming(SESSION, "s3", Session(id="s3", user_id="ann")),
        incoming(USER, "ann", User(id="ann", name="Ann Example", email="ann@example.com")),
    )


async def test_listing_with_offset_and_limit(case: StorageCase) -> None:
    await fill(case)
    answer = await ask(case, SESSION, limit=2)
    assert ([record.id for record in answer.records], answer.total) == (["s1", "s2"], 3)
    assert answer.position == await case.storage.position()
    assert await ids(case, SESSION, {}, offset=2, limit=2) == ["s3"]
    assert await ids(case, SESSION, {}, offset=9) == []
    everything = await ask(case, "")
    assert [record.id for record in everything.records] == ["s1", "s2", "s3", "ann"]
    # 0 asks for the count alone.
    answer = await ask(case, SESSION, limit=0)
    assert (answer.records, answer.total) == ((), 3)


async def test_equality_on_indexed_and_other_fields(case: StorageCase) -> None:
    await fill(case)
    assert await ids(case, SESSION, {"user_id": "ann"}) == ["s1", "s3"]
    assert await ids(case, SESSION, {"user_id": {"$eq": "bob"}}) == ["s2"]
    assert await ids(case, SESSION, {"userId": "bob"}) == ["s2"]
    assert await ids(case, SESSION, {"user_id": "ann"}, offset=1, limit=5) == ["s3"]
    assert await ids(case, SESSION, {"user_id": ["bob", "ann"]}) == ["s1", "s2", "s3"]
    assert await ids(case, SESSION, {"user_id": []}) == []
    assert await ids(case, SESSION, {"id_token": {"issuer": "https://idp"}}) == ["s1"]
    assert await ids(case, SESSION, {"expires_at": "2023-11-14T22:13:20Z"}) == ["s1"]
    assert await ids(case, SESSION, {"refresh_disabled": True}) == ["s1"]
    assert await ids(case, SESSION, {"user_id": ""}) == []
    assert await ids(case, SESSION, {"no_such_field": "x"}) == []
    assert await ids(case, USER, {"user_id": "ann"}) == []


async def test_logic(case: StorageCase) -> None:
    await fill(case)
    assert await ids(case, SESSION, {"$and": [{"user_id": "ann"}, {"id": "s3"}]}) == ["s3"]
    assert await ids(case, SESSION, {"user_id": "ann", "id": "s2"}) == []
    assert await ids(case, SESSION, {"$or": [{"id": "s3"}, {"user_id": "bob"}]}) == ["s2", "s3"]
    assert await ids(case, SESSION, {"$not": {"user_id": "ann"}}) == ["s2"]
    assert await ids(case, SESSION, {"user_id": {"$not": "ann"}}) == ["s2"]
    assert await ids(case, "", {"$not": {"type": SESSION}}) == ["ann"]
    assert await ids(case, "", {"id": ["ann", "s1"]}) == ["s1", "ann"]
    assert await ids(case, SESSION, {"$or": []}) == []
    assert await ids(case, SESSION, {"$and": []}) == ["s1", "s2", "s3"]


async def test_filters_follow_changes(case: StorageCase) -> None:
    await fill(case)
    moved = Session(id="s1", user_id="cat")
    await case.put(incoming(SESSION, "s1", moved), incoming(SESSION, "s3"))
    assert await ids(case, SESSION, {"user_id": "ann"}) == []
    assert await ids(case, SESSION, {"user_id": "cat"}) == ["s1"]


async def test_text_search(case: StorageCase) -> None:
    await fill(case)
    await case.put(
        incoming("x", "known", SessionBindingRequest(details={"key": "Needle"})),
        incoming("x", "nested", struct({"a": [{"b": "hayNEEDLEhay"}]})),
        incoming("x", "name only", struct({"needle": "x"})),
    )
    assert await ids(case, USER, {}, text="EXAMPLE") == ["ann"]
    assert await ids(case, "x", {}, text="needle") == ["known", "nested"]
    assert await ids(case, "x", {"id": "nested"}, text="needle") == ["nested"]
    assert await ids(case, "", {}, text="needle", limit=1) == ["known"]
    assert (await ask(case, "", text="needle", limit=0)).total == 2


async def test_search_meets_unknown_payloads_without_harm(case: StorageCase) -> None:
    from google.protobuf.any_pb2 import Any as AnyMessage  # noqa: PLC0415

    from gatehouse.databroker.core.records import Incoming  # noqa: PLC0415

    odd = AnyMessage(type_url="type.googleapis.com/no.Such", value=b"needle").SerializeToString()
    await case.put(Incoming("x", "odd", odd), incoming("x", "nested", AnyMessage()))
    assert await ids(case, "x", {}, text="needle") == []
    assert await ids(case, "x", {"field": "needle"}) == []
    assert await ids(case, "x", {"$not": {"field": "needle"}}) == ["nested", "odd"]


async def test_cidr_lookup_puts_the_longest_prefix_first(case: StorageCase) -> None:
    for id_, cidr in [
        ("all", "0.0.0.0/0"),
        ("ten", "10.0.0.0/8"),
        ("host", "10.1.2.3/32"),
        ("net", "10.1.0.0/16"),
        ("other", "192.168.0.0/16"),
        ("six", "2001:db8::/32"),
    ]:
        await case.put(incoming(NETWORK, id_, struct({"$index": {"cidr": cidr}})))
    await case.put(incoming(NETWORK, "bad", struct({"$index": {"cidr": "not a network"}})))
    await case.put(incoming("pomerium.io/Other", "elsewhere", struct({"$index": {"cidr": "::/0"}})))
    assert await ids(case, NETWORK, {"$index": "10.1.2.3"}) == ["host", "net", "ten", "all"]
    assert await ids(case, NETWORK, {"$index": "10.1.0.0/20"}) == ["net", "ten", "all"]
    assert await ids(case, NETWORK, {"$index": "10.1.2.3"}, limit=1) == ["host"]
    assert await ids(case, NETWORK, {"$index": "10.1.2.3"}, offset=1, limit=2) == ["net", "ten"]
    assert await ids(case, NETWORK, {"$index": "::ffff:10.1.2.3"}) == ["host", "net", "ten", "all"]
    assert await ids(case, NETWORK, {"$index": "2001:db8::1"}) == ["six"]
    assert await ids(case, "", {"$index": "2001:db8::1"}) == ["six", "elsewhere"]
    assert await ids(case, NETWORK, {"$index": "no address"}) == []
    lookup = {"$or": [{"id": "10.1.2.3"}, {"$index": "10.1.2.3"}]}
    assert await ids(case, NETWORK, lookup, limit=1) == ["host"]
    await case.put(incoming(NETWORK, "10.1.2.3", struct({"name": "by id"})))
    assert await ids(case, NETWORK, lookup, limit=1) == ["10.1.2.3"]
    # The index follows changes.
    await case.put(incoming(NETWORK, "host", struct({"$index": {"cidr": "10.9.0.0/16"}})))
    await case.put(incoming(NETWORK, "net"))
    assert await ids(case, NETWORK, {"$index": "10.1.2.3"}) == ["ten", "all"]


async def test_options_are_replaced_and_removed(case: StorageCase) -> None:
    assert await case.storage.options("t") is None
    rules = TypeRules(capacity=5, ttl_us=1_500_000, indexed=("name", "email"))
    await case.storage.set_options("t", rules)
    assert await case.storage.options("t") == rules
    await case.storage.set_options("t", TypeRules(capacity=0))
    assert await case.storage.options("t") == TypeRules(capacity=0)
    assert list((await case.storage.all_options()).items()) == sorted(
        {**BUILT_IN, "t": TypeRules(capacity=0)}.items()
    )
    await case.storage.set_options("t", None)
    assert await case.storage.options("t") is None


async def test_built_in_options_stand_in(case: StorageCase) -> None:
    built_in = ("user_id", "expires_at", "idp_session_id", "id_token.subject")
    assert await case.storage.options(SESSION) == TypeRules(indexed=built_in)
    await case.storage.set_options(SESSION, TypeRules(capacity=10))
    assert await case.storage.options(SESSION) == TypeRules(capacity=10)
    await case.storage.set_options(SESSION, None)
    assert await case.storage.options(SESSION) == BUILT_IN[SESSION]


@pytest.mark.parametrize("indexed", [True, False])
async def test_setting_options_reindexes(case: StorageCase, indexed: bool) -> None:
    await case.put(*(incoming(USER, f"{n}", User(id=f"{n}", name=f"n{n % 3}")) for n in range(9)))
    await case.storage.set_options(USER, TypeRules(indexed=("name",)))
    if not indexed:
        await case.storage.set_options(USER, TypeRules(indexed=("email",)))
    await case.put(incoming(USER, "0", User(id="0", name="n1")), incoming(USER, "1"))
    assert await ids(case, USER, {"name": "n1"}) == ["0", "4", "7"]
    await case.storage.set_options(USER, TypeRules(indexed=("name", "email")))
    assert await ids(case, USER, {"name": "n1"}) == ["0", "4", "7"]


async def test_an_unindexed_filter_is_bounded_and_an_indexed_one_is_not(case: StorageCase) -> None:
    count = MAX_SCANNED + 50
    for start in range(0, count, 1000):
        await case.put(
            *(
                incoming(SESSION, f"{number:06}", Session(user_id="u", idp_id="i"))
                for number in range(start, min(start + 1000, count))
            )
        )
    with pytest.raises(ResourceExhaustedError, match="SetOptions"):
        await ask(case, SESSION, {"idp_id": "i"}, limit=1)
    assert (await ask(case, SESSION, {"user_id": "u"}, limit=1)).total == count
    # A search looks at the first so many and says what it has found there.
    assert (await ask(case, SESSION, text="u", limit=1)).total == MAX_SCANNED
    assert (await ask(case, SESSION, limit=1)).total == count
    assert await ids(case, SESSION, {"id": f"{count - 1:06}"}) == [f"{count - 1:06}"]


async def test_nul_in_a_filter_is_stripped(case: StorageCase) -> None:
    await case.put(incoming(USER, "a", User(id="a", name="An\x00n")))
    await case.storage.set_options(USER, TypeRules(indexed=("name",)))
    assert await ids(case, USER, {"name": "Ann"}) == ["a"]
    assert await ids(case, USER, {"name": "A\x00nn"}) == ["a"]
    assert await ids(case, USER, {"id": "a\x00"}) == ["a"]
