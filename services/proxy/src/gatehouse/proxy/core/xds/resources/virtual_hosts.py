"""Which routes answer under which host.

One virtual host for each host that routes name, and a last one, `*`, for wildcard hosts and for
everything else. Each begins with our own paths, so that no configured route can take them over; the
hosts by which our services are called, with calls to these.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from envoy.config.route.v3 import route_components_pb2, route_pb2

from gatehouse.common.config.decision_inputs import DecisionDeclarations
from gatehouse.common.config.resolved import ResolvedRoute, ResolvedSettings, ServiceName
from gatehouse.proxy.core.xds.parts import Parts, RoutesKey, RoutesPart
from gatehouse.proxy.core.xds.resource import (
    ROUTE_CONFIGURATION,
    Resource,
    embedded,
    resource_from,
    serialize,
)
from gatehouse.proxy.core.xds.resources.hosts import (
    Host,
    authenticate_host,
    route_hosts,
    service_hosts,
)
from gatehouse.proxy.core.xds.resources.internal_clusters import (
    AUTHENTICATE,
    CONTROL_PLANE_HTTP,
    OWN_GRPC,
)
from gatehouse.proxy.core.xds.resources.response_headers import header_options, route_headers
from gatehouse.proxy.core.xds.resources.routes import (
    control_plane_route,
    grpc_route,
    policy_routes,
)
from gatehouse.proxy.core.xds.resources.scalars import boolean
from gatehouse.proxy.errors import SnapshotError

ROUTE_CONFIGURATION_NAME: Final = "main"

_PROBES: Final = ("/ping", "/healthz")
_SIGN_IN_PATHS: Final = ("/", "/robots.txt", "/oauth2/callback")
_TREES: Final = ("/.pomerium", "/.well-known/pomerium")  # these paths and all below them
_VIRTUAL_HOSTS: Final = route_pb2.RouteConfiguration.VIRTUAL_HOSTS_FIELD_NUMBER
_ROUTES: Final = route_components_pb2.VirtualHost.ROUTES_FIELD_NUMBER


def route_configuration(
    resolved: ResolvedSettings, clusters: Mapping[int, str], parts: Parts, before: Parts
) -> Resource:
    """All virtual hosts, put together from the parts of each route; those of new routes are made.

    `clusters` holds the cluster name of each route by `id()` of its object.
    """
    make = _Maker(resolved, clusters, parts, before)
    sign_in = authenticate_host(resolved)
    serves_sign_in = resolved.runs(ServiceName.AUTHENTICATE)
    called = service_hosts(resolved)
    whole = [serialize(route_pb2.RouteConfiguration(name=ROUTE_CONFIGURATION_NAME))]
    taken: set[str] = set()
    for host, own in sorted(_routes_by_host(resolved).items(), key=lambda item: item[0].key):
        pages = _Pages.CONTROL_PLANE
        if host == sign_in:
            pages = _Pages.AUTHENTICATE if serves_sign_in else _Pages.NONE
        domains = host.domains(resolved)
        for domain in domains:
            if domain in taken:
                raise SnapshotError(f"two virtual hosts answer to {domain!r}")
            taken.add(domain)
        routes = [(route, None) for route in own]
        whole.append(make.virtual_host(host.key, domains, pages, routes, calls=host in called))
    wildcards = [
        (route, host)
        for route in resolved.routes
        if route.from_url.scheme != "ssh"
        for host in route_hosts(route.from_url)
        if host.is_wildcard
    ]
    whole.append(make.virtual_host("catch-all", ("*",), _Pages.CONTROL_PLANE, wildcards))
    limits = route_pb2.RouteConfiguration(validate_clusters=boolean(value=False))
    whole.append(serialize(limits))
    return resource_from(ROUTE_CONFIGURATION, ROUTE_CONFIGURATION_NAME, b"".join(whole))


class _Pages(enum.Enum):
    """Which pages of our own a virtual host has."""

    CONTROL_PLANE = enum.auto()
    AUTHENTICATE = enum.auto()
    NONE = enum.auto()  # the host of an authenticate service elsewhere


class _Maker:
    """Puts virtual hosts together; what many of them share is made once."""

    def __init__(
        self,
        resolved: ResolvedSettings,
        clusters: Mapping[int, str],
        parts: Parts,
        before: Parts,
    ) -> None:
        self._declarations = DecisionDeclarations(resolved)
        self._clusters = clusters
        self._parts = parts
        self._before = before
        settings = parts.basis.settings
        self._headers = serialize(
            route_components_pb2.VirtualHost(
                response_headers_to_add=header_options(route_headers(settings, {}))
            )
        )
        self._calls = _fields([grpc_route(OWN_GRPC, settings)])
        self._pages = {
            (pages, sets_headers): _fields(_page_routes(pages, settings, sets_headers=sets_headers))
            for pages in _Pages
            for sets_headers in (True, False)
        }

    def virtual_host(
        self,
        name: str,
        domains: Sequence[str],
        pages: _Pages,
        routes: Sequence[tuple[ResolvedRoute, Host | None]],
        *,
        calls: bool = False,
    ) -> bytes:
        """A virtual host as a field of the route configuration. `calls`: our services' as well.

        Where no route has response headers of its own the virtual host sets them for all: Envoy
        spends a good part of a reload on those of each route.
        """
        sets_headers = any(route.settings.set_response_headers for route, _ in routes)
        fields = [
            serialize(route_components_pb2.VirtualHost(name=name, domains=domains)),
            *([self._calls] if calls else []),
            self._pages[pages, sets_headers],
        ]
        for route, wildcard in routes:
            key = RoutesKey(
                route=id(route),
                cluster=self._clusters.get(id(route)),
                wildcard=wildcard,
                fronts_authenticate=pages is _Pages.NONE,
                sets_headers=sets_headers,
            )
            part = self._before.routes.get(key) or self._part(route, key)
            self._parts.routes[key] = part
            fields.append(part.fields)
        if not sets_headers:
            fields.append(self._headers)
        return embedded(_VIRTUAL_HOSTS, b"".join(fields))

    def _part(self, route: ResolvedRoute, key: RoutesKey) -> RoutesPart:
        made = policy_routes(
            route,
            self._parts.basis.settings,
            self._declarations,
            key.cluster,
            wildcard=key.wildcard,
            fronts_authenticate=key.fronts_authenticate,
            sets_headers=key.sets_headers,
        )
        return RoutesPart(route, _fields(made))


def _fields(routes: Iterable[route_components_pb2.Route]) -> bytes:
    """Routes as fields of a virtual host."""
    return b"".join(embedded(_ROUTES, serialize(route)) for route in routes)


def _routes_by_host(resolved: ResolvedSettings) -> Mapping[Host, list[ResolvedRoute]]:
    """The routes of each host without a star, in the order of the settings."""
    found: dict[Host, list[ResolvedRoute]] = {}
    for route in resolved.routes:
        if route.from_url.scheme == "ssh":
            continue
        for host in dict.fromkeys(route_hosts(route.from_url)):
            if not host.is_wildcard:
                found.setdefault(host, []).append(route)
        if route.settings.tls_downstream_server_name:
            found.setdefault(Host(route.settings.tls_downstream_server_name.lower()), [])
    sign_in = authenticate_host(resolved)
    if sign_in is not None and resolved.runs(ServiceName.AUTHENTICATE):
        found.setdefault(sign_in, [])
    for host in service_hosts(resolved):
        found.setdefault(host, [])
    return found


def _page_routes(
    pages: _Pages, settings: ResolvedSettings, *, sets_headers: bool
) -> Iterator[route_components_pb2.Route]:
    """Our own pages on one host, before everything configured there."""
    if pages is _Pages.NONE:
        return
    make = functools.partial(control_plane_route, resolved=settings, sets_headers=sets_headers)
    for path in _PROBES:
        # A balancer's probe must not fall with authorize.
        yield make(cluster=CONTROL_PLANE_HTTP, path=path, decided=False)
    if pages is _Pages.CONTROL_PLANE:
        for tree in _TREES:
            yield make(cluster=CONTROL_PLANE_HTTP, tree=tree)
        return
    # The sign-in service beside us; it checks cookies, signatures and origins by itself.
    for path in _SIGN_IN_PATHS:
        yield make(cluster=AUTHENTICATE, path=path, decided=False)
    for tree in _TREES:
        yield make(cluster=AUTHENTICATE, tree=tree, decided=False)
