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
from envoy.extensions.common.matching.v3 import extension_matcher_pb2
from envoy.extensions.filters.common.matcher.action.v3 import skip_action_pb2
from envoy.extensions.filters.http.composite.v3 import composite_pb2
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2
from envoy.extensions.filters.http.ext_proc.v3 import ext_proc_pb2, processing_mode_pb2
from envoy.extensions.filters.http.header_mutation.v3 import header_mutation_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.http.early_header_mutation.header_mutation.v3 import (
    header_mutation_pb2 as early_pb2,
)
from envoy.extensions.matching.common_inputs.network.v3 import network_inputs_pb2
from envoy.extensions.matching.input_matchers.metadata.v3 import (
    metadata_pb2 as metadata_matcher_pb2,
)
from envoy.extensions.request_id.uuid.v3 import uuid_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.type.matcher.v3 import value_pb2
from google.protobuf.message import Message
from xds.core.v3 import extension_pb2 as xds_extension_pb2
from xds.type.matcher.v3 import matcher_pb2

from gatehouse.common.config.model import (
    CodecType,
    HeadersWithUnderscoresAction,
    PathWithEscapedSlashesAction,
    Settings,
)
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.extauthz_context import (
    AUTHORIZE_CLUSTER,
    BRIEF_FIELD,
    CLIENT_ASSERTION_NAMESPACE,
    CLIENT_CERTIFICATE_NAMESPACE,
    REMEMBERED_FIELD,
    REMEMBERED_NAMESPACE,
    STREAM_NAMESPACE,
)
from gatehouse.proxy.core.open_streams import ROUTE_NAME, SOURCE_ADDRESS
from gatehouse.proxy.core.xds.resource import packed
from gatehouse.proxy.core.xds.resources.access_log import access_logs, shows_query
from gatehouse.proxy.core.xds.resources.environment import SnapshotEnvironment
from gatehouse.proxy.core.xds.resources.internal_clusters import STREAM_GUARD
from gatehouse.proxy.core.xds.resources.local_replies import local_replies
from gatehouse.proxy.core.xds.resources.lua_scripts import (
    CLEAN_UPSTREAM,
    LOGGED_QUERY,
    LUA_NAMESPACE,
    REQUEST_GUARD,
    remembering_guard,
)
from gatehouse.proxy.core.xds.resources.protocols import bounded_http2, preserve_case
from gatehouse.proxy.core.xds.resources.response_headers import global_headers
from gatehouse.proxy.core.xds.resources.routes import EXT_AUTHZ, EXT_PROC
from gatehouse.proxy.core.xds.resources.scalars import boolean, seconds, uint32
from gatehouse.proxy.core.xds.resources.tracing import hcm_tracing
from gatehouse.proxy.core.xds.resources.virtual_hosts import ROUTE_CONFIGURATION_NAME

STAT_PREFIX: Final = "ingress"

_MAX_HEADERS_KB: Final = 128
_MAX_HEADERS: Final = 1000
_MAX_CHECK_ANSWER: Final = 1 << 20
_UNSET_CHECK_TIMEOUT_S: Final = 30.0
_GUARD_TIMEOUT_S: Final = 10.0
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
        http_filters=http_filters(resolved, environment, quic=quic),
        access_log=access_logs(resolved),
        local_reply_config=local_replies(
            environment.error_page, environment.error_page_headers, global_headers(resolved)
        ),
        request_timeout=seconds(settings.timeout_read),
        stream_idle_timeout=seconds(settings.timeout_idle),
        common_http_protocol_options=protocol_pb2.HttpProtocolOptions(
            idle_timeout=seconds(settings.timeout_idle),
            headers_with_underscores_action=_UNDERSCORES[settings.headers_with_underscores_action],
            max_headers_count=uint32(_MAX_HEADERS),
        ),
        http_protocol_options=preserve_case(),
        http2_protocol_options=bounded_http2(allow_connect=True),
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
    if resolved.tracing is not None:
        manager.tracing.CopyFrom(hcm_tracing(resolved.tracing))
    if quic:
        manager.codec_type = hcm_pb2.HttpConnectionManager.HTTP3
        manager.http3_protocol_options.allow_extended_connect = True
    return manager


def http_filters(
    resolved: ResolvedSettings, environment: SnapshotEnvironment, *, quic: bool
) -> list[hcm_pb2.HttpFilter]:
    """The filters in order: guard, decide, clean, forward."""
    guard = (
        remembering_guard(environment.decision_table, environment.decision_counters)
        if resolved.settings.decision_cache
        else REQUEST_GUARD
    )
    filters: list[tuple[str, Message]] = [
        (LUA_NAMESPACE, _script("request-guard", guard)),
        (EXT_PROC, _stream_guard()),
        (EXT_AUTHZ, _decision(resolved.settings)),
        (LUA_NAMESPACE, _script("clean-upstream", CLEAN_UPSTREAM)),
    ]
    if shows_query(resolved.settings):  # before the decision: of refused requests too
        filters.insert(1, (LUA_NAMESPACE, _script("logged-query", LOGGED_QUERY)))
    if resolved.settings.codec_type is CodecType.HTTP3 and not quic:
        filters.append(("envoy.filters.http.header_mutation", _alt_svc(resolved.address.port)))
    filters.append(("envoy.filters.http.router", router_pb2.Router()))
    return [
        # Routes whose streams stay open switch the guard on, others do without even the filter.
        hcm_pb2.HttpFilter(name=name, typed_config=packed(config), disabled=name == EXT_PROC)
        for name, config in filters
    ]


def _script(name: str, source: str) -> lua_pb2.Lua:
    # The route is chosen once, before the decision: a script's change must not choose again.
    return lua_pb2.Lua(
        default_source_code=base_pb2.DataSource(inline_string=source),
        stat_prefix=name,
        clear_route_cache=boolean(value=False),
    )


def _decision(settings: Settings) -> Message:
    """ext_authz; where decisions are remembered, only for requests that none of them allows.

    `filter_enabled_metadata` would switch it off too, but an ext_authz that does nothing costs a
    quarter of a request (measured): here there is none. Whatever goes wrong in the matching, the
    script after it lets nothing pass without an allow. The filter has ext_authz's name, by which
    Envoy finds what the routes say of it.
    """
    ext_authz: Message = _ext_authz(settings)
    if not settings.decision_cache:
        return ext_authz
    return _unless(REMEMBERED_NAMESPACE, REMEMBERED_FIELD, EXT_AUTHZ, ext_authz)


def _stream_guard() -> Message:
    """Whoever watches connections that stay open is told of this one and of its end (design D5).

    The request's headers are sent, before ours are added and credentials taken out, and its
    response's trailers are waited for: so the stream lasts as long as the connection. Without an
    answer the request fails.
    """
    mode = processing_mode_pb2.ProcessingMode
    watched = ext_proc_pb2.ExternalProcessor(
        grpc_service=grpc_service_pb2.GrpcService(
            envoy_grpc=grpc_service_pb2.GrpcService.EnvoyGrpc(cluster_name=STREAM_GUARD)
        ),
        processing_mode=mode(
            request_header_mode=mode.SEND,
            response_header_mode=mode.SKIP,
            request_body_mode=mode.NONE,
            response_body_mode=mode.NONE,
            request_trailer_mode=mode.SKIP,
            response_trailer_mode=mode.SEND,
        ),
        request_attributes=[SOURCE_ADDRESS, ROUTE_NAME],
        message_timeout=seconds(_GUARD_TIMEOUT_S),
        failure_mode_allow=False,
        status_on_error={"code": 503},
        stat_prefix="stream-guard",
        mutation_rules=mutation_rules_pb2.HeaderMutationRules(disallow_all=boolean(value=True)),
        route_cache_action=ext_proc_pb2.ExternalProcessor.RETAIN,
        metadata_options=ext_proc_pb2.MetadataOptions(
            forwarding_namespaces=ext_proc_pb2.MetadataOptions.MetadataNamespaces(
                untyped=[CLIENT_CERTIFICATE_NAMESPACE, CLIENT_ASSERTION_NAMESPACE]
            )
        ),
    )
    return _unless(STREAM_NAMESPACE, BRIEF_FIELD, EXT_PROC, watched)


def _unless(namespace: str, field: str, name: str, config: Message) -> Message:
    """The filter `name`, for requests whose dynamic metadata does not have this field as true."""
    run = composite_pb2.ExecuteFilterAction(
        typed_config=extension_pb2.TypedExtensionConfig(name=name, typed_config=packed(config))
    )
    is_so = matcher_pb2.Matcher.MatcherList.Predicate(
        single_predicate=matcher_pb2.Matcher.MatcherList.Predicate.SinglePredicate(
            input=_extension(
                "envoy.matching.inputs.dynamic_metadata",
                network_inputs_pb2.DynamicMetadataInput(
                    filter=namespace,
                    path=[network_inputs_pb2.DynamicMetadataInput.PathSegment(key=field)],
                ),
            ),
            custom_match=_extension(
                "envoy.matching.matchers.metadata_matcher",
                metadata_matcher_pb2.Metadata(value=value_pb2.ValueMatcher(bool_match=True)),
            ),
        )
    )
    matching: Message = extension_matcher_pb2.ExtensionWithMatcher(
        extension_config=extension_pb2.TypedExtensionConfig(
            name="envoy.filters.http.composite", typed_config=packed(composite_pb2.Composite())
        ),
        xds_matcher=matcher_pb2.Matcher(
            matcher_list=matcher_pb2.Matcher.MatcherList(
                matchers=[
                    matcher_pb2.Matcher.MatcherList.FieldMatcher(
                        predicate=is_so,
                        on_match=_action("skip", skip_action_pb2.SkipFilter()),
                    )
                ]
            ),
            on_no_match=_action("run", run),
        ),
    )
    return matching


def _action(name: str, action: Message) -> matcher_pb2.Matcher.OnMatch:
    return matcher_pb2.Matcher.OnMatch(action=_extension(name, action))


def _extension(name: str, config: Message) -> xds_extension_pb2.TypedExtensionConfig:
    return xds_extension_pb2.TypedExtensionConfig(name=name, typed_config=packed(config))


def _ext_authz(settings: Settings) -> ext_authz_pb2.ExtAuthz:
    timeout_s = settings.grpc_client_timeout or _UNSET_CHECK_TIMEOUT_S
    retries = base_pb2.RetryPolicy(
        # A Check changes nothing, so one that was cut or got no answer may be asked again. A server
        # that stops cancels what it received and had not begun.
        retry_on="connect-failure,refused-stream,unavailable,cancelled,reset-before-request,reset",
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
