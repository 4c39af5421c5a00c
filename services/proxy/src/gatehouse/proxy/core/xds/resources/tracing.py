"""Which requests Envoy traces, and what its spans say.

Envoy sends spans to the process beside it, never to the collector, whose credentials it does not
know. Paths are told without their queries: those carry codes and signatures.
"""

from __future__ import annotations

from typing import Final

from envoy.config.core.v3 import extension_pb2, grpc_service_pb2
from envoy.config.trace.v3 import http_tracer_pb2, opentelemetry_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.tracers.opentelemetry.resource_detectors.v3 import (
    static_config_resource_detector_pb2 as static_pb2,
)
from envoy.extensions.tracers.opentelemetry.samplers.v3 import (
    parent_based_sampler_pb2 as parent_pb2,
)
from envoy.extensions.tracers.opentelemetry.samplers.v3 import (
    trace_id_ratio_based_sampler_pb2 as ratio_pb2,
)
from envoy.type.tracing.v3 import custom_tag_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf.message import Message

from gatehouse.common.config.resolved import Tracing
from gatehouse.proxy.core.xds.resource import packed
from gatehouse.proxy.core.xds.resources.bootstrap import CONTROL_PLANE_GRPC
from gatehouse.proxy.core.xds.resources.scalars import boolean, seconds, uint32

_SERVICE: Final = "Envoy"
_EXPORT_TIMEOUT_S: Final = 10.0
_WHERE: Final = "%REQ(X-ENVOY-ORIGINAL-HOST?:AUTHORITY)%%PATH(NQ)%"
_NAME: Final = f"%REQ(:METHOD)% {_WHERE}"
_URL: Final = f"%REQ(:SCHEME)%://{_WHERE}"
_PARTS: Final = 1_000_000  # that the sampled share is counted in


def hcm_tracing(tracing: Tracing) -> hcm_pb2.HttpConnectionManager.Tracing:
    """A trace that a client brings goes on as it says; others by the sampled share."""
    return hcm_pb2.HttpConnectionManager.Tracing(
        # Nobody may have a request traced by a header of his.
        client_sampling=percent_pb2.Percent(value=0.0),
        # The sampler below decides; without one Envoy would look at the share before the parent.
        random_sampling=percent_pb2.Percent(value=100.0),
        max_path_tag_length=uint32(tracing.value_limit),
        spawn_upstream_span=boolean(value=True),
        operation=f"ingress: {_NAME}",
        upstream_operation=f"egress: {_NAME}",
        custom_tags=[custom_tag_pb2.CustomTag(tag="http.url", value=_URL)],
        provider=http_tracer_pb2.Tracing.Http(
            name="envoy.tracers.opentelemetry", typed_config=packed(_tracer(tracing))
        ),
    )


def _sampler(share: float) -> extension_pb2.TypedExtensionConfig:
    """What the caller's trace says; a new one by its share."""
    by_share = ratio_pb2.TraceIdRatioBasedSamplerConfig(
        sampling_percentage=percent_pb2.FractionalPercent(
            numerator=round(share * _PARTS), denominator=percent_pb2.FractionalPercent.MILLION
        )
    )
    by_parent = parent_pb2.ParentBasedSamplerConfig(
        wrapped_sampler=_extension("samplers.trace_id_ratio_based", by_share)
    )
    return _extension("samplers.parent_based", by_parent)


def _extension(name: str, config: Message) -> extension_pb2.TypedExtensionConfig:
    return extension_pb2.TypedExtensionConfig(
        name=f"envoy.tracers.opentelemetry.{name}", typed_config=packed(config)
    )


def _tracer(tracing: Tracing) -> opentelemetry_pb2.OpenTelemetryConfig:
    config = opentelemetry_pb2.OpenTelemetryConfig(
        grpc_service=grpc_service_pb2.GrpcService(
            envoy_grpc=grpc_service_pb2.GrpcService.EnvoyGrpc(cluster_name=CONTROL_PLANE_GRPC),
            timeout=seconds(_EXPORT_TIMEOUT_S),
        ),
        service_name=_SERVICE,
        sampler=_sampler(tracing.sampled_share),
    )
    if tracing.resource:
        attributes = static_pb2.StaticConfigResourceDetectorConfig(
            attributes=dict(tracing.resource)
        )
        config.resource_detectors.append(_extension("resource_detectors.static_config", attributes))
    return config
