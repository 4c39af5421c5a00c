"""The limits that configuration checks know of Envoy's messages are Envoy's own.

What is just inside is accepted by both; what is refused by the checks, Envoy refuses too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.resolved import ListenAddress
from gatehouse.common.config.route_model import Route
from tests.support.envoy_verdict import altered, route, settings_of, unchecked, verdict

pytestmark = pytest.mark.e2e

CENTURY = "3153600000s"
CHECK = {"timeout": "1s", "interval": "1s", "unhealthy_threshold": 1, "healthy_threshold": 1}
LARGEST_RING = 8 << 20


def tcp(**keys: Any) -> dict[str, Any]:
    return {"health_checks": [{**CHECK, "tcp_health_check": {}, **keys}]}


def http(**keys: Any) -> dict[str, Any]:
    return {"health_checks": [{**CHECK, "http_health_check": {"path": "/", **keys}}]}


def grpc(to: Any, **keys: Any) -> dict[str, Any]:
    return {"to": to, "health_checks": [{**CHECK, "grpc_health_check": {}}], **keys}


def least(**keys: Any) -> dict[str, Any]:
    return {"load_balancing_policy": "LEAST_REQUEST", "least_request_lb_config": keys}


def ring(**keys: Any) -> dict[str, Any]:
    return {"load_balancing_policy": "RING_HASH", "ring_hash_lb_config": keys}


def maglev(size: int) -> dict[str, Any]:
    return {"load_balancing_policy": "MAGLEV", "maglev_lb_config": {"table_size": size}}


def ejecting(**keys: Any) -> dict[str, Any]:
    return {"outlier_detection": keys}


def status(start: int, end: int) -> dict[str, int]:
    return {"start": start, "end": end}


LONG = dict.fromkeys(
    (
        *("interval", "timeout", "no_traffic_interval", "no_traffic_healthy_interval"),
        *("unhealthy_interval", "unhealthy_edge_interval", "healthy_edge_interval"),
        *("initial_jitter", "interval_jitter"),
    ),
    CENTURY,
)
SHORT = {**dict.fromkeys(LONG, "0.000000001s"), "initial_jitter": "0s", "interval_jitter": "0s"}
INSIDE: tuple[dict[str, Any], ...] = (
    least(choice_count=2),
    least(choice_count=2**32 - 1),
    ring(minimum_ring_size=0),
    ring(minimum_ring_size=0, maximum_ring_size=0),
    ring(minimum_ring_size=LARGEST_RING),
    ring(maximum_ring_size=1024),
    ring(maximum_ring_size=LARGEST_RING, hash_function="murmur_hash_2"),
    maglev(2),
    maglev(5_000_011),
    ejecting(interval="0.000000001s", base_ejection_time="0.000000001s"),
    ejecting(interval=CENTURY, base_ejection_time=CENTURY, max_ejection_time=CENTURY),
    ejecting(max_ejection_time="30s", max_ejection_time_jitter="0s"),
    ejecting(base_ejection_time="400s"),
    ejecting(max_ejection_percent=100, enforcing_success_rate=0, consecutive_5xx=0),
    ejecting(success_rate_stdev_factor=2**32 - 1, max_ejection_time_jitter=CENTURY),
    tcp(**LONG, interval_jitter_percent=2**32 - 1),
    tcp(**SHORT),
    tcp(unhealthy_threshold=0, healthy_threshold=0),
    tcp(unhealthy_threshold=2**32 - 1, healthy_threshold=2**32 - 1),
    tcp(tcp_health_check={"send": {"text": "aA"}, "receive": [{"text": "00"}, {"binary": ""}]}),
    tcp(transport_socket_match_criteria={"a": {"b": [1, None]}}),
    http(expected_statuses=[status(100, 600)], retriable_statuses=[status(599, 600)]),
    http(codec_client_type="http2", host="[::1]:1", path="/%a", request_headers_to_remove=["x"]),
    http(receive=[{"text": "aa" * 1024}]),
    http(receive=[{"text": "aa" * 1025}], response_buffer_size=1025),
    http(receive=[{"text": "aa" * 1025}], response_buffer_size=0),
    grpc("h2c://127.0.0.1:1"),
    grpc(["https://127.0.0.1:1", "https://b.example.com"]),
    {"healthy_panic_threshold": 0},
    {"healthy_panic_threshold": 100},
    {"circuit_breaker_thresholds": {"max_connections": 0, "max_retries": 2**32 - 1}},
    {"to": ["http://127.0.0.1:1,4294967294", "http://127.0.0.2:1,1"]},
    {"timeout": "876000h", "idle_timeout": "1ns"},
    {"timeout": "0s", "idle_timeout": "0s"},
    {"regex_rewrite_pattern": "(a)", "regex_rewrite_substitution": "\\1\\\\%"},
    {"host_path_regex_rewrite_pattern": "(a)", "host_path_regex_rewrite_substitution": "\\0"},
    {"to": "https://b.example.com", "tls_upstream_server_name": "a" * 255},
    {"response": {"status": 200, "body": "ä" * 2048}},
    {"response": {"status": 599}},
    {"redirect": {"port_redirect": 65535, "path_redirect": "/%?a", "host_redirect": "b:1"}},
    {"set_response_headers": {"x": "%", "y": "%FOO%", "z": "ä\t"}, "prefix_rewrite": "/a%?{}|"},
    {"regex": "x{1000}"},
)
OUTSIDE: tuple[tuple[dict[str, Any], str], ...] = (
    (least(choice_count=1), "least_request_lb_config.choice_count"),
    (ring(minimum_ring_size=LARGEST_RING + 1), "ring_hash_lb_config.minimum_ring_size"),
    (ring(maximum_ring_size=LARGEST_RING + 1), "ring_hash_lb_config.maximum_ring_size"),
    (ring(maximum_ring_size=1023), "ring_hash_lb_config.maximum_ring_size"),
    (ring(minimum_ring_size=2, maximum_ring_size=1), "ring_hash_lb_config.maximum_ring_size"),
    (ring(hash_function="MD5"), "ring_hash_lb_config.hash_function"),
    (maglev(0), "maglev_lb_config.table_size"),
    (maglev(1), "maglev_lb_config.table_size"),
    (maglev(4), "maglev_lb_config.table_size"),
    (maglev(5_000_077), "maglev_lb_config.table_size"),
    (ejecting(interval="0s"), "outlier_detection.interval"),
    (ejecting(base_ejection_time="0s"), "outlier_detection.base_ejection_time"),
    (ejecting(max_ejection_time="0s"), "outlier_detection.max_ejection_time"),
    (ejecting(max_ejection_time="29s"), "outlier_detection.max_ejection_time"),
    *((tcp(**{key: "0s"}), f"health_checks[0].{key}") for key in list(LONG)[:7]),
    *((tcp(**{key: None}), f"health_checks[0].{key}") for key in CHECK),
    (tcp(tcp_health_check=None), "health_checks[0]"),
    (tcp(tcp_health_check={"send": {"text": "5"}}), "health_checks[0].tcp_health_check"),
    (tcp(tcp_health_check={"send": {"text": ""}}), "health_checks[0].tcp_health_check"),
    (tcp(tcp_health_check={"send": {"text": "zz"}}), "health_checks[0].tcp_health_check"),
    ({"health_checks": tcp()["health_checks"] * 2}, "health_checks[1]"),
    (http(path=""), "health_checks[0].http_health_check.path"),
    (http(path="/\n"), "health_checks[0].http_health_check.path"),
    (http(host="\x00"), "health_checks[0].http_health_check.host"),
    (http(codec_client_type="HTTP3"), "health_checks[0].http_health_check.codec_client_type"),
    (http(send={"text": "aa"}), "health_checks[0].http_health_check.send"),
    (
        http(request_headers_to_remove=["Host"]),
        "health_checks[0].http_health_check.request_headers_to_remove",
    ),
    (http(receive=[{"text": "aa" * 1025}]), "health_checks[0].http_health_check.receive"),
    (
        http(receive=[{"binary": "aGk="}], response_buffer_size=1),
        "health_checks[0].http_health_check.receive",
    ),
    *(
        (http(**{key: [status(*pair)]}), f"health_checks[0].http_health_check.{key}[0]")
        for key in ("expected_statuses", "retriable_statuses")
        for pair in ((99, 200), (100, 601), (200, 200))
    ),
    (grpc("http://127.0.0.1:1"), "health_checks[0].grpc_health_check"),
    (grpc("unix:///a"), "health_checks[0].grpc_health_check"),
    (grpc(["https://127.0.0.1:1", "h2c://127.0.0.1:1"]), "health_checks[0].grpc_health_check"),
    (grpc("h2c://127.0.0.1:1", allow_websockets=True), "health_checks[0].grpc_health_check"),
    (
        {"health_checks": [{**CHECK, "grpc_health_check": {"authority": "\n"}}]},
        "health_checks[0].grpc_health_check.authority",
    ),
    (
        {"regex_rewrite_pattern": "a", "regex_rewrite_substitution": "\n"},
        "regex_rewrite_substitution",
    ),
    (
        {"host_path_regex_rewrite_pattern": "a", "host_path_regex_rewrite_substitution": "\r"},
        "host_path_regex_rewrite_substitution",
    ),
    ({"to": "https://b", "tls_upstream_server_name": "ä" * 128}, "tls_upstream_server_name"),
    ({"to": "https://b", "tls_server_name": "a\x00"}, "tls_server_name"),
    ({"prefix_rewrite": "/\n"}, "prefix_rewrite"),
    ({"host_rewrite": "\n"}, "host_rewrite"),
    ({"redirect": {"path_redirect": "\n"}}, "redirect.path_redirect"),
    ({"response": {"status": 199}}, "response.status"),
    ({"response": {"status": 600}}, "response.status"),
    ({"response": {"status": 200, "body": "ä" * 2049}}, "response.body"),
    ({"regex": "x{1001}"}, "regex"),
    ({"regex": "(?=a)"}, "regex"),
)


def keys_of(error: ConfigError) -> set[str]:
    return {issue.key for issue in error.issues}


def test_what_is_inside_is_accepted_by_both() -> None:
    routes = [
        route(**{"from": f"https://a{index}.example.com", **keys})
        for index, keys in enumerate(INSIDE)
    ]
    assert verdict(settings_of(*routes)) == ""
    assert verdict(unchecked(route())) == ""


@pytest.mark.parametrize(("keys", "where"), OUTSIDE)
def test_what_is_outside_is_refused_by_both(keys: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(route(**keys))
    assert f"routes[0].{where}" in keys_of(caught.value)
    assert refused_by_envoy(keys)


def refused_by_envoy(keys: dict[str, Any]) -> bool:
    raw = route(**keys)
    if "to" not in keys:
        return verdict(unchecked(raw)) != ""
    # The upstreams come from the loader: take them from the same route without its mistake.
    harmless = {"to", "allow_websockets"}
    settings = settings_of(route(**{key: keys[key] for key in keys.keys() & harmless}))
    (one,) = settings.routes
    wrong = replace(one, settings=Route.model_validate(raw))
    return verdict(replace(settings, routes=(wrong,))) != ""


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ("enforcing_success_rate", 101),
        ("interval", 999_999_999_999.0),
        ("max_ejection_time_jitter", 999_999_999_999.0),
    ],
)
def test_what_the_kind_of_a_key_refuses(keys: str, value: Any) -> None:
    written = value if isinstance(value, int) else f"{value:.0f}s"
    with pytest.raises(ConfigError):
        settings_of(route(**ejecting(**{keys: written})))

    def change(one: Route) -> Route:
        outliers = Route.model_validate(route(**ejecting())).outlier_detection
        assert outliers is not None
        wrong = outliers.model_copy(update={keys: value})
        return one.model_copy(update={"outlier_detection": wrong})

    assert verdict(altered(change)) != ""


GLOBAL_INSIDE: tuple[dict[str, Any], ...] = (
    {
        "dns_refresh_rate": "1000001ns",
        "dns_failure_refresh_rate": "1000001ns",
        "dns_query_timeout": "1ns",
        "dns_query_tries": 0,
        "dns_udp_max_queries": 0,
        "dns_resolvers": ["udp://[::1]:1", "tcp://127.0.0.1:65535"],
        "access_log_fields": ["headers.a!#$%&'*+-.^_`|~z", "headers.:x", "headers.a?b"],
        "address": ":443",
        "http_redirect_addr": "localhost:80",
        "envoy_admin_address": "[::1]:9901",
        "envoy_bind_config_source_address": "::1",
        **dict.fromkeys(("timeout_read", "timeout_write", "timeout_idle"), "0s"),
    },
    {
        "dns_refresh_rate": "876000h",
        "dns_failure_refresh_rate": "876000h",
        "dns_query_timeout": "876000h",
        "dns_query_tries": 2**32 - 1,
        "dns_udp_max_queries": 2**32 - 1,
        "xff_num_trusted_hops": 2**32 - 1,
        "codec_type": "http3",
        "set_response_headers": {"x": "%FOO%"},
        "cookie_name": "a!#$%&'*+-.^_`|~",
        "decision_cache_bytes": 2**63 - 1,
        **dict.fromkeys(
            (
                *("timeout_read", "timeout_write", "timeout_idle"),
                *("default_upstream_timeout", "grpc_client_timeout"),
            ),
            "876000h",
        ),
    },
)


@pytest.mark.parametrize("keys", GLOBAL_INSIDE)
def test_global_keys_inside(keys: dict[str, Any]) -> None:
    assert verdict(settings_of(route(to="http://app.internal"), **keys)) == ""


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("dns_refresh_rate", "1ms", 0.001),
        ("dns_failure_refresh_rate", "1ms", 0.001),
        ("dns_resolvers", ["udp://127.0.0.1:0"], ("udp://127.0.0.1:0",)),
        ("dns_resolvers", ["udp://localhost:53"], ("udp://localhost:53",)),
        ("access_log_fields", ["headers.a b"], ("headers.a b",)),
        ("access_log_fields", ["headers.a)"], ("headers.a)",)),
        ("access_log_fields", ["headers.a:b"], ("headers.a:b",)),
        ("access_log_fields", ["headers.ä"], ("headers.ä",)),
        ("http_redirect_addr", "app.example.com:80", "app.example.com:80"),
        ("envoy_admin_address", "app.example.com:80", "app.example.com:80"),
        ("envoy_bind_config_source_address", "a", "a"),
    ],
)
def test_global_keys_outside(key: str, written: Any, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(route(), **{key: written})
    assert {name.partition("[")[0] for name in keys_of(caught.value)} == {key}
    settings = settings_of(route(to="http://app.internal"))
    wrong = settings.settings.model_copy(update={key: value})
    assert verdict(replace(settings, settings=wrong)) != ""


def test_listening_on_a_name() -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(route(), address="app.example.com:443")
    assert keys_of(caught.value) == {"address"}
    wrong = replace(settings_of(route()), address=ListenAddress("app.example.com", 443))
    assert verdict(wrong) != ""
