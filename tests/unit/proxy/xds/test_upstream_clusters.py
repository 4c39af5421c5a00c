"""Upstream clusters: what of a route becomes which field of Envoy's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2, outlier_detection_pb2
from envoy.config.core.v3 import health_check_pb2
from google.protobuf import json_format

from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.config.route_model import OutlierDetection
from gatehouse.proxy.core.xds.resource import CLUSTER
from gatehouse.proxy.core.xds.snapshot import build_snapshot
from tests.support.envoy import environment, messages, resolved
from tests.support.golden_settings import CERTIFICATE

ENVIRONMENT = environment("/run/gatehouse", system_ca_pem=CERTIFICATE.read_bytes())


def config(everywhere: dict[str, Any] | None = None, **keys: Any) -> ResolvedSettings:
    route = {
        "from": "http://app.example.com",
        "to": "http://127.0.0.1:8001",
        "allow_public_unauthenticated_access": True,
        **keys,
    }
    return resolved({"insecure_server": True, **(everywhere or {}), "routes": [route]})


def cluster_of(settings: ResolvedSettings) -> cluster_pb2.Cluster:
    """The one that is not our own."""
    found = messages(build_snapshot(settings, ENVIRONMENT))[CLUSTER]
    (cluster,) = (each for each in found if not each.name.startswith("pomerium-"))
    assert isinstance(cluster, cluster_pb2.Cluster)
    return cluster


def address_of(endpoint: Any) -> tuple[str, int]:
    where = endpoint.endpoint.address
    if where.HasField("pipe"):
        return where.pipe.path, 0
    return where.socket_address.address, where.socket_address.port_value


@pytest.mark.parametrize(
    ("to", "addresses", "hostnames", "by_name"),
    [
        ("http://10.0.0.1", [("10.0.0.1", 80)], ["10.0.0.1"], False),
        ("https://10.0.0.1", [("10.0.0.1", 443)], ["10.0.0.1"], False),
        ("h2c://10.0.0.1", [("10.0.0.1", 80)], ["10.0.0.1"], False),
        ("http://[::1]:81", [("::1", 81)], ["[::1]:81"], False),
        ("http://localhost:82", [("127.0.0.1", 82)], ["localhost:82"], False),
        ("http://App.Internal", [("app.internal", 80)], ["App.Internal"], True),
        (
            ["http://10.0.0.1", "http://app.internal:83"],
            [("10.0.0.1", 80), ("app.internal", 83)],
            ["10.0.0.1", "app.internal:83"],
            True,
        ),
        (
            ["http://10.0.0.1", "https://app.internal"],
            [("10.0.0.1", 80), ("app.internal", 443)],
            ["10.0.0.1", "app.internal"],
            True,
        ),
        (["unix:///a", "unix:///b"], [("/a", 0), ("/b", 0)], ["", ""], False),
    ],
)
def test_addresses(to: Any, addresses: list[Any], hostnames: list[str], by_name: bool):
    cluster = cluster_of(config(to=to))
    (locality,) = cluster.load_assignment.endpoints
    assert [address_of(each) for each in locality.lb_endpoints] == addresses
    assert [each.endpoint.hostname for each in locality.lb_endpoints] == hostnames
    # Only names are asked for; `cluster_type` is then "envoy.clusters.dns".
    assert cluster.HasField("cluster_type") is by_name
    if by_name:
        assert cluster.cluster_type.name == "envoy.clusters.dns"
    else:
        assert cluster.type == cluster_pb2.Cluster.STATIC


def test_what_every_cluster_has():
    for to in ("http://10.0.0.1", "https://app.internal", ["http://a", "https://b"]):
        cluster = cluster_of(config(to=to))
        assert cluster.connect_timeout.seconds == 10
        assert cluster.per_connection_buffer_limit_bytes.value == 32768


WHOLE_CHECK: dict[str, Any] = {
    "timeout": "1s",
    "interval": "2s",
    "initial_jitter": "3s",
    "interval_jitter": "4s",
    "interval_jitter_percent": 5,
    "unhealthy_threshold": 6,
    "healthy_threshold": 7,
    "reuse_connection": False,
    "no_traffic_interval": "8s",
    "no_traffic_healthy_interval": "9s",
    "unhealthy_interval": "10.5s",
    "unhealthy_edge_interval": "11s",
    "healthy_edge_interval": "12s",
    "always_log_health_check_failures": True,
    "always_log_health_check_success": True,
    "transport_socket_match_criteria": {"a": {"b": True}},
}
CHECKERS: tuple[dict[str, Any], ...] = (
    {
        "http_health_check": {
            "host": "h.internal",
            "path": "/p",
            "receive": [{"text": "6869"}, {"binary": "aGk="}],
            "response_buffer_size": 2048,
            "request_headers_to_remove": ["x-a"],
            "expected_statuses": [{"start": 200, "end": 300}],
            "retriable_statuses": [{"start": 503, "end": 504}],
            "codec_client_type": "HTTP2",
        }
    },
    {"tcp_health_check": {"send": {"binary": "aGk="}, "receive": [{"text": "6869"}]}},
    {"grpc_health_check": {"service_name": "s", "authority": "a.internal"}},
)


@pytest.mark.parametrize("checker", CHECKERS, ids=lambda checker: next(iter(checker)))
@pytest.mark.parametrize("secure", [False, True])
def test_every_field_of_a_health_check_is_envoys(checker: dict[str, Any], secure: bool):
    """As protobuf JSON, which is how the specification has them."""
    to = "https://127.0.0.1:1" if secure else "h2c://127.0.0.1:1"
    written = {**WHOLE_CHECK, **checker}
    (found,) = cluster_of(config(to=to, health_checks=[written])).health_checks
    asks_for = [] if "tcp_health_check" in checker or not secure else ["h2"]
    assert list(found.tls_options.alpn_protocols) == asks_for
    found.ClearField("tls_options")
    assert found == json_format.ParseDict(written, health_check_pb2.HealthCheck())


PERCENTS = {
    field: 40 + number
    for number, field in enumerate(
        (
            *("max_ejection_percent", "enforcing_consecutive_5xx", "enforcing_success_rate"),
            *(
                "enforcing_consecutive_gateway_failure",
                "enforcing_consecutive_local_origin_failure",
            ),
            *("enforcing_local_origin_success_rate", "failure_percentage_threshold"),
            *("enforcing_failure_percentage", "enforcing_failure_percentage_local_origin"),
        )
    )
}
COUNTS = {
    field: 200 + number
    for number, field in enumerate(
        (
            *("consecutive_5xx", "success_rate_minimum_hosts", "success_rate_request_volume"),
            *("success_rate_stdev_factor", "consecutive_gateway_failure"),
            *("consecutive_local_origin_failure", "failure_percentage_minimum_hosts"),
            "failure_percentage_request_volume",
        )
    )
}
WHOLE_DETECTION: dict[str, Any] = {
    **PERCENTS,
    **COUNTS,
    "interval": "1s",
    "base_ejection_time": "2s",
    "max_ejection_time": "3s",
    "max_ejection_time_jitter": "4s",
    "split_external_local_origin_errors": True,
    "successful_active_health_check_uneject_host": False,
    "always_eject_one_host": True,
}


def test_every_field_of_outlier_detection_is_envoys():
    found = cluster_of(config(outlier_detection=WHOLE_DETECTION))
    expected = outlier_detection_pb2.OutlierDetection()
    assert found.outlier_detection == json_format.ParseDict(WHOLE_DETECTION, expected)
    assert WHOLE_DETECTION.keys() == OutlierDetection.model_fields.keys()
    assert cluster_of(config(outlier_detection={})).HasField("outlier_detection")
    assert not cluster_of(config()).HasField("outlier_detection")


LIMITS = {
    "max_connections": 1,
    "max_pending_requests": 2,
    "max_requests": 3,
    "max_retries": 4,
    "max_connection_pools": 5,
}


def test_every_limit_is_envoys_and_a_route_overrides_each_by_itself():
    def limits(everywhere: dict[str, int], **keys: Any) -> dict[str, int]:
        settings = config({"circuit_breaker_thresholds": everywhere}, **keys)
        (found,) = cluster_of(settings).circuit_breakers.thresholds
        return {field.name: value.value for field, value in found.ListFields()}

    assert limits({}, circuit_breaker_thresholds=LIMITS) == LIMITS
    assert limits(LIMITS) == LIMITS
    for name in LIMITS:
        own = {name: 9}
        assert limits(LIMITS, circuit_breaker_thresholds=own) == {**LIMITS, **own}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {"lb_policy": "ROUND_ROBIN"}),
        ({"load_balancing_policy": "random"}, {"lb_policy": "RANDOM"}),
        (
            {"lb_policy": "LEAST_REQUEST", "least_request_lb_config": {}},
            {"lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"choice_count": 2}},
        ),
        (
            {
                "lb_policy": "ring_hash",
                "ring_hash_lb_config": {
                    "minimum_ring_size": 5,
                    "maximum_ring_size": 6,
                    "hash_function": "murmur_hash_2",
                },
            },
            {
                "lb_policy": "RING_HASH",
                "ring_hash_lb_config": {
                    "minimum_ring_size": 5,
                    "maximum_ring_size": 6,
                    "hash_function": "MURMUR_HASH_2",
                },
            },
        ),
        (
            {"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 251}},
            {"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 251}},
        ),
        ({"maglev_lb_config": {"table_size": 251}}, {"lb_policy": "ROUND_ROBIN"}),
        (
            {"healthy_panic_threshold": 0},
            {
                "lb_policy": "ROUND_ROBIN",
                "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
            },
        ),
    ],
)
def test_balancing_options_are_envoys(keys: dict[str, Any], expected: dict[str, Any]):
    found = cluster_of(config(**keys))
    part = cluster_pb2.Cluster(lb_policy=found.lb_policy)
    for name in (
        *("least_request_lb_config", "ring_hash_lb_config", "maglev_lb_config"),
        "common_lb_config",
    ):
        if found.HasField(name):
            getattr(part, name).CopyFrom(getattr(found, name))
    assert part == json_format.ParseDict(expected, cluster_pb2.Cluster())


def test_a_stat_name_is_what_a_record_is_counted_under():
    settings = config(name="mine")
    (one,) = settings.routes
    for stat_name, label in (("", "mine"), ("counted", "counted")):
        cluster = cluster_of(replace(settings, routes=(replace(one, stat_name=stat_name),)))
        assert cluster.name == f"{label}-{one.id}"
        assert cluster.alt_stat_name == label
        (told,) = cluster.metadata.filter_metadata.values()
        assert dict(told) == {"stat_name": label}
