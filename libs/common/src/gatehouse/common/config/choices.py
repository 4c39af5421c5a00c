"""Which words some global keys take: enumerations, log levels, log fields, runtime flags."""

from __future__ import annotations

import enum
from typing import Final


class CodecType(enum.StrEnum):
    """Protocols of the main listener."""

    AUTO = "auto"
    HTTP1 = "http1"
    HTTP2 = "http2"
    HTTP3 = "http3"


class PathWithEscapedSlashesAction(enum.StrEnum):
    """What becomes of %2F and %5C in a path."""

    KEEP_UNCHANGED = "keep_unchanged"
    REJECT_REQUEST = "reject_request"
    UNESCAPE_AND_REDIRECT = "unescape_and_redirect"
    UNESCAPE_AND_FORWARD = "unescape_and_forward"


class HeadersWithUnderscoresAction(enum.StrEnum):
    """What becomes of request headers with an underscore in their name."""

    ALLOW = "allow"
    REJECT_REQUEST = "reject_request"
    DROP_HEADER = "drop_header"


class MTLSEnforcement(enum.StrEnum):
    """Who refuses a client without a valid certificate."""

    POLICY_WITH_DEFAULT_DENY = "policy_with_default_deny"
    POLICY = "policy"
    REJECT_CONNECTION = "reject_connection"


class CookieSameSite(enum.StrEnum):
    """SameSite of our cookies; empty leaves it to the browser."""

    UNSET = ""
    LAX = "lax"
    STRICT = "strict"
    NONE = "none"


class DNSLookupFamily(enum.StrEnum):
    """Envoy's dns_lookup_family."""

    AUTO = "AUTO"
    V4_ONLY = "V4_ONLY"
    V6_ONLY = "V6_ONLY"
    V4_PREFERRED = "V4_PREFERRED"
    ALL = "ALL"


class StorageType(enum.StrEnum):
    """Where the databroker keeps records."""

    MEMORY = "memory"
    FILE = "file"
    POSTGRES = "postgres"


LOG_LEVELS: Final = (
    *("trace", "debug", "info", "warn", "warning", "error"),
    *("critical", "fatal", "panic", "off", "none", "disabled"),
)

ACCESS_LOG_FIELDS: Final = (
    *("upstream-cluster", "method", "authority", "path", "user-agent", "referer"),
    *("forwarded-for", "request-id", "duration", "size", "response-code", "response-code-details"),
)

AUTHORIZE_LOG_FIELDS: Final = (
    *("request-id", "check-request-id", "method", "path", "host", "ip", "session-id"),
    *("impersonate-session-id", "impersonate-user-id", "impersonate-email"),
    *("removed-groups-count", "service-account-id", "user", "email"),
    *("envoy-route-checksum", "envoy-route-id", "route-checksum", "route-id"),
)

FLAGS: Final[dict[str, tuple[bool, str]]] = {
    "add_extra_metrics_labels": (True, "host and installation labels on metrics"),
    "allow_any_sign_out_redirect_uri": (False, "sign-out may lead to any site"),
    "authorize_use_synced_data": (True, "no effect: authorize always decides from its copy"),
    "config_hot_reload": (True, "watch the files; read at start"),
    "debug_admin_endpoints": (False, "admin actions on the debug listener"),
    "envoy_resource_manager": (True, "shed load near the memory limit"),
    "grpc_databroker_keepalive": (True, "keepalive towards databroker"),
    "match_any_incoming_port": (True, "a `from` without port answers on every port"),
    "mcp": (True, "Model Context Protocol"),
    "mcp_dynamic_client_registration": (False, "register with MCP upstreams"),
    "pomerium_jwt_endpoint": (False, "the old /.pomerium/jwt"),
    "refresh_session_at_id_token_expiration": (True, "refresh also when the ID token ends"),
    "routes_portal": (True, "the page /.pomerium/routes"),
    "set_envoy_concurrency_to_go_max_procs": (True, "one Envoy worker for each usable CPU"),
    "ssh_allow_direct_tcpip": (False, "direct-tcpip channels"),
    "ssh_routes_portal": (False, "list of routes over SSH"),
    "ssh_upstream_tunnel": (False, "reverse tunnels over SSH"),
}
"""Each flag with its default and what it does when true."""

RUNTIME_FLAGS: Final[dict[str, bool]] = {name: default for name, (default, _) in FLAGS.items()}
