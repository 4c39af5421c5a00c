"""The storage contract, records and log: the same on memory, file and PostgreSQL."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.struct_pb2 import Struct

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.databroker.core.options import TypeRules
from gatehouse.databroker.core.records import Incoming, Patch, Put, Reap
from gatehouse.databroker.edge.backends.base import Checkpoint
from gatehouse.pb.session_pb2 import OAuthToken, Session
from gatehouse.pb.user_pb2 import User
from tests.support.storage import StorageCase, incoming, packed

SESSION = "type.googleapis.com/session.Session"
USER = "type.googleapis.com/user.User"


def session(id_: str, user: str = "u", token: OAuthToken | None = None) -> Incoming:
    return incoming(SESSION, id_, Session(id=id_, user_id=user, oauth_token=token))


async def test_an_empty_store_has_a_history_and_nothing_in_it(case: StorageCase) -> None:
    position = await case.storage.position()
    assert position.server_version > 0
    assert (position.latest, position.pruned, position.earliest) == (0, 0, 0)
    assert await case.storage.list_types() == ()
    assert await case.storage.get(SESSION, "a") is None
    assert await case.changes() == []
    head = await case.storage.head("", None, limit=10)
    assert (head.records, head.is_last) == ((), True)


async def test_versions_count_over_all_types(case: StorageCase) -> None:
    first = await case.put(session("a"), incoming(USER, "a", User(id="a")))
    second = await case.put(session("b"))
    assert [record.version for record in (*first, *second)] == [1, 2, 3]
    assert await case.storage.list_types() == (SESSION, USER)
    assert (await case.storage.position()).latest == 3
    assert (await case.storage.position()).earliest == 1
    held = await case.storage.get(USER, "a")
    assert held is not None
    assert (held.version, held.data, held.deleted_at_us) == (2, packed(User(id="a")), None)
    assert await case.changes() == [*first, *second]
    assert await case.changes(1, USER) == [first[1]]
    assert await case.changes(3) == []


async def test_an_identical_write_makes_no_version(case: StorageCase) -> None:
    (first,) = await case.put(session("a"))
    assert await case.put(session("a")) == (first,)
    (changed,) = await case.put(session("a", "other"))
    assert changed.version == 2
    assert [record.version for record in await case.changes()] == [1, 2]


async def test_one_put_may_write_a_record_several_times(case: StorageCase) -> None:
    records = await case.put(session("a", "1"), incoming(SESSION, "a"), session("a", "2"))
    assert [(record.version, record.deleted_at_us is not None) for record in records] == [
        (1, False),
        (2, True),
        (3, False),
    ]
    assert await case.storage.get(SESSION, "a") == records[2]
    assert await case.changes() == list(records)


async def test_a_deletion_returns_its_tombstone(case: StorageCase) -> None:
    await case.put(session("a", token=OAuthToken(refresh_token="secret")))
    (tombstone,) = await case.put(incoming(SESSION, "a"))
    assert tombstone.version == 2
    assert tombstone.deleted_at_us is not None
    assert tombstone.data == Any(type_url=SESSION).SerializeToString()
    assert await case.storage.get(SESSION, "a") is None
    assert await case.storage.list_types() == ()
    assert (await case.changes())[1] == tombstone


async def test_deleting_what_is_absent_writes_nothing(case: StorageCase) -> None:
    (answer,) = await case.put(incoming(SESSION, "nobody"))
    assert (answer.version, answer.id) == (0, "nobody")
    assert await case.changes() == []
    assert (await case.storage.position()).latest == 0


@pytest.mark.parametrize(
    "data",
    [
        Any(type_url="type.googleapis.com/no.such.Type", value=b"\x00\xff\x80").SerializeToString(),
        Any(type_url=SESSION, value=b"\xff\xff not a session").SerializeToString(),
        Any(type_url=SESSION, value=b"\xba\x3e\x03abc").SerializeToString(),  # an unknown field
        b"",
    ],
)
async def test_payloads_are_kept_byte_for_byte(case: StorageCase, data: bytes) -> None:
    (written,) = await case.put(Incoming("t", "odd", data))
    held = await case.storage.get("t", "odd")
    assert held == written
    assert held.data == data
    assert await case.changes() == [written]


async def test_ids_are_text_of_any_kind(case: StorageCase) -> None:
    ids = [
        "é",
        "\U0001d518",
        "a b/c?d=%s&e",
        "'; DROP TABLE records; --",
        "\\x00",
        "A",
        "a",
        "ß" * 200,
    ]
    await case.put(*(session(id_) for id_ in ids))
    for id_ in ids:
        held = await case.storage.get(SESSION, id_)
        assert held is not None
        assert held.id == id_
    head = await case.storage.head(SESSION, None, limit=100)
    assert [record.id for record in head.records] == sorted(ids)


async def test_patch_copies_masked_fields_and_skips_the_absent(case: StorageCase) -> None:
    await case.put(session("a", token=OAuthToken(access_token="old", refresh_token="keep")))
    source = Session(user_id="new", oauth_token=OAuthToken(access_token="fresh"))
    patch = Patch(
        (incoming(SESSION, "a", source), incoming(SESSION, "gone", source)),
        ("user_id", "oauth_token.access_token"),
    )
    (patched,) = await case.write(patch)
    wanted = Session(
        id="a",
        user_id="new",
        oauth_token=OAuthToken(access_token="fresh", refresh_token="keep"),
    )
    assert Session.FromString(Any.FromString(patched.data).value) == wanted
    assert patched.version == 2
    assert await case.storage.get(SESSION, "a") == patched
    # Once more changes nothing, and so does an empty mask.
    assert await case.write(patch) == (patched,)
    assert await case.write(Patch(patch.records, ())) == (patched,)
    assert (await case.storage.position()).latest == 2


async def test_a_bad_write_leaves_no_trace_and_spares_its_neighbours(case: StorageCase) -> None:
    await case.put(session("a"), session("b"))
    bad = Patch((session("a", "x"), session("b", "y")), ("user_id", "no_such_field"))
    good = Put((session("c"),))
    results = await asyncio.gather(
        case.storage.write(bad), case.storage.write(good), return_exceptions=True
    )
    assert isinstance(results[0], InvalidArgumentError)
    assert [record.id for record in (await case.changes(2))] == ["c"]
    held = await case.storage.get(SESSION, "a")
    assert held is not None
    assert held.version == 1


async def test_concurrent_writers_get_versions_without_gaps(case: StorageCase) -> None:
    async def write(number: int) -> tuple[int, ...]:
        records = await case.put(session(f"{number}"), session(f"{number}-2"))
        return tuple(record.version for record in records)

    versions = await asyncio.gather(*(write(number) for number in range(300)))
    assert sorted(version for pair in versions for version in pair) == list(range(1, 601))
    # A Put is in the log in one piece.
    assert all(second == first + 1 for first, second in versions)
    assert [record.version for record in await case.changes()] == list(range(1, 601))


async def test_changes_and_head_come_in_pages(case: StorageCase) -> None:
    ids = [f"{number:03}" for number in range(25)]
    await case.put(*(session(id_) for id_ in ids), incoming(USER, "x", User(id="x")))
    page = await case.storage.changes(0, limit=10)
    assert [record.version for record in page.changes] == list(range(1, 11))
    assert (page.end, page.position.latest) == (10, 26)
    page = await case.storage.changes(20, type_=SESSION, limit=10)
    assert [record.version for record in page.changes] == list(range(21, 26))
    assert page.end == 26  # it vouches for what is not of the type, too
    found = []
    after = None
    while True:
        head = await case.storage.head("", after, limit=10)
        found += [record.key for record in head.records]
        if head.is_last:
            break
        after = head.records[-1].key
    assert found == [*((SESSION, id_) for id_ in ids), (USER, "x")]


async def test_pages_are_bounded_in_bytes(case: StorageCase) -> None:
    big = "x" * (1 << 20)
    for number in range(6):
        await case.put(incoming("t", f"{number}", User(name=big)))
    page = await case.storage.changes(0, limit=100)
    assert len(page.changes) == 4
    assert page.end == 4
    rest = await case.storage.changes(page.end, limit=100)
    assert [record.version for record in rest.changes] == [5, 6]
    assert rest.end == 6
    head = await case.storage.head("t", None, limit=100)
    assert len(head.records) == 4
    assert not head.is_last
    head = await case.storage.head("t", head.records[-1].key, limit=100)
    assert (len(head.records), head.is_last) == (2, True)


async def test_capacity_keeps_the_newest_and_writes_tombstones(case: StorageCase) -> None:
    await case.storage.set_options("events", TypeRules(capacity=2))
    for number in range(4):
        await case.put(incoming("events", f"{number}", User(id=f"{number}")))
    head = await case.storage.head("events", None, limit=10)
    assert [record.id for record in head.records] == ["2", "3"]
    changes = await case.changes()
    assert [(record.id, record.deleted_at_us is not None) for record in changes] == [
        ("0", False),
        ("1", False),
        ("2", False),
        ("0", True),
        ("3", False),
        ("1", True),
    ]
    assert [record.version for record in changes] == [1, 2, 3, 4, 5, 6]
    # A rewrite makes a record the newest.
    await case.put(incoming("events", "2", User(name="again")))
    await case.put(incoming("events", "4", User(id="4")))
    head = await case.storage.head("events", None, limit=10)
    assert [record.id for record in head.records] == ["2", "4"]


async def test_capacity_lowered_later_is_met_by_the_cleaner(case: StorageCase) -> None:
    await case.put(*(incoming("events", f"{number}", User(id="x")) for number in range(5)))
    await case.storage.set_options("events", TypeRules(capacity=1))
    victims = await case.storage.reapable()
    assert sorted(record.id for record in victims) == ["0", "1", "2", "3"]
    await case.write(Reap(victims))
    head = await case.storage.head("events", None, limit=10)
    assert [record.id for record in head.records] == ["4"]
    assert await case.storage.reapable() == ()


async def test_time_to_live(case: StorageCase) -> None:
    await case.storage.set_options("t", TypeRules(ttl_us=60_000_000))
    await case.put(incoming("t", "old", User(id="1")), incoming("t", "kept", User(id="2")))
    await case.put(session("no options"))
    await case.age(50)
    # An identical write makes no version, but restarts the clock.
    (kept,) = await case.put(incoming("t", "kept", User(id="2")))
    assert kept.version == 2
    await case.age(20)
    victims = await case.storage.reapable()
    assert [record.id for record in victims] == ["old"]
    # One that was written meanwhile is left alone.
    await case.put(incoming("t", "old", User(id="changed")))
    assert await case.write(Reap(victims)) == ()
    await case.age(61)
    victims = await case.storage.reapable()
    assert {record.id for record in victims} == {"old", "kept"}
    tombstones = await case.write(Reap(victims))
    assert all(record.deleted_at_us is not None for record in tombstones)
    assert await case.storage.list_types() == (SESSION,)


async def test_retention_keeps_the_newest_change(case: StorageCase) -> None:
    await case.put(session("a"), session("b"))
    await case.age(100)
    await case.put(session("c"))
    assert await case.storage.prune(50_000_000, 1 << 40) == 2
    position = await case.storage.position()
    assert (position.pruned, position.earliest, position.latest) == (2, 3, 3)
    assert [record.version for record in await case.changes(2)] == [3]
    await case.age(1000)
    assert await case.storage.prune(50_000_000, 1 << 40) == 0
    assert await case.storage.position() == position
    await case.put(session("d"))
    assert await case.storage.prune(50_000_000, 1 << 40) == 1
    assert (await case.storage.position()).earliest == 4


async def test_retention_is_bounded_in_bytes_too(case: StorageCase) -> None:
    """The last so many bytes stay; what a change takes is its payload and a little more."""
    for number in range(20):
        await case.put(incoming("t", f"{number}", User(name="x" * 10_000)))
    day_us = 24 * 3600 * 1_000_000
    assert await case.storage.prune(day_us, 1 << 40) == 0
    assert await case.storage.prune(day_us, 55_000) == 14
    position = await case.storage.position()
    assert (position.pruned, position.latest) == (14, 20)
    assert [record.version for record in await case.changes(14)] == [15, 16, 17, 18, 19, 20]
    # However small the limit is, the newest one stays.
    assert await case.storage.prune(day_us, 0) == 5
    assert (await case.storage.position()).earliest == 20
    assert len((await case.storage.head("t", None, limit=100)).records) == 20


async def test_a_page_says_what_it_follows(case: StorageCase) -> None:
    (first,) = await case.put(session("a"))
    await case.age(100)
    (second,) = await case.put(session("b"))
    position = await case.storage.position()
    assert position.stamp == second.modified_at_us
    page = await case.storage.changes(1, limit=10)
    assert page.before == (await case.storage.changes(0, limit=10)).changes[0].modified_at_us
    assert (await case.storage.changes(0, limit=10)).before == 0
    assert (await case.storage.changes(2, limit=10)).before == second.modified_at_us
    assert first.modified_at_us != second.modified_at_us
    await case.storage.clear()
    assert (await case.storage.position()).stamp == 0


async def test_clear_begins_another_history(case: StorageCase) -> None:
    await case.put(session("a"), session("b"))
    await case.storage.set_options("t", TypeRules(capacity=2))
    await case.storage.set_checkpoint(Checkpoint(1, 2))
    assert await case.storage.acquire_lease("l", "id", 60_000_000)
    before = await case.storage.position()
    old, new = await case.storage.clear()
    assert old == before.server_version
    assert new not in {0, old}
    after = await case.storage.position()
    assert (after.server_version, after.latest, after.earliest) == (new, 2, 0)
    assert await case.storage.list_types() == ()
    assert await case.storage.options("t") is None
    assert await case.storage.checkpoint() == Checkpoint()
    assert not await case.storage.acquire_lease("l", "other", 60_000_000)
    (record,) = await case.put(session("a"))
    assert record.version == 3  # versions never go back
    assert await case.changes(2) == [record]


async def test_checkpoint_holds_any_uint64(case: StorageCase) -> None:
    assert await case.storage.checkpoint() == Checkpoint()
    largest = Checkpoint((1 << 64) - 1, (1 << 64) - 2)
    await case.storage.set_checkpoint(largest)
    assert await case.storage.checkpoint() == largest


async def test_a_write_wakes_the_reader(case: StorageCase) -> None:
    woken = asyncio.Event()
    case.storage.on_change(woken.set)
    await case.put(session("a"))
    assert woken.is_set()
    woken.clear()
    await case.storage.clear()
    assert woken.is_set()


async def test_struct_payloads_of_any_shape_are_kept(case: StorageCase) -> None:
    payload = Struct()
    payload.update({"a": [1, None, {"b": "\x00"}], "$index": {"cidr": 5}})
    (written,) = await case.put(incoming("pomerium.io/X", "a", payload))
    assert await case.storage.get("pomerium.io/X", "a") == written
