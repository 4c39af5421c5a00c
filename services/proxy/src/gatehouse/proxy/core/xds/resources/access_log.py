"""What Envoy writes about each request (observability, access log).

Envoy writes the lines itself, as JSON on its standard output (design D10).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import extension_pb2, substitution_format_string_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.access_loggers.filters.cel.v3 import cel_pb2
from envoy.extensions.access_loggers.stream.v3 import stream_pb2
from envoy.extensions.formatter.req_without_query.v3 import req_without_query_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2
from google.protobuf.struct_pb2 import Struct

from gatehouse.common.config.log_fields import secret_header
from gatehouse.common.config.model import Settings
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.extauthz_context import (
    DECISION_NAMESPACE,
    REMEMBERED_FIELD,
    REMEMBERED_NAMESPACE,
)
from gatehouse.common.observability.redaction import REDACTED
from gatehouse.proxy.core.xds.resource import packed
from gatehouse.proxy.core.xds.resources.lua_scripts import (
    ACCESS_LOG_NAMESPACE,
    LUA_NAMESPACE,
    ROUTE_ID,
)
from gatehouse.proxy.core.xds.resources.upstream_clusters import CLUSTER_METADATA

_INFO: Final = frozenset({"trace", "debug", "info"})
_DEBUG: Final = frozenset({"trace", "debug"})
_PROBE_PATHS: Final = r"/(ping|healthz)(\?.*)?"
_HEADERS_PREFIX: Final = "headers."
_QUERY: Final = "query"

_FIELDS: Final[Mapping[str, Any]] = {
    "authority": "%REQ(X-ENVOY-ORIGINAL-HOST?:AUTHORITY)%",
    "duration": "%DURATION%",
    "forwarded-for": "%REQ(X-FORWARDED-FOR)%",
    "method": "%REQ(:METHOD)%",
    "path": "%PATH(NQ:PATH)%",
    "referer": "%REQ_WITHOUT_QUERY(REFERER)%",
    "request-id": "%REQ(X-REQUEST-ID)%",
    "response-code": "%RESPONSE_CODE%",
    "response-code-details": "%RESPONSE_CODE_DETAILS%",
    "size": "%BYTES_SENT%",
    "upstream-cluster": "%UPSTREAM_CLUSTER_RAW%",
    "user-agent": "%REQ(USER-AGENT)%",
    "cluster-stat-name": f"%METADATA(CLUSTER:{CLUSTER_METADATA}:stat_name)%",
    "ip": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    # Envoy's own command would show credentials: the script has taken them out.
    _QUERY: f"%DYNAMIC_METADATA({ACCESS_LOG_NAMESPACE}:query)%",
    "client-certificate": {
        "issuer": "%DOWNSTREAM_PEER_ISSUER%",
        "subject": "%DOWNSTREAM_PEER_SUBJECT%",
        "subjectAltName": {
            "dns": "%DOWNSTREAM_PEER_DNS_SAN%",
            "uri": "%DOWNSTREAM_PEER_URI_SAN%",
        },
    },
}
# From the decision: who made the request, and by which route. Always written.
_DECISION: Final = {
    **{name: f"%DYNAMIC_METADATA({DECISION_NAMESPACE}:{name})%" for name in ("session-id", "user")},
    "route-id": f"%METADATA(ROUTE:{LUA_NAMESPACE}:{ROUTE_ID})%",
    "remembered": f"%DYNAMIC_METADATA({REMEMBERED_NAMESPACE}:{REMEMBERED_FIELD})%",
}


def log_level(settings: Settings) -> str:
    """The level of the data plane."""
    return settings.proxy_log_level or settings.log_level


def shows_query(settings: Settings) -> bool:
    """True when some access log holds the query, which a script makes fit to be shown."""
    return _QUERY in settings.access_log_fields and log_level(settings) in _INFO


def access_logs(resolved: ResolvedSettings) -> list[accesslog_pb2.AccessLog]:
    """The logs of the main connection manager: requests, and at debug level the probes too."""
    level = log_level(resolved.settings)
    if level not in _INFO:
        return []
    logs = [_log(_fields(resolved, "info"), _probe_filter(inverted=True))]
    if level in _DEBUG:
        logs.append(_log(_fields(resolved, "debug"), _probe_filter(inverted=False)))
    return logs


def connection_failure_log() -> accesslog_pb2.AccessLog:
    """Handshakes that failed, where the listener itself verifies client certificates."""
    fields = {
        **_constants("info", "listener connection failure"),
        "client-certificate": _FIELDS["client-certificate"],
        "ip": _FIELDS["ip"],
        "tls-sni-hostname": "%REQUESTED_SERVER_NAME%",
        "downstream-transport-failure-reason": "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%",
    }
    failed = accesslog_pb2.AccessLogFilter(
        extension_filter=accesslog_pb2.ExtensionFilter(
            name="envoy.access_loggers.extension_filters.cel",
            typed_config=packed(
                cel_pb2.ExpressionFilter(expression="connection.transport_failure_reason != ''")
            ),
        )
    )
    return _log(fields, failed)


def _fields(resolved: ResolvedSettings, level: str) -> dict[str, Any]:
    fields = _constants(level, "http-request")
    headers: dict[str, str] = {}
    routes = [route.settings for route in resolved.routes]
    for name in resolved.settings.access_log_fields:
        if name.startswith(_HEADERS_PREFIX):
            header = name.removeprefix(_HEADERS_PREFIX)
            if secret_header(header, routes):
                headers[header] = REDACTED
            else:
                # What follows a question mark may be a query, with credentials in it.
                headers[header] = f"%REQ_WITHOUT_QUERY({header.upper()})%"
        elif name in _FIELDS:
            fields[name] = _FIELDS[name]
    if headers:
        fields["headers"] = headers
    return fields | _DECISION


def _constants(level: str, message: str) -> dict[str, Any]:
    return {
        "level": level,
        "time": "%START_TIME(%Y-%m-%dT%H:%M:%SZ)%",
        "message": message,
        "service": "envoy",
    }


def _log(
    fields: Mapping[str, Any], chosen: accesslog_pb2.AccessLogFilter
) -> accesslog_pb2.AccessLog:
    json_format = Struct()
    json_format.update(fields)
    log_format = substitution_format_string_pb2.SubstitutionFormatString(
        json_format=json_format,
        formatters=[
            extension_pb2.TypedExtensionConfig(
                name="envoy.formatter.req_without_query",
                typed_config=packed(req_without_query_pb2.ReqWithoutQuery()),
            ),
        ],
    )
    return accesslog_pb2.AccessLog(
        name="envoy.access_loggers.stdout",
        filter=chosen,
        typed_config=packed(stream_pb2.StdoutAccessLog(log_format=log_format)),
    )


def _probe_filter(*, inverted: bool) -> accesslog_pb2.AccessLogFilter:
    return accesslog_pb2.AccessLogFilter(
        header_filter=accesslog_pb2.HeaderFilter(
            header=route_components_pb2.HeaderMatcher(
                name=":path",
                string_match=string_pb2.StringMatcher(
                    safe_regex=regex_pb2.RegexMatcher(regex=_PROBE_PATHS)
                ),
                invert_match=inverted,
                treat_missing_header_as_empty=True,
            )
        )
    )
