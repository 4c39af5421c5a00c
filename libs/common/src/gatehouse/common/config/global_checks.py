"""Whether the global settings contradict themselves: checks that need no file.

Spec: configuration.md sections 3 to 5.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from gatehouse.common.config import derive
from gatehouse.common.config.access_token_checks import check_access_tokens
from gatehouse.common.config.client_certificate_checks import check_client_certificates
from gatehouse.common.config.issues import Finding, Severity
from gatehouse.common.config.listening_checks import check_listeners
from gatehouse.common.config.log_fields import secret_header
from gatehouse.common.config.model import (
    ACCESS_LOG_FIELDS,
    AUTHORIZE_LOG_FIELDS,
    CodecType,
    Settings,
    StorageType,
    TrustedIssuer,
)
from gatehouse.common.config.resolved import ServiceName
from gatehouse.common.config.routes import RouteURLError, compile_regex
from gatehouse.common.config.sent_text import upgrade_token
from gatehouse.common.config.sign_in_checks import check_sign_in
from gatehouse.common.config.values import decode_base64, nearest, parse_host_port, shorten
from gatehouse.common.observability.redaction import REDACTED

ERROR: Final = Severity.ERROR
WARNING: Final = Severity.WARNING
_WITHOUT_EFFECT: Final = {"github": ("idp_request_params",), "onelogin": ("idp_scopes",)}

MORE_ACCESS_LOG_FIELDS: Final = frozenset(
    {"client-certificate", "cluster-stat-name", "ip", "query", "session-id", "user", "route-id"}
)
MORE_AUTHORIZE_LOG_FIELDS: Final = frozenset(
    {"body", "cluster-stat-name", "headers", "id-token", "id-token-claims", "mcp-method"}
    | {"mcp-tool", "mcp-tool-parameters", "query"}
)
JWT_ALGORITHMS: Final = frozenset(
    {f"{family}{bits}" for family in ("RS", "PS", "ES") for bits in (256, 384, 512)} | {"EdDSA"}
)
MAX_WORKERS: Final = 64  # authorize processes of one address
ALT_NAME_TYPES: Final = ("dns", "email", "ip_address", "uri", "user_principal_name")
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# A header, or a second one after ? for when the first is missing.
_HEADER_FIELD: Final = re.compile(rf":?{_TOKEN.pattern}(?:\?:?{_TOKEN.pattern})?")


def _error(key: str, message: str, fix: str = "") -> Finding:
    return Finding(ERROR, (key,), message, fix)


def _warning(key: str, message: str, fix: str = "") -> Finding:
    return Finding(WARNING, (key,), message, fix)


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Everything wrong with the global keys among themselves."""
    yield from _urls(settings)
    yield from _addresses(settings)
    yield from check_listeners(settings)
    yield from _cookies(settings)
    yield from check_sign_in(settings)
    yield from _directory(settings)
    yield from _pairs(settings)
    yield from _dns(settings)
    yield from _mtls(settings)
    yield from check_client_certificates(settings)
    yield from _issuers(settings)
    yield from check_access_tokens(settings)
    yield from _logs(settings)
    yield from _telemetry(settings)
    yield from _cluster(settings)
    yield from _features(settings)
    yield from _without_effect(settings)


def _urls(settings: Settings) -> Iterator[Finding]:
    for key, message in (
        ("authorize_service_urls", "bad authorize service url"),
        ("databroker_service_urls", "bad databroker service url"),
    ):
        for index, url in enumerate(getattr(settings, key)):
            if url.strip() and not _is_service_url(url.strip()):
                yield Finding(
                    ERROR,
                    (key, index),
                    f"{message} {shorten(url)}",
                    "http://host[:port] or https://host[:port]",
                )
    for key in ("authenticate_service_url", "authenticate_internal_service_url"):
        parts = urlsplit(getattr(settings, key))
        if parts.path not in {"", "/"} or parts.query or parts.fragment:
            yield _error(key, "holds more than scheme, host and port", "https://host[:port]")
        elif parts.scheme == "http" and not settings.insecure_server:
            yield _warning(key, "is plain http, but cookies need https", "https://")


def _is_service_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and parts.port != 0
            and "@" not in parts.netloc
        )
    except ValueError:
        return False


def _addresses(settings: Settings) -> Iterator[Finding]:
    if settings.address and parse_host_port(settings.address) is None:
        main = derive.main_address(settings)
        yield _warning(
            "address", f"{shorten(settings.address)} is read as port {main.port}", "host:port"
        )
    services = derive.parse_services(settings.services)
    if not isinstance(services, str) and ServiceName.PROXY in services:
        yield from _bound(settings)
    source = settings.envoy_bind_config_source_address
    if source and not _is_ip(source):
        yield _error("envoy_bind_config_source_address", "is not an IP address", "an IP address")
    if not settings.health_check_addr:
        yield _error("health_check_addr", "is empty", "host:port with a port above 0")
    address = settings.http_redirect_addr.strip("\"'")
    if address and parse_host_port(address) is None:
        yield _error("http_redirect_addr", f"{shorten(address)} is not an address", "host:port")


def _bound(settings: Settings) -> Iterator[Finding]:
    """Envoy listens on addresses, not on names."""
    parsed = {
        "address": derive.main_address(settings).host,
        "http_redirect_addr": (parse_host_port(settings.http_redirect_addr.strip("\"'")) or ("",))[
            0
        ],
        "envoy_admin_address": (parse_host_port(settings.envoy_admin_address) or ("",))[0],
        "metrics_address": (parse_host_port(settings.metrics_address) or ("",))[0],
    }
    for key, host in parsed.items():
        if host and host != "localhost" and not host.endswith(".localhost") and not _is_ip(host):
            yield _error(
                key,
                f"{shorten(host)} is not an IP address to listen on",
                f'":{host}" for all addresses of this machine' if host.isdigit() else "IP:port",
            )


def _telemetry(settings: Settings) -> Iterator[Finding]:
    for key, least in (("otel_bsp_schedule_delay", 100), ("otel_bsp_max_export_batch_size", 1)):
        value = getattr(settings, key)
        if value < least:
            yield _error(key, f"{value} is too small", f"{least} or more")
    exporter = settings.otel_traces_exporter.lower()
    if exporter not in {"", "none", "noop", "otlp"}:
        yield _warning(
            "otel_traces_exporter", f"unknown exporter {shorten(exporter)}: nothing is sent", "otlp"
        )
    for key in ("otel_exporter_otlp_protocol", "otel_exporter_otlp_traces_protocol"):
        protocol = getattr(settings, key)
        if protocol.lower() not in {"", "grpc", "http/protobuf"}:
            yield _error(key, f"unknown protocol {shorten(protocol)}", "grpc or http/protobuf")
    for key in ("otel_exporter_otlp_headers", "otel_exporter_otlp_traces_headers"):
        text = getattr(settings, key).get_secret_value()
        if any(pair.strip() and not pair.partition("=")[0].strip() for pair in text.split(",")) or (
            text.strip() and "=" not in text
        ):
            yield _error(key, "is not a list of K=V", "K=V,K2=V2")
    for index, pair in enumerate(settings.otel_resource_attributes):
        if pair.strip() and not pair.partition("=")[1]:
            yield Finding(
                ERROR, ("otel_resource_attributes", index), f"{shorten(pair)} is not K=V", "K=V"
            )
    share = settings.otel_traces_sampler_arg
    if not 0 <= share <= 1:
        yield _warning("otel_traces_sampler_arg", f"{share:g} is read as {share > 0:d}", "0 to 1")
    limit = settings.otel_attribute_value_length_limit
    if limit is not None and not 64 <= limit <= 32768:
        used = min(max(limit, 64), 32768)
        yield _warning(
            "otel_attribute_value_length_limit", f"{limit} is read as {used}", "64 to 32768"
        )


def _features(settings: Settings) -> Iterator[Finding]:
    for key in ("mcp_allowed_client_id_domains", "mcp_allowed_as_metadata_domains"):
        for index, domain in enumerate(getattr(settings, key)):
            if not domain.strip() and settings.runtime_flags.get("mcp", True):
                yield Finding(ERROR, (key, index), "is empty", "a domain; * stands for a part")
    yield from _workers(settings)
    for index, token in enumerate(settings.allow_upgrades):
        yield from upgrade_token(("allow_upgrades", index), token)
    key = "google_cloud_serverless_authentication_service_account"
    account = getattr(settings, key).get_secret_value().strip()
    if account and not _is_json_object(account):
        decoded = decode_base64(account)
        if decoded is None or not _is_json_object(decoded):
            yield _error(key, "is not a JSON object or its base64", "the file that Google gave")
    headers = settings.set_response_headers or {}
    if any(name.lower() == "host" for name in headers):
        yield _error("set_response_headers", "host cannot be set here", "leave it out")
    if len(headers) > 1 and any(name.lower() == "disable" for name in headers):
        yield _warning(
            "set_response_headers",
            "disable leaves out all of them, those beside it too",
            "disable alone, or without it",
        )


def _is_json_object(text: str | bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _cookies(settings: Settings) -> Iterator[Finding]:
    if not _TOKEN.fullmatch(settings.cookie_name):
        yield _error("cookie_name", "is not a cookie name", "letters, digits and _-")
    domain = settings.cookie_domain.removeprefix(".")
    if domain and settings.cookie_name.lower().startswith("__host-"):
        yield _error(
            "cookie_name",
            "begins with __Host-: browsers drop such a cookie when it has a domain",
            "another name, or no cookie_domain",
        )
    if domain and not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9\-.]*[A-Za-z0-9])?", domain):
        yield _error(
            "cookie_domain",
            f"{shorten(settings.cookie_domain)} is no domain",
            "a domain such as example.com, without https:// and port",
        )
    if domain and settings.cookie_audience:
        yield _error(
            "cookie_audience",
            "allows a cookie on the hosts of its sign-in alone, and cookie_domain gives it to all",
            "one of the two",
        )
    if not 60 <= settings.sign_in_timeout <= 3600:
        yield _error("sign_in_timeout", "is out of range", "from 1m to 1h")
    kind = settings.idp_provider.strip().lower()
    for key in _WITHOUT_EFFECT.get(kind, ()):
        if getattr(settings, key):
            yield _warning(key, f"has no effect with idp_provider {kind}", "leave it out")
    if settings.cookie_expire == 0:
        yield _error("cookie_expire", "would end every session at once", "a duration such as 14h")


def _directory(settings: Settings) -> Iterator[Finding]:
    source = settings.directory_source
    if source and not source.startswith("/"):
        parts = urlsplit(source)
        if parts.scheme != "https" or not parts.hostname or "@" in parts.netloc:
            yield _error(
                "directory_source",
                f"{shorten(source.partition('?')[0])} is neither an absolute path nor an https URL",
                "/etc/gatehouse/directory.json or https://people.example.com/directory.csv",
            )
    if settings.directory_source_token.get_secret_value() and not source.startswith("https://"):
        yield _error("directory_source_token", "has no URL to go to", "leave it out")
    if not 10 <= settings.directory_refresh_interval <= 86_400:
        yield _error("directory_refresh_interval", "is out of range", "from 10s to 24h")
    if not 0 <= settings.directory_max_shrink <= 1:
        yield _error("directory_max_shrink", "is out of range", "0 to 1")


def _pairs(settings: Settings) -> Iterator[Finding]:
    for first, second, key in (
        ("autocert_trusted_ca", "autocert_trusted_ca_file", "autocert_trusted_ca_file"),
        ("grpc_client_ca", "grpc_client_ca_file", "grpc_client_ca_file"),
    ):
        if getattr(settings, first) and getattr(settings, second):
            yield _error(key, f"cannot set both {first} and {second}", "keep one of them")
    if bool(settings.autocert_eab_key_id) != bool(settings.autocert_eab_mac_key):
        yield _error(
            "autocert_eab_key_id" if settings.autocert_eab_key_id else "autocert_eab_mac_key",
            "autocert_eab_key_id and autocert_eab_mac_key belong together",
            "give both or neither",
        )
    if settings.autocert_eab_mac_key:
        text = settings.autocert_eab_mac_key.get_secret_value()
        if not re.fullmatch(r"[A-Za-z0-9_\-]+", text) or len(text) % 4 == 1:
            yield _error("autocert_eab_mac_key", "is not base64url", "base64url without padding")
    certificate = settings.metrics_certificate or settings.metrics_certificate_file
    key_half = settings.metrics_certificate_key or settings.metrics_certificate_key_file
    if bool(certificate) != bool(key_half):
        yield _warning(
            "metrics_certificate",
            "one half is missing, so metrics stay in plain text",
            "metrics_certificate with metrics_certificate_key",
        )
    basic = settings.metrics_basic_auth.get_secret_value()
    if basic:
        decoded = decode_base64(basic)
        if decoded is None or b":" not in decoded:
            yield _error(
                "metrics_basic_auth",
                "is not base64 of user:password",
                "printf user:password | base64",
            )
    if settings.tls_derive and derive.derived_name(settings) is None:
        yield _error("tls_derive", f"{shorten(settings.tls_derive)} is no domain", "a domain name")


def _dns(settings: Settings) -> Iterator[Finding]:
    for key in ("dns_refresh_rate", "dns_failure_refresh_rate"):
        value = getattr(settings, key)
        if value is not None and value <= 0.001:
            yield _error(key, "is not above 1ms", "a duration such as 5s")
    for index, resolver in enumerate(settings.dns_resolvers):
        scheme, separator, address = resolver.partition("://")
        parsed = parse_host_port(address)
        sound = parsed is not None and parsed[1] > 0 and _is_ip(parsed[0])
        if scheme not in {"udp", "tcp"} or not separator or not sound:
            yield Finding(
                ERROR,
                ("dns_resolvers", index),
                f"{shorten(resolver)} is not a resolver",
                "udp://IP:port or tcp://IP:port",
            )


def _mtls(settings: Settings) -> Iterator[Finding]:
    mtls = settings.downstream_mtls
    for first in ("ca", "crl"):
        if getattr(mtls, first) and getattr(mtls, f"{first}_file"):
            yield Finding(
                ERROR,
                ("downstream_mtls", f"{first}_file"),
                f"cannot set both {first} and {first}_file",
                "keep one of them",
            )
    for index, entry in enumerate(mtls.match_subject_alt_names):
        where = ("downstream_mtls", "match_subject_alt_names", index)
        if len(entry) != 1:
            yield Finding(ERROR, where, f"has {len(entry)} keys", "exactly one key")
        for kind, pattern in entry.items():
            if kind not in ALT_NAME_TYPES:
                yield Finding(
                    ERROR,
                    where,
                    f"unknown type {shorten(kind)}",
                    f"one of {', '.join(ALT_NAME_TYPES)}",
                )
            try:
                compile_regex(pattern)
            except RouteURLError as error:
                yield Finding(ERROR, (*where, kind), str(error), error.fix)


def _issuers(settings: Settings) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for name, issuer in settings.identity_providers.items():
        where = ("identity_providers", name)
        if not name or name != name.lower() or "/" in name:
            yield Finding(ERROR, where, "is not a provider name", "lower case, without /")
        for key, message, fix in _issuer(issuer):
            yield Finding(ERROR, (*where, key), message, fix)
        other = seen.setdefault(issuer.issuer, name)
        if other != name:
            yield Finding(
                ERROR, (*where, "issuer"), f"{other} has the same issuer", "unique issuers"
            )


def _issuer(issuer: TrustedIssuer) -> Iterator[tuple[str, str, str]]:
    fix = "an absolute https URL, or kubernetes:///"
    try:
        parts = urlsplit(issuer.issuer)
    except ValueError:
        parts = urlsplit("")
    loopback = parts.hostname in {"localhost", "127.0.0.1", "::1"}
    if issuer.issuer == "kubernetes:///":
        if issuer.jwks_url:
            yield "jwks_url", "has no place beside kubernetes:///", "leave it out"
    elif parts.scheme != "https" and not (parts.scheme == "http" and loopback):
        yield "issuer", f"{shorten(issuer.issuer)} is not https", fix
    elif not parts.hostname:
        yield "issuer", f"{shorten(issuer.issuer)} has no host", fix
    if not issuer.audiences:
        yield "audiences", "is empty", "at least one audience"
    elif not all(audience.strip() for audience in issuer.audiences):
        yield "audiences", "holds an empty audience", "leave it out"
    for algorithm in issuer.supported_algs:
        if algorithm not in JWT_ALGORITHMS:
            yield (
                "supported_algs",
                f"unsupported algorithm {shorten(algorithm)}",
                f"some of {', '.join(sorted(JWT_ALGORITHMS))}",
            )


def _logs(settings: Settings) -> Iterator[Finding]:
    for key, known in (
        ("access_log_fields", frozenset(ACCESS_LOG_FIELDS) | MORE_ACCESS_LOG_FIELDS),
        ("authorize_log_fields", frozenset(AUTHORIZE_LOG_FIELDS) | MORE_AUTHORIZE_LOG_FIELDS),
    ):
        for index, name in enumerate(getattr(settings, key)):
            kind, dot, header = name.partition(".")
            if kind == "headers" and dot and not _HEADER_FIELD.fullmatch(header):
                yield Finding(
                    ERROR, (key, index), f"{shorten(header)} is not a header name", "headers.<Name>"
                )
            elif kind == "headers" and dot:
                # The decision log is written before any route sets a header.
                routes = settings.all_routes if key == "access_log_fields" else ()
                if reason := secret_header(header, routes):
                    yield Finding(
                        WARNING,
                        (key, index),
                        f"{shorten(name)} {reason}: {REDACTED} is logged instead",
                        "leave it out",
                    )
            elif name not in known:
                meant = name.strip() if name.strip() in known else nearest(name, known)
                yield Finding(
                    WARNING,
                    (key, index),
                    f"unknown field {shorten(name)}",
                    f"did you mean {meant}?" if meant else "a field name, or headers.<Name>",
                )


def _cluster(settings: Settings) -> Iterator[Finding]:
    ids = [node.id for node in settings.databroker_cluster_nodes]
    for index, node in enumerate(settings.databroker_cluster_nodes):
        for key in ("id", "grpc_address", "raft_address"):
            if not getattr(node, key):
                yield Finding(
                    ERROR, ("databroker_cluster_nodes", index, key), "is required", "a value"
                )
        if node.id and node.id in ids[:index]:
            where = ("databroker_cluster_nodes", index, "id")
            yield Finding(ERROR, where, f"{shorten(node.id)} is another node too", "unique ids")
    for key in ("databroker_cluster_node_id", "databroker_cluster_leader_id"):
        value = getattr(settings, key)
        if value and value not in ids:
            yield _error(key, f"{shorten(value)} is not a node", f"one of {', '.join(ids) or '-'}")


def _workers(settings: Settings) -> Iterator[Finding]:
    key, workers = "authorize_workers", settings.authorize_workers
    services = derive.parse_services(settings.services)
    if workers == 0:
        yield _error(key, "0 is too small", "1 or more")
    elif workers > MAX_WORKERS:
        yield _error(key, f"{workers} is too large", f"at most {MAX_WORKERS}")
    elif (
        workers > 1
        and not isinstance(services, str)
        and {ServiceName.AUTHORIZE, ServiceName.DATABROKER} <= services
        and ServiceName.PROXY not in services
    ):
        yield _error(
            key,
            "cannot share grpc_address with databroker",
            "authorize in a process of its own, or proxy in the same one",
        )


def _without_effect(settings: Settings) -> Iterator[Finding]:
    services = derive.parse_services(settings.services)
    if settings.envoy_dynamic_extensions:
        yield _warning(
            "envoy_dynamic_extensions", "is ignored: Envoy is stock here", "leave it out"
        )
    if settings.insecure_server and settings.codec_type is CodecType.HTTP3:
        yield _warning(
            "codec_type",
            "insecure_server leaves no TLS, without which there is no HTTP/3",
            "codec_type: auto, or no insecure_server",
        )
    if isinstance(services, str):
        return
    if settings.envoy_admin_address and ServiceName.PROXY not in services:
        yield _warning("envoy_admin_address", "has no effect without proxy", "leave it out")
    if settings.http_redirect_addr and not derive.has_listener(services):
        yield _warning(
            "http_redirect_addr", "has no effect without proxy or authenticate", "leave it out"
        )
    if (
        settings.databroker_storage_type is not StorageType.MEMORY
        and ServiceName.DATABROKER not in services
    ):
        return
    if (
        settings.databroker_storage_type is StorageType.MEMORY
        and settings.databroker_storage_connection_string
    ):
        yield _warning(
            "databroker_storage_connection_string",
            "has no effect with memory storage",
            "databroker_storage_type: file or postgres",
        )
