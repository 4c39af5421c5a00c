"""Which resources and files make Envoy do what the settings say.

`build_snapshot` is a pure function (design D2): equal settings and environment give equal bytes,
whatever order maps were filled in, so that a resource's version changes only when it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from envoy.config.listener.v3 import listener_pb2
from google.protobuf.message import Message

from gatehouse.common.config.resolved import ResolvedSettings, ServiceName
from gatehouse.common.ids import TypeUrl
from gatehouse.proxy.core.xds.parts import Basis, Parts
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
from gatehouse.proxy.core.xds.resources.internal_clusters import (
    AUTHENTICATE,
    CONTROL_PLANE_HTTP,
    OWN_GRPC,
    internal_clusters,
    internal_secrets,
)
from gatehouse.proxy.core.xds.resources.listeners import listeners
from gatehouse.proxy.core.xds.resources.upstream_clusters import upstream_clusters
from gatehouse.proxy.core.xds.resources.virtual_hosts import route_configuration
from gatehouse.proxy.errors import SnapshotError

__all__ = ["Snapshot", "SnapshotEnvironment", "build_snapshot"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A consistent set of resources, and the files they name (relative name to content)."""

    version: str
    resources: Mapping[TypeUrl, ResourceMap]
    files: Mapping[str, bytes] = field(repr=False, default_factory=dict)
    parts: Parts | None = field(repr=False, compare=False, default=None)  # for the next one

    def __repr__(self) -> str:
        counts = {kind.rpartition(".")[2]: len(found) for kind, found in self.resources.items()}
        return f"Snapshot({self.version}, {counts})"


def build_snapshot(
    resolved: ResolvedSettings, environment: SnapshotEnvironment, before: Snapshot | None = None
) -> Snapshot:
    """Everything Envoy is told: not for the event loop when there are many routes.

    `before` is any earlier snapshot: what was made there of the very same routes is used again.
    It changes nothing about the result. Raises SnapshotError when the settings ask for what cannot
    be built.
    """
    files = SnapshotFiles(environment.secrets_dir)
    basis = Basis.of(resolved, environment)
    parts, kept = Parts.after(None if before is None else before.parts, basis)
    names = upstream_clusters(resolved.routes, parts, kept)
    for part in parts.clusters.values():
        files.contents.update(part.files)
    internal = internal_clusters(resolved, environment, files)
    secrets = internal_secrets(resolved, environment, files)
    public = listeners(resolved, environment, files)
    routes = route_configuration(resolved, names, parts, kept)
    upstreams = {part.resource.name: part.resource for part in parts.clusters.values()}
    clusters = _by_name(internal)
    for name in sorted(upstreams):
        if name in clusters:
            raise SnapshotError(f"two Clusters are called {name!r}")
        clusters[name] = upstreams[name]
    _check(clusters, public, resolved)
    resources = {
        CLUSTER: clusters,
        SECRET: _by_name(secrets),
        LISTENER: _by_name(public),
        ROUTE_CONFIGURATION: {routes.name: routes},
    }
    return Snapshot(
        version=_version(resources), resources=resources, files=files.sorted(), parts=parts
    )


def _by_name(messages: Iterable[Message]) -> dict[str, Resource]:
    found: dict[str, Resource] = {}
    for message in messages:
        name: str = message.name  # type: ignore[attr-defined]
        if name in found:
            raise SnapshotError(f"two {message.DESCRIPTOR.name}s are called {name!r}")
        found[name] = resource_of(message, name)
    return found


def _check(
    clusters: ResourceMap, public: Iterable[listener_pb2.Listener], resolved: ResolvedSettings
) -> None:
    """Whatever a resource refers to must be there: Envoy would answer 503 where it is not.

    Routes lead to clusters that were made of them, or to our own pages.
    """
    pages = [CONTROL_PLANE_HTTP]
    if resolved.runs(ServiceName.AUTHENTICATE):
        pages.append(AUTHENTICATE)
    if resolved.shared_grpc_urls:
        pages.append(OWN_GRPC)
    for name in pages:
        if name not in clusters:
            raise SnapshotError(f"our own pages lead to {name!r}, which does not exist")
    for listener in public:
        for chain in listener.filter_chains:
            if not chain.filters:
                raise SnapshotError(f"listener {listener.name} does nothing")


def _version(resources: Mapping[TypeUrl, ResourceMap]) -> str:
    lines = [
        f"{type_url} {name} {resource.version}"
        for type_url, found in sorted(resources.items())
        for name, resource in sorted(found.items())
    ]
    return digest("\n".join(lines).encode())
