"""On which addresses Envoy listens, and what is spoken there."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

from envoy.config.core.v3 import address_pb2, base_pb2, protocol_pb2, udp_socket_config_pb2
from envoy.config.listener.v3 import (
    listener_components_pb2,
    listener_pb2,
    quic_config_pb2,
    udp_listener_config_pb2,
)
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.listener.proxy_protocol.v3 import proxy_protocol_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.filters.network.connection_limit.v3 import connection_limit_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.transport_sockets.quic.v3 import quic_transport_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from gatehouse.common.config.model import CodecType, Settings
from gatehouse.common.config.resolved import CertificatePair, ListenAddress, ResolvedSettings
from gatehouse.proxy.core.xds.resource import digest, packed
from gatehouse.proxy.core.xds.resources.access_log import connection_failure_log
from gatehouse.proxy.core.xds.resources.certificate_names import (
    certificates_by_names,
    names_in,
)
from gatehouse.proxy.core.xds.resources.connection_manager import connection_manager
from gatehouse.proxy.core.xds.resources.downstream_tls import (
    alpn,
    downstream_tls,
    metrics_tls,
    rejects_connections,
    served_certificates,
)
from gatehouse.proxy.core.xds.resources.environment import SnapshotEnvironment, SnapshotFiles
from gatehouse.proxy.core.xds.resources.internal_clusters import ENVOY_ADMIN, METRICS
from gatehouse.proxy.core.xds.resources.protocols import bounded_http2
from gatehouse.proxy.core.xds.resources.scalars import boolean, seconds, uint32, uint64
from gatehouse.proxy.core.xds.resources.upstream_clusters import BUFFER_LIMIT
from gatehouse.proxy.errors import SnapshotError

_HCM: Final = "envoy.filters.network.http_connection_manager"
_LOOPBACK: Final = "127.0.0.1"
_HANDSHAKE_TIMEOUT_S: Final = 10.0
_METRICS_TIMEOUT_S: Final = 40.0  # a little more than the page takes itself
_OPERATOR_CONNECTIONS: Final = 100
_REDIRECTED_CONNECTIONS: Final = 10_000  # of each client's first visit only


def listeners(
    resolved: ResolvedSettings, environment: SnapshotEnvironment, files: SnapshotFiles
) -> tuple[listener_pb2.Listener, ...]:
    """All of Envoy's listeners."""
    settings = resolved.settings
    found = [_main(resolved, environment, files)]
    if settings.codec_type is CodecType.HTTP3 and not settings.insecure_server:
        found.append(_quic(resolved, environment, files))
    if settings.http_redirect_addr:
        found.append(_redirect(resolved, environment))
    if resolved.metrics is not None:
        found.append(_metrics(resolved, environment, files))
    if settings.envoy_admin_address:
        found.append(_admin(resolved, environment))
    return tuple(found)


def _main(
    resolved: ResolvedSettings, environment: SnapshotEnvironment, files: SnapshotFiles
) -> listener_pb2.Listener:
    settings = resolved.settings
    manager = packed(connection_manager(resolved, environment))
    listener = _tcp(
        "http-ingress" if settings.insecure_server else "https-ingress",
        resolved.address,
        resolved,
        environment,
    )
    if settings.insecure_server:
        listener.filter_chains.append(_chain(manager))
        return listener
    listener.listener_filters.append(
        _listener_filter("tls_inspector", tls_inspector_pb2.TlsInspector())
    )
    for names, pairs in _certificate_sets(resolved):
        chain = _chain(manager, names=names)
        context = downstream_tls(resolved, files, alpn(settings.codec_type), pairs)
        _add_tls(chain, context)
        listener.filter_chains.append(chain)
    if rejects_connections(resolved):
        listener.access_log.append(connection_failure_log())
    return listener


def _certificate_sets(
    resolved: ResolvedSettings,
) -> list[tuple[tuple[str, ...], tuple[CertificatePair, ...]]]:
    """Names with their certificates; last no name, which is any other, with the first of them."""
    everything = served_certificates(resolved)
    named = certificates_by_names(everything)
    if not named:
        return [((), everything)]
    # Not all: connections for other names would be drained whenever any certificate changes.
    first = everything[0]
    own = set(names_in(first.certificate_pem))
    beside = (
        pair for pair in everything if pair is first or own & {*names_in(pair.certificate_pem)}
    )
    return [*named, ((), tuple(beside))]


def _add_tls(
    chain: listener_components_pb2.FilterChain, context: tls_pb2.DownstreamTlsContext
) -> None:
    chain.transport_socket.CopyFrom(
        base_pb2.TransportSocket(name="envoy.transport_sockets.tls", typed_config=packed(context))
    )
    # From here on only the idle limit would count for a handshake that was begun and left.
    chain.transport_socket_connect_timeout.CopyFrom(seconds(_HANDSHAKE_TIMEOUT_S))


def _quic(
    resolved: ResolvedSettings, environment: SnapshotEnvironment, files: SnapshotFiles
) -> listener_pb2.Listener:
    listener = listener_pb2.Listener(
        name="quic-ingress",
        per_connection_buffer_limit_bytes=uint32(BUFFER_LIMIT),
        enable_reuse_port=boolean(value=True),
        udp_listener_config=udp_listener_config_pb2.UdpListenerConfig(
            quic_options=quic_config_pb2.QuicProtocolOptions(),
            downstream_socket_config=udp_socket_config_pb2.UdpSocketConfig(
                prefer_gro=boolean(value=True)
            ),
        ),
    )
    _bind(listener, resolved.address, environment, udp=True)
    manager = packed(connection_manager(resolved, environment, quic=True))
    for names, pairs in _certificate_sets(resolved):
        chain = _chain(manager, names=names)
        context = quic_transport_pb2.QuicDownstreamTransport(
            downstream_tls_context=downstream_tls(resolved, files, (), pairs),
            # Data sent before the handshake is over can be sent again by anybody who saw it.
            enable_early_data=boolean(value=False),
        )
        chain.transport_socket.CopyFrom(
            base_pb2.TransportSocket(
                name="envoy.transport_sockets.quic", typed_config=packed(context)
            )
        )
        listener.filter_chains.append(chain)
    return listener


def _redirect(
    resolved: ResolvedSettings, environment: SnapshotEnvironment
) -> listener_pb2.Listener:
    """Http to https, port dropped: a `port_redirect` would leave `:443` in Location."""
    insecure = resolved.settings.insecure_server
    route = route_components_pb2.Route(
        match=route_components_pb2.RouteMatch(prefix="/"),
        redirect=route_components_pb2.RedirectAction(https_redirect=True),
    )
    manager = _small_manager("http_redirect", [route], resolved.settings)
    manager.strip_any_host_port = True
    # Envoy says `connection: close` itself; nobody comes back here.
    manager.common_http_protocol_options.max_requests_per_connection.CopyFrom(uint32(1))
    listener = _tcp(
        "http-redirect-ingress" if insecure else "http-ingress",
        _parse_address(resolved.settings.http_redirect_addr),
        resolved,
        environment,
    )
    listener.filter_chains.append(_chain(packed(manager), at_most=_REDIRECTED_CONNECTIONS))
    return listener


def _admin(resolved: ResolvedSettings, environment: SnapshotEnvironment) -> listener_pb2.Listener:
    route = route_components_pb2.Route(match=route_components_pb2.RouteMatch(prefix="/"))
    route.route.cluster = ENVOY_ADMIN
    listener = _tcp(
        "envoy-admin",
        _parse_address(resolved.settings.envoy_admin_address),
        resolved,
        environment,
        proxy_protocol=False,
    )
    manager = _small_manager("envoy-admin-ingress", [route], resolved.settings)
    listener.filter_chains.append(_chain(packed(manager), at_most=_OPERATOR_CONNECTIONS))
    listener.ignore_global_conn_limit = True
    return listener


def _metrics(
    resolved: ResolvedSettings, environment: SnapshotEnvironment, files: SnapshotFiles
) -> listener_pb2.Listener:
    """In front of this process's own page, which asks for credentials and adds Envoy's numbers."""
    metrics = resolved.metrics
    assert metrics is not None
    routes = []
    for path in ("/metrics", "/metrics/envoy"):
        route = route_components_pb2.Route(match=route_components_pb2.RouteMatch(path=path))
        route.route.cluster = METRICS
        route.route.timeout.CopyFrom(seconds(_METRICS_TIMEOUT_S))
        routes.append(route)
    public = f"{resolved.address.host}:{resolved.address.port}"
    listener = _tcp(
        f"metrics-ingress-{digest(public.encode())}",
        metrics.address,
        resolved,
        environment,
        proxy_protocol=False,
    )
    manager = _small_manager("metrics-ingress", routes, resolved.settings)
    chain = _chain(packed(manager), at_most=_OPERATOR_CONNECTIONS)
    if metrics.certificate is not None:
        _add_tls(chain, metrics_tls(metrics, files))
    listener.filter_chains.append(chain)
    # Numbers are wanted most when users have taken all connections.
    listener.ignore_global_conn_limit = True
    return listener


def _small_manager(
    stat_prefix: str, routes: Sequence[route_components_pb2.Route], settings: Settings
) -> hcm_pb2.HttpConnectionManager:
    return hcm_pb2.HttpConnectionManager(
        stat_prefix=stat_prefix,
        route_config=route_pb2.RouteConfiguration(
            name=stat_prefix,
            virtual_hosts=[
                route_components_pb2.VirtualHost(name=stat_prefix, domains=["*"], routes=routes)
            ],
            validate_clusters=boolean(value=False),
        ),
        use_remote_address=boolean(value=True),
        request_timeout=seconds(settings.timeout_read),
        stream_idle_timeout=seconds(settings.timeout_idle),
        common_http_protocol_options=protocol_pb2.HttpProtocolOptions(
            idle_timeout=seconds(settings.timeout_idle),
            headers_with_underscores_action=protocol_pb2.HttpProtocolOptions.REJECT_REQUEST,
        ),
        http2_protocol_options=bounded_http2(),
        http_filters=[
            hcm_pb2.HttpFilter(
                name="envoy.filters.http.router", typed_config=packed(router_pb2.Router())
            )
        ],
    )


def _tcp(
    name: str,
    address: ListenAddress,
    resolved: ResolvedSettings,
    environment: SnapshotEnvironment,
    *,
    proxy_protocol: bool = True,
) -> listener_pb2.Listener:
    listener = listener_pb2.Listener(
        name=name,
        per_connection_buffer_limit_bytes=uint32(BUFFER_LIMIT),
        enable_reuse_port=boolean(environment.reuse_port),
    )
    _bind(listener, address, environment)
    if proxy_protocol and resolved.settings.use_proxy_protocol:
        listener.listener_filters.append(
            _listener_filter("proxy_protocol", proxy_protocol_pb2.ProxyProtocol())
        )
    return listener


def _bind(
    listener: listener_pb2.Listener,
    address: ListenAddress,
    environment: SnapshotEnvironment,
    *,
    udp: bool = False,
) -> None:
    hosts = _bind_hosts(address.host, ipv6=environment.ipv6)
    listener.address.CopyFrom(_socket(hosts[0], address.port, udp=udp))
    for host in hosts[1:]:
        listener.additional_addresses.append(
            listener_pb2.AdditionalAddress(address=_socket(host, address.port, udp=udp))
        )


def _bind_hosts(host: str, *, ipv6: bool) -> tuple[str, ...]:
    """The literals to bind; no host is every address."""
    if not host:
        return ("::", "0.0.0.0") if ipv6 else ("0.0.0.0",)  # noqa: S104
    if host == "localhost" or host.endswith(".localhost"):
        return (_LOOPBACK,)
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        raise SnapshotError(f"address: {host!r} is not an IP address to listen on") from None
    if isinstance(literal, ipaddress.IPv6Address) and literal.ipv4_mapped is not None:
        return (host, str(literal.ipv4_mapped))
    return (host,)


def _socket(host: str, port: int, *, udp: bool) -> address_pb2.Address:
    protocol = address_pb2.SocketAddress.UDP if udp else address_pb2.SocketAddress.TCP
    return address_pb2.Address(
        socket_address=address_pb2.SocketAddress(address=host, port_value=port, protocol=protocol)
    )


def _parse_address(text: str) -> ListenAddress:
    host, _, port = text.strip("\"'").rpartition(":")
    if not port.isdecimal():
        raise SnapshotError(f"{text!r} is not host:port")
    return ListenAddress(host.strip("[]"), int(port))


def _chain(
    manager: AnyMessage, *, names: Sequence[str] = (), at_most: int | None = None
) -> listener_components_pb2.FilterChain:
    """For connections that ask for one of `names` (none: any); `at_most` that many at once."""
    chain = listener_components_pb2.FilterChain()
    if names:
        chain.name = names[0]
        chain.filter_chain_match.server_names.extend(names)
    if at_most is not None:
        limit = connection_limit_pb2.ConnectionLimit(
            stat_prefix="listener", max_connections=uint64(at_most)
        )
        chain.filters.append(
            listener_components_pb2.Filter(
                name="envoy.filters.network.connection_limit", typed_config=packed(limit)
            )
        )
    chain.filters.append(listener_components_pb2.Filter(name=_HCM, typed_config=manager))
    return chain


def _listener_filter(kind: str, config: Message) -> listener_components_pb2.ListenerFilter:
    return listener_components_pb2.ListenerFilter(
        name=f"envoy.filters.listener.{kind}", typed_config=packed(config)
    )
