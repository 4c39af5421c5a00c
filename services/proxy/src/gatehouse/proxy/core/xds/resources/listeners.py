"""On which addresses Envoy listens, and what is spoken there."""

from __future__ import annotations

import ipaddress
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
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.transport_sockets.quic.v3 import quic_transport_pb2
from google.protobuf.message import Message

from gatehouse.common.config.model import CodecType
from gatehouse.common.config.resolved import ListenAddress, ResolvedSettings
from gatehouse.proxy.core.xds.resource import packed
from gatehouse.proxy.core.xds.resources.access_log import connection_failure_log
from gatehouse.proxy.core.xds.resources.connection_manager import connection_manager
from gatehouse.proxy.core.xds.resources.downstream_tls import (
    alpn,
    downstream_tls,
    rejects_connections,
)
from gatehouse.proxy.core.xds.resources.environment import SnapshotEnvironment, SnapshotFiles
from gatehouse.proxy.core.xds.resources.internal_clusters import ENVOY_ADMIN
from gatehouse.proxy.core.xds.resources.scalars import boolean, seconds, uint32
from gatehouse.proxy.core.xds.resources.upstream_clusters import BUFFER_LIMIT
from gatehouse.proxy.errors import SnapshotError

_HCM: Final = "envoy.filters.network.http_connection_manager"
_LOOPBACK: Final = "127.0.0.1"
_HANDSHAKE_TIMEOUT_S: Final = 10.0


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
    if settings.envoy_admin_address:
        found.append(_admin(resolved, environment))
    return tuple(found)


def _main(
    resolved: ResolvedSettings, environment: SnapshotEnvironment, files: SnapshotFiles
) -> listener_pb2.Listener:
    settings = resolved.settings
    chain = _chain(connection_manager(resolved, environment))
    listener = _tcp(
        "http-ingress" if settings.insecure_server else "https-ingress",
        resolved.address,
        resolved,
        environment,
    )
    if not settings.insecure_server:
        listener.listener_filters.append(
            _listener_filter("tls_inspector", tls_inspector_pb2.TlsInspector())
        )
        chain.transport_socket.CopyFrom(
            base_pb2.TransportSocket(
                name="envoy.transport_sockets.tls",
                typed_config=packed(downstream_tls(resolved, files, alpn(settings.codec_type))),
            )
        )
        # From here on only the idle limit would count for a handshake that was begun and left.
        chain.transport_socket_connect_timeout.CopyFrom(seconds(_HANDSHAKE_TIMEOUT_S))
        if rejects_connections(resolved):
            listener.access_log.append(connection_failure_log())
    listener.filter_chains.append(chain)
    return listener


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
    chain = _chain(connection_manager(resolved, environment, quic=True))
    chain.transport_socket.CopyFrom(
        base_pb2.TransportSocket(
            name="envoy.transport_sockets.quic",
            typed_config=packed(
                quic_transport_pb2.QuicDownstreamTransport(
                    downstream_tls_context=downstream_tls(resolved, files, ())
                )
            ),
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
    manager = _small_manager("http_redirect", route)
    manager.strip_any_host_port = True
    # Envoy says `connection: close` itself; nobody comes back here.
    manager.common_http_protocol_options.max_requests_per_connection.CopyFrom(uint32(1))
    listener = _tcp(
        "http-redirect-ingress" if insecure else "http-ingress",
        _parse_address(resolved.settings.http_redirect_addr),
        resolved,
        environment,
    )
    listener.filter_chains.append(_chain(manager))
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
    listener.filter_chains.append(_chain(_small_manager("envoy-admin-ingress", route)))
    return listener


def _small_manager(
    stat_prefix: str, route: route_components_pb2.Route
) -> hcm_pb2.HttpConnectionManager:
    return hcm_pb2.HttpConnectionManager(
        stat_prefix=stat_prefix,
        route_config=route_pb2.RouteConfiguration(
            name=stat_prefix,
            virtual_hosts=[
                route_components_pb2.VirtualHost(name=stat_prefix, domains=["*"], routes=[route])
            ],
            validate_clusters=boolean(value=False),
        ),
        use_remote_address=boolean(value=True),
        common_http_protocol_options=protocol_pb2.HttpProtocolOptions(
            headers_with_underscores_action=protocol_pb2.HttpProtocolOptions.REJECT_REQUEST
        ),
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


def _chain(manager: hcm_pb2.HttpConnectionManager) -> listener_components_pb2.FilterChain:
    return listener_components_pb2.FilterChain(
        filters=[listener_components_pb2.Filter(name=_HCM, typed_config=packed(manager))]
    )


def _listener_filter(kind: str, config: Message) -> listener_components_pb2.ListenerFilter:
    return listener_components_pb2.ListenerFilter(
        name=f"envoy.filters.listener.{kind}", typed_config=packed(config)
    )
