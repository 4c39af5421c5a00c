"""Which addresses stand behind a cluster, and how they are found and balanced."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import address_pb2, base_pb2, extension_pb2, resolver_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.extensions.clusters.common.dns.v3 import dns_pb2
from envoy.extensions.clusters.dns.v3 import dns_cluster_pb2
from envoy.extensions.network.dns_resolver.cares.v3 import cares_dns_resolver_pb2
from envoy.extensions.transport_sockets.raw_buffer.v3 import raw_buffer_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2
from google.protobuf.struct_pb2 import Struct

from gatehouse.common.config.model import DNSLookupFamily, Settings
from gatehouse.proxy.core.xds.resource import digest, packed, serialize
from gatehouse.proxy.core.xds.resources.scalars import seconds, uint32, uint64
from gatehouse.proxy.errors import SnapshotError

_LOOPBACK: Final = "127.0.0.1"
_SOCKET_MATCH: Final = "envoy.transport_socket_match"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One upstream address. `pipe` is a Unix socket and excludes host and port."""

    host: str = ""
    port: int = 0
    pipe: str = ""
    hostname: str = ""  # what auto_host_rewrite sends
    weight: int | None = None
    udp: bool = False
    tls: tls_pb2.UpstreamTlsContext | None = None

    @property
    def address(self) -> str:
        """The host to connect to: names that mean this machine are not left to DNS (RFC 6761)."""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return _LOOPBACK
        return self.host

    @property
    def is_static(self) -> bool:
        """True when there is nothing to resolve."""
        if self.pipe:
            return True
        try:
            ipaddress.ip_address(self.address)
        except ValueError:
            return False
        return True


def add_endpoints(
    cluster: cluster_pb2.Cluster,
    endpoints: Sequence[Endpoint],
    settings: Settings,
    *,
    lookup_family: DNSLookupFamily | None = None,
    follows_closely: bool = False,
) -> None:
    """Give `cluster` its endpoints, its discovery and its transport sockets.

    `follows_closely`: names are asked for again whatever their records' TTL says. That of Docker's
    own DNS server is ten minutes, so replicas that come would not be used, and ones that went be
    asked, for as long.
    """
    family = lookup_family or settings.dns_lookup_family
    _add_discovery(cluster, endpoints, settings, family, follows_closely=follows_closely)
    sockets = _transport_sockets(endpoints)
    locality = endpoint_components_pb2.LocalityLbEndpoints()
    for endpoint in endpoints:
        locality.lb_endpoints.append(_lb_endpoint(endpoint, sockets))
    cluster.load_assignment.CopyFrom(
        endpoint_pb2.ClusterLoadAssignment(cluster_name=cluster.name, endpoints=[locality])
    )
    if len(sockets) == 1:
        socket = next(iter(sockets.values()))
        if socket is not None:
            cluster.transport_socket.CopyFrom(socket)
        return
    default = True
    for name, socket in sockets.items():
        chosen = socket or base_pb2.TransportSocket(
            name="envoy.transport_sockets.raw_buffer",
            typed_config=packed(raw_buffer_pb2.RawBuffer()),
        )
        match = Struct()
        match[name] = True
        cluster.transport_socket_matches.append(
            cluster_pb2.Cluster.TransportSocketMatch(
                name=name, match=match, transport_socket=chosen
            )
        )
        if default and socket is not None:
            # Never the plain one: an endpoint that matched nothing would lose its TLS.
            cluster.transport_socket.CopyFrom(socket)
            default = False


def _lb_endpoint(
    endpoint: Endpoint, sockets: dict[str, base_pb2.TransportSocket | None]
) -> endpoint_components_pb2.LbEndpoint:
    result = endpoint_components_pb2.LbEndpoint(
        endpoint=endpoint_components_pb2.Endpoint(address=_address(endpoint))
    )
    if endpoint.hostname:
        result.endpoint.hostname = endpoint.hostname
    if endpoint.weight is not None:
        result.load_balancing_weight.CopyFrom(uint32(endpoint.weight))
    if len(sockets) > 1:
        metadata = Struct()
        metadata[_socket_name(endpoint)] = True
        result.metadata.filter_metadata[_SOCKET_MATCH].CopyFrom(metadata)
    return result


def _address(endpoint: Endpoint) -> address_pb2.Address:
    if endpoint.pipe:
        return address_pb2.Address(pipe=address_pb2.Pipe(path=endpoint.pipe))
    protocol = address_pb2.SocketAddress.UDP if endpoint.udp else address_pb2.SocketAddress.TCP
    return address_pb2.Address(
        socket_address=address_pb2.SocketAddress(
            address=endpoint.address, port_value=endpoint.port, protocol=protocol
        )
    )


def _transport_sockets(
    endpoints: Iterable[Endpoint],
) -> dict[str, base_pb2.TransportSocket | None]:
    """The different ways to connect, by name; None is plain text."""
    sockets: dict[str, base_pb2.TransportSocket | None] = {}
    for endpoint in endpoints:
        socket = None
        if endpoint.tls is not None:
            socket = base_pb2.TransportSocket(
                name="envoy.transport_sockets.tls", typed_config=packed(endpoint.tls)
            )
        sockets[_socket_name(endpoint)] = socket
    return dict(sorted(sockets.items()))


def _socket_name(endpoint: Endpoint) -> str:
    return "ts-plain" if endpoint.tls is None else f"ts-{digest(serialize(endpoint.tls))}"


def _add_discovery(
    cluster: cluster_pb2.Cluster,
    endpoints: Sequence[Endpoint],
    settings: Settings,
    lookup_family: DNSLookupFamily,
    *,
    follows_closely: bool,
) -> None:
    if all(endpoint.is_static for endpoint in endpoints):
        cluster.type = cluster_pb2.Cluster.STATIC
        return
    if any(endpoint.pipe for endpoint in endpoints):
        raise SnapshotError("one upstream cannot have both host names and Unix sockets")
    dns = dns_cluster_pb2.DnsCluster(
        respect_dns_ttl=not follows_closely,
        dns_lookup_family=dns_pb2.DnsLookupFamily.Value(str(lookup_family)),
        typed_dns_resolver_config=extension_pb2.TypedExtensionConfig(
            name="envoy.network.dns_resolver.cares", typed_config=packed(_resolver(settings))
        ),
    )
    if settings.dns_refresh_rate is not None:
        dns.dns_refresh_rate.CopyFrom(seconds(settings.dns_refresh_rate))
    if settings.dns_failure_refresh_rate is not None:
        rate = seconds(settings.dns_failure_refresh_rate)
        dns.dns_failure_refresh_rate.base_interval.CopyFrom(rate)
    cluster.cluster_type.CopyFrom(
        cluster_pb2.Cluster.CustomClusterType(name="envoy.clusters.dns", typed_config=packed(dns))
    )


def _resolver(settings: Settings) -> cares_dns_resolver_pb2.CaresDnsResolverConfig:
    config = cares_dns_resolver_pb2.CaresDnsResolverConfig(
        udp_max_queries=uint32(
            100 if settings.dns_udp_max_queries is None else settings.dns_udp_max_queries
        )
    )
    for text in settings.dns_resolvers:
        config.resolvers.append(_resolver_address(text))
    if settings.dns_use_tcp is not None:
        config.dns_resolver_options.CopyFrom(
            resolver_pb2.DnsResolverOptions(use_tcp_for_dns_lookups=settings.dns_use_tcp)
        )
    if settings.dns_query_timeout is not None:
        config.query_timeout_seconds.CopyFrom(uint64(round(settings.dns_query_timeout)))
    if settings.dns_query_tries is not None:
        config.query_tries.CopyFrom(uint32(settings.dns_query_tries))
    return config


def _resolver_address(text: str) -> address_pb2.Address:
    scheme, _, rest = text.partition("://")
    host, _, port = rest.rpartition(":")
    host = host.strip("[]")
    try:
        ipaddress.ip_address(host)
        number = int(port)
    except ValueError:
        scheme = ""
        number = 0
    if scheme not in {"udp", "tcp"} or not 0 < number < 65536:
        raise SnapshotError(f"dns_resolvers: {text!r} is not udp://IP:port or tcp://IP:port")
    protocol = address_pb2.SocketAddress.UDP if scheme == "udp" else address_pb2.SocketAddress.TCP
    return address_pb2.Address(
        socket_address=address_pb2.SocketAddress(address=host, port_value=number, protocol=protocol)
    )
