"""The delta subscription: every state with every input, then the odd clauses, then a client."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatehouse.proxy.core.xds.resource import CLUSTER, Resource
from gatehouse.proxy.core.xds.subscription import (
    Acked,
    Delta,
    Nacked,
    Request,
    Subscribed,
    Subscription,
)


def make(name: str, version: str) -> Resource:
    return Resource(CLUSTER, name, version, f"{name}/{version}".encode())


def resources(**versions: str) -> dict[str, Resource]:
    return {name: make(name, version) for name, version in versions.items()}


def names(delta: Delta) -> tuple[list[str], list[str]]:
    return [resource.name for resource in delta.upserts], list(delta.removals)


AB = resources(a="1", b="1")


def fresh() -> Subscription:
    return Subscription(CLUSTER)


def wildcard_idle() -> Subscription:
    subscription = fresh()
    subscription.on_request(Request())
    subscription.sent("n0", subscription.needed(AB))
    subscription.on_request(Request(nonce="n0"))
    return subscription


def wildcard_awaiting() -> Subscription:
    subscription = fresh()
    subscription.on_request(Request())
    subscription.sent("n1", subscription.needed(AB))
    return subscription


def named_idle() -> Subscription:
    subscription = fresh()
    subscription.on_request(Request(subscribe=("a",)))
    subscription.sent("n0", subscription.needed(AB))
    subscription.on_request(Request(nonce="n0"))
    return subscription


def named_awaiting() -> Subscription:
    subscription = fresh()
    subscription.on_request(Request(subscribe=("a",)))
    subscription.sent("n1", subscription.needed(AB))
    return subscription


def refused_idle() -> Subscription:
    subscription = wildcard_awaiting()
    subscription.on_request(Request(nonce="n1", error="cluster a is bad"))
    return subscription


STATES: dict[str, Callable[[], Subscription]] = {
    function.__name__: function
    for function in (
        fresh,
        wildcard_idle,
        wildcard_awaiting,
        named_idle,
        named_awaiting,
        refused_idle,
    )
}
INPUTS: dict[str, Request] = {
    "spontaneous": Request(),
    "ack": Request(nonce="n1"),
    "nack": Request(nonce="n1", error="a: bad"),
    "stale ack": Request(nonce="n-old"),
    "stale nack": Request(nonce="n-old", error="a: bad"),
    "subscribe new": Request(subscribe=("c",)),
    "subscribe known": Request(subscribe=("a",)),
    "subscribe wildcard": Request(subscribe=("*",)),
    "unsubscribe known": Request(unsubscribe=("a",)),
    "unsubscribe unknown": Request(unsubscribe=("z",)),
    "unsubscribe wildcard": Request(unsubscribe=("*",)),
    "ack and subscribe": Request(nonce="n1", subscribe=("c",)),
}

S, A, N = Subscribed, Acked, Nacked
NOTHING: tuple[list[str], list[str]] = ([], [])

# (outcome, what is needed for {a: 1, b: 1} afterwards) for each state and input.
TABLE: dict[tuple[str, str], tuple[type, tuple[list[str], list[str]]]] = {
    ("fresh", "spontaneous"): (S, (["a", "b"], [])),
    ("fresh", "ack"): (S, (["a", "b"], [])),
    ("fresh", "nack"): (S, (["a", "b"], [])),
    ("fresh", "stale ack"): (S, (["a", "b"], [])),
    ("fresh", "stale nack"): (S, (["a", "b"], [])),
    ("fresh", "subscribe new"): (S, ([], ["c"])),
    ("fresh", "subscribe known"): (S, (["a"], [])),
    ("fresh", "subscribe wildcard"): (S, (["a", "b"], [])),
    # A first request that subscribes to nothing is a wildcard, whatever it unsubscribes from.
    ("fresh", "unsubscribe known"): (S, (["a", "b"], [])),
    ("fresh", "unsubscribe unknown"): (S, (["a", "b"], ["z"])),
    ("fresh", "unsubscribe wildcard"): (S, NOTHING),
    ("fresh", "ack and subscribe"): (S, ([], ["c"])),
    ("wildcard_idle", "spontaneous"): (S, NOTHING),
    ("wildcard_idle", "ack"): (S, NOTHING),
    ("wildcard_idle", "nack"): (S, NOTHING),
    ("wildcard_idle", "stale ack"): (S, NOTHING),
    ("wildcard_idle", "stale nack"): (S, NOTHING),
    ("wildcard_idle", "subscribe new"): (S, ([], ["c"])),
    ("wildcard_idle", "subscribe known"): (S, (["a"], [])),
    ("wildcard_idle", "subscribe wildcard"): (S, NOTHING),
    ("wildcard_idle", "unsubscribe known"): (S, (["a"], [])),
    ("wildcard_idle", "unsubscribe unknown"): (S, ([], ["z"])),
    ("wildcard_idle", "unsubscribe wildcard"): (S, NOTHING),
    ("wildcard_idle", "ack and subscribe"): (S, ([], ["c"])),
    ("wildcard_awaiting", "spontaneous"): (S, (["a", "b"], [])),
    ("wildcard_awaiting", "ack"): (A, NOTHING),
    ("wildcard_awaiting", "nack"): (N, NOTHING),
    ("wildcard_awaiting", "stale ack"): (S, (["a", "b"], [])),
    ("wildcard_awaiting", "stale nack"): (S, (["a", "b"], [])),
    ("wildcard_awaiting", "subscribe new"): (S, (["a", "b"], ["c"])),
    ("wildcard_awaiting", "subscribe known"): (S, (["a", "b"], [])),
    ("wildcard_awaiting", "subscribe wildcard"): (S, (["a", "b"], [])),
    ("wildcard_awaiting", "unsubscribe known"): (S, (["a", "b"], [])),
    ("wildcard_awaiting", "unsubscribe unknown"): (S, (["a", "b"], ["z"])),
    ("wildcard_awaiting", "unsubscribe wildcard"): (S, NOTHING),
    ("wildcard_awaiting", "ack and subscribe"): (A, ([], ["c"])),
    ("named_idle", "spontaneous"): (S, NOTHING),
    ("named_idle", "ack"): (S, NOTHING),
    ("named_idle", "nack"): (S, NOTHING),
    ("named_idle", "stale ack"): (S, NOTHING),
    ("named_idle", "stale nack"): (S, NOTHING),
    ("named_idle", "subscribe new"): (S, ([], ["c"])),
    ("named_idle", "subscribe known"): (S, (["a"], [])),
    ("named_idle", "subscribe wildcard"): (S, (["b"], [])),
    ("named_idle", "unsubscribe known"): (S, NOTHING),
    ("named_idle", "unsubscribe unknown"): (S, NOTHING),
    ("named_idle", "unsubscribe wildcard"): (S, NOTHING),
    ("named_idle", "ack and subscribe"): (S, ([], ["c"])),
    ("named_awaiting", "spontaneous"): (S, (["a"], [])),
    ("named_awaiting", "ack"): (A, NOTHING),
    ("named_awaiting", "nack"): (N, NOTHING),
    ("named_awaiting", "stale ack"): (S, (["a"], [])),
    ("named_awaiting", "stale nack"): (S, (["a"], [])),
    ("named_awaiting", "subscribe new"): (S, (["a"], ["c"])),
    ("named_awaiting", "subscribe known"): (S, (["a"], [])),
    ("named_awaiting", "subscribe wildcard"): (S, (["a", "b"], [])),
    ("named_awaiting", "unsubscribe known"): (S, NOTHING),
    ("named_awaiting", "unsubscribe unknown"): (S, (["a"], [])),
    ("named_awaiting", "unsubscribe wildcard"): (S, (["a"], [])),
    ("named_awaiting", "ack and subscribe"): (A, ([], ["c"])),
    ("refused_idle", "spontaneous"): (S, NOTHING),
    ("refused_idle", "ack"): (S, NOTHING),
    ("refused_idle", "nack"): (S, NOTHING),
    ("refused_idle", "stale ack"): (S, NOTHING),
    ("refused_idle", "stale nack"): (S, NOTHING),
    ("refused_idle", "subscribe new"): (S, ([], ["c"])),
    ("refused_idle", "subscribe known"): (S, (["a"], [])),
    ("refused_idle", "subscribe wildcard"): (S, NOTHING),
    ("refused_idle", "unsubscribe known"): (S, (["a"], [])),
    ("refused_idle", "unsubscribe unknown"): (S, ([], ["z"])),
    ("refused_idle", "unsubscribe wildcard"): (S, NOTHING),
    ("refused_idle", "ack and subscribe"): (S, ([], ["c"])),
}


def test_the_table_is_complete():
    assert TABLE.keys() == {(state, event) for state in STATES for event in INPUTS}


@pytest.mark.parametrize(("state", "event"), TABLE)
def test_every_state_with_every_input(state: str, event: str):
    subscription = STATES[state]()
    kind, needed = TABLE[state, event]
    outcome = subscription.on_request(INPUTS[event])
    assert type(outcome) is kind
    assert names(subscription.needed(AB)) == needed


def test_nothing_is_needed_before_the_first_request():
    assert not fresh().needed(AB)


def test_versions_kept_from_a_former_stream_are_not_sent_again():
    subscription = fresh()
    subscription.on_request(Request(initial_versions={"a": "1", "b": "0", "gone": "1"}))
    assert names(subscription.needed(AB)) == (["b"], ["gone"])


def test_initial_versions_of_unsubscribed_names_do_not_count():
    subscription = fresh()
    subscription.on_request(Request(subscribe=("a",), initial_versions={"a": "1", "b": "1"}))
    assert not subscription.needed(resources(a="1"))


def test_initial_versions_count_in_the_first_request_only():
    subscription = wildcard_idle()
    subscription.on_request(Request(initial_versions={"a": "9"}))
    assert not subscription.needed(AB)


def test_refused_versions_are_not_sent_again_until_they_change():
    subscription = wildcard_awaiting()
    outcome = subscription.on_request(Request(nonce="n1", error="cluster a: bad port"))
    assert outcome == Nacked(frozenset({"a"}), "cluster a: bad port")
    assert not subscription.needed(AB)
    assert names(subscription.needed(resources(a="2", b="1"))) == (["a"], [])


def test_a_late_nack_is_not_credited_with_what_was_sent_since():
    subscription = wildcard_idle()
    subscription.sent("n2", subscription.needed(resources(a="2", b="1")))
    assert subscription.on_request(Request(nonce="n0", error="late")) == Subscribed()
    assert subscription.refused == ""
    assert subscription.awaiting
    assert subscription.on_request(Request(nonce="n2")) == Acked(frozenset({"a"}))


def test_a_refusal_by_name_stays_until_that_name_is_mended():
    subscription = wildcard_awaiting()
    subscription.on_request(Request(nonce="n1", error="cluster a: bad"))
    other = resources(a="1", b="2")
    subscription.sent("n2", subscription.needed(other))
    subscription.on_request(Request(nonce="n2"))
    assert subscription.refused == "cluster a: bad"
    mended = resources(a="2", b="2")
    subscription.sent("n3", subscription.needed(mended))
    subscription.on_request(Request(nonce="n3"))
    assert subscription.refused == ""


def test_a_refusal_without_a_name_ends_with_any_ack():
    subscription = wildcard_awaiting()
    subscription.on_request(Request(nonce="n1", error="something else"))
    assert subscription.refused
    subscription.sent("n2", subscription.needed(resources(a="1", b="2")))
    subscription.on_request(Request(nonce="n2"))
    assert subscription.refused == ""


def test_removing_a_refused_resource_mends_it():
    subscription = wildcard_awaiting()
    subscription.on_request(Request(nonce="n1", error="cluster a: bad"))
    delta = subscription.needed(resources(b="1"))
    assert names(delta) == ([], ["a"])
    subscription.sent("n2", delta)
    subscription.on_request(Request(nonce="n2"))
    assert subscription.refused == ""


def test_an_empty_reason_is_still_a_refusal():
    subscription = wildcard_awaiting()
    subscription.on_request(Request(nonce="n1", error=""))
    assert subscription.refused


def test_reasons_are_bounded():
    subscription = wildcard_awaiting()
    subscription.on_request(Request(nonce="n1", error="x" * 100_000))
    assert len(subscription.refused) == 2000


def test_an_absent_name_is_reported_once_and_sent_when_it_appears():
    subscription = fresh()
    subscription.on_request(Request(subscribe=("new",)))
    delta = subscription.needed({})
    assert names(delta) == ([], ["new"])
    subscription.sent("n1", delta)
    subscription.on_request(Request(nonce="n1"))
    assert not subscription.needed({})
    assert names(subscription.needed(resources(new="1"))) == (["new"], [])


def test_a_name_asked_for_again_while_in_flight_is_sent_again():
    subscription = named_awaiting()
    subscription.on_request(Request(nonce="n1", subscribe=("a",)))
    assert names(subscription.needed(AB)) == (["a"], [])


def test_two_responses_at_a_time_are_a_bug():
    with pytest.raises(AssertionError):
        wildcard_awaiting().sent("n2", Delta())


def test_repr_tells_the_state():
    assert repr(fresh()) == "Subscription(nothing, idle, knows 0, refused '')"
    assert "wildcard, awaiting" in repr(wildcard_awaiting())


class Client:
    """What Envoy does: takes a response whole unless it holds a bad version."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}

    def take(self, delta: Delta, nonce: str) -> Request:
        bad = [each.name for each in delta.upserts if each.version.startswith("bad")]
        for each in delta.upserts:
            if each.name not in bad:
                self.held[each.name] = each.version
        for name in delta.removals:
            self.held.pop(name, None)
        error = f"Error adding/updating cluster(s) {', '.join(bad)}: no" if bad else None
        return Request(nonce=nonce, error=error)


WANTED = st.dictionaries(
    st.sampled_from(["alpha", "beta", "gamma", "delta"]),
    st.sampled_from(["1", "2", "3", "bad1", "bad2"]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(WANTED, st.booleans()), min_size=1, max_size=8))
def test_a_client_ends_with_what_is_wanted_over_refusals_and_reconnects(steps):
    client, subscription, count = Client(), Subscription(CLUSTER), 0
    subscription.on_request(Request())
    for versions, reconnect in steps:
        wanted = resources(**versions)
        if reconnect:
            subscription = Subscription(CLUSTER)
            subscription.on_request(Request(initial_versions=dict(client.held)))
        rounds = 0
        while delta := subscription.needed(wanted):
            rounds += 1
            assert rounds < 3, "a response is not sent twice"
            count += 1
            subscription.sent(f"n{count}", delta)
            subscription.on_request(client.take(delta, f"n{count}"))
        good = {name: v for name, v in versions.items() if not v.startswith("bad")}
        assert {name: client.held.get(name) for name in good} == good
        assert client.held.keys() <= versions.keys()
        assert bool(subscription.refused) == (good != versions)
