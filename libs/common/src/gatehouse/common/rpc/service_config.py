"""What gRPC is told about a channel: balancing, health, retries, keepalive, limits (pure).

Service config: https://github.com/grpc/grpc/blob/master/doc/service_config.md. Numbers: spec,
databroker §9 and §10.
"""

from __future__ import annotations

import json
from typing import Final

# Idempotent: tried once more, elsewhere, within the caller's deadline. All other calls are only
# repeated by gRPC itself when they were never sent.
RETRIED: Final = (
    ("databroker.DataBrokerService", "Get"),
    ("databroker.DataBrokerService", "GetOptions"),
    ("databroker.DataBrokerService", "ListTypes"),
    ("databroker.DataBrokerService", "Query"),
    ("databroker.DataBrokerService", "RenewLease"),
    ("databroker.DataBrokerService", "ServerInfo"),
    ("databroker.CheckpointService", "GetCheckpoint"),
    ("gatehouse.databroker.Admin", "Status"),
    ("envoy.service.auth.v3.Authorization", "Check"),
    ("gatehouse.authorize.v1.PortalService", "OpenRoutes"),
)
KEEPALIVE_S: Final = 60.0  # a connection silent for so long is asked for a sign of life
# What the peer gets for that; also for how long the kernel repeats what is not acknowledged
# (TCP_USER_TIMEOUT): after it a machine that is gone costs no further call.
KEEPALIVE_TIMEOUT_S: Final = 5.0
RECEIVE_LIMIT: Final = 16 * 1024 * 1024  # bytes of one response message (SyncLatest chunks)


def service_config(health_service: str | None) -> str:
    """JSON for a channel; `health_service` turns client-side health checking on."""
    config: dict[str, object] = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{"service": service, "method": method} for service, method in RETRIED],
                "retryPolicy": {
                    "maxAttempts": 2,
                    "initialBackoff": "0.02s",
                    "maxBackoff": "0.1s",
                    "backoffMultiplier": 2,
                    # CANCELLED: a server that stops drops what it received and had not begun.
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ],
    }
    if health_service:
        config["healthCheckConfig"] = {"serviceName": health_service}
    return json.dumps(config, separators=(",", ":"))


def channel_options(
    *,
    authority: str,
    verify_name: str,
    health_service: str | None,
    generation: int = 0,
    keepalive: bool = True,
) -> list[tuple[str, int | str]]:
    """Arguments of one channel. Those of another generation share no connection with it.

    `keepalive` asks quiet connections whether they still are.
    """
    options: list[tuple[str, int | str]] = [
        ("gatehouse.generation", generation),
        ("grpc.service_config", service_config(health_service)),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_retries", 1),
        ("grpc.default_authority", authority),
        ("grpc.max_receive_message_length", RECEIVE_LIMIT),
        ("grpc.max_send_message_length", -1),  # the server says what is too large
        ("grpc.initial_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 2_000),  # a store that is back is found soon
        ("grpc.min_reconnect_backoff_ms", 10_000),  # also the time one connection attempt gets
        ("grpc.enable_http_proxy", 0),  # service calls never leave through a web proxy
        ("grpc.client_idle_timeout_ms", 2**31 - 1),
    ]
    if keepalive:
        options += [
            ("grpc.keepalive_time_ms", round(KEEPALIVE_S * 1000)),
            ("grpc.keepalive_timeout_ms", round(KEEPALIVE_TIMEOUT_S * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ]
    if verify_name:
        options.append(("grpc.ssl_target_name_override", verify_name))
    return options
