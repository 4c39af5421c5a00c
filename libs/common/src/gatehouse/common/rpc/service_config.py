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
    ("envoy.service.auth.v3.Authorization", "Check"),
)
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
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
    if health_service:
        config["healthCheckConfig"] = {"serviceName": health_service}
    return json.dumps(config, separators=(",", ":"))


def channel_options(
    *, authority: str, verify_name: str, health_service: str | None
) -> list[tuple[str, int | str]]:
    """Arguments of one channel."""
    options: list[tuple[str, int | str]] = [
        ("grpc.service_config", service_config(health_service)),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_retries", 1),
        ("grpc.default_authority", authority),
        ("grpc.max_receive_message_length", RECEIVE_LIMIT),
        ("grpc.max_send_message_length", -1),  # the server says what is too large
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 2_000),  # a store that is back is found soon
        ("grpc.min_reconnect_backoff_ms", 10_000),  # also the time one connection attempt gets
        ("grpc.enable_http_proxy", 0),  # service calls never leave through a web proxy
        ("grpc.client_idle_timeout_ms", 2**31 - 1),
    ]
    if verify_name:
        options.append(("grpc.ssl_target_name_override", verify_name))
    return options
