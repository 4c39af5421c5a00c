"""What must be written so that the records say what the directory says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.authorize.core.records import DirectoryGroupFacts, DirectoryUserFacts, RecordReader
from gatehouse.common.ids import DIRECTORY_GROUP, DIRECTORY_USER
from gatehouse.databroker.core.directory import Directory, DirectoryGroup, DirectoryUser
from gatehouse.databroker.core.directory_records import (
    Changes,
    DirectoryShrinkError,
    Held,
    batches,
    held,
    plan_changes,
)
from gatehouse.databroker.core.records import Incoming, Key, StoredRecord
from gatehouse.pb.databroker_pb2 import Record
from tests.support.policy import directory_user_record


def directory(users: dict[str, tuple[str, ...]], *groups: str) -> Directory:
    return Directory(
        {id_: DirectoryUser(id_, f"{id_}@example.com", id_, names) for id_, names in users.items()},
        {id_: DirectoryGroup(id_, f"name of {id_}") for id_ in groups},
    )


def stored(writes: tuple[Incoming, ...], before: dict[Key, Held] | None = None) -> dict[Key, Held]:
    """The store after the writes."""
    found = dict(before or {})
    for write in writes:
        if write.is_deletion:
            del found[write.key]
        else:
            found[write.key] = held(StoredRecord(1, write.type, write.id, write.data, 0))
    return found


def test_authorize_reads_what_is_written() -> None:
    changes = plan_changes(directory({"u1": ("g1", "g2")}, "g1"), {}, 0.5)
    assert (changes.added, changes.changed, changes.removed) == (2, 0, 0)
    decoded = []
    for write in changes.writes:
        record = Record(type=write.type, id=write.id)
        record.data.MergeFromString(write.data)
        decoded.append(RecordReader().decode(record))
    group, user = decoded
    assert isinstance(group, DirectoryGroupFacts)
    assert isinstance(user, DirectoryUserFacts)
    assert (group.id, group.name) == ("g1", "name of g1")
    assert (user.id, user.email, user.group_ids) == ("u1", "u1@example.com", ("g1", "g2"))


def test_no_email_is_not_an_empty_one() -> None:
    found = Directory({"u1": DirectoryUser("u1", None, "", ())}, {})
    (write,) = plan_changes(found, {}, 0.5).writes
    record = Record(type=write.type, id=write.id)
    record.data.MergeFromString(write.data)
    user = RecordReader().decode(record)
    assert isinstance(user, DirectoryUserFacts)
    assert user.email is None


def test_only_differences_are_written() -> None:
    first = directory({"u1": ("g1",), "u2": ()}, "g1")
    store = stored(plan_changes(first, {}, 0.5).writes)
    assert plan_changes(first, store, 0.5) == Changes((), 0, 0, 0, ())
    second = directory({"u1": ("g1",), "u3": ()}, "g1")
    changes = plan_changes(second, store, 0.5)
    assert (changes.added, changes.changed, changes.removed) == (1, 0, 1)
    assert [(write.id, write.is_deletion) for write in changes.writes] == [
        ("u3", False),
        ("u2", True),
    ]


def test_what_others_wrote_is_left_alone() -> None:
    foreign = directory_user_record("u1", group_ids=["admins"])
    key: Key = (DIRECTORY_USER, "u1")
    record = StoredRecord(1, *key, foreign.data.SerializeToString(), 0)
    unreadable = StoredRecord(1, DIRECTORY_GROUP, "g9", b"\xff", 0)
    store: dict[Key, Held] = {key: held(record), (DIRECTORY_GROUP, "g9"): held(unreadable)}
    changes = plan_changes(directory({"u1": (), "u2": ()}), store, 1.0)
    assert changes.foreign == (key,)
    assert [write.id for write in changes.writes] == ["u2"]
    assert plan_changes(directory({}), store, 1.0).writes == ()


def many(count: int, *, of: tuple[str, ...] = ("g",)) -> Directory:
    return directory({f"u{number}": of for number in range(count)})


@pytest.mark.parametrize(
    ("then", "max_shrink", "is_refused"),
    [
        (many(0), 0.5, True),
        (many(0), 0.99, True),
        (many(0), 1.0, False),
        (many(40), 0.5, True),
        (many(40), 0.7, False),
        (many(60), 0.5, False),
        (many(89), 0.0, True),
        (many(90), 0.0, False),  # a few may always go
        (many(100, of=()), 0.5, True),  # all users, and none of them in a group any more
        (many(100, of=()), 1.0, False),
    ],
)
def test_an_absurd_shrink_is_refused(then: Directory, max_shrink: float, is_refused: bool) -> None:
    store = stored(plan_changes(many(100), {}, 0.5).writes)
    if is_refused:
        with pytest.raises(DirectoryShrinkError, match="directory_max_shrink"):
            plan_changes(then, store, max_shrink)
    else:
        plan_changes(then, store, max_shrink)


def test_an_empty_directory_is_refused_even_when_few_would_go() -> None:
    store = stored(plan_changes(many(1), {}, 0.5).writes)
    with pytest.raises(DirectoryShrinkError):
        plan_changes(many(0), store, 0.5)


ANY = st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("xyz"), unique=True))


@given(ANY, ANY, st.sets(st.sampled_from("xyz")))
def test_the_store_follows_whatever_it_was(
    first: dict[str, list[str]], second: dict[str, list[str]], groups: set[str]
) -> None:
    before = directory({key: tuple(value) for key, value in first.items()}, *sorted(groups))
    after = directory({key: tuple(value) for key, value in second.items()})
    store = stored(plan_changes(before, {}, 1.0).writes)
    changes = plan_changes(after, store, 1.0)
    assert stored(changes.writes, store) == stored(plan_changes(after, {}, 1.0).writes)
    assert plan_changes(after, stored(changes.writes, store), 1.0).writes == ()


def test_batches_keep_the_order() -> None:
    writes = tuple(Incoming("t", str(number), b"") for number in range(5))
    assert [len(batch) for batch in batches(writes, 2)] == [2, 2, 1]
    assert tuple(write for batch in batches(writes, 2) for write in batch) == writes
