"""Whether the balancing and health keys of a route are such that Envoy accepts its cluster.

Envoy refuses a cluster update as a whole, so what it would refuse is an error here. Limits are
those of Envoy's cluster.v3 and core.v3.HealthCheck messages. Spec: routes.md sections 13 and 14.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Final

from gatehouse.common.config.issues import Finding, Severity
from gatehouse.common.config.model import LoadBalancingPolicy, Route, Settings
from gatehouse.common.config.resolved import Upstream
from gatehouse.common.config.route_model import HealthCheck, HTTPHealthCheck, Payload
from gatehouse.common.config.sent_text import sent_host, sent_path
from gatehouse.common.config.values import decode_base64, shorten

ERROR: Final = Severity.ERROR
WARNING: Final = Severity.WARNING
LEAST_CHOICES: Final = 2
MAX_RING_SIZE: Final = 8 << 20
MAX_TABLE_SIZE: Final = 5_000_011
RESPONSE_BUFFER_BYTES: Final = 1024  # Envoy's default
HASH_FUNCTIONS: Final = ("XX_HASH", "MURMUR_HASH_2")
OTHER_INTERVALS: Final = (
    *("no_traffic_interval", "no_traffic_healthy_interval", "unhealthy_interval"),
    *("unhealthy_edge_interval", "healthy_edge_interval"),
)
ABOVE_ZERO: Final = 'seconds such as "10s"'


def _warning(path: str, message: str, fix: str = "") -> Finding:
    return Finding(WARNING, (path,), message, fix)


def check_balancing(
    route: Route, upstreams: tuple[Upstream, ...], settings: Settings
) -> Iterator[Finding]:
    """Everything that Envoy would refuse a cluster for, and options without effect."""
    yield from _policies(route)
    if (
        route.load_balancing_policy is LoadBalancingPolicy.RANDOM
        and len({upstream.weight for upstream in upstreams}) > 1
    ):
        yield _warning(
            "to",
            "the weights have no effect: RANDOM takes every upstream as often as the others",
            "load_balancing_policy: ROUND_ROBIN, LEAST_REQUEST, RING_HASH or MAGLEV",
        )
    yield from _ejections(route)
    for index, check in enumerate(route.health_checks):
        for key, message, fix in _health_check(check):
            yield Finding(ERROR, ("health_checks", index, *key), message, fix)
        if check.grpc_health_check is not None and not _speaks_http2(route, upstreams, settings):
            yield Finding(
                ERROR,
                ("health_checks", index, "grpc_health_check"),
                "needs an upstream that speaks HTTP/2",
                "h2c:// or https://, without WebSockets; or another check",
            )
    if len(route.health_checks) > 1:
        yield Finding(
            ERROR, ("health_checks", 1), "is one too many: Envoy takes one for a route", "keep one"
        )
    if route.health_checks and not upstreams and not route.to:
        yield _warning("health_checks", "has no effect without to", "leave it out")


def _speaks_http2(route: Route, upstreams: tuple[Upstream, ...], settings: Settings) -> bool:
    """True when every connection of the route's cluster is HTTP/2, or agrees on it by ALPN."""
    upgrades = settings.allow_upgrades if route.allow_upgrades is None else route.allow_upgrades
    kubernetes = (
        route.kubernetes_service_account_token or route.kubernetes_service_account_token_file
    )
    if route.allow_websockets or kubernetes:
        return False
    if any(token.strip().lower() == "websocket" for token in upgrades):
        return False
    schemes = {upstream.scheme for upstream in upstreams}
    return schemes <= {"https", "https+unix"} or schemes == {"h2c"}


def _policies(route: Route) -> Iterator[Finding]:
    for key, policy in (
        ("least_request_lb_config", LoadBalancingPolicy.LEAST_REQUEST),
        ("ring_hash_lb_config", LoadBalancingPolicy.RING_HASH),
        ("maglev_lb_config", LoadBalancingPolicy.MAGLEV),
    ):
        if getattr(route, key) is not None and route.load_balancing_policy is not policy:
            yield _warning(
                key,
                f"has no effect with load_balancing_policy {route.load_balancing_policy}",
                f"load_balancing_policy: {policy}",
            )
    yield from _options(route)


def _options(route: Route) -> Iterator[Finding]:
    least, ring, maglev = (
        route.least_request_lb_config,
        route.ring_hash_lb_config,
        route.maglev_lb_config,
    )
    if least is not None and least.choice_count < LEAST_CHOICES:
        yield Finding(
            ERROR,
            ("least_request_lb_config", "choice_count"),
            f"{least.choice_count} leaves nothing to compare",
            f"{LEAST_CHOICES} or more",
        )
    if ring is not None:
        for key in ("minimum_ring_size", "maximum_ring_size"):
            size = getattr(ring, key)
            if size is not None and size > MAX_RING_SIZE:
                yield Finding(
                    ERROR,
                    ("ring_hash_lb_config", key),
                    f"{size} is out of range",
                    f"{MAX_RING_SIZE} at most",
                )
        low, high = ring.minimum_ring_size, ring.maximum_ring_size
        if (1024 if low is None else low) > (MAX_RING_SIZE if high is None else high):
            yield Finding(
                ERROR,
                ("ring_hash_lb_config", "maximum_ring_size"),
                "is below minimum_ring_size (1024 when unset)",
                "minimum_ring_size or more",
            )
        if ring.hash_function.upper() not in {"", *HASH_FUNCTIONS}:
            yield Finding(
                ERROR,
                ("ring_hash_lb_config", "hash_function"),
                f"unsupported value {shorten(ring.hash_function)}",
                f"one of {', '.join(HASH_FUNCTIONS)}",
            )
    size = None if maglev is None else maglev.table_size
    if size is not None and not (size <= MAX_TABLE_SIZE and _is_prime(size)):
        yield Finding(
            ERROR,
            ("maglev_lb_config", "table_size"),
            f"{size} is not a prime up to {MAX_TABLE_SIZE}",
            "a prime such as 65537",
        )


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, math.isqrt(number) + 1))


def _ejections(route: Route) -> Iterator[Finding]:
    outliers = route.outlier_detection
    if outliers is None:
        return
    for key in ("interval", "base_ejection_time", "max_ejection_time"):
        if getattr(outliers, key) == 0:
            yield Finding(ERROR, ("outlier_detection", key), "must be above 0", ABOVE_ZERO)
    base = 30.0 if outliers.base_ejection_time is None else outliers.base_ejection_time
    longest = outliers.max_ejection_time
    if longest is not None and 0 < longest < base:
        yield Finding(
            ERROR,
            ("outlier_detection", "max_ejection_time"),
            f"is below base_ejection_time ({base:g}s)",
            "base_ejection_time or more",
        )


def _health_check(check: HealthCheck) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    for key in ("timeout", "interval"):
        value = getattr(check, key)
        if not value:
            yield (key,), "is required and must be above 0", ABOVE_ZERO
    for key in OTHER_INTERVALS:
        if getattr(check, key) == 0:
            yield (key,), "must be above 0", ABOVE_ZERO
    for key in ("unhealthy_threshold", "healthy_threshold"):
        if getattr(check, key) is None:
            yield (key,), "is required", "a whole number"
    checkers = ("http_health_check", "tcp_health_check", "grpc_health_check")
    given = [name for name in checkers if getattr(check, name) is not None]
    if len(given) != 1:
        yield (), f"has {len(given)} checkers", f"exactly one of {', '.join(checkers)}"
    if check.http_health_check is not None:
        yield from _http_check(check.http_health_check)
    if check.grpc_health_check is not None and check.grpc_health_check.authority:
        place = ("grpc_health_check", "authority")
        for finding in sent_host(place, check.grpc_health_check.authority):
            yield finding.path, finding.message, finding.fix
    for name in ("http_health_check", "tcp_health_check"):
        checker = getattr(check, name)
        payloads = () if checker is None else (checker.send, *checker.receive)
        if any(payload is not None and _bytes_of(payload) is None for payload in payloads):
            yield (
                (name,),
                "holds a payload that is not hex text or base64",
                "text: hex digits, or binary: base64",
            )


def _http_check(http: HTTPHealthCheck) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    name = "http_health_check"
    if not http.path:
        yield (name, "path"), "is required", "a path such as /healthz"
    for finding in (
        *(sent_path((name, "path"), http.path, may_have_query=True) if http.path else ()),
        *(sent_host((name, "host"), http.host) if http.host else ()),
    ):
        yield finding.path, finding.message, finding.fix
    for key in ("expected_statuses", "retriable_statuses"):
        for index, statuses in enumerate(getattr(http, key)):
            if not 100 <= statuses.start < statuses.end <= 600:
                yield (
                    (name, key, index),
                    f"{statuses.start} to {statuses.end} is not a range of statuses",
                    "start below end, both from 100 to 600; end is excluded",
                )
    if http.codec_client_type.upper() not in {"", "HTTP1", "HTTP2"}:
        yield (
            (name, "codec_client_type"),
            f"unsupported value {shorten(http.codec_client_type)}",
            "one of HTTP1, HTTP2",
        )
    if http.send is not None:
        yield (name, "send"), "cannot be sent: the check is a GET", "leave it out"
    if any(header.lower() == "host" for header in http.request_headers_to_remove):
        yield (name, "request_headers_to_remove"), "host cannot be removed", "leave it out"
    expected = sum(len(_bytes_of(part) or b"") for part in http.receive)
    kept = RESPONSE_BUFFER_BYTES if http.response_buffer_size is None else http.response_buffer_size
    if expected > kept > 0:
        yield (
            (name, "receive"),
            f"expects {expected} bytes, but {kept} of the answer are kept",
            f"response_buffer_size: {expected}",
        )


def _bytes_of(payload: Payload) -> bytes | None:
    """What is sent or expected; None when it is neither hex nor base64, or both are given."""
    if (payload.text is None) == (payload.binary is None):
        return None
    if payload.binary is not None:
        return decode_base64(payload.binary)
    text = payload.text or ""
    return bytes.fromhex(text) if re.fullmatch(r"(?:[0-9A-Fa-f]{2})+", text) else None
