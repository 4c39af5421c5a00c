"""Settings after files were read and secrets decoded: what services are built from.

Made by `resolve.py` only. Everything is immutable; a change is a new object.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from gatehouse.common.config.issues import Issue
from gatehouse.common.config.model import MTLSEnforcement, Route, Settings
from gatehouse.common.ids import RouteId
from gatehouse.common.jose.keys import SigningKey
from gatehouse.common.policy.ast import Policy
from gatehouse.common.policy.legacy import with_client_certificate_rule


class ServiceName(enum.StrEnum):
    """The four services; `services: all` is their set."""

    PROXY = "proxy"
    AUTHORIZE = "authorize"
    AUTHENTICATE = "authenticate"
    DATABROKER = "databroker"


@dataclass(frozen=True, slots=True)
class CertificatePair:
    """A server certificate chain and its key, PEM."""

    certificate_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)
    source: str  # the key it came from, for messages


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """host:port; an empty host means all addresses."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class MetricsListener:
    """Where this process's metrics are read, and by whom."""

    address: ListenAddress
    basic_auth: bytes | None = field(repr=False)  # user:password; None: nobody is asked
    certificate: CertificatePair | None  # None: plain text
    client_ca_pem: bytes | None  # set: readers must show a certificate


@dataclass(frozen=True, slots=True)
class Collector:
    """Where spans are sent (OTLP). Its headers may hold credentials."""

    url: str
    is_grpc: bool  # else protobuf over HTTP, and `url` is the whole one
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Tracing:
    """Which requests are traced, and how spans are sent."""

    collector: Collector
    sampled_share: float  # 0 to 1, of requests that bring no trace of their own
    resource: Mapping[str, str]
    batch_delay_s: float
    batch_spans: int
    value_limit: int  # characters of an attribute's value
    log_level: str = "info"  # of what the export has to say


@dataclass(frozen=True, slots=True)
class IdentityProviderSettings:
    """One identity provider configuration, as a route or the global keys give it."""

    id: str  # the idp id that binds sessions to it (spec: authentication, keys and primitives)
    type: str  # oidc, google, ...
    url: str
    client_id: str
    client_secret: str
    scopes: tuple[str, ...]
    request_params: Mapping[str, str] | None  # None: the provider's defaults

    def __repr__(self) -> str:
        return f"IdentityProviderSettings(id={self.id!r}, type={self.type!r}, url={self.url!r})"


@dataclass(frozen=True, slots=True)
class FromURL:
    """The parsed `from` of a route."""

    scheme: str  # https, http, tcp+https, udp+https, ssh
    host: str  # lower case, no port, may hold "*"
    port: int | None  # None: the scheme's default
    connect_targets: tuple[str, ...] = ()  # host:port of each path segment (tcp, udp)

    @property
    def is_wildcard(self) -> bool:
        """True when the host holds a star."""
        return "*" in self.host


@dataclass(frozen=True, slots=True)
class Upstream:
    """One parsed `to` URL."""

    scheme: str  # http, https, h2c, tcp, udp, unix, https+unix, ssh
    host: str  # without port and brackets; "" for unix kinds
    port: int  # 0 for unix kinds
    hostname: str  # host[:port] as written: Endpoint.hostname
    path: str  # decoded path; for unix kinds the socket path
    weight: int | None


@dataclass(frozen=True, slots=True)
class ResolvedRoute:
    """A route with its identity, its policy tree and the contents of its files."""

    id: RouteId  # 16 hex digits of xxh3, or the configured id
    checksum: int  # uint64 over the route, its policy and the settings that shape a decision
    settings: Route
    from_url: FromURL
    upstreams: tuple[Upstream, ...]
    policy: Policy  # legacy allow keys and `policy`, as one rule tree
    identity_provider: IdentityProviderSettings | None
    tls_custom_ca_pem: bytes | None = None
    tls_client_certificate: CertificatePair | None = None
    tls_downstream_client_ca_pem: bytes | None = None
    kubernetes_service_account_token: str | None = None
    stat_name: str = ""  # what its statistics are called, instead of its name; from records only
    is_stored: bool = False  # made in the databroker: what is wrong with it concerns it alone

    def __repr__(self) -> str:
        return f"ResolvedRoute(id={self.id!r}, from={self.settings.from_!r})"


def adds_certificate_rule(settings: Settings, authorities: Iterable[bytes | str | None]) -> bool:
    """True when every route's policy ends with the default client-certificate rule.

    `authorities`: who signs client certificates, as PEM or as written, for the configuration and
    for each of its routes; None and "" where none is named.
    """
    if settings.downstream_mtls.enforcement is MTLSEnforcement.POLICY:
        return False
    return any(authority is not None and authority != "" for authority in authorities)


@dataclass(frozen=True, slots=True)
class ResolvedSettings:
    """Everything a process needs to know, checked as a whole."""

    settings: Settings
    services: frozenset[ServiceName]
    shared_secrets: tuple[bytes, ...]  # the first signs, all verify; 32 bytes each
    cookie_secrets: tuple[bytes, ...]  # likewise
    signing_keys: tuple[SigningKey, ...]  # the first signs, all are published
    identity_provider: IdentityProviderSettings | None
    certificates: tuple[CertificatePair, ...]  # configured ones, in order of preference
    fallback_certificate: CertificatePair | None  # catch-all made from the shared secret
    ca_bundle_pem: bytes | None  # extra roots (inline + file + derived); None: system roots only
    databroker_connection: str  # "" for memory
    routes: tuple[ResolvedRoute, ...]
    address: ListenAddress
    grpc_address: ListenAddress
    grpc_insecure: bool
    authenticate_url: str  # "" when none is set
    authenticate_internal_url: str  # the external one when not set apart
    authorize_urls: tuple[str, ...]
    databroker_urls: tuple[str, ...]
    watched_files: tuple[Path, ...]
    generation: str  # short keyed hash of all the above, for logs and health
    downstream_mtls_ca_pem: bytes | None = None  # who signs browsers' client certificates
    downstream_mtls_crl_pem: bytes | None = None
    grpc_client_ca_pem: bytes | None = None  # set: our gRPC servers require client certificates
    grpc_client_certificate: CertificatePair | None = None  # what our gRPC clients present
    # Not empty: gRPC has no listener of its own, Envoy passes on what is sent to these URLs.
    shared_grpc_urls: tuple[str, ...] = ()
    metrics: MetricsListener | None = None
    tracing: Tracing | None = None
    file_digests: Mapping[Path, bytes] = field(default_factory=dict)  # of the files as read
    left_out: tuple[Issue, ...] = ()  # what is wrong with the databroker's routes
    explain_policy: Policy | None = None  # who may ask about other people's decisions; None: nobody
    # True when every route's policy ends with the default client-certificate rule.
    refuses_bad_certificates: bool = field(init=False)

    def __post_init__(self) -> None:
        # Once: it looks at every route, and is asked for every route.
        of_routes = (route.tls_downstream_client_ca_pem for route in self.routes)
        refuses = adds_certificate_rule(self.settings, (self.downstream_mtls_ca_pem, *of_routes))
        object.__setattr__(self, "refuses_bad_certificates", refuses)

    def __repr__(self) -> str:
        return f"ResolvedSettings(generation={self.generation!r}, routes={len(self.routes)})"

    @property
    def is_all_in_one(self) -> bool:
        """True when this process runs all four services."""
        return len(self.services) == len(ServiceName)

    def without_routes(self) -> ResolvedSettings:
        """What routes are built on: equal for equal global keys, however the files were read.

        Private keys cannot be compared and shape nothing but signatures: they are left out.
        """
        return replace(
            self,
            settings=self.settings.without_routes(),
            routes=(),
            signing_keys=(),
            watched_files=(),
            generation="",
            file_digests={},
        )

    @property
    def has_configured_certificate(self) -> bool:
        """True when a certificate was given, and not only made from the shared secret."""
        return any(pair.source != "tls_derive" for pair in self.certificates)

    def policy_in_force(self, route: ResolvedRoute) -> Policy:
        """A route's policy as it decides, with the default client-certificate rule if it has it."""
        policy = route.policy
        return with_client_certificate_rule(policy) if self.refuses_bad_certificates else policy

    @property
    def has_databroker(self) -> bool:
        """True when this process runs a databroker or knows where one is."""
        return self.runs(ServiceName.DATABROKER) or bool(self.databroker_urls)

    def runs(self, service: ServiceName) -> bool:
        """True when this process runs `service`."""
        return service in self.services
