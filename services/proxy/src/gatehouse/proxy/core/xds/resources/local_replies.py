"""What a client reads when Envoy itself refuses or fails a request.

The form follows what the client accepts, noted by the request guard script as dynamic metadata;
requests refused before any script runs get the HTML page. Answers made by authorize, configured
direct responses and redirects are left as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import base_pb2, substitution_format_string_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.access_loggers.filters.cel.v3 import cel_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)
from envoy.type.matcher.v3 import metadata_pb2, string_pb2, value_pb2
from google.protobuf.struct_pb2 import Struct

from gatehouse.proxy.core.xds.resource import packed
from gatehouse.proxy.core.xds.resources.lua_scripts import (
    LOCAL_REPLY_TYPE,
    LUA_NAMESPACE,
    PLAINLY_JSON,
)
from gatehouse.proxy.core.xds.resources.response_headers import header_options
from gatehouse.proxy.core.xds.resources.scalars import boolean

# Not ours to dress up: decisions by authorize, and responses that a route configures.
_LEFT_ALONE: Final = "response.code_details in ['ext_authz_denied', 'direct_response']"

# Envoy's response flags to gRPC codes (grpc/status.h); every other flag is UNAVAILABLE.
_GRPC_CODES: Final[Mapping[int, tuple[str, ...]]] = {
    1: ("LR", "OM", "UC", "UR"),
    2: ("DPE", "RFCF"),
    3: ("IH",),
    4: ("DT", "SI", "UMSDR", "UT"),
    5: ("NR",),
    8: ("RL",),
    13: ("RLSE", "UPE"),
}
_GRPC_UNAVAILABLE: Final = 14


def local_replies(
    error_page: str, page_headers: Mapping[str, str], response_headers: Mapping[str, str]
) -> http_connection_manager_pb2.LocalReplyConfig:
    """The mappers in order; the first that matches shapes the reply.

    `page_headers` guard the page, and go with its other forms too; `response_headers` win.
    """
    guards = {name: value for name, value in page_headers.items() if name not in response_headers}
    added = [*header_options(guards), *header_options(response_headers)]
    mappers = [
        _json_mapper(_of_type("plain"), "text/plain; charset=UTF-8"),
        *(_grpc_mapper(code, flags) for code, flags in sorted(_GRPC_CODES.items())),
        _grpc_mapper(_GRPC_UNAVAILABLE, ()),
        _json_mapper(_any(_of_type("json"), _accepts_only_json()), "application/json"),
        http_connection_manager_pb2.ResponseMapper(
            filter=_ours(),
            body_format_override=substitution_format_string_pb2.SubstitutionFormatString(
                text_format_source=base_pb2.DataSource(inline_string=error_page),
                content_type="text/html; charset=UTF-8",
            ),
        ),
    ]
    for mapper in mappers:
        mapper.headers_to_add.extend(added)
    return http_connection_manager_pb2.LocalReplyConfig(mappers=mappers)


def _json_mapper(
    asked_for: accesslog_pb2.AccessLogFilter, content_type: str
) -> http_connection_manager_pb2.ResponseMapper:
    body = Struct()
    body.update(
        {
            "requestId": "%STREAM_ID%",
            "status": "%RESPONSE_CODE%",
            "statusText": "%RESPONSE_CODE_DETAILS%",
        }
    )
    return http_connection_manager_pb2.ResponseMapper(
        filter=_all(asked_for, _ours()),
        body_format_override=substitution_format_string_pb2.SubstitutionFormatString(
            json_format=body, content_type=content_type
        ),
    )


def _grpc_mapper(code: int, flags: tuple[str, ...]) -> http_connection_manager_pb2.ResponseMapper:
    """Envoy makes a trailers-only reply of it; the body becomes the status message."""
    filters = [_of_type("grpc"), _ours()]
    if flags:
        filters.append(
            accesslog_pb2.AccessLogFilter(
                response_flag_filter=accesslog_pb2.ResponseFlagFilter(flags=flags)
            )
        )
    return http_connection_manager_pb2.ResponseMapper(
        filter=_all(*filters),
        body_format_override=substitution_format_string_pb2.SubstitutionFormatString(
            text_format_source=base_pb2.DataSource(inline_string="%RESPONSE_CODE_DETAILS%")
        ),
        headers_to_add=[
            base_pb2.HeaderValueOption(
                header=base_pb2.HeaderValue(key="grpc-status", value=str(code)),
                append_action=base_pb2.HeaderValueOption.ADD_IF_ABSENT,
            )
        ],
    )


def _ours() -> accesslog_pb2.AccessLogFilter:
    return accesslog_pb2.AccessLogFilter(
        extension_filter=accesslog_pb2.ExtensionFilter(
            name="envoy.access_loggers.extension_filters.cel",
            typed_config=packed(cel_pb2.ExpressionFilter(expression=f"!({_LEFT_ALONE})")),
        )
    )


def _of_type(reply_type: str) -> accesslog_pb2.AccessLogFilter:
    return accesslog_pb2.AccessLogFilter(
        metadata_filter=accesslog_pb2.MetadataFilter(
            matcher=metadata_pb2.MetadataMatcher(
                filter=LUA_NAMESPACE,
                path=[metadata_pb2.MetadataMatcher.PathSegment(key=LOCAL_REPLY_TYPE)],
                value=value_pb2.ValueMatcher(
                    string_match=string_pb2.StringMatcher(exact=reply_type)
                ),
            ),
            match_if_key_not_found=boolean(value=False),
        )
    )


def _accepts_only_json() -> accesslog_pb2.AccessLogFilter:
    """What most programs send; the script makes no note of it, which each request would pay for."""
    return accesslog_pb2.AccessLogFilter(
        header_filter=accesslog_pb2.HeaderFilter(
            header=route_components_pb2.HeaderMatcher(
                name="accept", string_match=string_pb2.StringMatcher(exact=PLAINLY_JSON)
            )
        )
    )


def _any(*filters: accesslog_pb2.AccessLogFilter) -> accesslog_pb2.AccessLogFilter:
    return accesslog_pb2.AccessLogFilter(or_filter=accesslog_pb2.OrFilter(filters=filters))


def _all(*filters: accesslog_pb2.AccessLogFilter) -> accesslog_pb2.AccessLogFilter:
    return accesslog_pb2.AccessLogFilter(and_filter=accesslog_pb2.AndFilter(filters=filters))
