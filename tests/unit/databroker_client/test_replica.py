from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.common.databroker.replica import Changed, Held, Refusal, Replaced, Replica
from gatehouse.common.databroker.sync_core import Position
from tests.support.model_broker import OTHER, TYPE, UNREADABLE, ModelBroker, record, text_of

AT_10 = Position(7, 10)


def filled(*records, position=AT_10, types=(TYPE,)) -> Replica:
    replica = Replica(dict.fromkeys(types, text_of))
    for type_url in types:
        replica.begin_copy(type_url)
        for made in records:
            if made.type == type_url:
                replica.stage(made)
        replica.swap(type_url, position, now_s=100.0)
    return replica


def is_ready(replica: Replica) -> bool:
    return replica.ready


def test_nothing_is_there_before_the_first_copy_is_complete():
    replica = Replica({TYPE: text_of})
    replica.begin_copy(TYPE)
    replica.stage(record("a", 3))
    assert replica.get(TYPE, "a") is None
    assert not is_ready(replica)
    state = replica.state(TYPE)
    assert (state.ready, state.server_version, state.last_heard_s) == (False, 0, None)
    replica.swap(TYPE, Position(7, 3), now_s=5.0)
    assert replica.get(TYPE, "a") == Held(3, "x")
    assert is_ready(replica)
    state = replica.state(TYPE)
    assert (state.ready, state.server_version, state.record_version) == (True, 7, 3)
    assert state.last_heard_s == 5.0


def test_ready_means_every_type():
    replica = Replica({TYPE: text_of, OTHER: text_of})
    replica.begin_copy(TYPE)
    replica.swap(TYPE, Position(7, 3), now_s=5.0)
    assert not is_ready(replica)
    assert replica.staleness_s(9.0) is None
    replica.begin_copy(OTHER)
    replica.swap(OTHER, Position(7, 3), now_s=6.0)
    assert is_ready(replica)
    assert replica.staleness_s(9.0) == 4.0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["swap", "advance", "beat"]),
            st.sampled_from([TYPE, OTHER]),
            st.integers(1, 2),
            st.integers(1, 9),
        ),
        max_size=20,
    )
)
def test_what_is_asked_for_again_and_again_is_never_of_before(steps):
    replica = Replica({TYPE: text_of, OTHER: text_of})
    for now, (step, type_url, server_version, record_version) in enumerate(steps):
        position = Position(server_version, record_version)
        if step == "swap":
            replica.begin_copy(type_url)
            replica.swap(type_url, position, now_s=float(now))
        else:
            replica.advance(type_url, position, heard_s=float(now) if step == "beat" else None)
        states = {each: replica.state(each) for each in (TYPE, OTHER)}
        assert replica.positions() == {
            each: Position(state.server_version, state.record_version)
            for each, state in states.items()
            if state.ready
        }
        assert replica.ready is all(state.ready for state in states.values())
        heard = [state.last_heard_s for state in states.values()]
        known = [heard_s for heard_s in heard if heard_s is not None]
        expected = None if len(known) < len(heard) else 100.0 - min(known)
        assert replica.staleness_s(100.0) == expected
        assert replica.positions() is replica.positions()


def test_a_type_that_is_not_held_is_a_mistake():
    with pytest.raises(KeyError):
        filled().get(OTHER, "a")


def test_a_new_copy_replaces_the_old_one_in_one_step():
    replica = filled(record("a", 3), record("b", 4))
    replica.begin_copy(TYPE)
    replica.stage(record("b", 12, "new"))
    assert replica.get(TYPE, "a") == Held(3, "x")  # untouched meanwhile
    assert replica.get(TYPE, "b") == Held(4, "x")
    replica.swap(TYPE, Position(8, 12), now_s=101.0)
    assert replica.get(TYPE, "a") is None
    assert replica.get(TYPE, "b") == Held(12, "new")


def test_a_dropped_copy_leaves_no_trace():
    replica = filled(record("a", 3))
    replica.begin_copy(TYPE)
    replica.stage(record("z", 12))
    replica.drop_copy(TYPE)
    replica.begin_copy(TYPE)
    replica.swap(TYPE, Position(7, 20), now_s=101.0)
    assert replica.count(TYPE) == 0


def test_changes_apply_in_any_order_newest_wins():
    replica = filled(record("a", 9))
    replica.apply(record("a", 12, "newer"))
    replica.apply(record("a", 11, "older"))
    assert replica.get(TYPE, "a") == Held(12, "newer")
    replica.apply(record("a", 11, deleted=True))
    assert replica.get(TYPE, "a") == Held(12, "newer")
    replica.apply(record("a", 13, deleted=True))
    assert replica.get(TYPE, "a") is None


def test_a_copy_that_is_ahead_of_its_position_is_not_taken_back():
    replica = filled(record("a", 12, "ahead"), position=Position(7, 10))
    replica.apply(record("a", 11, "replayed"))
    assert replica.get(TYPE, "a") == Held(12, "ahead")


def test_tombstones_in_a_copy_hold_nothing():
    assert filled(record("a", 3, deleted=True)).count(TYPE) == 0


def test_the_newer_of_two_staged_versions_stays():
    assert filled(record("a", 4, "new"), record("a", 3, "old")).get(TYPE, "a") == Held(4, "new")


# Records that cannot be read.


def test_an_unreadable_record_is_kept_out_and_named_without_its_content():
    replica = filled(record("a", 3), record("b", 3))
    refusal = replica.apply(record("a", 11, UNREADABLE))
    assert refusal == Refusal(TYPE, "a", 11, "ValueError")
    assert replica.get(TYPE, "a") is None  # fails closed: the older one is not used either
    assert replica.state(TYPE).unreadable == 1
    assert replica.count(TYPE) == 1


def test_an_older_version_cannot_take_the_place_of_an_unreadable_one():
    replica = filled(record("a", 12, UNREADABLE))
    replica.apply(record("a", 11, "readable"))
    assert replica.get(TYPE, "a") is None
    assert replica.state(TYPE).unreadable == 1


@pytest.mark.parametrize("deleted", [True, False])
def test_an_unreadable_record_is_healed_by_a_newer_one(deleted):
    replica = filled(record("a", 12, UNREADABLE))
    assert replica.apply(record("a", 13, "well", deleted=deleted)) is None
    assert replica.get(TYPE, "a") == (None if deleted else Held(13, "well"))
    assert replica.state(TYPE).unreadable == 0


def test_unreadable_records_are_counted_per_copy():
    replica = filled(record("a", 3, UNREADABLE), record("b", 4, UNREADABLE))
    assert replica.state(TYPE).unreadable == 2
    replica.begin_copy(TYPE)
    replica.stage(record("a", 3, UNREADABLE))
    replica.stage(record("a", 5, "well"))
    assert replica.state(TYPE).unreadable == 2
    replica.swap(TYPE, Position(7, 20), now_s=1.0)
    assert replica.state(TYPE).unreadable == 0


# Freshness and hints.


def test_only_what_the_broker_vouched_for_counts_as_heard():
    replica = filled()
    replica.advance(TYPE, Position(7, 12), heard_s=None)
    assert replica.state(TYPE).record_version == 12
    assert replica.staleness_s(130.0) == 30.0
    replica.advance(TYPE, Position(7, 12), heard_s=129.0)
    assert replica.staleness_s(130.0) == 1.0


@pytest.mark.parametrize(
    ("server_version", "record_version", "reached"),
    [
        (7, 10, True),
        (7, 11, False),
        (7, None, True),
        (8, 10**6, True),  # another history: its numbers say nothing about this one
        (0, 10**6, True),
        (None, 10**6, True),
    ],
)
def test_hints_count_only_within_one_history(server_version, record_version, reached):
    assert filled().has_reached(TYPE, server_version, record_version) is reached


def test_nothing_is_reached_before_the_first_copy():
    assert not Replica({TYPE: text_of}).has_reached(TYPE, None, None)


# Subscriptions.


def test_subscribers_hear_of_changes_after_they_took_effect():
    replica = filled(record("a", 3))
    heard: list[object] = []
    unsubscribe = replica.subscribe(lambda change: heard.append((change, replica.get(TYPE, "a"))))
    replica.apply(record("a", 11, "new"))
    replica.apply(record("a", 11, "again"))  # nothing changed, nothing to say
    replica.apply(record("a", 12, UNREADABLE))
    replica.apply(record("a", 13, deleted=True))
    replica.begin_copy(TYPE)
    replica.stage(record("a", 2, "copied"))
    replica.swap(TYPE, Position(8, 2), now_s=1.0)
    assert heard == [
        (Changed(TYPE, "a", 11, Held(11, "new")), Held(11, "new")),
        (Changed(TYPE, "a", 12, None), None),
        (Changed(TYPE, "a", 13, None), None),
        (Replaced(TYPE, Position(8, 2)), Held(2, "copied")),
    ]
    unsubscribe()
    unsubscribe()
    replica.apply(record("a", 14))
    assert len(heard) == 4


def test_a_subscriber_may_leave_while_it_is_told():
    replica = filled()
    heard: list[object] = []
    leave = replica.subscribe(lambda _: leave())
    replica.subscribe(heard.append)
    replica.apply(record("a", 11))
    replica.apply(record("a", 12))
    assert len(heard) == 2


# Property: from any moment's copy, replaying the log converges, whatever is read twice.

actions = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["put", "put", "delete", UNREADABLE])),
    max_size=30,
)


@given(actions, actions, st.integers(0, 3), st.integers(1, 3))
def test_a_copy_taken_while_writes_go_on_converges(before, during, page_size, repeats):
    broker = ModelBroker()

    def write(todo):
        for key, what in todo:
            broker.delete(key) if what == "delete" else broker.put(key, what)

    write(before)
    position = Position(broker.server_version, broker.latest)
    replica = Replica({TYPE: text_of})
    replica.begin_copy(TYPE)
    after = ""
    step = max(1, len(during) // 3)
    for start in range(0, max(1, len(during)), step):  # pages see ever newer rows
        page = broker.page(TYPE, after, page_size)
        for made in page:
            replica.stage(made)
        after = page[-1].id if page else after
        write(during[start : start + step])
    while page := broker.page(TYPE, after, 2):
        for made in page:
            replica.stage(made)
        after = page[-1].id
    replica.swap(TYPE, position, now_s=0.0)
    held: dict[str, int] = {}
    for made in broker.changes(position.record_version, TYPE, 1000):
        for _ in range(repeats):
            replica.apply(made)
        now = replica.get(TYPE, made.id)
        if now is not None and made.id in held:
            assert now.version >= held[made.id]
        if now is not None:
            held[made.id] = now.version
    found = {key: replica.get(TYPE, key) for key in "abcd"}
    assert {key: (now.version, now.value) for key, now in found.items() if now} == broker.contents()


class Thing:
    def __init__(self, made) -> None:
        self.id = made.id


def test_an_id_that_the_value_holds_too_is_kept_once():
    """A million of them are worth it; also of records that have changed since."""
    replica = Replica({TYPE: Thing})
    replica.begin_copy(TYPE)
    replica.stage(record("first", 1))
    replica.swap(TYPE, Position(7, 1), now_s=0.0)
    replica.apply(record("first", 2))
    replica.apply(record("second", 3))
    for key, held in replica.live(TYPE).items():
        assert isinstance(held.value, Thing)
        assert held.value.id is key


def test_a_value_that_names_itself_otherwise_is_found_by_its_record():
    replica = Replica({TYPE: lambda made: record("other")})
    replica.begin_copy(TYPE)
    replica.stage(record("a", 1))
    replica.swap(TYPE, Position(7, 1), now_s=0.0)
    assert set(replica.live(TYPE)) == {"a"}
