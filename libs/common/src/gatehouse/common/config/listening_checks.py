"""Whether two listeners of one process want the same address: the second could not be had."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

from gatehouse.common.config import derive
from gatehouse.common.config.issues import Finding, Severity
from gatehouse.common.config.model import Settings
from gatehouse.common.config.resolved import ServiceName
from gatehouse.common.config.values import parse_host_port

_LOOPBACK: Final = "127.0.0.1"


def check_listeners(settings: Settings) -> Iterator[Finding]:
    """An error for each pair, at the key that comes second."""
    services = derive.parse_services(settings.services)
    if isinstance(services, str):
        return
    keys = ["debug_address", "health_check_addr"]
    if ServiceName.PROXY in services:
        keys = ["http_redirect_addr", "metrics_address", "envoy_admin_address", *keys]
    elif derive.has_listener(services):
        keys = ["http_redirect_addr", "metrics_address", *keys]
    else:
        keys = ["metrics_address", *keys]
    wanted: list[tuple[str, tuple[str, int]]] = []
    if derive.has_listener(services):
        main = derive.main_address(settings)
        wanted.append(("address", (main.host, main.port)))
    grpc = derive.grpc_address(settings, services)
    if grpc is not None:
        wanted.append(("grpc_address", (grpc.host, grpc.port)))
    for key in keys:
        parsed = parse_host_port(str(getattr(settings, key)).strip("\"'"))
        if parsed is not None and parsed[1] > 0:
            wanted.append((key, parsed))
    for (first, one), (second, other) in itertools.combinations(wanted, 2):
        if _overlap(one, other) and second in settings.model_fields_set:
            yield Finding(
                Severity.ERROR,
                (second,),
                f"{other[0] or '*'}:{other[1]} is the address of {first} too",
                "another port",
            )


def _overlap(one: tuple[str, int], other: tuple[str, int]) -> bool:
    hosts = {_literal(one[0]), _literal(other[0])}
    return one[1] == other[1] and (len(hosts) == 1 or bool(hosts & {"", "0.0.0.0", "::"}))  # noqa: S104


def _literal(host: str) -> str:
    return _LOOPBACK if host == "localhost" or host.endswith(".localhost") else host
