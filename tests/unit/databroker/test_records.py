"""Planning writes: versions, tombstones, no-ops, isolation of failures."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.common.errors import InvalidArgumentError, ResourceExhaustedError
from gatehouse.databroker.core.options import TypeRules
from gatehouse.databroker.core.records import (
    Incoming,
    Outcome,
    Patch,
    Put,
    Reap,
    StoredRecord,
    Write,
    accept,
    keys_of,
    plan,
)
from gatehouse.pb.databroker_pb2 import Record

ONE = Any(type_url="t", value=b"1").SerializeToString()
TWO = Any(type_url="t", value=b"2").SerializeToString()


def held(*records: StoredRecord) -> dict[tuple[str, str], StoredRecord]:
    return {record.key: record for record in records}


def test_an_upsert_takes_the_next_version() -> None:
    planned = plan([Put((Incoming("t", "a", ONE),))], {}, {}, latest=7, now_us=99)
    record = StoredRecord(8, "t", "a", ONE, 99)
    assert planned.outcomes == ((record,),)
    assert planned.changes == (record,)
    assert planned.head == {("t", "a"): record}
    assert planned.latest == 8


def test_an_identical_write_changes_nothing() -> None:
    before = StoredRecord(3, "t", "a", ONE, 5)
    planned = plan([Put((Incoming("t", "a", ONE),))], held(before), {}, latest=7, now_us=99)
    assert planned.outcomes == ((before,),)
    assert (planned.changes, planned.head, planned.latest) == ((), {}, 7)


def test_an_identical_write_restarts_the_time_to_live() -> None:
    before = StoredRecord(3, "t", "a", ONE, 5)
    rules = {"t": TypeRules(ttl_us=10)}
    planned = plan([Put((Incoming("t", "a", ONE),))], held(before), rules, latest=7, now_us=99)
    after = StoredRecord(3, "t", "a", ONE, 99)
    assert planned.outcomes == ((after,),)
    assert (planned.changes, planned.head, planned.latest) == ((), {("t", "a"): after}, 7)


def test_a_tombstone_keeps_the_type_url_alone() -> None:
    before = StoredRecord(3, "t", "a", ONE, 5)
    deletion = Incoming("t", "a", TWO, is_deletion=True)
    planned = plan([Put((deletion,))], held(before), {}, latest=7, now_us=99)
    tombstone = StoredRecord(8, "t", "a", Any(type_url="t").SerializeToString(), 99, 99)
    assert planned.changes == (tombstone,)
    assert planned.head == {("t", "a"): None}


def test_deleting_the_absent_reports_version_zero() -> None:
    planned = plan([Put((Incoming("t", "a", b"", is_deletion=True),))], {}, {}, latest=7, now_us=99)
    (outcome,) = planned.outcomes
    assert isinstance(outcome, tuple)
    assert [record.version for record in outcome] == [0]
    assert (planned.changes, planned.head, planned.latest) == ((), {}, 7)


def test_later_writes_see_earlier_ones_of_the_batch() -> None:
    writes = [
        Put((Incoming("t", "a", ONE),)),
        Put((Incoming("t", "a", b"", is_deletion=True), Incoming("t", "a", TWO))),
        Put((Incoming("t", "a", TWO),)),
    ]
    planned = plan(writes, {}, {}, latest=0, now_us=1)
    assert [record.version for record in planned.changes] == [1, 2, 3]
    assert planned.head[("t", "a")] == planned.changes[2]
    assert planned.outcomes[2] == (planned.changes[2],)


def test_a_failed_write_takes_no_version_and_leaves_no_trace() -> None:
    unknown = Any(type_url="no/such", value=b"1").SerializeToString()
    before = StoredRecord(3, "t", "a", unknown, 5)
    writes: list[Write] = [
        Put((Incoming("t", "b", ONE),)),
        Patch((Incoming("t", "b", ONE), Incoming("t", "a", unknown)), ("x",)),
        Put((Incoming("t", "c", ONE),)),
    ]
    planned = plan(writes, held(before), {}, latest=5, now_us=1)
    assert isinstance(planned.outcomes[1], InvalidArgumentError)
    assert [(record.version, record.id) for record in planned.changes] == [(6, "b"), (7, "c")]
    assert planned.latest == 7


def test_reaping_spares_what_has_changed_and_goes_by_age() -> None:
    old = [StoredRecord(number, "t", f"{number}", ONE, number) for number in (5, 3, 4, 6)]
    rewritten = StoredRecord(9, "t", "4", TWO, 9)
    touched = StoredRecord(6, "t", "6", ONE, 8)
    now = held(old[0], old[1], rewritten, touched)
    planned = plan([Reap(tuple(old))], now, {}, latest=9, now_us=10)
    assert [(record.version, record.id) for record in planned.changes] == [(10, "3"), (11, "5")]


def test_keys_of_every_kind_of_write() -> None:
    writes: list[Write] = [
        Put((Incoming("t", "a", ONE),)),
        Patch((Incoming("t", "b", ONE),), ()),
        Reap((StoredRecord(1, "u", "a", ONE, 1),)),
    ]
    assert keys_of(writes) == {("t", "a"), ("t", "b"), ("u", "a")}


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([None, ONE, TWO])), max_size=4),
        max_size=8,
    )
)
def test_a_batch_comes_to_the_same_as_its_writes_one_by_one(
    batch: list[list[tuple[str, bytes | None]]],
) -> None:
    writes = [
        Put(tuple(Incoming("t", id_, data or b"", data is None) for id_, data in items))
        for items in batch
    ]
    together = plan(writes, {}, {}, latest=0, now_us=1)
    head: dict[tuple[str, str], StoredRecord] = {}
    changes: list[StoredRecord] = []
    outcomes: list[Outcome] = []
    for write in writes:
        alone = plan([write], head, {}, latest=len(changes), now_us=1)
        changes += alone.changes
        outcomes += alone.outcomes
        for key, record in alone.head.items():
            if record is None:
                head.pop(key, None)
            else:
                head[key] = record
    assert together.changes == tuple(changes)
    assert together.outcomes == tuple(outcomes)
    assert {key: record for key, record in together.head.items() if record} == head
    assert [record.version for record in changes] == list(range(1, len(changes) + 1))


def test_times_travel_as_microseconds() -> None:
    message = StoredRecord(1, "t", "a", ONE, 1_700_000_000_123_456, -1).to_message()
    assert (message.modified_at.seconds, message.modified_at.nanos) == (1_700_000_000, 123_456_000)
    assert (message.deleted_at.seconds, message.deleted_at.nanos) == (-1, 999_999_000)
    assert message.data.SerializeToString() == ONE


def test_accept_at_and_over_the_limits() -> None:
    at = Record(type="t" * 256, id="é" * 256)
    assert accept([at])[0].id == at.id
    with pytest.raises(InvalidArgumentError, match="512 bytes"):
        accept([Record(type="t", id="é" * 256 + "x")])
    with pytest.raises(InvalidArgumentError, match=r"records\[1\]\.id"):
        accept([at, Record(type="t")])
    with pytest.raises(ResourceExhaustedError):
        accept([at] * 1001)
    at.data.value = b"x" * ((1 << 20) - 4)
    assert at.data.ByteSize() == 1 << 20
    accept([at])
    at.data.value += b"x"
    with pytest.raises(ResourceExhaustedError):
        accept([at])


def test_accept_reads_deletions_where_they_count() -> None:
    record = Record(type="t", id="a")
    record.deleted_at.seconds = 1
    assert accept([record])[0].is_deletion
    assert not accept([record], deletions=False)[0].is_deletion
