"""What gRPC is told about a channel."""

from __future__ import annotations

import json

from gatehouse.common.rpc.service_config import RETRIED, channel_options, service_config
from gatehouse.pb import databroker_pb2

NEVER_REPEATED = {"Put", "Patch", "Clear", "AcquireLease", "ReleaseLease", "SetOptions"}


def test_round_robin_and_health_checking() -> None:
    config = json.loads(service_config("pomerium-databroker"))
    assert config["loadBalancingConfig"] == [{"round_robin": {}}]
    assert config["healthCheckConfig"] == {"serviceName": "pomerium-databroker"}
    assert "healthCheckConfig" not in json.loads(service_config(None))


def test_only_idempotent_methods_are_retried_and_once() -> None:
    (method_config,) = json.loads(service_config("x"))["methodConfig"]
    assert method_config["retryPolicy"]["maxAttempts"] == 2
    assert method_config["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE", "CANCELLED"]
    names = {(one["service"], one["method"]) for one in method_config["name"]}
    assert names == set(RETRIED)
    assert not NEVER_REPEATED & {method for _, method in names}


def test_retried_methods_exist() -> None:
    for service, method in RETRIED:
        if service.startswith("databroker."):
            found = databroker_pb2.DESCRIPTOR.services_by_name[service.removeprefix("databroker.")]
            assert method in found.methods_by_name


def test_limits_and_keepalive() -> None:
    options = dict(
        channel_options(authority="broker:443", verify_name="broker", health_service="x")
    )
    assert options["grpc.max_receive_message_length"] == 16 * 1024 * 1024
    assert options["grpc.keepalive_time_ms"] == 60_000
    assert options["grpc.default_authority"] == "broker:443"
    assert options["grpc.ssl_target_name_override"] == "broker"
    assert options["grpc.enable_http_proxy"] == 0
    plain = dict(
        channel_options(authority="x", verify_name="", health_service=None, keepalive=False)
    )
    assert not [name for name in plain if "keepalive" in name or "pings" in name]
    assert "grpc.ssl_target_name_override" not in plain
