"""What Envoy does as memory runs out, and how many connections it takes at most."""

from __future__ import annotations

from typing import Final

from envoy.config.overload.v3 import overload_pb2
from envoy.extensions.resource_monitors.downstream_connections.v3 import (
    downstream_connections_pb2,
)
from envoy.extensions.resource_monitors.injected_resource.v3 import injected_resource_pb2
from envoy.type.v3 import percent_pb2

from gatehouse.proxy.core.xds.resource import packed
from gatehouse.proxy.core.xds.resources.scalars import seconds

MAX_DOWNSTREAM_CONNECTIONS: Final = 50_000

_MEMORY: Final = "envoy.resource_monitors.injected_resource"
_REFRESH_S: Final = 0.25
_SMALLEST_ACCOUNT: Final = 20  # power of two: only streams that hold 1 MiB or more are candidates

# The share of memory in use from which each action is taken; two numbers: from, and fully from.
ACTIONS: Final[dict[str, tuple[float, ...]]] = {
    "reduce_timeouts": (0.85, 0.95),
    "shrink_heap": (0.90,),
    "reset_high_memory_stream": (0.90, 0.98),
    "stop_accepting_connections": (0.95,),
    "disable_http_keepalive": (0.98,),
    "stop_accepting_requests": (0.99,),
}


def overload_manager(saturation_file: str) -> overload_pb2.OverloadManager:
    """Connections are always bounded; memory is watched when a file says how full it is."""
    manager = overload_pb2.OverloadManager(
        refresh_interval=seconds(_REFRESH_S),
        resource_monitors=[
            overload_pb2.ResourceMonitor(
                name="envoy.resource_monitors.global_downstream_max_connections",
                typed_config=packed(
                    downstream_connections_pb2.DownstreamConnectionsConfig(
                        max_active_downstream_connections=MAX_DOWNSTREAM_CONNECTIONS
                    )
                ),
            )
        ],
    )
    if not saturation_file:
        return manager
    manager.resource_monitors.append(
        overload_pb2.ResourceMonitor(
            name=_MEMORY,
            typed_config=packed(
                injected_resource_pb2.InjectedResourceConfig(filename=saturation_file)
            ),
        )
    )
    manager.actions.extend(_action(name, limits) for name, limits in ACTIONS.items())
    manager.buffer_factory_config.minimum_account_to_track_power_of_two = _SMALLEST_ACCOUNT
    return manager


def _action(name: str, limits: tuple[float, ...]) -> overload_pb2.OverloadAction:
    trigger = overload_pb2.Trigger(name=_MEMORY)
    if len(limits) == 1:
        trigger.threshold.value = limits[0]
    else:
        trigger.scaled.scaling_threshold, trigger.scaled.saturation_threshold = limits
    action = overload_pb2.OverloadAction(name=f"envoy.overload_actions.{name}", triggers=[trigger])
    if name == "reduce_timeouts":
        scaled = overload_pb2.ScaleTimersOverloadActionConfig(
            timer_scale_factors=[
                overload_pb2.ScaleTimersOverloadActionConfig.ScaleTimer(
                    timer=overload_pb2.ScaleTimersOverloadActionConfig.HTTP_DOWNSTREAM_CONNECTION_IDLE,
                    min_scale=percent_pb2.Percent(value=50.0),
                )
            ]
        )
        action.typed_config.CopyFrom(packed(scaled))
    return action
