"""Which refused versions are sent again, and how often."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.proxy.core.xds.refusals import FIRST_S, MOST_S, Retries, may_mend
from gatehouse.proxy.core.xds.resource import CLUSTER, LISTENER, Resource
from gatehouse.proxy.core.xds.subscription import Request, Subscription

TAKEN = "Error adding/updating listener(s) a: cannot bind '127.0.0.1:80': Address already in use"


@pytest.mark.parametrize(
    ("reason", "found"),
    [
        (TAKEN, True),
        ("Error adding/updating listener(s) a: cannot bind '10.0.0.9:80': Permission denied", True),
        ("bind: Cannot assign requested address", True),
        ("Only a single wildcard domain is permitted in route main", False),
        ("Error adding/updating cluster(s) x: Invalid duration", False),
        ("refused without a reason", False),
    ],
)
def test_what_lies_in_the_machine_may_mend(reason: str, found: bool) -> None:
    assert may_mend(reason) is found


def test_what_lies_in_the_resource_is_never_tried_again() -> None:
    retries = Retries()
    assert retries.refused(LISTENER, {"a": "1"}, "bad", 0.0) is None
    assert retries.wait_s(0.0) is None
    assert retries.take_due(1e9) == ()


def test_the_same_versions_wait_twice_as_long_each_time_and_never_longer_than_the_limit() -> None:
    retries, now_s, waits = Retries(), 0.0, []
    for _ in range(9):
        wait_s = retries.refused(LISTENER, {"a": "1"}, TAKEN, now_s)
        assert wait_s is not None
        assert retries.wait_s(now_s) == wait_s
        assert retries.take_due(now_s + wait_s - 0.001) == ()
        now_s += wait_s
        assert retries.take_due(now_s) == (LISTENER,)
        assert retries.take_due(now_s) == ()  # once, until it is answered
        assert retries.wait_s(now_s) is None
        waits.append(wait_s)
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]


def test_other_versions_and_what_was_accepted_begin_anew() -> None:
    retries = Retries()
    for _ in range(3):
        retries.refused(LISTENER, {"a": "1"}, TAKEN, 0.0)
    assert retries.refused(LISTENER, {"a": "2"}, TAKEN, 0.0) == FIRST_S
    assert retries.refused(CLUSTER, {"a": "2"}, TAKEN, 0.0) == FIRST_S
    retries.accepted(LISTENER)
    assert retries.take_due(FIRST_S) == (CLUSTER,)
    assert retries.refused(LISTENER, {"a": "2"}, TAKEN, 0.0) == FIRST_S
    assert retries.refused(LISTENER, {"a": "2"}, "now it is bad", 0.0) is None
    assert retries.wait_s(0.0) is None


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("12")), max_size=40))
def test_it_never_is_a_hot_loop(refusals: list[tuple[str, str]]) -> None:
    """Answers that come at once, whatever they name: a second try never within the first wait."""
    retries, now_s = Retries(), 0.0
    for name, version in refusals:
        retries.refused(LISTENER, {name: version}, TAKEN, now_s)
        wait_s = retries.wait_s(now_s)
        assert wait_s is not None
        assert FIRST_S <= wait_s <= MOST_S
        now_s += wait_s
        assert retries.take_due(now_s) == (LISTENER,)


def make(name: str, version: str) -> Resource:
    return Resource(LISTENER, name, version, b"")


def refused() -> Subscription:
    """Holds a at 1, refuses b at 2, where it has 1."""
    subscription = Subscription(LISTENER)
    subscription.on_request(Request())
    for nonce, version, error in (("n1", "1", None), ("n2", "2", "listener b: cannot bind")):
        wanted = {"a": make("a", "1"), "b": make("b", version)}
        subscription.sent(nonce, subscription.needed(wanted))
        subscription.on_request(Request(nonce=nonce, error=error))
    return subscription


def test_trying_again_sends_what_was_refused_and_nothing_else() -> None:
    subscription = refused()
    wanted = {"a": make("a", "1"), "b": make("b", "2")}
    assert not subscription.needed(wanted)
    assert subscription.refused_versions == {"b": "2"}
    subscription.try_again(wanted)
    delta = subscription.needed(wanted)
    assert delta.upserts == (wanted["b"],)
    assert delta.removals == ()
    assert subscription.refuses(wanted)  # until it is accepted
    subscription.sent("n3", delta)
    subscription.on_request(Request(nonce="n3"))
    assert not subscription.refuses(wanted)
    assert subscription.refused == ""
    assert not subscription.needed(wanted)


def test_what_is_not_wanted_any_more_is_not_tried_again() -> None:
    subscription = refused()
    changed = {"a": make("a", "1"), "b": make("b", "3")}
    subscription.try_again(changed)
    assert [each.version for each in subscription.needed(changed).upserts] == ["3"]
    gone = {"a": make("a", "1")}
    subscription.try_again(gone)
    delta = subscription.needed(gone)
    assert delta.upserts == ()
    assert delta.removals == ("b",)
