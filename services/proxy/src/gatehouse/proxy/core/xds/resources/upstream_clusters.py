"""Which clusters lead to the applications behind the routes.

Routes without a name whose upstreams are set up alike share a cluster (design D2): each one costs
Envoy memory. A shared cluster is named after its content, so that adding or removing one of its
routes never replaces it, which would cut the connections of the others.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2, outlier_detection_pb2
from envoy.config.core.v3 import address_pb2, health_check_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.v3 import http_pb2, percent_pb2, range_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from gatehouse.common.config.model import (
    CircuitBreakerThresholds,
    DNSLookupFamily,
    LoadBalancingPolicy,
    Settings,
)
from gatehouse.common.config.resolved import ResolvedRoute, ResolvedSettings, Upstream
from gatehouse.common.config.route_model import HealthCheck, HTTPHealthCheck, Payload
from gatehouse.proxy.core.xds.parts import Basis, ClusterPart, Parts
from gatehouse.proxy.core.xds.resource import Resource, digest, packed, resource_of, serialize
from gatehouse.proxy.core.xds.resources.endpoints import Endpoint, add_endpoints
from gatehouse.proxy.core.xds.resources.environment import SnapshotEnvironment, SnapshotFiles
from gatehouse.proxy.core.xds.resources.hosts import authenticate_host, route_hosts
from gatehouse.proxy.core.xds.resources.protocols import (
    HTTP_PROTOCOL_OPTIONS,
    HTTPVersion,
    by_alpn,
    protocol_options,
)
from gatehouse.proxy.core.xds.resources.scalars import boolean, double, seconds, uint32, uint64
from gatehouse.proxy.core.xds.resources.trust import roots_pem, upstream_tls
from gatehouse.proxy.core.xds.resources.upgrades import allows_websockets
from gatehouse.proxy.errors import SnapshotError

CONNECT_TIMEOUT_S: Final = 10.0
BUFFER_LIMIT: Final = 32768
CLUSTER_METADATA: Final = "com.pomerium.cluster"

_RETRIES: Final = 2

_TLS_SCHEMES: Final = frozenset({"https", "https+unix"})
_UNIX_SCHEMES: Final = frozenset({"unix", "https+unix"})


def upstream_clusters(
    routes: Iterable[ResolvedRoute], parts: Parts, before: Parts
) -> Mapping[int, str]:
    """Fill `parts` with the cluster of each route; gives its name by `id()` of the route object."""
    names: dict[int, str] = {}
    known: dict[str, Resource] = {}
    for route in routes:
        if not route.upstreams or route.from_url.scheme == "ssh":
            continue
        part = before.clusters.get(id(route)) or _part(route, parts.basis)
        resource = part.resource
        if known.setdefault(resource.name, resource).body != resource.body:
            raise SnapshotError(f"route {resource.name} is not unique: give it another name or id")
        parts.clusters[id(route)] = part
        names[id(route)] = resource.name
    return names


def _part(route: ResolvedRoute, basis: Basis) -> ClusterPart:
    files = SnapshotFiles(basis.environment.secrets_dir)
    cluster = _cluster(route, basis.settings, basis.environment, files)
    label = route.stat_name or route.settings.name
    if label:
        cluster.alt_stat_name = label
        stat_name = Struct()
        stat_name["stat_name"] = label
        cluster.metadata.filter_metadata[CLUSTER_METADATA].CopyFrom(stat_name)
        # A record says what its id is: no two, and none of our own, may come to be called alike.
        name = f"{label}-{digest(route.id.encode()) if route.is_stored else route.id}"
    else:
        name = f"route-{digest(serialize(cluster))}"
    cluster.name = name
    cluster.load_assignment.cluster_name = name
    return ClusterPart(route, resource_of(cluster, name), files.sorted())


def _cluster(
    route: ResolvedRoute,
    resolved: ResolvedSettings,
    environment: SnapshotEnvironment,
    files: SnapshotFiles,
) -> cluster_pb2.Cluster:
    settings, options = resolved.settings, route.settings
    websockets = allows_websockets(route, settings)
    cluster = cluster_pb2.Cluster(
        connect_timeout=seconds(CONNECT_TIMEOUT_S),
        per_connection_buffer_limit_bytes=uint32(BUFFER_LIMIT),
    )
    schemes = {upstream.scheme for upstream in route.upstreams}
    if schemes <= _TLS_SCHEMES and not websockets:
        http = _BY_ALPN
    elif schemes == {"h2c"} and not websockets:
        http = _HTTP2
    else:
        http = _HTTP1
    if not schemes & {"tcp", "udp"}:
        cluster.typed_extension_protocol_options[HTTP_PROTOCOL_OPTIONS].CopyFrom(http)
    endpoints = [
        _endpoint(upstream, route, resolved, environment, files, http1_only=http is _HTTP1)
        for upstream in route.upstreams
    ]
    # Google's serverless hosts are asked for by IPv4 alone.
    google = options.enable_google_cloud_serverless_authentication
    family = DNSLookupFamily.V4_ONLY if google else None
    add_endpoints(
        cluster,
        endpoints,
        settings,
        lookup_family=family,
        # The sign-in service's replicas come and go as ours do.
        follows_closely=authenticate_host(resolved) in route_hosts(route.from_url),
    )
    _add_load_balancing(cluster, route)
    secure = bool(schemes & _TLS_SCHEMES)
    cluster.health_checks.extend(
        _health_check(check, secure=secure) for check in options.health_checks
    )
    if options.outlier_detection is not None:
        cluster.outlier_detection.CopyFrom(_outlier_detection(route))
    thresholds = circuit_breaker_thresholds(
        settings.circuit_breaker_thresholds, options.circuit_breaker_thresholds
    )
    if thresholds is not None:
        cluster.circuit_breakers.thresholds.append(thresholds)
    _add_source_address(cluster, settings)
    return cluster


def _retries() -> route_components_pb2.RetryPolicy:
    """A server that left may still be known, and one may close a connection as Envoy takes it.

    Whatever the method, only what no server has begun to read is sent again. To this the request
    guard adds requests that may be repeated (RFC 9110, 9.2.1).
    """
    return route_components_pb2.RetryPolicy(
        retry_on="connect-failure,refused-stream,reset-before-request",
        num_retries=uint32(_RETRIES),
        retry_host_predicate=[
            route_components_pb2.RetryPolicy.RetryHostPredicate(
                name="envoy.retry_host_predicates.previous_hosts",
                typed_config=packed(previous_hosts_pb2.PreviousHostsPredicate()),
            )
        ],
        host_selection_retry_max_attempts=5,
    )


def _repeating(http: http_protocol_options_pb2.HttpProtocolOptions) -> AnyMessage:
    http.retry_policy.CopyFrom(_retries())
    return packed(http)


_HTTP1: Final = _repeating(protocol_options(HTTPVersion.HTTP1))
_HTTP2: Final = _repeating(protocol_options(HTTPVersion.HTTP2))
_BY_ALPN: Final = _repeating(by_alpn())


def _endpoint(
    upstream: Upstream,
    route: ResolvedRoute,
    resolved: ResolvedSettings,
    environment: SnapshotEnvironment,
    files: SnapshotFiles,
    *,
    http1_only: bool,
) -> Endpoint:
    options = route.settings
    tls = None
    if upstream.scheme in _TLS_SCHEMES:
        server_name = options.tls_upstream_server_name or options.tls_server_name or upstream.host
        tls = upstream_tls(
            server_name=server_name,
            trusted_pem=route.tls_custom_ca_pem or roots_pem(resolved, environment),
            files=files,
            skip_verify=options.tls_skip_verify,
            client_certificate=route.tls_client_certificate,
            alpn=("http/1.1",) if http1_only else ("h2", "http/1.1"),
            allow_renegotiation=options.tls_upstream_allow_renegotiation,
        )
    if upstream.scheme in _UNIX_SCHEMES:
        return Endpoint(
            pipe=upstream.path, hostname=upstream.hostname, weight=upstream.weight, tls=tls
        )
    return Endpoint(
        host=upstream.host,
        port=upstream.port,
        hostname=upstream.hostname,
        weight=upstream.weight,
        udp=upstream.scheme == "udp",
        tls=tls,
    )


def _add_load_balancing(cluster: cluster_pb2.Cluster, route: ResolvedRoute) -> None:
    options = route.settings
    policy = options.load_balancing_policy
    cluster.lb_policy = cluster_pb2.Cluster.LbPolicy.Value(str(policy))
    if policy is LoadBalancingPolicy.LEAST_REQUEST and options.least_request_lb_config is not None:
        least = options.least_request_lb_config
        cluster.least_request_lb_config.choice_count.CopyFrom(uint32(least.choice_count))
    if policy is LoadBalancingPolicy.RING_HASH and options.ring_hash_lb_config is not None:
        ring = options.ring_hash_lb_config
        if ring.minimum_ring_size is not None:
            cluster.ring_hash_lb_config.minimum_ring_size.CopyFrom(uint64(ring.minimum_ring_size))
        if ring.maximum_ring_size is not None:
            cluster.ring_hash_lb_config.maximum_ring_size.CopyFrom(uint64(ring.maximum_ring_size))
        if ring.hash_function:
            functions = cluster_pb2.Cluster.RingHashLbConfig.HashFunction
            cluster.ring_hash_lb_config.hash_function = functions.Value(ring.hash_function)
    if policy is LoadBalancingPolicy.MAGLEV and options.maglev_lb_config is not None:
        table_size = options.maglev_lb_config.table_size
        if table_size is not None:
            cluster.maglev_lb_config.table_size.CopyFrom(uint64(table_size))
    if options.healthy_panic_threshold is not None:
        cluster.common_lb_config.healthy_panic_threshold.CopyFrom(
            percent_pb2.Percent(value=float(options.healthy_panic_threshold))
        )


def circuit_breaker_thresholds(
    *sources: CircuitBreakerThresholds | None, default: int | None = None
) -> circuit_breaker_pb2.CircuitBreakers.Thresholds | None:
    """Field by field the last source that has a value wins; None when nothing is set."""
    merged: dict[str, int] = {}
    if default is not None:
        merged = dict.fromkeys(CircuitBreakerThresholds.model_fields, default)
    for source in sources:
        if source is not None:
            merged.update(source.model_dump(exclude_none=True))
    if not merged:
        return None
    return circuit_breaker_pb2.CircuitBreakers.Thresholds(
        **{name: uint32(value) for name, value in merged.items()}
    )


def _outlier_detection(route: ResolvedRoute) -> outlier_detection_pb2.OutlierDetection:
    assert route.settings.outlier_detection is not None
    result = outlier_detection_pb2.OutlierDetection()
    _copy_fields(result, route.settings.outlier_detection.model_dump(exclude_none=True))
    return result


_HEALTH_CHECK_PLAIN: Final = (
    *("timeout", "interval", "initial_jitter", "interval_jitter", "interval_jitter_percent"),
    *("unhealthy_threshold", "healthy_threshold", "reuse_connection", "no_traffic_interval"),
    *("no_traffic_healthy_interval", "unhealthy_interval", "unhealthy_edge_interval"),
    *("healthy_edge_interval", "always_log_health_check_failures"),
    "always_log_health_check_success",
)


def _health_check(check: HealthCheck, *, secure: bool) -> health_check_pb2.HealthCheck:
    result = health_check_pb2.HealthCheck()
    protocol = _checked_by(check)
    if secure and protocol:
        # Else the server may settle on another version than the check, which knows only one.
        result.tls_options.alpn_protocols.append(protocol)
    values = {name: getattr(check, name) for name in _HEALTH_CHECK_PLAIN}
    _copy_fields(result, {name: value for name, value in values.items() if value is not None})
    if check.transport_socket_match_criteria is not None:
        result.transport_socket_match_criteria.update(check.transport_socket_match_criteria)
    if check.http_health_check is not None:
        result.http_health_check.CopyFrom(_http_health_check(check.http_health_check))
    elif check.tcp_health_check is not None:
        tcp = result.tcp_health_check
        tcp.SetInParent()
        if check.tcp_health_check.send is not None:
            tcp.send.CopyFrom(_payload(check.tcp_health_check.send))
        tcp.receive.extend(_payload(part) for part in check.tcp_health_check.receive)
    elif check.grpc_health_check is not None:
        result.grpc_health_check.SetInParent()
        result.grpc_health_check.service_name = check.grpc_health_check.service_name
        result.grpc_health_check.authority = check.grpc_health_check.authority
    return result


def _checked_by(check: HealthCheck) -> str:
    """The ALPN name of what a check speaks; "" for none."""
    if check.grpc_health_check is not None:
        return "h2"
    if check.http_health_check is None:
        return ""
    return "h2" if check.http_health_check.codec_client_type.upper() == "HTTP2" else "http/1.1"


def _http_health_check(check: HTTPHealthCheck) -> health_check_pb2.HealthCheck.HttpHealthCheck:
    result = health_check_pb2.HealthCheck.HttpHealthCheck(
        host=check.host,
        path=check.path,
        receive=[_payload(part) for part in check.receive],
        request_headers_to_remove=check.request_headers_to_remove,
        expected_statuses=_ranges(check.expected_statuses),
        retriable_statuses=_ranges(check.retriable_statuses),
    )
    if check.send is not None:
        result.send.CopyFrom(_payload(check.send))
    if check.response_buffer_size is not None:
        result.response_buffer_size.CopyFrom(uint64(check.response_buffer_size))
    if check.codec_client_type:
        result.codec_client_type = http_pb2.CodecClientType.Value(check.codec_client_type.upper())
    return result


def _ranges(ranges: Sequence[Any]) -> list[range_pb2.Int64Range]:
    return [range_pb2.Int64Range(start=each.start, end=each.end) for each in ranges]


def _payload(payload: Payload) -> health_check_pb2.HealthCheck.Payload:
    if payload.text is not None:
        return health_check_pb2.HealthCheck.Payload(text=payload.text)
    return health_check_pb2.HealthCheck.Payload(binary=base64.b64decode(payload.binary or ""))


def _copy_fields(message: Message, values: Mapping[str, Any]) -> None:
    """Set fields of equal names, whatever wrapper type Envoy chose for them."""
    fields = message.DESCRIPTOR.fields_by_name
    wrappers = {
        "google.protobuf.Duration": seconds,
        "google.protobuf.UInt32Value": uint32,
        "google.protobuf.UInt64Value": uint64,
        "google.protobuf.BoolValue": boolean,
        "google.protobuf.DoubleValue": double,
    }
    for name, value in values.items():
        kind = fields[name].message_type
        if kind is None:
            setattr(message, name, value)
        elif kind.full_name == "envoy.type.v3.Percent":
            getattr(message, name).CopyFrom(percent_pb2.Percent(value=float(value)))
        else:
            getattr(message, name).CopyFrom(wrappers[kind.full_name](value))


def _add_source_address(cluster: cluster_pb2.Cluster, settings: Settings) -> None:
    if settings.envoy_bind_config_source_address:
        cluster.upstream_bind_config.source_address.CopyFrom(
            address_pb2.SocketAddress(
                address=settings.envoy_bind_config_source_address, port_value=0
            )
        )
    if settings.envoy_bind_config_freebind is not None:
        cluster.upstream_bind_config.freebind.CopyFrom(boolean(settings.envoy_bind_config_freebind))
