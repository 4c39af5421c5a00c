"""How long a request of a route may take."""

from __future__ import annotations

from envoy.config.route.v3 import route_components_pb2

from gatehouse.common.config.model import Settings
from gatehouse.common.config.resolved import ResolvedRoute
from gatehouse.proxy.core.xds.resources.scalars import seconds
from gatehouse.proxy.core.xds.resources.upgrades import (
    allows_spdy,
    allows_websockets,
    is_kubernetes,
    is_tunnel,
    other_upgrades,
)


def is_long_lived(route: ResolvedRoute, settings: Settings) -> bool:
    """True for routes whose streams are expected to stay open."""
    mcp = route.settings.mcp
    return (
        allows_websockets(route, settings)
        or is_tunnel(route)
        or is_kubernetes(route)
        or (mcp is not None and mcp.server is not None)
    )


def add_timeouts(
    action: route_components_pb2.RouteAction, route: ResolvedRoute, settings: Settings
) -> None:
    """Set `timeout` and `idle_timeout`. 0 switches one off; the global limits cap the others."""
    own_idle, long_lived = route.settings.idle_timeout, is_long_lived(route, settings)
    action.timeout.CopyFrom(seconds(_timeout_s(route, settings)))
    if own_idle is not None:
        action.idle_timeout.CopyFrom(seconds(_capped(own_idle, settings.timeout_idle)))
    elif long_lived:
        action.idle_timeout.CopyFrom(seconds(0.0))


def stays_open(route: ResolvedRoute, settings: Settings) -> bool:
    """True for routes on which something may go on for longer than a request is given time."""
    return (
        is_long_lived(route, settings)
        or allows_spdy(route, settings)
        or bool(other_upgrades(route, settings))
        or _timeout_s(route, settings) == 0.0
    )


def _timeout_s(route: ResolvedRoute, settings: Settings) -> float:
    """For a request and its response; 0: no limit."""
    own = route.settings.timeout
    if own is not None:
        return _capped(own, settings.timeout_write)
    if is_long_lived(route, settings) or route.settings.idle_timeout is not None:
        # A response timeout would end every stream that an idle timeout was set for.
        return 0.0
    return float(settings.default_upstream_timeout)


def free_from_global_limit(action: route_components_pb2.RouteAction, route: ResolvedRoute) -> None:
    """Let an upgraded stream outlive `timeout_write`, and end it at the route's own `timeout`.

    Envoy applies `timeout` to no stream whose request goes on, but the connection manager's
    `max_stream_duration` to all; 0 here switches that off.
    """
    limit = action.max_stream_duration
    limit.max_stream_duration.CopyFrom(seconds(route.settings.timeout or 0.0))


def _capped(value_s: float, limit_s: float) -> float:
    """`value_s`, at most `limit_s`; 0 means no limit in either."""
    if value_s == 0 or limit_s == 0:
        return value_s
    return min(value_s, limit_s)
