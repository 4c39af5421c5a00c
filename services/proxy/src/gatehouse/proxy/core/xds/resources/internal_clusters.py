"""Which clusters lead to our own services."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from envoy.config.cluster.v3 import cluster_pb2, outlier_detection_pb2
from envoy.config.core.v3 import (
    address_pb2,
    base_pb2,
    config_source_pb2,
    extension_pb2,
    health_check_pb2,
)
from envoy.extensions.filters.http.credential_injector.v3 import credential_injector_pb2
from envoy.extensions.filters.http.upstream_codec.v3 import upstream_codec_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)
from envoy.extensions.http.injected_credentials.generic.v3 import generic_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf.message import Message

from gatehouse.common.config.model import CircuitBreakerThresholds, DNSLookupFamily
from gatehouse.common.config.resolved import ResolvedSettings, ServiceName
from gatehouse.common.extauthz_context import AUTHORIZE_CLUSTER
from gatehouse.proxy.core.xds.resource import packed
from gatehouse.proxy.core.xds.resources.endpoints import Endpoint, add_endpoints
from gatehouse.proxy.core.xds.resources.environment import SnapshotEnvironment, SnapshotFiles
from gatehouse.proxy.core.xds.resources.protocols import (
    HTTP_PROTOCOL_OPTIONS,
    HTTPVersion,
    internal_grpc,
    protocol_options,
)
from gatehouse.proxy.core.xds.resources.scalars import boolean, seconds, uint32
from gatehouse.proxy.core.xds.resources.trust import certificate, roots_pem, upstream_tls
from gatehouse.proxy.core.xds.resources.upstream_clusters import (
    BUFFER_LIMIT,
    CONNECT_TIMEOUT_S,
    circuit_breaker_thresholds,
)
from gatehouse.proxy.errors import SnapshotError

CONTROL_PLANE_HTTP: Final = "pomerium-control-plane-http"
OWN_GRPC: Final = "pomerium-own-grpc"
STREAM_GUARD: Final = "pomerium-stream-guard"
AUTHENTICATE: Final = "pomerium-authenticate"
ENVOY_ADMIN: Final = "pomerium-envoy-admin"
METRICS: Final = "pomerium-control-plane-metrics"
AUTHORIZE_TOKEN: Final = "authorize-token"  # noqa: S105 - the name of the resource
CLIENT_CERTIFICATE: Final = "grpc-client-certificate"
AUTHORITIES: Final = "grpc-authorities"

_TOKEN_HEADER: Final = "jwt"  # noqa: S105 - the name of the header

_UNLIMITED: Final = 2**32 - 1
# Of the calls that our gRPC server takes at once (common/rpc/server.py), half. Callers from outside
# need no credential to ask for its health, and must not take the place of Envoy's own checks.
_OWN_GRPC_CALLS: Final = 5_000
_KEEPALIVE_S: Final = 15


def internal_clusters(
    resolved: ResolvedSettings, environment: SnapshotEnvironment, files: SnapshotFiles
) -> tuple[cluster_pb2.Cluster, ...]:
    """All of them, in order of their names."""
    clusters = [
        _http_pipe(CONTROL_PLANE_HTTP, environment.proxy_http_socket, resolved),
        _authorize(resolved, environment, files),
        _stream_guard(resolved, environment),
    ]
    if resolved.shared_grpc_urls:
        clusters.append(_own_grpc(resolved, environment))
    if resolved.runs(ServiceName.AUTHENTICATE):
        clusters.append(_http_pipe(AUTHENTICATE, environment.authenticate_http_socket, resolved))
    if resolved.settings.envoy_admin_address:
        clusters.append(_http_pipe(ENVOY_ADMIN, environment.envoy_admin_socket, resolved))
    if resolved.metrics is not None:
        clusters.append(_http_pipe(METRICS, environment.metrics_socket, resolved))
    return tuple(sorted(clusters, key=lambda cluster: str(cluster.name)))


def _base(name: str, resolved: ResolvedSettings) -> cluster_pb2.Cluster:
    return cluster_pb2.Cluster(
        name=name,
        connect_timeout=seconds(CONNECT_TIMEOUT_S),
        per_connection_buffer_limit_bytes=uint32(BUFFER_LIMIT),
        circuit_breakers={
            "thresholds": [
                circuit_breaker_thresholds(
                    resolved.settings.circuit_breaker_thresholds, default=_UNLIMITED
                )
            ]
        },
    )


def _http_pipe(name: str, socket: str, resolved: ResolvedSettings) -> cluster_pb2.Cluster:
    cluster = _base(name, resolved)
    options = packed(protocol_options(HTTPVersion.HTTP1))
    cluster.typed_extension_protocol_options[HTTP_PROTOCOL_OPTIONS].CopyFrom(options)
    add_endpoints(cluster, [Endpoint(pipe=socket)], resolved.settings)
    return cluster


def _own_grpc(resolved: ResolvedSettings, environment: SnapshotEnvironment) -> cluster_pb2.Cluster:
    """Our own gRPC server, for those who call it through Envoy. It asks each for a service JWT."""
    cluster = _base(OWN_GRPC, resolved)
    limits = CircuitBreakerThresholds(max_requests=_OWN_GRPC_CALLS)
    cluster.circuit_breakers.thresholds[0].CopyFrom(
        circuit_breaker_thresholds(limits, default=_UNLIMITED)
    )
    options = packed(internal_grpc())
    cluster.typed_extension_protocol_options[HTTP_PROTOCOL_OPTIONS].CopyFrom(options)
    add_endpoints(cluster, [Endpoint(pipe=environment.grpc_socket)], resolved.settings)
    return cluster


def _stream_guard(
    resolved: ResolvedSettings, environment: SnapshotEnvironment
) -> cluster_pb2.Cluster:
    """Over a Unix socket, a stream for each open connection: no limit of upstreams applies."""
    cluster = _base(STREAM_GUARD, resolved)
    cluster.circuit_breakers.thresholds[0].CopyFrom(circuit_breaker_thresholds(default=_UNLIMITED))
    options = packed(protocol_options(HTTPVersion.HTTP2))
    cluster.typed_extension_protocol_options[HTTP_PROTOCOL_OPTIONS].CopyFrom(options)
    add_endpoints(cluster, [Endpoint(pipe=environment.guard_socket)], resolved.settings)
    return cluster


def _authorize(
    resolved: ResolvedSettings, environment: SnapshotEnvironment, files: SnapshotFiles
) -> cluster_pb2.Cluster:
    """Authorize beside us over a Unix socket, else every address of its URLs, watched closely."""
    cluster = _base(AUTHORIZE_CLUSTER, resolved)
    options = internal_grpc()
    _show_credential(options)
    cluster.typed_extension_protocol_options[HTTP_PROTOCOL_OPTIONS].CopyFrom(packed(options))
    if resolved.runs(ServiceName.AUTHORIZE):
        paths = (environment.grpc_socket, *environment.worker_sockets)
        pipes = [Endpoint(pipe=path) for path in paths]
        add_endpoints(cluster, pipes, resolved.settings)
        if len(pipes) > 1:
            # The first worker has other things to do as well.
            cluster.lb_policy = cluster_pb2.Cluster.LEAST_REQUEST
        return cluster
    family = resolved.settings.dns_lookup_family
    if "dns_lookup_family" not in resolved.settings.model_fields_set:
        family = DNSLookupFamily.ALL
    endpoints = [_remote(url, resolved, environment, files) for url in resolved.authorize_urls]
    if not endpoints:
        raise SnapshotError("there is no authorize service to ask: set authorize_service_url")
    add_endpoints(cluster, endpoints, resolved.settings, lookup_family=family, follows_closely=True)
    cluster.upstream_connection_options.tcp_keepalive.CopyFrom(
        address_pb2.TcpKeepalive(
            keepalive_time=uint32(_KEEPALIVE_S), keepalive_interval=uint32(_KEEPALIVE_S)
        )
    )
    cluster.health_checks.append(_health_check())
    cluster.outlier_detection.CopyFrom(_outlier_detection())
    # With few replicas Envoy's panic mode would send every check to known dead ones.
    cluster.common_lb_config.healthy_panic_threshold.value = 0.0
    return cluster


def _remote(
    url: str, resolved: ResolvedSettings, environment: SnapshotEnvironment, files: SnapshotFiles
) -> Endpoint:
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in {"http", "https"} or not host:
        raise SnapshotError(f"authorize_service_url: {url!r} is not an http or https URL")
    secure = parts.scheme == "https"
    tls = None
    if secure:
        tls = upstream_tls(
            server_name=resolved.settings.override_certificate_name or host,
            trusted_pem=roots_pem(resolved, environment),
            files=files,
            alpn=("h2", "http/1.1"),
        )
        _keep_apart(tls.common_tls_context, shows=resolved.grpc_client_certificate is not None)
    return Endpoint(
        host=host, port=parts.port or (443 if secure else 80), hostname=parts.netloc, tls=tls
    )


def internal_secrets(
    resolved: ResolvedSettings, environment: SnapshotEnvironment, files: SnapshotFiles
) -> tuple[secret_pb2.Secret, ...]:
    """What authorize asks for, a JWT and maybe a certificate, and whom Envoy trusts there.

    Each is a resource of its own. A new token comes every half hour, new certificates now and
    then. In the cluster it would replace the cluster, and Envoy ends the checks under way on the
    old one (tried with 1.40: 503 for those requests); in the listener it would drain all
    connections.
    """
    secrets = [_service_token(environment)]
    is_remote = not resolved.runs(ServiceName.AUTHORIZE)
    if is_remote and any(urlsplit(url).scheme == "https" for url in resolved.authorize_urls):
        trusted = files.add("trusted-ca", roots_pem(resolved, environment))
        validation = common_pb2.CertificateValidationContext(trusted_ca=trusted)
        secrets.append(secret_pb2.Secret(name=AUTHORITIES, validation_context=validation))
        if (pair := resolved.grpc_client_certificate) is not None:
            shown = certificate(pair, files)
            secrets.append(secret_pb2.Secret(name=CLIENT_CERTIFICATE, tls_certificate=shown))
    return tuple(secrets)


def _service_token(environment: SnapshotEnvironment) -> secret_pb2.Secret:
    token = base_pb2.DataSource(inline_string=environment.authorize_jwt)
    return secret_pb2.Secret(
        name=AUTHORIZE_TOKEN, generic_secret=secret_pb2.GenericSecret(secret=token)
    )


def _keep_apart(context: tls_pb2.CommonTlsContext, *, shows: bool) -> None:
    """Leave the names to accept in the cluster, and have certificates sent as secrets."""
    names = common_pb2.CertificateValidationContext()
    names.CopyFrom(context.validation_context)
    names.ClearField("trusted_ca")
    context.combined_validation_context.CopyFrom(
        tls_pb2.CommonTlsContext.CombinedCertificateValidationContext(
            default_validation_context=names,
            validation_context_sds_secret_config=_sent_apart(AUTHORITIES),
        )
    )
    if shows:
        context.tls_certificate_sds_secret_configs.append(_sent_apart(CLIENT_CERTIFICATE))


def _sent_apart(name: str) -> secret_pb2.SdsSecretConfig:
    return secret_pb2.SdsSecretConfig(
        name=name,
        sds_config=config_source_pb2.ConfigSource(
            ads=config_source_pb2.AggregatedConfigSource(),
            resource_api_version=config_source_pb2.V3,
        ),
    )


def _show_credential(options: http_protocol_options_pb2.HttpProtocolOptions) -> None:
    """Add the service JWT to each call; without it none is made."""
    token = generic_pb2.Generic(
        credential=_sent_apart(AUTHORIZE_TOKEN),
        header=_TOKEN_HEADER,
    )
    injector = credential_injector_pb2.CredentialInjector(
        overwrite=True,
        credential=extension_pb2.TypedExtensionConfig(
            name="envoy.http.injected_credentials.generic", typed_config=packed(token)
        ),
    )
    filters: list[tuple[str, Message]] = [
        ("envoy.filters.http.credential_injector", injector),
        ("envoy.filters.http.upstream_codec", upstream_codec_pb2.UpstreamCodec()),
    ]
    for name, config in filters:
        options.http_filters.append(
            http_connection_manager_pb2.HttpFilter(name=name, typed_config=packed(config))
        )


def _health_check() -> health_check_pb2.HealthCheck:
    return health_check_pb2.HealthCheck(
        timeout=seconds(1.0),
        interval=seconds(2.0),
        no_traffic_interval=seconds(2.0),
        # A replica that was not ready at the first look is found as soon as it is.
        unhealthy_interval=seconds(0.5),
        unhealthy_edge_interval=seconds(0.5),
        initial_jitter=seconds(0.1),
        interval_jitter=seconds(0.1),
        interval_jitter_percent=10,
        unhealthy_threshold=uint32(1),
        healthy_threshold=uint32(1),
        reuse_connection=boolean(value=True),
        grpc_health_check=health_check_pb2.HealthCheck.GrpcHealthCheck(
            service_name=AUTHORIZE_CLUSTER
        ),
    )


def _outlier_detection() -> outlier_detection_pb2.OutlierDetection:
    return outlier_detection_pb2.OutlierDetection(
        consecutive_5xx=uint32(5),
        interval=seconds(10.0),
        base_ejection_time=seconds(30.0),
        max_ejection_time=seconds(300.0),
        # Never all of them: requests that make authorize answer with an error, sent on purpose,
        # would otherwise shut everybody out. A replica that is really gone fails its health check.
        max_ejection_percent=uint32(50),
        consecutive_gateway_failure=uint32(5),
        enforcing_consecutive_gateway_failure=uint32(0),
        failure_percentage_threshold=uint32(85),
        enforcing_failure_percentage=uint32(100),
        failure_percentage_minimum_hosts=uint32(2),
        failure_percentage_request_volume=uint32(10),
        success_rate_minimum_hosts=uint32(2),
        success_rate_request_volume=uint32(10),
        success_rate_stdev_factor=uint32(1900),
    )
