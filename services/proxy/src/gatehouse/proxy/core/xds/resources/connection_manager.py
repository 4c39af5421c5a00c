"""How Envoy reads requests, and through which filters they go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from envoy.config.common.mutation_rules.v3 import mutation_rules_pb2
from envoy.config.core.v3 import (
    base_pb2,
    config_source_pb2,
    extension_pb2,
    grpc_service_pb2,
    protocol_pb2,
)
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2
from envoy.extensions.filters.http.header_mutation.v3 import header_mutation_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.http.early_header_mutation.header_mutation.v3 import (
    header_mutation_pb2 as early_pb2,
)
from envoy.extensions.request_id.uuid.v3 import uuid_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from google.protobuf.message import Message

from gatehouse.common.config.model import (
    CodecType,
    HeadersWithUnderscoresAction,
    PathWithEscapedSlashesAction,
    Settings,
)
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.extauthz_context import (
    AUTHORIZE_CLUSTER,
    CLIENT_ASSERTION_NAMESPACE,
    CLIENT_CERTIFICATE_NAMESPACE,
)
from gatehouse.proxy.core.xds.resource import packed
from gatehouse.proxy.core.xds.resources.access_log import access_logs
from gatehouse.proxy.core.xds.resources.environment import SnapshotEnvironment
from gatehouse.proxy.core.xds.resources.local_replies import local_replies
from gatehouse.proxy.core.xds.resources.lua_scripts import (
    CLEAN_UPSTREAM,
    LUA_NAMESPACE,
    REQUEST_GUARD,
)
from gatehouse.proxy.core.xds.resources.protocols import preserve_case
from gatehouse.proxy.core.xds.resources.response_headers import global_headers
from gatehouse.proxy.core.xds.resources.routes import EXT_AUTHZ
from gatehouse.proxy.core.xds.resources.scalars import boolean, seconds, uint32
from gatehouse.proxy.core.xds.resources.virtual_hosts import ROUTE_CONFIGURATION_NAME

STAT_PREFIX: Final = "ingress"

_MAX_HEADERS_KB: Final = 128
_MAX_HEADERS: Final = 1000
_MAX_CHECK_ANSWER: Final = 1 << 20
_UNSET_CHECK_TIMEOUT_S: Final = 30.0
_CHECK_RETRIES: Final = 2  # so the time for a check is enough for three that stay silent

_CODECS: Final = {
    CodecType.AUTO: hcm_pb2.HttpConnectionManager.AUTO,
    CodecType.HTTP1: hcm_pb2.HttpConnectionManager.HTTP1,
    CodecType.HTTP2: hcm_pb2.HttpConnectionManager.HTTP2,
    CodecType.HTTP3: hcm_pb2.HttpConnectionManager.AUTO,
}
_UNDERSCORES: Final = {
    HeadersWithUnderscoresAction.ALLOW: protocol_pb2.HttpProtocolOptions.ALLOW,
    HeadersWithUnderscoresAction.REJECT_REQUEST: protocol_pb2.HttpProtocolOptions.REJECT_REQUEST,
    HeadersWithUnderscoresAction.DROP_HEADER: protocol_pb2.HttpProtocolOptions.DROP_HEADER,
}
_ESCAPED_SLASHES: Final = {
    PathWithEscapedSlashesAction.KEEP_UNCHANGED: hcm_pb2.HttpConnectionManager.KEEP_UNCHANGED,
    PathWithEscapedSlashesAction.REJECT_REQUEST: hcm_pb2.HttpConnectionManager.REJECT_REQUEST,
    PathWithEscapedSlashesAction.UNESCAPE_AND_REDIRECT: (
        hcm_pb2.HttpConnectionManager.UNESCAPE_AND_REDIRECT
    ),
    PathWithEscapedSlashesAction.UNESCAPE_AND_FORWARD: (
        hcm_pb2.HttpConnectionManager.UNESCAPE_AND_FORWARD
    ),
}
# A query parameter joins the trace of a redirect chain; without it the client's own header stays.
_TRACEPARENT: Final = (
    '%COALESCE({"operators":[{"command":"QUERY_PARAM","param":"pomerium_traceparent"},'
    '{"command":"REQ","param":"traceparent"}]})%'
)


def connection_manager(
    resolved: ResolvedSettings, environment: SnapshotEnvironment, *, quic: bool = False
) -> hcm_pb2.HttpConnectionManager:
    """The manager of the public listeners.

    `internal_address_config` stays unset on purpose: no client address counts as internal, so that
    x-envoy-* headers are removed from all of them.
    """
    settings = resolved.settings
    manager = hcm_pb2.HttpConnectionManager(
        stat_prefix=STAT_PREFIX,
        codec_type=_CODECS[settings.codec_type],
        rds=hcm_pb2.Rds(
            route_config_name=ROUTE_CONFIGURATION_NAME,
            config_source=config_source_pb2.ConfigSource(
                ads=config_source_pb2.AggregatedConfigSource(),
                resource_api_version=config_source_pb2.V3,
            ),
        ),
        http_filters=http_filters(resolved, quic=quic),
        access_log=access_logs(settings),
        local_reply_config=local_replies(environment.error_page, global_headers(resolved)),
        request_timeout=seconds(settings.timeout_read),
        stream_idle_timeout=seconds(settings.timeout_idle),
        common_http_protocol_options=protocol_pb2.HttpProtocolOptions(
            idle_timeout=seconds(settings.timeout_idle),
            headers_with_underscores_action=_UNDERSCORES[settings.headers_with_underscores_action],
            max_headers_count=uint32(_MAX_HEADERS),
        ),
        http_protocol_options=preserve_case(),
        http2_protocol_options=protocol_pb2.Http2ProtocolOptions(allow_connect=True),
        max_request_headers_kb=uint32(_MAX_HEADERS_KB),
        use_remote_address=boolean(value=True),
        xff_num_trusted_hops=settings.xff_num_trusted_hops,
        skip_xff_append=settings.skip_xff_append,
        strip_trailing_host_dot=True,
        normalize_path=boolean(settings.normalize_path),
        merge_slashes=settings.merge_slashes,
        path_with_escaped_slashes_action=_ESCAPED_SLASHES[
            settings.path_with_escaped_slashes_action
        ],
        always_set_request_id_in_response=True,
        request_id_extension=hcm_pb2.RequestIDExtension(
            typed_config=packed(uuid_pb2.UuidRequestIdConfig())
        ),
        early_header_mutation_extensions=[_early_mutation()],
    )
    if settings.timeout_write > 0:
        manager.common_http_protocol_options.max_stream_duration.CopyFrom(
            seconds(settings.timeout_write)
        )
    if quic:
        manager.codec_type = hcm_pb2.HttpConnectionManager.HTTP3
        manager.http3_protocol_options.allow_extended_connect = True
    return manager


def http_filters(resolved: ResolvedSettings, *, quic: bool) -> list[hcm_pb2.HttpFilter]:
    """The filters in order: guard, decide, clean, forward."""
    filters: list[tuple[str, Message]] = [
        (LUA_NAMESPACE, _script("request-guard", REQUEST_GUARD)),
        (EXT_AUTHZ, _ext_authz(resolved.settings)),
        (LUA_NAMESPACE, _script("clean-upstream", CLEAN_UPSTREAM)),
    ]
    if resolved.settings.codec_type is CodecType.HTTP3 and not quic:
        filters.append(("envoy.filters.http.header_mutation", _alt_svc(resolved.address.port)))
    filters.append(("envoy.filters.http.router", router_pb2.Router()))
    return [hcm_pb2.HttpFilter(name=name, typed_config=packed(config)) for name, config in filters]


def _script(name: str, source: str) -> lua_pb2.Lua:
    # The route is chosen once, before the decision: a script's change must not choose again.
    return lua_pb2.Lua(
        default_source_code=base_pb2.DataSource(inline_string=source),
        stat_prefix=name,
        clear_route_cache=boolean(value=False),
    )


def _ext_authz(settings: Settings) -> ext_authz_pb2.ExtAuthz:
    timeout_s = settings.grpc_client_timeout or _UNSET_CHECK_TIMEOUT_S
    retries = base_pb2.RetryPolicy(
        # A Check changes nothing, so one that was cut or got no answer may be asked again.
        retry_on="connect-failure,refused-stream,unavailable,reset-before-request,reset",
        num_retries=uint32(_CHECK_RETRIES),
        # For gRPC services Envoy takes `max_interval` for the timeout of each try as well. With it
        # as short as a back-off is, any check that had to wait a moment became a 503.
        retry_back_off={
            "base_interval": seconds(0.025),
            "max_interval": seconds(timeout_s / (_CHECK_RETRIES + 1)),
        },
        retry_host_predicate=[
            base_pb2.RetryPolicy.RetryHostPredicate(
                name="envoy.retry_host_predicates.previous_hosts",
                typed_config=packed(previous_hosts_pb2.PreviousHostsPredicate()),
            )
        ],
        host_selection_retry_max_attempts=5,
    )
    return ext_authz_pb2.ExtAuthz(
        transport_api_version=config_source_pb2.V3,
        grpc_service=grpc_service_pb2.GrpcService(
            envoy_grpc=grpc_service_pb2.GrpcService.EnvoyGrpc(
                cluster_name=AUTHORIZE_CLUSTER,
                max_receive_message_length=uint32(_MAX_CHECK_ANSWER),
            ),
            timeout=seconds(timeout_s),
            retry_policy=retries,
        ),
        failure_mode_allow=False,
        status_on_error={"code": 503},
        validate_mutations=True,
        metadata_context_namespaces=[CLIENT_CERTIFICATE_NAMESPACE, CLIENT_ASSERTION_NAMESPACE],
    )


def _alt_svc(port: int) -> header_mutation_pb2.HeaderMutation:
    return header_mutation_pb2.HeaderMutation(
        mutations=header_mutation_pb2.Mutations(
            response_mutations=[_set("alt-svc", f'h3=":{port}"; ma=86400')]
        )
    )


def _early_mutation() -> extension_pb2.TypedExtensionConfig:
    """Before routing: only authorize may set these two, and a trace goes on over redirects."""
    mutations: Iterable[mutation_rules_pb2.HeaderMutation] = (
        mutation_rules_pb2.HeaderMutation(remove="x-pomerium-set-cookie"),
        mutation_rules_pb2.HeaderMutation(remove="x-pomerium-routing-key"),
        _set("traceparent", _TRACEPARENT),
    )
    return extension_pb2.TypedExtensionConfig(
        name="envoy.http.early_header_mutation.header_mutation",
        typed_config=packed(early_pb2.HeaderMutation(mutations=mutations)),
    )


def _set(name: str, value: str) -> mutation_rules_pb2.HeaderMutation:
    return mutation_rules_pb2.HeaderMutation(
        append=base_pb2.HeaderValueOption(
            header=base_pb2.HeaderValue(key=name, value=value),
            append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
        )
    )
