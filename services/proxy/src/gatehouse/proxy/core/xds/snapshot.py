"""Which resources and files make Envoy do what the settings say.

`build_snapshot` is a pure function (design D2): equal settings and environment give equal bytes,
whatever order maps were filled in, so that a resource's version changes only when it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from google.protobuf.message import Message

from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.ids import TypeUrl
from gatehouse.proxy.core.xds.resource import (
    CLUSTER,
    LISTENER,
    ROUTE_CONFIGURATION,
    SECRET,
    Resource,
    ResourceMap,
    digest,
    resource_of,
)
from gatehouse.proxy.core.xds.resources.environment import SnapshotEnvironment, SnapshotFiles
from gatehouse.proxy.core.xds.resources.internal_clusters import internal_clusters, service_token
from gatehouse.proxy.core.xds.resources.listeners import listeners
from gatehouse.proxy.core.xds.resources.upstream_clusters import upstream_clusters
from gatehouse.proxy.core.xds.resources.virtual_hosts import (
    ROUTE_CONFIGURATION_NAME,
    route_configuration,
)
from gatehouse.proxy.errors import SnapshotError

__all__ = ["Snapshot", "SnapshotEnvironment", "build_snapshot"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A consistent set of resources, and the files they name (relative name to content)."""

    version: str
    resources: Mapping[TypeUrl, ResourceMap]
    files: Mapping[str, bytes] = field(repr=False, default_factory=dict)

    def __repr__(self) -> str:
        counts = {kind.rpartition(".")[2]: len(found) for kind, found in self.resources.items()}
        return f"Snapshot({self.version}, {counts})"


def build_snapshot(resolved: ResolvedSettings, environment: SnapshotEnvironment) -> Snapshot:
    """Everything Envoy is told. Takes about 0.1 ms for each route: not for the event loop.

    Raises SnapshotError when the settings ask for what cannot be built.
    """
    files = SnapshotFiles(environment.secrets_dir)
    upstreams, names = upstream_clusters(resolved, environment, files)
    clusters = (*internal_clusters(resolved, environment, files), *upstreams)
    public = listeners(resolved, environment, files)
    routes = route_configuration(resolved, names)
    _check(clusters, public, routes)
    resources = {
        CLUSTER: _by_name(clusters),
        SECRET: _by_name([service_token(environment)]),
        LISTENER: _by_name(public),
        ROUTE_CONFIGURATION: _by_name([routes]),
    }
    return Snapshot(version=_version(resources), resources=resources, files=files.sorted())


def _by_name(messages: Iterable[Message]) -> ResourceMap:
    found: dict[str, Resource] = {}
    for message in messages:
        name: str = message.name  # type: ignore[attr-defined]
        if name in found:
            raise SnapshotError(f"two {message.DESCRIPTOR.name}s are called {name!r}")
        found[name] = resource_of(message, name)
    return found


def _check(clusters: Iterable[Message], public: Iterable[Message], routes: Message) -> None:
    """Whatever a resource refers to must be there: Envoy would answer 503 where it is not."""
    known = {message.name for message in clusters}  # type: ignore[attr-defined]
    domains: set[str] = set()
    for virtual_host in routes.virtual_hosts:  # type: ignore[attr-defined]
        for domain in virtual_host.domains:
            if domain in domains:
                raise SnapshotError(f"two virtual hosts answer to {domain!r}")
            domains.add(domain)
        for route in virtual_host.routes:
            if route.HasField("route") and route.route.cluster not in known:
                raise SnapshotError(
                    f"route {route.name} leads to the cluster {route.route.cluster!r}, "
                    "which does not exist"
                )
    for listener in public:
        for chain in listener.filter_chains:  # type: ignore[attr-defined]
            if not chain.filters:
                raise SnapshotError(f"listener {listener.name} does nothing")  # type: ignore[attr-defined]
    assert routes.name == ROUTE_CONFIGURATION_NAME  # type: ignore[attr-defined]


def _version(resources: Mapping[TypeUrl, ResourceMap]) -> str:
    lines = [
        f"{type_url} {name} {resource.version}"
        for type_url, found in sorted(resources.items())
        for name, resource in sorted(found.items())
    ]
    return digest("\n".join(lines).encode())
