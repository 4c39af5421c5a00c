"""Whether two listeners of one process want the same address: the second could not be had.

gRPC alone may share that of the proxy; whether it can be used there is looked at here too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

from gatehouse.common.config import derive
from gatehouse.common.config.issues import Finding, Severity
from gatehouse.common.config.model import CodecType, Settings
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
    if derive.shares_address(settings, services):
        yield from _shared(settings, services)
    elif grpc is not None:
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


def _shared(settings: Settings, services: frozenset[ServiceName]) -> Iterator[Finding]:
    """What cannot hold for gRPC on `address`, where browsers come too."""
    for key in ("grpc_client_ca", "grpc_client_ca_file"):
        if getattr(settings, key):
            yield Finding(
                Severity.ERROR,
                (key,),
                "callers of gRPC cannot be asked for certificates on the listener of address, "
                "which grpc_address names too: browsers would be asked there",
                "a grpc_address of its own",
            )
    if not derive.own_service_urls(settings, services):
        yield Finding(
            Severity.ERROR,
            ("grpc_address",),
            "is that of address, where gRPC is told apart by its host, and no service URL names "
            "one",
            f"{_url_keys(services)} as others call this process, or another port",
        )
    if settings.codec_type is CodecType.HTTP1:
        yield Finding(
            Severity.ERROR,
            ("codec_type",),
            "gRPC needs HTTP/2, and grpc_address is that of address",
            "auto, http2 or http3, or a grpc_address of its own",
        )
    if settings.insecure_server and settings.grpc_insecure is False:
        yield Finding(
            Severity.ERROR,
            ("grpc_insecure",),
            "grpc_address is that of address, which insecure_server makes plain text",
            "a grpc_address of its own, or grpc_insecure: true",
        )


def _url_keys(services: frozenset[ServiceName]) -> str:
    called = (ServiceName.AUTHORIZE, ServiceName.DATABROKER)
    return " or ".join(f"{name}_service_url" for name in called if name in services)


def _overlap(one: tuple[str, int], other: tuple[str, int]) -> bool:
    hosts = {_literal(one[0]), _literal(other[0])}
    return one[1] == other[1] and (len(hosts) == 1 or bool(hosts & {"", "0.0.0.0", "::"}))  # noqa: S104


def _literal(host: str) -> str:
    return _LOOPBACK if host == "localhost" or host.endswith(".localhost") else host
