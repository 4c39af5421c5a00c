"""What may be set: the frozen model of every global key, with its default and meaning.

Attribute names are Pomerium's keys. Empty text means "not set"; durations are seconds; secrets are
`SecretStr`. Nothing here reads a file: `load.py` makes a `Settings`, `resolve.py` what follows.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from gatehouse.common.config.choices import (
    ACCESS_LOG_FIELDS,
    AUTHORIZE_LOG_FIELDS,
    LOG_LEVELS,
    RUNTIME_FLAGS,
    CodecType,
    CookieSameSite,
    DNSLookupFamily,
    HeadersWithUnderscoresAction,
    MTLSEnforcement,
    PathWithEscapedSlashesAction,
    StorageType,
)
from gatehouse.common.config.route_model import (
    BearerTokenFormat,
    CircuitBreakerThresholds,
    HealthCheck,
    JWTIssuerFormat,
    LoadBalancingPolicy,
    Model,
    OutlierDetection,
    Redirect,
    Route,
)
from gatehouse.common.config.values import (
    URL,
    ClaimsHeaders,
    Duration,
    EnumOf,
    FilePath,
    FilePathList,
    Flag,
    FlagMap,
    FromJSON,
    Headers,
    HostPort,
    HttpURL,
    ListFromJSON,
    Number,
    Secret,
    SecretList,
    Text,
    TextList,
    TextMap,
    UInt32,
    UInt64,
    one_of,
    problem,
    shorten,
)

__all__ = [
    "ACCESS_LOG_FIELDS",
    "AUTHORIZE_LOG_FIELDS",
    "LOG_LEVELS",
    "RUNTIME_FLAGS",
    "BearerTokenFormat",
    "CertificateFiles",
    "CircuitBreakerThresholds",
    "CodecType",
    "CookieSameSite",
    "DNSLookupFamily",
    "DownstreamMTLS",
    "HeadersWithUnderscoresAction",
    "HealthCheck",
    "JWTIssuerFormat",
    "LoadBalancingPolicy",
    "MTLSEnforcement",
    "OutlierDetection",
    "PathWithEscapedSlashesAction",
    "Redirect",
    "Route",
    "Settings",
    "StorageType",
]

NO_SECRET: Final = SecretStr("")


class CertificateFiles(Model):
    """One element of `certificates`."""

    cert: FilePath = Field("", description="PEM file of a certificate chain")
    key: FilePath = Field("", description="PEM file of its key")


class DownstreamMTLS(Model):
    """`downstream_mtls`: client certificates."""

    ca: Text = Field("", description="base64 PEM of the authorities that sign clients")
    ca_file: FilePath = Field("", description="PEM file of the same; not both")
    crl: Text = Field("", description="base64 PEM of revocation lists")
    crl_file: FilePath = Field("", description="PEM file of the same; not both")
    enforcement: Annotated[MTLSEnforcement, EnumOf()] = Field(
        MTLSEnforcement.POLICY_WITH_DEFAULT_DENY, description="who refuses clients without one"
    )
    match_subject_alt_names: Annotated[tuple[dict[str, Text], ...], ListFromJSON] = Field(
        (), description="one-key maps: dns, email, ip_address, uri or user_principal_name: regex"
    )
    max_verify_depth: UInt32 = Field(1, description="longest chain; 0 is no limit")


class TrustedIssuer(Model):
    """One value of `identity_providers`."""

    issuer: Text = Field("", description="iss of its tokens, https or kubernetes:///")
    jwks_url: URL = Field("", description="its keys, when discovery is not wanted")
    supported_algs: TextList = Field((), description="signature algorithms; RS256 ES256 EdDSA")
    audiences: TextList = Field((), description="aud values accepted, at least one")


class ClusterNode(Model):
    """One element of `databroker_cluster_nodes`."""

    id: Text = Field("", description="node name")
    grpc_address: URL = Field("", description="URL of its gRPC server")
    raft_address: HostPort = Field("", description="host:port of its raft transport")


class RateLimitEntry(Model):
    """One element of `ssh_rls_additional_entries`."""

    key: Text = Field("", description="descriptor key")
    value: Text = Field("", description="descriptor value")


class BlobStorage(Model):
    """`blob_storage`."""

    bucket_uri: Text = Field("", description="where recordings go")
    managed_prefix: Text = Field("", description="prefix inside the bucket")


def _log_level(value: object) -> object:
    if value == "":
        return "info"
    if isinstance(value, str) and value in LOG_LEVELS:
        return value
    raise problem(f"unknown level {shorten(str(value))}", one_of(str(value), LOG_LEVELS))


def _same_site(value: object) -> object:
    text = value.lower() if isinstance(value, str) else value
    if isinstance(text, str) and text in {str(member) for member in CookieSameSite}:
        return text
    raise problem(f"unknown cookie_same_site {shorten(str(value))}", "strict, lax or none")


def _exactly(members: type[enum.StrEnum], what: str) -> BeforeValidator:
    def check(value: object) -> object:
        if isinstance(value, str) and value in {str(member) for member in members}:
            return value
        allowed = [str(member) for member in members]
        raise problem(f"unknown {what} {shorten(str(value))}", one_of(str(value), allowed))

    return BeforeValidator(check)


def _over_defaults(flags: dict[str, bool]) -> dict[str, bool]:
    return {**RUNTIME_FLAGS, **flags}


LogLevel = Annotated[str, BeforeValidator(_log_level)]


class Settings(Model):
    """Every global key. Made by `load.load_settings`."""

    # Which services, and what they share
    services: Text = Field(
        "all", description="all, or a comma list of proxy, authorize, authenticate, databroker"
    )
    installation_id: Text = Field("", description="label in telemetry")
    shared_secret: Secret = Field(
        NO_SECRET,
        description="base64 of 32 bytes all services share; `current,previous` while rotating",
    )
    shared_secret_file: FilePath = Field(
        "", description="file that holds shared_secret; wins over it"
    )
    cookie_secret: Secret = Field(
        NO_SECRET,
        description="base64 of 32 bytes that encrypt sign-ins under way",
    )
    cookie_secret_file: FilePath = Field(
        "", description="file that holds cookie_secret; wins over it"
    )
    signing_key: Secret = Field(
        NO_SECRET,
        description="PEM, or its base64, of keys for identity assertions; the first signs",
    )
    signing_key_file: FilePath = Field("", description="file that holds signing_key; wins over it")
    authenticate_service_url: HttpURL = Field("", description="where users sign in")
    authenticate_internal_service_url: HttpURL = Field(
        "", description="authenticate_service_url as other services reach it"
    )
    signout_redirect_url: HttpURL = Field("", description="where users go after signing out")
    authorize_service_url: HttpURL = Field("", description="URL of authorize")
    authorize_service_urls: TextList = Field((), description="further URLs of authorize")
    authorize_internal_service_url: HttpURL = Field(
        "", description="dialled instead of the other authorize URLs"
    )
    databroker_service_url: HttpURL = Field("", description="URL of databroker")
    databroker_service_urls: TextList = Field((), description="further URLs of databroker")
    databroker_internal_service_url: HttpURL = Field(
        "", description="further host databroker answers to, where gRPC shares `address`"
    )
    override_certificate_name: Text = Field(
        "", description="name that internal TLS certificates must carry"
    )
    certificate_authority: Text = Field("", description="base64 PEM of further trusted roots")
    certificate_authority_file: FilePath = Field(
        "", description="PEM file of further trusted roots; both forms are used"
    )
    tls_derive: Text = Field("", description="domain whose certificate the shared secret makes")
    google_cloud_serverless_authentication_service_account: Secret = Field(
        NO_SECRET, description="Google service account, JSON or its base64"
    )

    # Identity provider and identity headers
    idp_provider: Text = Field(
        "",
        description="kind of provider: oidc, apple, auth0, azure, cognito, github, gitlab, google, "
        "okta, onelogin, ping",
    )
    idp_provider_url: HttpURL = Field(
        "", description="issuer URL; needed by auth0, cognito, oidc, okta and ping"
    )
    idp_client_id: Text = Field("", description="our client id at the provider")
    idp_client_secret: Secret = Field(NO_SECRET, description="our client secret at the provider")
    idp_client_secret_file: FilePath = Field(
        "", description="file that holds idp_client_secret; wins over it"
    )
    idp_scopes: TextList = Field((), description="scopes asked for; the provider's when empty")
    idp_request_params: TextMap | None = Field(None, description="extra sign-in parameters")
    idp_pkce: Flag = Field(
        default=True, description="PKCE with S256; off only for a provider that cannot bear it"
    )
    idp_access_token_allowed_audiences: TextList | None = Field(
        None, description="audiences accepted in access tokens"
    )
    bearer_token_format: Annotated[BearerTokenFormat, EnumOf("BEARER_TOKEN_FORMAT")] = Field(
        BearerTokenFormat.DEFAULT, description="how bearer tokens are read"
    )
    identity_providers: Annotated[dict[str, TrustedIssuer], FromJSON] = Field(
        {}, description="issuers whose JWTs are accepted as bearer tokens"
    )
    programmatic_redirect_domain_whitelist: TextList = Field(
        ("localhost",), description="hosts that programmatic sign-in may return to"
    )
    pass_identity_headers: Flag | None = Field(None, description="what routes without this key do")
    jwt_claims_headers: ClaimsHeaders = Field({}, description="claims sent upstream as headers")
    jwt_issuer_format: Annotated[JWTIssuerFormat, EnumOf("Issuer")] = Field(
        JWTIssuerFormat.HOST_ONLY, description="form of iss in the assertion"
    )
    jwt_groups_filter: TextList = Field(
        (), description="ids of directory groups told in the assertion, with those of the route"
    )

    # Directory of users and groups
    directory_source: Text = Field(
        "", description="file or https URL of users and groups, JSON or CSV; see docs/directory.md"
    )
    directory_source_token: Secret = Field(
        NO_SECRET, description="bearer token sent to the URL in directory_source"
    )
    directory_refresh_interval: Duration = Field(
        600.0, description="time between readings of directory_source, 10s to 24h"
    )
    directory_max_shrink: Number = Field(
        0.5, description="share of users and groups that one reading may remove; 1 is no limit"
    )

    # Cookies
    cookie_name: Text = Field("_pomerium", description="name of the session cookie")
    cookie_domain: Text = Field(
        "", description="Domain of the session cookie; its host alone when empty"
    )
    cookie_audience: Flag = Field(
        default=False,
        description="session cookies count only on the hosts they were made for; no cookie_domain",
    )
    cookie_http_only: Flag = Field(default=True, description="hide the cookie from scripts")
    cookie_expire: Duration = Field(
        14 * 3600.0, description="life of the session cookie and of the session"
    )
    sign_in_timeout: Duration = Field(
        900.0, description="how long a person may take at the identity provider, 1m to 1h"
    )
    cookie_same_site: Annotated[CookieSameSite, BeforeValidator(_same_site)] = Field(
        CookieSameSite.UNSET, description="SameSite of the cookie"
    )

    # Listeners
    address: Text = Field(":443", description="main listener, host:port")
    insecure_server: Flag = Field(default=False, description="no TLS on the main listener")
    http_redirect_addr: Text = Field("", description="listener that redirects http to https")
    use_proxy_protocol: Flag = Field(
        default=False, description="demand the PROXY protocol of who connects"
    )
    grpc_address: Text = Field(
        ":443",
        description="gRPC listener, host:port; that of `address`: reached through Envoy under the "
        "hosts of the service URLs",
    )
    grpc_insecure: Flag | None = Field(None, description="no TLS on the gRPC listener")
    grpc_client_timeout: Duration = Field(10.0, description="time for one authorization check")
    grpc_client_ca: Text = Field(
        "", description="base64 PEM of who signs the certificates of gRPC clients"
    )
    grpc_client_ca_file: FilePath = Field("", description="PEM file of the same; not both")
    grpc_client_certificate_file: FilePath = Field("", description="PEM file our gRPC clients show")
    grpc_client_key_file: FilePath = Field("", description="PEM file of its key")
    envoy_bind_config_source_address: Text = Field("", description="source address upstream")
    envoy_bind_config_freebind: Flag | None = Field(None, description="IP_FREEBIND upstream")
    health_check_addr: HostPort = Field("127.0.0.1:28080", description="HTTP probes")
    health_check_systemd_disabled: Flag = Field(default=False, description="do not notify systemd")
    shutdown_grace: Duration = Field(25.0, description="time from SIGTERM to exit")
    shutdown_delay: Duration = Field(
        5.0, description="of which it goes on serving until all see it is not ready; half at most"
    )

    # HTTP
    codec_type: Annotated[CodecType, EnumOf("CODEC_TYPE")] = Field(
        CodecType.AUTO, description="protocols of the main listener"
    )
    skip_xff_append: Flag = Field(default=False, description="leave X-Forwarded-For as it came")
    xff_num_trusted_hops: UInt32 = Field(0, description="trusted proxies in front")
    normalize_path: Flag = Field(default=True, description="resolve dot segments")
    merge_slashes: Flag = Field(default=True, description="merge repeated slashes")
    path_with_escaped_slashes_action: Annotated[
        PathWithEscapedSlashesAction, EnumOf("PATH_WITH_ESCAPED_SLASHES_ACTION")
    ] = Field(PathWithEscapedSlashesAction.REJECT_REQUEST, description="%2F and %5C in a path")
    headers_with_underscores_action: Annotated[
        HeadersWithUnderscoresAction, EnumOf("HEADERS_WITH_UNDERSCORES_ACTION")
    ] = Field(HeadersWithUnderscoresAction.REJECT_REQUEST, description="_ in a header name")
    allow_upgrades: TextList = Field((), description="upgrade tokens that routes let through")
    set_response_headers: Headers | None = Field(
        None,
        description="response headers everywhere, instead of the built-in three; `disable` clears",
    )
    timeout_read: Duration = Field(
        30.0, description="time to receive a whole request; 0s is no limit"
    )
    timeout_write: Duration = Field(
        0.0, description="time for a request from first to last byte; 0s is no limit"
    )
    timeout_idle: Duration = Field(
        300.0, description="time without data on a connection or stream; 0s is no limit"
    )
    default_upstream_timeout: Duration = Field(30.0, description="timeout of routes that set none")

    # Certificates
    certificate: Text = Field("", description="base64 PEM of a certificate chain")
    certificate_key: Secret = Field(NO_SECRET, description="base64 PEM of the key of certificate")
    certificate_file: FilePath = Field("", description="PEM file of a certificate chain")
    certificate_key_file: FilePath = Field(
        "", description="PEM file of the key of certificate_file"
    )
    certificates: Annotated[tuple[CertificateFiles, ...], ListFromJSON] = Field(
        (), description="further pairs of PEM files"
    )
    autocert: Flag = Field(default=False, description="obtain certificates by ACME")
    autocert_email: Text = Field("", description="ACME account contact")
    autocert_ca: URL = Field("", description="ACME directory URL")
    autocert_use_staging: Flag = Field(default=False, description="use the staging directory")
    autocert_must_staple: Flag = Field(
        default=False, description="ask for must-staple certificates"
    )
    autocert_eab_key_id: Text = Field("", description="external account binding: key id")
    autocert_eab_mac_key: Secret = Field(
        NO_SECRET, description="external account binding: key, base64url"
    )
    autocert_dir: FilePath = Field("", description="where certificates are kept")
    autocert_trusted_ca: Text = Field(
        "", description="base64 PEM of the ACME directory's authority"
    )
    autocert_trusted_ca_file: FilePath = Field(
        "", description="PEM file of the ACME directory's authority; not both"
    )
    downstream_mtls: DownstreamMTLS = Field(DownstreamMTLS(), description="client certificates")

    # Our own pages
    primary_color: Text = Field("", description="colour of buttons and marks, such as #6F43E7")
    secondary_color: Text = Field("", description="the same on dark pages, such as #49AAA1")
    darkmode_primary_color: Text = Field("", description="wins over secondary_color on dark pages")
    darkmode_secondary_color: Text = Field("", description="second colour of dark pages")
    logo_url: Text = Field("", description="https or data:image/... URL of the logo")
    favicon_url: Text = Field("", description="https or data:image/... URL of the icon")
    error_message_first_paragraph: Text = Field(
        "", description="what error pages say first, 2000 characters at most"
    )

    # Upstream defaults
    circuit_breaker_thresholds: Annotated[CircuitBreakerThresholds, FromJSON] | None = Field(
        None, description="limits towards every upstream"
    )
    dns_lookup_family: Annotated[
        DNSLookupFamily, _exactly(DNSLookupFamily, "dns_lookup_family")
    ] = Field(DNSLookupFamily.V4_PREFERRED, description="address families of upstreams")
    dns_refresh_rate: Duration | None = Field(None, description="time between look-ups, above 1ms")
    dns_failure_refresh_rate: Duration | None = Field(
        None, description="time to the next look-up after one that failed"
    )
    dns_query_timeout: Duration | None = Field(None, description="time for one query")
    dns_query_tries: UInt32 | None = Field(None, description="tries for one query")
    dns_udp_max_queries: UInt32 | None = Field(None, description="queries on one UDP socket")
    dns_use_tcp: Flag | None = Field(None, description="ask over TCP")
    dns_resolvers: TextList = Field((), description="udp://IP:port or tcp://IP:port")

    # Observability
    log_level: LogLevel = Field("info", description="our log level")
    proxy_log_level: Annotated[str, BeforeValidator(_log_level)] | None = Field(
        None, description="Envoy's log level; log_level when unset"
    )
    access_log_fields: TextList = Field(ACCESS_LOG_FIELDS, description="fields of access logs")
    authorize_log_fields: TextList = Field(
        AUTHORIZE_LOG_FIELDS, description="fields of decision logs"
    )
    metrics_address: HostPort = Field("", description="host:port of the metrics listener")
    metrics_basic_auth: Secret = Field(NO_SECRET, description="base64 of user:password")
    metrics_certificate: Text = Field(
        "", description="base64 PEM of the metrics listener's certificate"
    )
    metrics_certificate_file: FilePath = Field(
        "", description="PEM file of the same; the inline form wins"
    )
    metrics_certificate_key: Secret = Field(
        NO_SECRET, description="base64 PEM of the key of metrics_certificate"
    )
    metrics_certificate_key_file: FilePath = Field(
        "", description="PEM file of the same; the inline form wins"
    )
    metrics_client_ca: Text = Field(
        "", description="base64 PEM of who signs the certificates of metrics readers"
    )
    metrics_client_ca_file: FilePath = Field(
        "", description="PEM file of the same; the inline form wins"
    )
    otel_traces_exporter: Text = Field("", description="otlp, or none")
    otel_traces_sampler_arg: Number = Field(1.0, description="share of requests traced, 0 to 1")
    otel_exporter_otlp_endpoint: URL = Field("", description="OTLP endpoint")
    otel_exporter_otlp_traces_endpoint: URL = Field("", description="OTLP endpoint of traces; wins")
    otel_exporter_otlp_protocol: Text = Field("", description="grpc or http/protobuf")
    otel_exporter_otlp_traces_protocol: Text = Field("", description="protocol of traces; wins")
    otel_exporter_otlp_headers: Secret = Field(
        NO_SECRET, description="K=V list sent to the endpoint"
    )
    otel_exporter_otlp_traces_headers: Secret = Field(
        NO_SECRET, description="K=V list sent with traces; wins"
    )
    otel_exporter_otlp_timeout: UInt32 | None = Field(
        None, description="milliseconds for one export"
    )
    otel_exporter_otlp_traces_timeout: UInt32 | None = Field(
        None, description="milliseconds for one export of traces; wins"
    )
    otel_bsp_schedule_delay: UInt32 = Field(
        5000, description="milliseconds between batches, at least 100"
    )
    otel_bsp_max_export_batch_size: UInt32 = Field(512, description="spans in a batch, at least 1")
    otel_resource_attributes: TextList = Field(
        (), description="K=V list that describes this process"
    )
    otel_log_level: Text = Field("", description="log level of tracing")
    otel_attribute_value_length_limit: UInt32 | None = Field(
        None, description="characters of an attribute value, 64 to 32768"
    )
    debug_address: HostPort = Field("", description="host:port of the debug listener")
    envoy_admin_address: HostPort = Field("", description="host:port of Envoy's admin interface")
    envoy_admin_access_log_path: Text = Field(
        "/dev/null", description="access log of Envoy's admin interface"
    )
    envoy_admin_profile_path: Text = Field(
        "/dev/null", description="profiles of Envoy's admin interface"
    )
    envoy_dynamic_extensions: TextList = Field((), description="ignored here")

    # Databroker
    databroker_storage_type: Annotated[
        StorageType, _exactly(StorageType, "databroker storage backend type")
    ] = Field(
        StorageType.MEMORY, description="where records are kept; memory and file serve one instance"
    )
    databroker_storage_connection_string: Secret = Field(
        NO_SECRET, description="file:///directory, or a PostgreSQL DSN"
    )
    databroker_storage_connection_string_file: FilePath = Field(
        "", description="file that holds the connection string; wins over it"
    )
    databroker_cluster_nodes: Annotated[tuple[ClusterNode, ...], ListFromJSON] = Field(
        (), description="nodes of a raft cluster"
    )
    databroker_cluster_node_id: Text = Field("", description="this node")
    databroker_cluster_leader_id: Text = Field("", description="the fixed leader")
    databroker_raft_bind_address: HostPort = Field("", description="raft transport")
    max_staleness: Duration = Field(
        300.0,
        description="how old authorize's copy may be while databroker is away; 0s is no limit",
    )

    # SSH, MCP, recordings
    ssh_address: HostPort = Field("", description="SSH listener")
    ssh_host_key_files: FilePathList = Field((), description="host key files")
    ssh_host_keys: SecretList = Field((), description="host keys, PEM")
    ssh_user_ca_key_file: FilePath = Field(
        "", description="file that holds ssh_user_ca_key; wins over it"
    )
    ssh_user_ca_key: Secret = Field(
        NO_SECRET, description="PEM of the key that signs user certificates"
    )
    ssh_rls_enabled: Flag = Field(default=False, description="network rate limits")
    ssh_rls_additional_entries: Annotated[tuple[RateLimitEntry, ...], ListFromJSON] = Field(
        (), description="descriptor entries"
    )
    mcp_allowed_client_id_domains: TextList = Field((), description="domains of client metadata")
    mcp_allowed_as_metadata_domains: TextList = Field((), description="domains of AS metadata")
    session_recording_concurrency: UInt32 = Field(8, description="parallel recordings")
    blob_storage: Annotated[BlobStorage, FromJSON] | None = Field(None, description="recordings")
    auto_apply_changesets: Flag | None = Field(None, description="managed mode only")
    pomerium_zero_token: Secret = Field(NO_SECRET, description="managed mode only")

    # Ours
    decision_cache: Flag = Field(default=True, description="remember allowed decisions in Envoy")
    decision_cache_bytes: UInt64 = Field(64 << 20, description="for each Envoy worker")
    authorize_workers: UInt32 = Field(1, description="authorize processes on one address")
    explain_policy: Annotated[Any, FromJSON] = Field(
        None, description="who may ask at /.pomerium/explain why others are let in; a policy"
    )

    runtime_flags: Annotated[FlagMap, AfterValidator(_over_defaults)] = Field(
        dict(RUNTIME_FLAGS), description="switches by name"
    )
    policy: Annotated[tuple[Route, ...], ListFromJSON] = Field(
        (), description="routes under their old key; they come before those of routes"
    )
    routes: Annotated[tuple[Route, ...], ListFromJSON] = Field((), description="the routes")

    def without_routes(self) -> Settings:
        """The global keys alone."""
        return self.model_copy(update={"policy": (), "routes": ()})

    @property
    def all_routes(self) -> tuple[Route, ...]:
        """`policy`, then `routes`, each in file order."""
        return self.policy + self.routes
