"""Which routes answer under which host.

One virtual host for each host that routes name, and a last one, `*`, for wildcard hosts and for
everything else. Each begins with our own paths, so that no configured route can take them over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from envoy.config.route.v3 import route_components_pb2, route_pb2

from gatehouse.common.config.resolved import ResolvedRoute, ResolvedSettings, ServiceName
from gatehouse.proxy.core.xds.resources.hosts import Host, authenticate_host, route_hosts
from gatehouse.proxy.core.xds.resources.internal_clusters import AUTHENTICATE, CONTROL_PLANE_HTTP
from gatehouse.proxy.core.xds.resources.routes import control_plane_route, policy_routes
from gatehouse.proxy.core.xds.resources.scalars import boolean

ROUTE_CONFIGURATION_NAME: Final = "main"

_PROBES: Final = ("/ping", "/healthz")


def route_configuration(
    resolved: ResolvedSettings, clusters: Mapping[int, str]
) -> route_pb2.RouteConfiguration:
    """All virtual hosts. `clusters` holds the cluster name of each route by its index."""
    sign_in = authenticate_host(resolved)
    serves_sign_in = resolved.runs(ServiceName.AUTHENTICATE)
    virtual_hosts = []
    for host, own in sorted(_routes_by_host(resolved).items(), key=lambda item: item[0].key):
        fronts = host == sign_in and not serves_sign_in
        routes: list[route_components_pb2.Route] = []
        if host == sign_in and serves_sign_in:
            routes += _authenticate_routes(resolved)
        elif not fronts:
            routes += _control_plane_routes(resolved)
        for route in own:
            routes += policy_routes(
                route, resolved, clusters.get(route.index), fronts_authenticate=fronts
            )
        virtual_hosts.append(
            route_components_pb2.VirtualHost(
                name=host.key, domains=host.domains(resolved), routes=routes
            )
        )
    virtual_hosts.append(_catch_all(resolved, clusters))
    return route_pb2.RouteConfiguration(
        name=ROUTE_CONFIGURATION_NAME,
        virtual_hosts=virtual_hosts,
        validate_clusters=boolean(value=False),
    )


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
    return found


def _catch_all(
    resolved: ResolvedSettings, clusters: Mapping[int, str]
) -> route_components_pb2.VirtualHost:
    routes = _control_plane_routes(resolved)
    for route in resolved.routes:
        if route.from_url.scheme == "ssh":
            continue
        for host in route_hosts(route.from_url):
            if host.is_wildcard:
                routes += policy_routes(route, resolved, clusters.get(route.index), wildcard=host)
    return route_components_pb2.VirtualHost(name="catch-all", domains=["*"], routes=routes)


def _control_plane_routes(resolved: ResolvedSettings) -> list[route_components_pb2.Route]:
    cluster = CONTROL_PLANE_HTTP
    routes = [
        # A balancer's probe must not fall with authorize.
        control_plane_route(cluster=cluster, resolved=resolved, path=path, decided=False)
        for path in _PROBES
    ]
    routes += [
        control_plane_route(cluster=cluster, resolved=resolved, path="/.pomerium"),
        control_plane_route(cluster=cluster, resolved=resolved, prefix="/.pomerium/"),
        control_plane_route(cluster=cluster, resolved=resolved, path="/.well-known/pomerium"),
        control_plane_route(cluster=cluster, resolved=resolved, prefix="/.well-known/pomerium/"),
    ]
    return routes


def _authenticate_routes(resolved: ResolvedSettings) -> list[route_components_pb2.Route]:
    """The sign-in service beside us; it checks cookies, signatures and origins by itself."""
    routes = [
        control_plane_route(cluster=CONTROL_PLANE_HTTP, resolved=resolved, path=path, decided=False)
        for path in _PROBES
    ]
    paths = ("/", "/robots.txt", "/oauth2/callback", "/.pomerium", "/.well-known/pomerium")
    routes += [
        control_plane_route(cluster=AUTHENTICATE, resolved=resolved, path=path, decided=False)
        for path in paths
    ]
    routes += [
        control_plane_route(cluster=AUTHENTICATE, resolved=resolved, prefix=prefix, decided=False)
        for prefix in ("/.pomerium/", "/.well-known/pomerium/")
    ]
    return routes
