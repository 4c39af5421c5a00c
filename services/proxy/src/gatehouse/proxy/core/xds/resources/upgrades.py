"""Which protocol upgrades a route lets through."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from envoy.config.route.v3 import route_components_pb2

from gatehouse.common.config.model import Settings
from gatehouse.common.config.resolved import ResolvedRoute
from gatehouse.proxy.core.xds.resources.scalars import boolean

WEBSOCKET: Final = "websocket"
SPDY: Final = "spdy/3.1"
_NAMED: Final = frozenset({WEBSOCKET, SPDY, "connect", "connect-udp"})


def is_kubernetes(route: ResolvedRoute) -> bool:
    """True when the upstream is a Kubernetes API that we impersonate users to."""
    return route.kubernetes_service_account_token is not None


def is_tunnel(route: ResolvedRoute) -> bool:
    """True for `tcp+https` and `udp+https` routes."""
    return route.from_url.scheme in {"tcp+https", "udp+https"}


def _tokens(route: ResolvedRoute, settings: Settings) -> frozenset[str]:
    chosen = route.settings.allow_upgrades
    if chosen is None:
        chosen = settings.allow_upgrades
    return _read(tuple(chosen))


@lru_cache(maxsize=256)  # thousands of routes mostly say the same
def _read(tokens: tuple[str, ...]) -> frozenset[str]:
    return frozenset(token.strip().lower() for token in tokens if token.strip())


def allows_websockets(route: ResolvedRoute, settings: Settings) -> bool:
    """True when WebSocket upgrades pass."""
    wanted = route.settings.allow_websockets or WEBSOCKET in _tokens(route, settings)
    return wanted or is_kubernetes(route)


def allows_spdy(route: ResolvedRoute, settings: Settings) -> bool:
    """True when upgrades to SPDY pass, as `kubectl` makes them."""
    wanted = route.settings.allow_spdy or SPDY in _tokens(route, settings)
    return wanted or is_kubernetes(route)


def other_upgrades(route: ResolvedRoute, settings: Settings) -> frozenset[str]:
    """The other protocols whose upgrades pass. Tunnels are routes of their own."""
    return _tokens(route, settings) - _NAMED


def upgrade_configs(
    route: ResolvedRoute, settings: Settings
) -> list[route_components_pb2.RouteAction.UpgradeConfig]:
    """WebSocket and SPDY always, on or off; then what the route allows besides."""
    configs = [
        route_components_pb2.RouteAction.UpgradeConfig(
            upgrade_type=WEBSOCKET, enabled=boolean(allows_websockets(route, settings))
        ),
        route_components_pb2.RouteAction.UpgradeConfig(
            upgrade_type=SPDY, enabled=boolean(allows_spdy(route, settings))
        ),
    ]
    configs.extend(
        route_components_pb2.RouteAction.UpgradeConfig(
            upgrade_type=token, enabled=boolean(value=True)
        )
        for token in sorted(other_upgrades(route, settings))
    )
    if is_tunnel(route):
        udp = route.from_url.scheme == "udp+https"
        tunnel = route_components_pb2.RouteAction.UpgradeConfig(
            upgrade_type="CONNECT-UDP" if udp else "CONNECT", enabled=boolean(value=True)
        )
        if all(upstream.scheme in {"tcp", "udp"} for upstream in route.upstreams):
            # Terminate CONNECT here; without it the request is passed on to another proxy.
            tunnel.connect_config.SetInParent()
        configs.append(tunnel)
    return configs
