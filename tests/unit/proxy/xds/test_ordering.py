"""Make before break, with a model of Envoy that notices what would have been broken."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gatehouse.common.ids import TypeUrl
from gatehouse.proxy.core.xds.ordering import AwaitClusters, Push, Rest, Step, next_step
from gatehouse.proxy.core.xds.resource import (
    CLUSTER,
    LISTENER,
    PUSH_ORDER,
    ROUTE_CONFIGURATION,
    Resource,
)
from gatehouse.proxy.core.xds.subscription import Request, Subscription

Target = dict[TypeUrl, dict[str, Resource]]


def wanted(clusters: str, listeners: str = "l1", routes: str = "") -> Target:
    """`"a1 b2"` is cluster a at version 1 and b at 2; routes name the clusters they point at."""

    def parse(kind: TypeUrl, text: str) -> dict[str, Resource]:
        return {item[0]: Resource(kind, item[0], item[1:], b"") for item in text.split()}

    return {
        CLUSTER: parse(CLUSTER, clusters),
        LISTENER: parse(LISTENER, listeners),
        ROUTE_CONFIGURATION: {
            "main": Resource(ROUTE_CONFIGURATION, "main", f"to {routes}", routes.encode())
        },
    }


class Envoy:
    """Takes pushes; complains when routes point at clusters it does not have."""

    def __init__(self, *, names_what_it_refuses: bool = True) -> None:
        self.names_what_it_refuses = names_what_it_refuses
        self.subscriptions = {kind: Subscription(kind) for kind in PUSH_ORDER}
        self.clusters: dict[str, str] = {}
        self.listeners: dict[str, str] = {}
        self.routes: str | None = None
        self.refuses: set[str] = set()
        self.pushes: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
        self.count = 0
        self.subscriptions[CLUSTER].on_request(Request())

    def step(self, target: Target, warming: frozenset[str] = frozenset()) -> Step:
        return next_step(self.subscriptions, target, warming=warming)

    def apply(self, push: Push) -> None:
        self.count += 1
        nonce = f"n{self.count}"
        self.subscriptions[push.type_url].sent(nonce, push.delta)
        self.pushes.append(
            (
                push.type_url.rpartition(".")[2],
                tuple(f"{each.name}{each.version}" for each in push.delta.upserts),
                push.delta.removals,
            )
        )
        bad = [
            each.name for each in push.delta.upserts if f"{each.name}{each.version}" in self.refuses
        ]
        for each in push.delta.upserts:
            if each.name in bad:
                continue
            if push.type_url == CLUSTER:
                self.clusters[each.name] = each.version
            elif push.type_url == LISTENER:
                self.listeners[each.name] = each.version
            else:
                self.routes = each.body.decode()
        for name in push.delta.removals:
            if push.type_url == CLUSTER:
                self.clusters.pop(name, None)
            elif push.type_url == LISTENER:
                self.listeners.pop(name, None)
        named = " ".join(bad) if self.names_what_it_refuses else "something"
        error = f"Error: {named}" if bad else None
        self.subscriptions[push.type_url].on_request(Request(nonce=nonce, error=error))
        if push.type_url == CLUSTER and not self.subscriptions[LISTENER].started:
            self.subscriptions[LISTENER].on_request(Request())
        if push.type_url == LISTENER and not self.subscriptions[ROUTE_CONFIGURATION].started:
            self.subscriptions[ROUTE_CONFIGURATION].on_request(Request(subscribe=("main",)))
        self.check()

    def check(self) -> None:
        if not self.names_what_it_refuses:
            return  # nobody can then tell which cluster is missing; it must go on all the same
        for name in (self.routes or "").split():
            assert name in self.clusters, f"routes point at {name}, which is gone: {self.pushes}"

    def settle(self, target: Target) -> None:
        for _ in range(20):
            step = self.step(target)
            if not isinstance(step, Push):
                return
            self.apply(step)
        raise AssertionError(self.pushes)


def test_a_cold_start_sends_clusters_then_listeners_then_routes():
    envoy = Envoy()
    envoy.settle(wanted("a1", "l1", "a"))
    assert [kind for kind, _, _ in envoy.pushes] == ["Cluster", "Listener", "RouteConfiguration"]


def test_nothing_is_sent_before_it_is_asked_for():
    envoy = Envoy()
    envoy.subscriptions = {kind: Subscription(kind) for kind in PUSH_ORDER}
    assert envoy.step(wanted("a1")) == Rest()


def test_additions_come_first_and_removals_last_the_other_way_round():
    envoy = Envoy()
    envoy.settle(wanted("a1", "l1 m1", "a"))
    envoy.pushes.clear()
    envoy.settle(wanted("b1", "m1 n1", "b"))
    assert envoy.pushes == [
        ("Cluster", ("b1",), ()),
        ("Listener", ("n1",), ()),
        ("RouteConfiguration", ("mainto b",), ()),
        ("Listener", (), ("l",)),
        ("Cluster", (), ("a",)),
    ]


def test_a_change_half_way_is_taken_up_without_breaking_anything():
    envoy = Envoy()
    envoy.settle(wanted("a1", "l1", "a"))
    step = envoy.step(wanted("b1", "l1", "b"))
    assert isinstance(step, Push)
    envoy.apply(step)
    envoy.settle(wanted("c1", "l1", "c"))
    assert envoy.clusters == {"c": "1"}
    assert envoy.routes == "c"


def test_routes_wait_for_the_clusters_they_point_at():
    envoy = Envoy()
    envoy.settle(wanted("a1", "l1", "a"))
    target = wanted("a1 b1", "l1", "b")
    step = envoy.step(target)
    assert isinstance(step, Push)
    envoy.apply(step)
    warming = frozenset({"b"})
    assert envoy.step(target, warming) == AwaitClusters(warming)
    assert isinstance(envoy.step(target), Push)


def test_the_first_routes_wait_for_nothing():
    """Envoy itself asks for listeners only when its clusters are warm."""
    envoy = Envoy()
    target = wanted("a1", "l1", "a")
    for _ in range(2):
        step = envoy.step(target)
        assert isinstance(step, Push)
        envoy.apply(step)
    assert isinstance(envoy.step(target, frozenset({"a"})), Push)


def test_a_refused_cluster_leaves_the_old_configuration_in_force_as_a_whole():
    envoy = Envoy()
    envoy.settle(wanted("a1", "l1", "a"))
    envoy.refuses.add("b1")
    envoy.settle(wanted("b1", "l2", "b"))
    assert (envoy.clusters, envoy.listeners, envoy.routes) == ({"a": "1"}, {"l": "1"}, "a")
    envoy.settle(wanted("b2", "l2", "b"))
    assert (envoy.clusters, envoy.listeners, envoy.routes) == ({"b": "2"}, {"l": "2"}, "b")


def test_a_refused_cluster_does_not_stop_a_first_start():
    envoy = Envoy()
    envoy.refuses.add("b1")
    envoy.settle(wanted("a1 b1", "l1", "a"))
    assert (envoy.clusters, envoy.routes) == ({"a": "1"}, "a")


def test_nothing_is_removed_while_something_is_refused():
    envoy = Envoy()
    envoy.settle(wanted("a1", "l1", "a"))
    envoy.refuses.add("mainto b")
    envoy.settle(wanted("b1", "l1", "b"))
    assert envoy.routes == "a"
    assert set(envoy.clusters) == {"a", "b"}
    envoy.settle(wanted("a1", "l1", "a"))
    assert envoy.clusters == {"a": "1"}


def test_an_answer_is_awaited_before_the_next_type_is_sent():
    envoy = Envoy()
    step = envoy.step(wanted("a1", "l1", "a"))
    assert isinstance(step, Push)
    envoy.subscriptions[CLUSTER].sent("n", step.delta)
    envoy.subscriptions[LISTENER].on_request(Request())
    assert envoy.step(wanted("a1", "l1", "a")) == Rest()


def test_a_name_that_does_not_exist_is_answered_at_once():
    envoy = Envoy()
    envoy.settle(wanted("a1", "l1", "a"))
    envoy.subscriptions[ROUTE_CONFIGURATION].on_request(Request(subscribe=("other",)))
    step = envoy.step(wanted("a1", "l1", "a"))
    assert isinstance(step, Push)
    assert step.delta.removals == ("other",)


NAMES = "abcd"
TARGETS = st.tuples(
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from("12"), min_size=1),
    st.dictionaries(st.sampled_from("lm"), st.sampled_from("12"), min_size=1),
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(TARGETS, st.integers(0, 6)), min_size=1, max_size=6),
    st.sets(st.sampled_from([f"{name}{version}" for name in NAMES for version in "12"])),
    st.booleans(),
)
def test_routes_never_point_at_nothing(steps, refuses, names_what_it_refuses):
    """Whatever is refused and however targets follow each other (Envoy.check asserts)."""
    envoy = Envoy(names_what_it_refuses=names_what_it_refuses)
    envoy.settle(wanted("a3", "l1", "a"))
    envoy.refuses = refuses
    for (clusters, listeners), pushes in steps:
        target = wanted(
            " ".join(f"{name}{version}" for name, version in clusters.items()),
            " ".join(f"{name}{version}" for name, version in listeners.items()),
            " ".join(clusters),
        )
        for _ in range(pushes):
            step = envoy.step(target)
            if isinstance(step, Push):
                envoy.apply(step)
    envoy.refuses = set()
    envoy.settle(wanted("z9", "l9", "z"))
    assert (envoy.clusters, envoy.listeners, envoy.routes) == ({"z": "9"}, {"l": "9"}, "z")
