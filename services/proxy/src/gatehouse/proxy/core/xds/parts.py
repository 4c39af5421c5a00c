"""What was made of each route, so that a route that did not change is not made again.

A snapshot carries the parts it was put together from, and the next one is built with them at hand
as an argument: building stays a pure function. A part is found by the route object it was made of
(objects are immutable) and holds for one basis only: all else that the builders read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gatehouse.common.config.resolved import ResolvedRoute, ResolvedSettings
from gatehouse.proxy.core.xds.resource import Resource
from gatehouse.proxy.core.xds.resources.environment import SnapshotEnvironment
from gatehouse.proxy.core.xds.resources.hosts import Host


@dataclass(frozen=True, slots=True)
class Basis:
    """Everything but the routes themselves that shapes what is made of a route.

    Builders of parts get these settings, which hold no routes: none of them can depend on another
    route without saying so here.
    """

    settings: ResolvedSettings
    environment: SnapshotEnvironment
    refuses_bad_certificates: bool

    @classmethod
    def of(cls, resolved: ResolvedSettings, environment: SnapshotEnvironment) -> Basis:
        """The basis of one configuration. The token for authorize is in no route's part."""
        return cls(
            settings=resolved.without_routes(),
            environment=replace(environment, authorize_jwt=""),
            refuses_bad_certificates=resolved.refuses_bad_certificates,
        )


@dataclass(frozen=True, slots=True)
class ClusterPart:
    """The cluster of one route and the files it names."""

    route: ResolvedRoute  # kept alive, so that its identity stays its own
    resource: Resource
    files: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class RoutesPart:
    """The Envoy routes of one route in one virtual host, as that host's fields."""

    route: ResolvedRoute
    fields: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RoutesKey:
    """Which virtual host a part is for, and where it leads."""

    route: int  # id() of the route object
    cluster: str | None
    wildcard: Host | None = None
    fronts_authenticate: bool = False
    sets_headers: bool = True


@dataclass(frozen=True, slots=True)
class Parts:
    """All parts of one snapshot."""

    basis: Basis
    clusters: dict[int, ClusterPart] = field(default_factory=dict)  # by id() of the route object
    routes: dict[RoutesKey, RoutesPart] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Parts({len(self.clusters)} clusters, {len(self.routes)} routes)"

    @classmethod
    def after(cls, before: Parts | None, basis: Basis) -> tuple[Parts, Parts]:
        """Empty parts to fill for `basis`, and those of before that hold for it too."""
        kept = before if before is not None and before.basis == basis else cls(basis)
        return cls(kept.basis), kept
