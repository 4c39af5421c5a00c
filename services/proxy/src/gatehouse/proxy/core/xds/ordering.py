"""Which response goes out next, so that nothing is broken before its successor works.

Make before break (Envoy, "Eventual consistency considerations"): clusters first, then the listeners
and the routes that point at them; what is gone is taken away in the opposite order, and only after
everything new is in force. `next_step` is a pure function of what each subscription holds and what
is wanted, so a configuration that changes half way simply makes the next answer another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gatehouse.common.ids import TypeUrl
from gatehouse.proxy.core.xds.resource import (
    CLUSTER,
    PUSH_ORDER,
    ROUTE_CONFIGURATION,
    ResourceMap,
)
from gatehouse.proxy.core.xds.subscription import Delta, Subscription


@dataclass(frozen=True, slots=True)
class Push:
    """Send this delta now."""

    type_url: TypeUrl
    delta: Delta


@dataclass(frozen=True, slots=True)
class AwaitClusters:
    """Wait until Envoy uses these clusters: they resolve names or check health first.

    Routes that point at a cluster still warming answer 503, so the routes in force stay meanwhile.
    """

    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to do until a request comes or the configuration changes."""


Step = Push | AwaitClusters | Rest


def next_step(
    subscriptions: Mapping[TypeUrl, Subscription],
    wanted: Mapping[TypeUrl, ResourceMap],
    *,
    warming: frozenset[str] = frozenset(),
) -> Step:
    """The next thing to do on a stream that holds `subscriptions`.

    `warming` names the clusters that were sent and are not known to be in use yet.
    """
    deltas = {
        type_url: subscriptions[type_url].needed(wanted.get(type_url, {}))
        for type_url in PUSH_ORDER
        if type_url in subscriptions
    }
    for type_url in PUSH_ORDER:
        subscription = subscriptions.get(type_url)
        if subscription is None or not subscription.started:
            continue
        if subscription.awaiting:
            return Rest()
        if type_url is not CLUSTER and _held_back(subscriptions, wanted):
            return Rest()
        upserts = deltas[type_url].upserts
        absent = _absent_names(subscription, deltas[type_url])
        if not upserts and not absent:
            continue
        if type_url == ROUTE_CONFIGURATION and warming and _serves(subscriptions):
            return AwaitClusters(warming)
        return Push(type_url, Delta(upserts, absent))
    if any(_refused(kind, subscriptions, wanted) for kind in subscriptions):
        # Envoy still works with something older, which may need what would be taken away now.
        return Rest()
    for type_url in reversed(PUSH_ORDER):
        if type_url in deltas and deltas[type_url].removals:
            return Push(type_url, Delta(removals=deltas[type_url].removals))
    return Rest()


def _absent_names(subscription: Subscription, delta: Delta) -> tuple[str, ...]:
    """Names the client asked for that do not exist: an answer it waits for, not a loss."""
    return tuple(name for name in delta.removals if not subscription.holds(name))


def _serves(subscriptions: Mapping[TypeUrl, Subscription]) -> bool:
    """True when the client has routes in force that must not be broken."""
    routes = subscriptions.get(ROUTE_CONFIGURATION)
    return routes is not None and routes.holds_any


def _refused(
    type_url: TypeUrl,
    subscriptions: Mapping[TypeUrl, Subscription],
    wanted: Mapping[TypeUrl, ResourceMap],
) -> bool:
    subscription = subscriptions.get(type_url)
    return subscription is not None and subscription.refuses(wanted.get(type_url, {}))


def _held_back(
    subscriptions: Mapping[TypeUrl, Subscription], wanted: Mapping[TypeUrl, ResourceMap]
) -> bool:
    """True while a cluster is refused and an older configuration is in force as a whole.

    Routes that point at a refused cluster would answer 503 where the old ones work. A client that
    has no routes yet gets them all the same: most of a configuration is better than none of it.
    """
    return _refused(CLUSTER, subscriptions, wanted) and _serves(subscriptions)
