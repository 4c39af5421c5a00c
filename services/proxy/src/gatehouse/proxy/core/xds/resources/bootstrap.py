"""What Envoy knows before it hears from us: where we are, and its own limits."""

from __future__ import annotations

from typing import Final

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import (
    address_pb2,
    base_pb2,
    config_source_pb2,
    grpc_service_pb2,
)
from envoy.config.metrics.v3 import stats_pb2
from envoy.extensions.access_loggers.file.v3 import file_pb2
from google.protobuf.struct_pb2 import Struct

from gatehouse.proxy.core.xds.resource import packed
from gatehouse.proxy.core.xds.resources.overload import overload_manager
from gatehouse.proxy.core.xds.resources.protocols import HTTP_PROTOCOL_OPTIONS, internal_grpc
from gatehouse.proxy.core.xds.resources.scalars import seconds

CONTROL_PLANE_GRPC: Final = "pomerium-control-plane-grpc"

NULL_DEVICE: Final = "/dev/null"
_FLUSH_SPANS: Final = 512
_SOCKET_MODE: Final = 0o600
_CONNECT_TIMEOUT_S: Final = 5.0


def bootstrap(
    *,
    service_name: str,
    xds_socket: str,
    admin_socket: str,
    saturation_file: str = "",
    admin_access_log: str = NULL_DEVICE,
    admin_profile: str = NULL_DEVICE,
    span_flush_ms: int = 5000,
) -> bootstrap_pb2.Bootstrap:
    """Everything else comes over the delta ADS stream on `xds_socket`.

    `saturation_file` holds how full the memory is, 0 to 1; without one nothing is shed for it.
    """
    runtime = Struct()
    runtime.update(
        {
            "re2.max_program_size.error_level": 1048576,
            "re2.max_program_size.warn_level": 1024,
            "tracing.opentelemetry.flush_interval_ms": span_flush_ms,
            "tracing.opentelemetry.min_flush_spans": _FLUSH_SPANS,
        }
    )
    ads = config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(), resource_api_version=config_source_pb2.V3
    )
    return bootstrap_pb2.Bootstrap(
        node=base_pb2.Node(id=service_name, cluster=service_name),
        admin=bootstrap_pb2.Admin(
            address=address_pb2.Address(
                pipe=address_pb2.Pipe(path=admin_socket, mode=_SOCKET_MODE)
            ),
            profile_path=admin_profile,
            access_log=_admin_access_log(admin_access_log),
        ),
        dynamic_resources=bootstrap_pb2.Bootstrap.DynamicResources(
            lds_config=ads,
            cds_config=ads,
            ads_config=config_source_pb2.ApiConfigSource(
                api_type=config_source_pb2.ApiConfigSource.DELTA_GRPC,
                transport_api_version=config_source_pb2.V3,
                grpc_services=[
                    grpc_service_pb2.GrpcService(
                        envoy_grpc=grpc_service_pb2.GrpcService.EnvoyGrpc(
                            cluster_name=CONTROL_PLANE_GRPC
                        )
                    )
                ],
            ),
        ),
        static_resources=bootstrap_pb2.Bootstrap.StaticResources(
            clusters=[_control_plane(xds_socket)]
        ),
        layered_runtime=bootstrap_pb2.LayeredRuntime(
            layers=[bootstrap_pb2.RuntimeLayer(name="static", static_layer=runtime)]
        ),
        stats_config=stats_pb2.StatsConfig(
            stats_tags=[stats_pb2.TagSpecifier(tag_name="service", fixed_value=service_name)]
        ),
        overload_manager=overload_manager(saturation_file),
    )


def _admin_access_log(path: str) -> list[accesslog_pb2.AccessLog]:
    if path == NULL_DEVICE:
        return []
    log = file_pb2.FileAccessLog(path=path)
    return [accesslog_pb2.AccessLog(name="envoy.access_loggers.file", typed_config=packed(log))]


def _control_plane(socket: str) -> cluster_pb2.Cluster:
    cluster = cluster_pb2.Cluster(
        name=CONTROL_PLANE_GRPC,
        type=cluster_pb2.Cluster.STATIC,
        connect_timeout=seconds(_CONNECT_TIMEOUT_S),
        load_assignment={
            "cluster_name": CONTROL_PLANE_GRPC,
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": socket}}}}]}
            ],
        },
    )
    cluster.typed_extension_protocol_options[HTTP_PROTOCOL_OPTIONS].CopyFrom(
        packed(internal_grpc())
    )
    return cluster
