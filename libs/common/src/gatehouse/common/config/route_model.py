"""What a route may say: the frozen model of one element of `routes` (or the legacy `policy`).

Attribute names are Pomerium's keys, but `from`, which is `from_` here. Empty text means "not set".
Checks that need several keys are in `route_checks.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gatehouse.common.config.values import (
    URL,
    Duration,
    EnumOf,
    FilePath,
    Flag,
    FromJSON,
    HeaderNames,
    Headers,
    Int32,
    ListFromJSON,
    Percent,
    Port,
    ProtoDuration,
    Secret,
    Text,
    TextList,
    TextMap,
    TextOrList,
    UInt32,
    UInt64,
    decode_json,
    kind,
    problem,
)

_MOST_NAMED: Final = 3


class Model(BaseModel):
    """Base of every settings model: frozen, closed, null means "not set"."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        populate_by_name=True,
        validate_default=False,
        ser_json_bytes="base64",
    )

    @model_validator(mode="before")
    @classmethod
    def _shape(cls, data: Any) -> Any:
        if isinstance(data, BaseModel):
            return data
        names = [info.alias or name for name, info in cls.model_fields.items()][:_MOST_NAMED]
        want = f"a map with keys such as {', '.join(names)}" if names else "an empty map"
        data = decode_json(data, want)
        if not isinstance(data, Mapping):
            raise problem(f"is a {kind(data)}", want)
        return {key: value for key, value in data.items() if value is not None}


class LoadBalancingPolicy(enum.StrEnum):
    """`Cluster.lb_policy`."""

    ROUND_ROBIN = "ROUND_ROBIN"
    LEAST_REQUEST = "LEAST_REQUEST"
    RING_HASH = "RING_HASH"
    RANDOM = "RANDOM"
    MAGLEV = "MAGLEV"


class BearerTokenFormat(enum.StrEnum):
    """How authorize reads `Authorization: Bearer`."""

    DEFAULT = "default"
    IDP_ACCESS_TOKEN = "idp_access_token"  # noqa: S105
    IDP_IDENTITY_TOKEN = "idp_identity_token"  # noqa: S105
    JWT = "jwt"
    UNKNOWN = "unknown"


class JWTIssuerFormat(enum.StrEnum):
    """The `iss` claim of the identity assertion: the host alone, or `https://host/`."""

    HOST_ONLY = "hostOnly"
    URI = "uri"


class Redirect(Model):
    """`redirect`: answer with a redirect (Envoy RedirectAction)."""

    https_redirect: Flag | None = Field(None, description="change the scheme to https")
    scheme_redirect: Text | None = Field(None, description="change the scheme to this")
    host_redirect: Text | None = Field(None, description="change the host to this")
    port_redirect: Port | None = Field(None, description="change the port to this")
    path_redirect: Text | None = Field(None, description="replace the whole path")
    prefix_rewrite: Text | None = Field(None, description="replace the matched prefix or path")
    response_code: Int32 | None = Field(None, description="301 (default), 302, 303, 307 or 308")
    strip_query: Flag | None = Field(None, description="drop the query string")


class DirectResponse(Model):
    """`response`: answer with a fixed status and body."""

    status: Int32 = Field(0, description="HTTP status, 200 to 599")
    body: Text = Field("", description="body text, at most 4096 bytes")


class RewriteHeader(Model):
    """One element of `rewrite_response_headers`."""

    header: Text = Field("", description="response header name")
    prefix: Text = Field("", description="what its value must start with")
    value: Text = Field("", description="what that start becomes")


class CircuitBreakerThresholds(Model):
    """`circuit_breaker_thresholds`, global or of a route."""

    max_connections: UInt32 | None = Field(None, description="connections to the upstream")
    max_pending_requests: UInt32 | None = Field(None, description="requests waiting for one")
    max_requests: UInt32 | None = Field(None, description="parallel requests")
    max_retries: UInt32 | None = Field(None, description="parallel retries")
    max_connection_pools: UInt32 | None = Field(None, description="connection pools")


class LeastRequestConfig(Model):
    """`least_request_lb_config`."""

    choice_count: UInt32 = Field(2, description="hosts compared for each request")


class RingHashConfig(Model):
    """`ring_hash_lb_config`."""

    minimum_ring_size: UInt64 | None = Field(None, description="smallest ring")
    maximum_ring_size: UInt64 | None = Field(None, description="largest ring")
    hash_function: Annotated[Text, AfterValidator(str.upper)] = Field(
        "", description="XX_HASH or MURMUR_HASH_2"
    )


class MaglevConfig(Model):
    """`maglev_lb_config`."""

    table_size: UInt64 | None = Field(None, description="size of the table, a prime")


class Payload(Model):
    """A byte string to send or expect: hex text or base64."""

    text: Text | None = Field(None, description="hex digits")
    binary: Text | None = Field(None, description="base64")


class StatusRange(Model):
    """HTTP statuses from `start` to `end`, `end` excluded."""

    start: Int32 = Field(0, description="first status")
    end: Int32 = Field(0, description="status after the last")


class HTTPHealthCheck(Model):
    """`http_health_check` of a health check."""

    host: Text = Field("", description="Host header; the cluster's name when empty")
    path: Text = Field("", description="path asked for")
    send: Payload | None = Field(None, description="refused: the check is a GET, without a body")
    receive: Annotated[tuple[Payload, ...], ListFromJSON] = Field(
        (), description="expected parts of the answer"
    )
    response_buffer_size: UInt64 | None = Field(None, description="bytes of the answer kept")
    request_headers_to_remove: HeaderNames = Field((), description="headers not sent")
    expected_statuses: Annotated[tuple[StatusRange, ...], ListFromJSON] = Field(
        (), description="statuses that count as healthy; 200 when empty"
    )
    retriable_statuses: Annotated[tuple[StatusRange, ...], ListFromJSON] = Field(
        (), description="statuses that are tried again before they count"
    )
    codec_client_type: Text = Field("", description="HTTP1 (default) or HTTP2")


class TCPHealthCheck(Model):
    """`tcp_health_check`; empty means that connecting is enough."""

    send: Payload | None = Field(None, description="bytes to send")
    receive: Annotated[tuple[Payload, ...], ListFromJSON] = Field((), description="bytes to expect")


class GRPCHealthCheck(Model):
    """`grpc_health_check`; the upstream must speak HTTP/2."""

    service_name: Text = Field("", description="service asked about")
    authority: Text = Field("", description=":authority of the call")


class HealthCheck(Model):
    """One element of `health_checks` (Envoy core.v3.HealthCheck)."""

    timeout: ProtoDuration | None = Field(None, description="time for one check; required")
    interval: ProtoDuration | None = Field(None, description="time between checks; required")
    initial_jitter: ProtoDuration | None = Field(None, description="random delay of the first")
    interval_jitter: ProtoDuration | None = Field(None, description="random extra delay")
    interval_jitter_percent: UInt32 | None = Field(
        None, description="random extra delay, percent of interval"
    )
    unhealthy_threshold: UInt32 | None = Field(None, description="failures until out; required")
    healthy_threshold: UInt32 | None = Field(None, description="successes until in; required")
    reuse_connection: Flag | None = Field(None, description="keep the connection")
    no_traffic_interval: ProtoDuration | None = Field(None, description="interval when unused")
    no_traffic_healthy_interval: ProtoDuration | None = Field(
        None, description="interval when unused and healthy"
    )
    unhealthy_interval: ProtoDuration | None = Field(None, description="interval while out")
    unhealthy_edge_interval: ProtoDuration | None = Field(
        None, description="interval after the first failure"
    )
    healthy_edge_interval: ProtoDuration | None = Field(
        None, description="interval after the first success"
    )
    always_log_health_check_failures: Flag | None = Field(None, description="log each failure")
    always_log_health_check_success: Flag | None = Field(None, description="log each success")
    transport_socket_match_criteria: dict[str, Any] | None = Field(
        None, description="which transport socket the check uses"
    )
    http_health_check: HTTPHealthCheck | None = Field(None, description="check by HTTP")
    tcp_health_check: TCPHealthCheck | None = Field(None, description="check by TCP")
    grpc_health_check: GRPCHealthCheck | None = Field(None, description="check by gRPC")


class OutlierDetection(Model):
    """`outlier_detection` (Envoy cluster.v3.OutlierDetection); empty means Envoy's defaults."""

    consecutive_5xx: UInt32 | None = Field(None, description="5xx in a row that eject a host")
    interval: ProtoDuration | None = Field(None, description="time between analyses")
    base_ejection_time: ProtoDuration | None = Field(None, description="shortest ejection")
    max_ejection_percent: Percent | None = Field(
        None, description="percent of hosts ejected at most"
    )
    enforcing_consecutive_5xx: Percent | None = Field(
        None, description="percent chance that consecutive_5xx ejects"
    )
    enforcing_success_rate: Percent | None = Field(
        None, description="percent chance that the success rate ejects"
    )
    success_rate_minimum_hosts: UInt32 | None = Field(
        None, description="hosts with enough requests before success rates count"
    )
    success_rate_request_volume: UInt32 | None = Field(
        None, description="requests a host needs for its success rate to count"
    )
    success_rate_stdev_factor: UInt32 | None = Field(
        None, description="deviations below the mean that eject, x 1000"
    )
    consecutive_gateway_failure: UInt32 | None = Field(None, description="502-504 in a row")
    enforcing_consecutive_gateway_failure: Percent | None = Field(
        None, description="percent chance that gateway failures eject"
    )
    split_external_local_origin_errors: Flag | None = Field(
        None, description="count connection failures apart"
    )
    consecutive_local_origin_failure: UInt32 | None = Field(
        None, description="connection failures in a row"
    )
    enforcing_consecutive_local_origin_failure: Percent | None = Field(
        None, description="percent chance that connection failures eject"
    )
    enforcing_local_origin_success_rate: Percent | None = Field(
        None, description="percent chance that the connection success rate ejects"
    )
    failure_percentage_threshold: Percent | None = Field(
        None, description="percent of failures that ejects a host"
    )
    enforcing_failure_percentage: Percent | None = Field(
        None, description="percent chance that the failure percentage ejects"
    )
    enforcing_failure_percentage_local_origin: Percent | None = Field(
        None, description="percent chance, for connection failures"
    )
    failure_percentage_minimum_hosts: UInt32 | None = Field(
        None, description="hosts with enough requests before percentages count"
    )
    failure_percentage_request_volume: UInt32 | None = Field(
        None, description="requests a host needs for its percentage to count"
    )
    max_ejection_time: ProtoDuration | None = Field(None, description="longest ejection")
    max_ejection_time_jitter: ProtoDuration | None = Field(
        None, description="random extra time of an ejection"
    )
    successful_active_health_check_uneject_host: Flag | None = Field(
        None, description="a good active check ends an ejection"
    )
    always_eject_one_host: Flag | None = Field(None, description="eject even the last host")


class OAuth2Endpoint(Model):
    """`mcp.server.upstream_oauth2.endpoint`."""

    auth_url: URL = Field("", description="authorization endpoint")
    token_url: URL = Field("", description="token endpoint")
    auth_style: Text = Field("", description="empty, header or params")


class UpstreamOAuth2(Model):
    """`mcp.server.upstream_oauth2`."""

    client_id: Text = Field("", description="OAuth client")
    client_secret: Secret | None = Field(None, description="secret of client_id")
    endpoint: OAuth2Endpoint = Field(OAuth2Endpoint(), description="its endpoints")
    scopes: TextList = Field((), description="scopes asked for")
    authorization_url_params: TextMap = Field({}, description="extra request parameters")


class MCPServer(Model):
    """`mcp.server`."""

    upstream_oauth2: UpstreamOAuth2 | None = Field(None, description="token for the upstream")
    max_request_bytes: UInt32 = Field(4096, description="body bytes shown to policy")
    path: Text = Field("/", description="path in the list of servers")
    authorization_server_url: URL = Field("", description="used when discovery fails")


class MCPClient(Model):
    """`mcp.client`, an empty map."""


class MCP(Model):
    """`mcp`: exactly one of server and client."""

    server: MCPServer | None = Field(None, description="the upstream is an MCP server")
    client: MCPClient | None = Field(None, description="the upstream is an MCP client app")


class UpstreamTunnel(Model):
    """`upstream_tunnel`."""

    ssh_policy: Any = Field(None, description="who may provide this route over SSH")
    ssh_policy_rego: TextList = Field((), description="not supported")


class SessionRecording(Model):
    """`session_recording`."""

    enabled: Flag = Field(default=False, description="record terminal sessions")


def _claims(value: Any) -> Any:
    value = decode_json(value, "a map of claim names to lists of values")
    if not isinstance(value, Mapping):
        raise problem(f"is a {kind(value)}", "a map of claim names to lists of values")
    return {str(name): values for name, values in value.items()}


Claims = Annotated[dict[str, Any], BeforeValidator(_claims)]


class SubPolicy(Model):
    """One element of `sub_policies`."""

    id: Text = Field("", description="identifier")
    name: Text = Field("", description="name for people")
    allowed_users: TextList = Field((), description="user ids or e-mail addresses")
    allowed_domains: TextList = Field((), description="e-mail domains")
    allowed_idp_claims: Claims = Field({}, description="claims of which one must match")
    rego: TextList = Field((), description="not supported")
    source_ppl: Text = Field("", description="policy language text")
    explanation: Text = Field("", description="shown with a refusal")
    remediation: Text = Field("", description="what the refused may do")


class Route(Model):
    """One route: what it matches, where it leads, who may use it."""

    name: Text = Field("", description="name for people and metrics")
    description: Text = Field("", description="shown in the routes portal")
    logo_url: Text = Field("", description="shown in the routes portal")

    from_: Text = Field("", alias="from", description="external URL; may hold * in the host")
    to: TextOrList = Field((), description="upstream URL or URLs, each with an optional ,weight")
    redirect: Redirect | None = Field(None, description="answer with a redirect")
    response: DirectResponse | None = Field(None, description="answer with fixed text")

    path: Text = Field("", description="match this path exactly")
    prefix: Text = Field("", description="match paths starting with this")
    regex: Text = Field("", description="match paths that this RE2 expression matches wholly")
    regex_priority_order: Int32 | None = Field(
        None, description="order among routes that the databroker holds; none in a file"
    )

    prefix_rewrite: Text = Field("", description="replaces the matched part of the path")
    regex_rewrite_pattern: Text = Field("", description="RE2 expression replaced in the path")
    regex_rewrite_substitution: Text = Field(
        "", description=r"what replaces it, with \1 for groups"
    )
    host_rewrite: Text = Field("", description="Host sent upstream")
    host_rewrite_header: Text = Field("", description="request header that holds that Host")
    host_path_regex_rewrite_pattern: Text = Field(
        "", description="RE2 expression over the path that yields the Host"
    )
    host_path_regex_rewrite_substitution: Text = Field(
        "", description=r"the Host made from it, with \1 for groups"
    )
    preserve_host_header: Flag = Field(
        default=False, description="send the Host that the client sent"
    )

    set_request_headers: Headers = Field({}, description="headers set on the way up")
    remove_request_headers: HeaderNames = Field((), description="headers removed on the way up")
    rewrite_response_headers: Annotated[tuple[RewriteHeader, ...], ListFromJSON] = Field(
        (), description="response headers whose start is replaced"
    )
    set_response_headers: Headers = Field({}, description="response headers set")
    pass_identity_headers: Flag | None = Field(None, description="send identity headers upstream")

    timeout: Duration | None = Field(None, description="time for the whole answer; 0s is no limit")
    idle_timeout: Duration | None = Field(None, description="time without data; 0s is no limit")
    allow_websockets: Flag = Field(default=False, description="let WebSocket upgrades through")
    allow_spdy: Flag = Field(default=False, description="let SPDY upgrades through")
    allow_upgrades: TextList | None = Field(None, description="upgrade tokens let through")

    tls_skip_verify: Flag = Field(default=False, description="accept any upstream certificate")
    tls_upstream_server_name: Text = Field("", description="name expected of the upstream")
    tls_server_name: Text = Field(
        "", description="older name of tls_upstream_server_name, which wins"
    )
    tls_downstream_server_name: Text = Field(
        "", description="a further host name that TLS clients of this route may ask for"
    )
    tls_custom_ca: Text = Field(
        "", description="base64 PEM of the upstream's authority, instead of all others"
    )
    tls_custom_ca_file: FilePath = Field("", description="PEM file of the same; wins")
    tls_client_cert: Text = Field(
        "", description="base64 PEM of the certificate shown to the upstream"
    )
    tls_client_cert_file: FilePath = Field(
        "", description="PEM file of the same; the inline pair wins"
    )
    tls_client_key: Secret | None = Field(
        None, description="base64 PEM of the key of tls_client_cert"
    )
    tls_client_key_file: FilePath = Field(
        "", description="PEM file of the key of tls_client_cert_file"
    )
    tls_downstream_client_ca: Text = Field(
        "", description="base64 PEM of who signs this route's clients"
    )
    tls_downstream_client_ca_file: FilePath = Field("", description="PEM file of the same; wins")
    tls_upstream_allow_renegotiation: Flag = Field(
        default=False, description="let a TLS 1.2 upstream renegotiate"
    )

    load_balancing_policy: Annotated[LoadBalancingPolicy, EnumOf("LOAD_BALANCING_POLICY")] = Field(
        LoadBalancingPolicy.ROUND_ROBIN, description="how upstreams share the requests"
    )
    least_request_lb_config: LeastRequestConfig | None = Field(
        None, description="options of LEAST_REQUEST"
    )
    ring_hash_lb_config: RingHashConfig | None = Field(None, description="options of RING_HASH")
    maglev_lb_config: MaglevConfig | None = Field(None, description="options of MAGLEV")
    connect_chaining: Flag = Field(
        default=False, description="forward CONNECT to an http(s) upstream"
    )
    health_checks: Annotated[tuple[HealthCheck, ...], ListFromJSON] = Field(
        (), description="active health checks"
    )
    outlier_detection: OutlierDetection | None = Field(None, description="passive health checks")
    healthy_panic_threshold: Percent | None = Field(
        None, description="percent of healthy hosts below which all are used; 0 is never"
    )
    circuit_breaker_thresholds: Annotated[CircuitBreakerThresholds, FromJSON] | None = Field(
        None, description="limits towards the upstream"
    )

    policy: Any = Field(None, description="who may use the route, in the policy language (PPL)")
    allow_public_unauthenticated_access: Flag = Field(default=False, description="everybody may")
    allow_any_authenticated_user: Flag = Field(default=False, description="everybody signed in may")
    allowed_users: TextList = Field((), description="user ids or e-mail addresses that may")
    allowed_domains: TextList = Field((), description="e-mail domains that may")
    allowed_idp_claims: Claims = Field({}, description="claims of which one suffices")
    cors_allow_preflight: Flag = Field(default=False, description="let CORS preflights through")
    sub_policies: Annotated[tuple[SubPolicy, ...], ListFromJSON] = Field(
        (), description="policies attached by the API"
    )

    idp_client_id: Text = Field("", description="OAuth client of this route")
    idp_client_secret: Secret | None = Field(None, description="secret of idp_client_id")
    idp_access_token_allowed_audiences: TextList | None = Field(
        None, description="audiences accepted in access tokens"
    )
    identity_providers: TextList | None = Field(None, description="issuers for jwt bearer tokens")
    bearer_token_format: Annotated[BearerTokenFormat, EnumOf("BEARER_TOKEN_FORMAT")] | None = Field(
        None, description="how a bearer token is read"
    )
    jwt_issuer_format: Annotated[JWTIssuerFormat, EnumOf("Issuer")] | None = Field(
        None, description="form of iss in the assertion"
    )
    jwt_groups_filter: TextList = Field(
        (), description="further ids of directory groups told in the assertion"
    )
    depends_on: TextList = Field((), description="hosts signed in together with this one")
    show_error_details: Flag = Field(default=False, description="explain refusals on the page")

    kubernetes_service_account_token: Secret | None = Field(
        None, description="token sent to a Kubernetes API, with Impersonate headers"
    )
    kubernetes_service_account_token_file: FilePath = Field(
        "", description="file that holds the token; not both"
    )
    enable_google_cloud_serverless_authentication: Flag = Field(
        default=False, description="send a Google ID token upstream"
    )
    mcp: MCP | None = Field(None, description="the upstream speaks MCP")
    upstream_tunnel: UpstreamTunnel | None = Field(None, description="reverse tunnel over SSH")
    session_recording: SessionRecording | None = Field(None, description="SSH recording")
