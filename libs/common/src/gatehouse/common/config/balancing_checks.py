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
from gatehouse.common.config.model import LoadBalancingPolicy, Route
from gatehouse.common.config.resolved import Upstream
from gatehouse.common.config.route_model import HealthCheck
from gatehouse.common.config.values import decode_base64, shorten

ERROR: Final = Severity.ERROR
WARNING: Final = Severity.WARNING
LEAST_CHOICES: Final = 2
MAX_RING_SIZE: Final = 8 << 20
MAX_TABLE_SIZE: Final = 5_000_011
HASH_FUNCTIONS: Final = ("XX_HASH", "MURMUR_HASH_2")
OTHER_INTERVALS: Final = (
    *("no_traffic_interval", "no_traffic_healthy_interval", "unhealthy_interval"),
    *("unhealthy_edge_interval", "healthy_edge_interval"),
)
ABOVE_ZERO: Final = 'seconds such as "10s"'


def _warning(path: str, message: str, fix: str = "") -> Finding:
    return Finding(WARNING, (path,), message, fix)


def check_balancing(route: Route, upstreams: tuple[Upstream, ...]) -> Iterator[Finding]:
    """Everything that Envoy would refuse a cluster for, and options without effect."""
    yield from _policies(route)
    yield from _ejections(route)
    for index, check in enumerate(route.health_checks):
        for key, message, fix in _health_check(check):
            yield Finding(ERROR, ("health_checks", index, *key), message, fix)
    if route.health_checks and not upstreams and not route.to:
        yield _warning("health_checks", "has no effect without to", "leave it out")


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
        if not getattr(check, key):
            yield (key,), "is required and must be above 0", "a whole number"
    checkers = ("http_health_check", "tcp_health_check", "grpc_health_check")
    given = [name for name in checkers if getattr(check, name) is not None]
    if len(given) != 1:
        yield (), f"has {len(given)} checkers", f"exactly one of {', '.join(checkers)}"
    http = check.http_health_check
    if http is not None:
        if not http.path:
            yield ("http_health_check", "path"), "is required", "a path such as /healthz"
        for key in ("expected_statuses", "retriable_statuses"):
            for index, statuses in enumerate(getattr(http, key)):
                if not 100 <= statuses.start < statuses.end <= 600:
                    yield (
                        ("http_health_check", key, index),
                        f"{statuses.start} to {statuses.end} is not a range of statuses",
                        "start below end, both from 100 to 600; end is excluded",
                    )
        if http.codec_client_type.upper() not in {"", "HTTP1", "HTTP2", "HTTP3"}:
            yield (
                ("http_health_check", "codec_client_type"),
                f"unsupported value {shorten(http.codec_client_type)}",
                "one of HTTP1, HTTP2, HTTP3",
            )
    for name in ("http_health_check", "tcp_health_check"):
        checker = getattr(check, name)
        payloads = () if checker is None else (checker.send, *checker.receive)
        for payload in payloads:
            if payload is None:
                continue
            sound = (payload.text is None) != (payload.binary is None)
            if payload.text is not None:
                sound = sound and bool(re.fullmatch(r"(?:[0-9A-Fa-f]{2})+", payload.text))
            if payload.binary is not None:
                sound = sound and decode_base64(payload.binary) is not None
            if not sound:
                yield (
                    (name,),
                    "holds a payload that is not hex text or base64",
                    "text: hex digits, or binary: base64",
                )
