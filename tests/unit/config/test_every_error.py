"""The errors of single keys, row by row of the configuration and route reference.

Each row: text, the key that is named, part of the message. What a kind of value refuses anyway
(`test_every_key.py`) and conflicts inside a route (`test_route_checks.py`) are not repeated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.configuration import LOGIN, SECRET_TEXT, problems, warnings, without

BAD_PEM = "eA=="  # base64 of "x"

GLOBAL_ERRORS = [
    ("services: console", "services", "config: 'console' is an invalid service type (all, proxy"),
    ("services: ''", "services", "config: '' is an invalid service type"),
    ("shared_secret: a b", "shared_secret", "holds white space"),
    ("shared_secret: '%'", "shared_secret", "is not base64 (base64 (with padding) of 32 bytes)"),
    ("shared_secret: eA==", "shared_secret", "decodes to 1 bytes (32 bytes: head -c32"),
    (f"shared_secret: '{SECRET_TEXT},x'", "shared_secret", "is not base64"),
    ("cookie_secret: eA==", "cookie_secret", "decodes to 1 bytes"),
    ("signing_key: eA==", "signing_key", "PEM, or base64 of PEM, of an EC P-256 or RSA key"),
    ("shared_secret_file: /none", "shared_secret_file", "/none cannot be read: No such file"),
    ("cookie_secret_file: /none", "cookie_secret_file", "/none cannot be read"),
    ("signing_key_file: /none", "signing_key_file", "/none cannot be read"),
    ("idp_client_secret_file: /none", "idp_client_secret_file", "/none cannot be read"),
    ("certificate_authority: '%'", "certificate_authority", "is not base64 (base64 of PEM)"),
    (f"certificate_authority: {BAD_PEM}", "certificate_authority", "does not decode to PEM"),
    ("certificate_authority_file: /none", "certificate_authority_file", "cannot be read"),
    (
        "authenticate_service_url: https://authenticate.pomerium.app",
        "authenticate_service_url",
        "needs the stateless flow, which is not offered",
    ),
    ("authorize_service_urls: ['x']", "authorize_service_urls[0]", "bad authorize service url"),
    (
        "databroker_service_urls: ['ftp://a']",
        "databroker_service_urls[0]",
        "bad databroker service url 'ftp://a' (http://host[:port]",
    ),
    ("tls_derive: 'a b'", "tls_derive", "is no domain"),
    (
        "google_cloud_serverless_authentication_service_account: x",
        "google_cloud_serverless_authentication_service_account",
        "is not a JSON object or its base64",
    ),
    ("idp_provider: hosted", "idp_provider", "needs the stateless flow"),
    ("idp_provider: nonsense", "idp_provider", "unknown provider 'nonsense' (one of apple, auth0"),
    ("idp_provider_url: ''", "idp_provider_url", "is required with idp_provider oidc"),
    ("idp_client_id: ''", "idp_client_id", "is required by authenticate"),
    ("bearer_token_format: token", "bearer_token_format", "unsupported value 'token' (one of"),
    ("jwt_issuer_format: x", "jwt_issuer_format", "unsupported value 'x' (one of hostOnly, uri)"),
    ("cookie_name: ''", "cookie_name", "is not a cookie name"),
    ("cookie_same_site: x", "cookie_same_site", "unknown cookie_same_site 'x' (strict, lax or"),
    ("cookie_expire: 0s", "cookie_expire", "would end every session at once"),
    ("grpc_address: nowhere", "grpc_address", "is not an address (host:port, or :port for all)"),
    ("health_check_addr: ''", "health_check_addr", "is empty (host:port with a port above 0)"),
    ("health_check_addr: 'a:0'", "health_check_addr", "is not an address"),
    (
        "codec_type: http4",
        "codec_type",
        "unsupported value 'http4' (did you mean http3? one of auto, http1,",
    ),
    (
        "path_with_escaped_slashes_action: x",
        "path_with_escaped_slashes_action",
        "unsupported value 'x' (one of keep_unchanged,",
    ),
    (
        "headers_with_underscores_action: x",
        "headers_with_underscores_action",
        "unsupported value 'x' (one of allow,",
    ),
    ("set_response_headers: {Host: x}", "set_response_headers", "host cannot be set here"),
    ("certificate: eA==", "certificate", "bad cert base64: its other half is missing"),
    (
        f"certificate: {BAD_PEM}\ncertificate_key: {BAD_PEM}",
        "certificate",
        "does not decode to PEM",
    ),
    (
        "certificates: [{cert: /none, key: /none}]",
        "certificates[0].cert",
        "/none cannot be read",
    ),
    (
        "certificates: [{cert: /tls/cert.pem}]",
        "certificates[0].cert",
        "bad cert entry, file reference invalid: its other half is missing (add key)",
    ),
    ("certificate_file: /none", "certificate_file", "/none cannot be read"),
    (
        "certificate_file: /tls/key.pem",
        "certificate_file",
        "bad cert file: the certificate holds no readable PEM certificate",
    ),
    ("autocert: true", "autocert", "not available yet (give certificates by certificate_file"),
    ("autocert_eab_key_id: x", "autocert_eab_key_id", "belong together (give both or neither)"),
    (
        "autocert_eab_key_id: x\nautocert_eab_mac_key: 'a+b'",
        "autocert_eab_mac_key",
        "is not base64url",
    ),
    (
        "autocert_trusted_ca: x\nautocert_trusted_ca_file: /x",
        "autocert_trusted_ca_file",
        "cannot set both autocert_trusted_ca and autocert_trusted_ca_file (keep one of them)",
    ),
    ("autocert_trusted_ca: '%'", "autocert_trusted_ca", "is not base64"),
    (
        "downstream_mtls: {ca: x, ca_file: /x}",
        "downstream_mtls.ca_file",
        "cannot set both ca and ca_file",
    ),
    (
        "downstream_mtls: {crl: x, crl_file: /x}",
        "downstream_mtls.crl_file",
        "cannot set both crl and crl_file",
    ),
    ("downstream_mtls: {crl: eA==}", "downstream_mtls.crl", "does not decode to PEM"),
    (
        "downstream_mtls: {enforcement: x}",
        "downstream_mtls.enforcement",
        "unsupported value 'x' (one of policy_with_default_deny, policy, reject_connection)",
    ),
    (
        "downstream_mtls: {match_subject_alt_names: [{dns: a, uri: b}]}",
        "downstream_mtls.match_subject_alt_names[0]",
        "has 2 keys (exactly one key)",
    ),
    (
        "dns_lookup_family: v4_only",
        "dns_lookup_family",
        "unknown dns_lookup_family 'v4_only' (did you mean V4_ONLY?",
    ),
    (
        "address: nowhere",
        "address",
        "'nowhere' is not an IP address to listen on (IP:port)",
    ),
    (
        "address: 8443",
        "address",
        "'8443' is not an IP address to listen on (\":8443\" for all addresses of this machine)",
    ),
    ("http_redirect_addr: a.b:80", "http_redirect_addr", "is not an IP address to listen on"),
    ("envoy_admin_address: a.b:80", "envoy_admin_address", "is not an IP address to listen on"),
    ("dns_refresh_rate: 1ms", "dns_refresh_rate", "is not above 1ms (a duration such as 5s)"),
    ("dns_failure_refresh_rate: 1ns", "dns_failure_refresh_rate", "is not above 1ms"),
    ("dns_query_timeout: -1s", "dns_query_timeout", "is negative"),
    ("dns_resolvers: ['udp://dns:53']", "dns_resolvers[0]", "is not a resolver (udp://IP:port"),
    (
        "log_level: INFO",
        "log_level",
        "unknown level 'INFO' (did you mean info? one of trace, debug",
    ),
    ("proxy_log_level: x", "proxy_log_level", "unknown level 'x'"),
    ("metrics_basic_auth: eA==", "metrics_basic_auth", "is not base64 of user:password"),
    ("otel_exporter_otlp_protocol: udp", "otel_exporter_otlp_protocol", "unknown protocol 'udp'"),
    ("otel_exporter_otlp_headers: hunter2", "otel_exporter_otlp_headers", "is not a list of K=V"),
    ("otel_resource_attributes: [a]", "otel_resource_attributes[0]", "'a' is not K=V"),
    ("otel_bsp_schedule_delay: 99", "otel_bsp_schedule_delay", "99 is too small (100 or more)"),
    ("otel_bsp_max_export_batch_size: 0", "otel_bsp_max_export_batch_size", "0 is too small"),
    (
        "databroker_storage_type: redis",
        "databroker_storage_type",
        "unknown databroker storage backend type 'redis' (one of memory, file, postgres)",
    ),
    (
        "databroker_storage_type: postgres",
        "databroker_storage_connection_string",
        "is required with postgres (postgresql://user:password@host/database)",
    ),
    (
        "databroker_storage_type: postgres\ndatabroker_storage_connection_string: hunter2",
        "databroker_storage_connection_string",
        "names no database (postgresql://user:password@host/database)",
    ),
    (
        "address: ':8443'\ngrpc_address: '127.0.0.1:8443'",
        "grpc_address",
        "127.0.0.1:8443 is the address of address too (another port)",
    ),
    (
        "metrics_address: '127.0.0.1:5443'",
        "metrics_address",
        "127.0.0.1:5443 is the address of grpc_address too (another port)",
    ),
    (
        "databroker_storage_type: file\ndatabroker_storage_connection_string: data",
        "databroker_storage_connection_string",
        "names no directory (file:///path/to/directory or /path/to/directory)",
    ),
    (
        "databroker_service_urls: ['http://a', 'http://b']",
        "databroker_storage_type",
        "memory storage serves one instance, but 2 databroker URLs are set",
    ),
    ("databroker_cluster_nodes: [{}]", "databroker_cluster_nodes[0].id", "is required"),
    ("databroker_cluster_leader_id: x", "databroker_cluster_leader_id", "'x' is not a node"),
    ("databroker_raft_bind_address: 'a:1'", "databroker_raft_bind_address", "not available yet"),
    ("ssh_address: ':22'", "ssh_address", "not available yet (leave the ssh keys out)"),
    (
        "mcp_allowed_client_id_domains: [a, '']",
        "mcp_allowed_client_id_domains[1]",
        "is empty (a domain; * stands for a part)",
    ),
    ("mcp_allowed_as_metadata_domains: ['']", "mcp_allowed_as_metadata_domains[0]", "is empty"),
    ("authorize_workers: 0", "authorize_workers", "0 is too small (1 or more)"),
    ("authorize_workers: 65", "authorize_workers", "65 is too large (at most 64)"),
]
GLOBAL_WARNINGS = [
    ("address: '127.0.0.1'", "address", "'127.0.0.1' is read as port 443 (host:port)"),
    (
        "cookie_domain: other.org",
        "cookie_domain",
        "browsers refuse a cookie for 'other.org' from authenticate.example.com: nobody stays",
    ),
    (
        (
            "cookie_domain: example.com\nroutes: [{from: 'https://a.example.com', to: 'http://b', "
            "allowed_users: [u]}, {from: 'https://a.example.org', to: 'http://b', "
            "allow_any_authenticated_user: true}]"
        ),
        "cookie_domain",
        "browsers refuse a cookie for 'example.com' from a.example.org: nobody stays signed in",
    ),
    (
        "programmatic_redirect_domain_whitelist: [localhost, 'https://a', '::1']",
        "programmatic_redirect_domain_whitelist[1]",
        "'https://a' is no host name: nothing matches it (a host alone, such as app.example.com)",
    ),
    (
        "set_response_headers: {Disable: x, X-A: b}",
        "set_response_headers",
        "disable leaves out all of them, those beside it too",
    ),
    (
        "codec_type: http3\ninsecure_server: true",
        "codec_type",
        "insecure_server leaves no TLS, without which there is no HTTP/3",
    ),
    ("otel_traces_exporter: x", "otel_traces_exporter", "unknown exporter 'x': nothing is sent"),
    ("otel_traces_sampler_arg: 7", "otel_traces_sampler_arg", "7 is read as 1 (0 to 1)"),
    ("otel_traces_sampler_arg: -1", "otel_traces_sampler_arg", "-1 is read as 0"),
    (
        "otel_attribute_value_length_limit: 5",
        "otel_attribute_value_length_limit",
        "5 is read as 64 (64 to 32768)",
    ),
    ("runtime_flags: {mpc: true}", "runtime_flags.mpc", "unknown runtime flag (did you mean mcp?)"),
    ("access_log_fields: [x]", "access_log_fields[0]", "unknown field 'x'"),
    *(
        (
            f"{key}: [headers.{name}]",
            f"{key}[0]",
            f"'headers.{name}' holds a credential: [redacted] is logged instead (leave it out)",
        )
        for key in ("access_log_fields", "authorize_log_fields")
        for name in ("Cookie", "authorization", "X-Pomerium-Jwt-Assertion", "X-A?Set-Cookie")
    ),
    (
        (
            "access_log_fields: [headers.x-key]\n"
            "routes: [{from: 'https://b.example.com', to: 'http://b', allowed_users: [u], "
            "set_request_headers: {X-Key: v}}]"
        ),
        "access_log_fields[0]",
        "'headers.x-key' is set for the upstream of https://b.example.com: [redacted] is logged",
    ),
]
BASE: dict[str, Any] = {
    "from": "https://app.example.com",
    "to": "http://app",
    "allowed_users": ["u"],
}
CHECK = {
    "timeout": "1s",
    "interval": "5s",
    "unhealthy_threshold": 3,
    "healthy_threshold": 1,
    "tcp_health_check": {},
}
ROUTE_ERRORS: list[tuple[dict[str, Any], str, str]] = [
    ({"from": None}, "from", "is missing (a URL such as https://app.example.com)"),
    (
        {"from": "app.example.com"},
        "from",
        "policy bad source url: url scheme must be provided (https://app.example.com)",
    ),
    ({"from": "https://"}, "from", "has no host"),
    (
        {"from": "https://a/x"},
        "from",
        "policy source url (https://a/x) contains a path, but it should be set using the path",
    ),
    ({"from": "ftp://a"}, "from", "unsupported scheme 'ftp' (only secure schemes are supported"),
    ({"from": "https://a:0"}, "from", "has a bad port"),
    ({"from": "https://a_b/?x"}, "from", "it holds more than scheme, host and port"),
    ({"from": "https://bücher.example"}, "from", "is not ASCII (write the name in its xn-- form)"),
    (
        {"to": "app:80"},
        "to",
        "unsupported scheme 'app' (did you mean http://app:80? one of http, https",
    ),
    ({"to": "http://"}, "to", "endpoint hostname must be specified"),
    ({"to": "http://a,0"}, "to", "bad weight '0' (URL,weight with a whole number above 0)"),
    ({"to": "http://a,x"}, "to", "bad weight 'x'"),
    ({"to": "unix://x"}, "to", "the socket path is missing (unix:///path/to/socket)"),
    (
        {"to": ["http://a,4294967295", "http://b,1"]},
        "to",
        "the weights add up to more than 4294967295",
    ),
    ({"path": "a"}, "path", "'a' does not start with / (a path such as /admin)"),
    ({"regex": "(?=a)"}, "regex", "is not a regular expression"),
    (
        {"to": None, "redirect": {"port_redirect": 70000}},
        "redirect.port_redirect",
        "70000 is out of range (a whole number from 0 to 65535)",
    ),
    ({"set_response_headers": {"host": "a"}}, "set_response_headers", "host cannot be set here"),
    (
        {"tls_downstream_server_name": "*"},
        "tls_downstream_server_name",
        "'*' is not a host name (app.example.com)",
    ),
    ({"load_balancing_policy": "x"}, "load_balancing_policy", "unsupported value 'x' (one of ROU"),
    ({"lb_policy": "x"}, "lb_policy", "unsupported value 'x'"),
    (
        {"lb_policy": "RANDOM", "load_balancing_policy": "MAGLEV"},
        "lb_policy",
        "lb_policy and load_balancing_policy mean the same and differ",
    ),
    (
        {"least_request_lb_config": {"choice_count": 1}},
        "least_request_lb_config.choice_count",
        "1 leaves nothing to compare (2 or more)",
    ),
    (
        {"ring_hash_lb_config": {"minimum_ring_size": 8388609}},
        "ring_hash_lb_config.minimum_ring_size",
        "8388609 is out of range (8388608 at most)",
    ),
    (
        {"ring_hash_lb_config": {"maximum_ring_size": 100}},
        "ring_hash_lb_config.maximum_ring_size",
        "is below minimum_ring_size",
    ),
    (
        {"ring_hash_lb_config": {"hash_function": "md5"}},
        "ring_hash_lb_config.hash_function",
        "unsupported value 'MD5' (one of XX_HASH, MURMUR_HASH_2)",
    ),
    (
        {"maglev_lb_config": {"table_size": 65536}},
        "maglev_lb_config.table_size",
        "65536 is not a prime up to 5000011",
    ),
    (
        {"health_checks": [{**CHECK, "no_traffic_interval": "0s"}]},
        "health_checks[0].no_traffic_interval",
        "must be above 0",
    ),
    (
        {"outlier_detection": {"interval": "0s"}},
        "outlier_detection.interval",
        "must be above 0",
    ),
    (
        {"outlier_detection": {"max_ejection_percent": 101}},
        "outlier_detection.max_ejection_percent",
        "101 is out of range (a whole number from 0 to 100)",
    ),
    (
        {"outlier_detection": {"base_ejection_time": "60s", "max_ejection_time": "50s"}},
        "outlier_detection.max_ejection_time",
        "is below base_ejection_time (60s)",
    ),
    ({"healthy_panic_threshold": 101}, "healthy_panic_threshold", "101 is out of range"),
    (
        {"mcp": {"server": {"upstream_oauth2": {"endpoint": {"auth_style": "x"}}}}},
        "mcp.server.upstream_oauth2.endpoint.auth_style",
        "unknown style 'x' (header or params)",
    ),
    ({"bearer_token_format": "x"}, "bearer_token_format", "unsupported value 'x'"),
    ({"jwt_issuer_format": "x"}, "jwt_issuer_format", "unsupported value 'x'"),
]
ROUTE_WARNINGS: list[tuple[dict[str, Any], str, str]] = [
    ({"path": "/a?x=1"}, "path", "'/a?x=1' can never match: a path ends before its ? or #"),
    (
        {"to": None, "response": {"status": 200}, "health_checks": [CHECK]},
        "health_checks",
        "has no effect without to",
    ),
    *(
        (
            {"to": None, **answer, key: value},
            key,
            f"has no effect: with {name} there is no upstream (leave it out)",
        )
        for name, answer in (
            ("redirect", {"redirect": {"host_redirect": "b.example.com"}}),
            ("response", {"response": {"status": 200}}),
        )
        for key, value in (
            ("prefix_rewrite", "/b"),
            ("timeout", "5s"),
            ("set_request_headers", {"X-A": "b"}),
            ("allow_websockets", True),
            ("tls_skip_verify", True),
        )
    ),
    (
        {"to": "https://b", "tls_server_name": "c", "tls_upstream_server_name": "d"},
        "tls_server_name",
        "has no effect beside tls_upstream_server_name (keep one of them)",
    ),
]


def base_without(text: str) -> str:
    return without(LOGIN, *(f"{line.partition(':')[0]}:" for line in text.splitlines()))


@pytest.mark.parametrize(("text", "key", "message"), GLOBAL_ERRORS)
def test_global_errors(tmp_path: Path, text: str, key: str, message: str) -> None:
    base = base_without(text)
    found = problems(tmp_path, f"{base}{text}\nroutes: [{json.dumps(BASE)}]\n")
    named = [line for line in found if f"{key}: " in line and message in line]
    assert named, found
    top = key.partition(".")[0].partition("[")[0]
    lines = f"{base}{text}".splitlines()
    if any(line.startswith(f"{top}:") for line in lines):
        line = next(n for n, line in enumerate(lines, 1) if line.startswith(f"{top}:"))
        assert named[0].startswith(f"{line}: ")
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(("text", "key", "message"), GLOBAL_WARNINGS)
def test_global_warnings(tmp_path: Path, text: str, key: str, message: str) -> None:
    found = warnings(tmp_path, f"{base_without(text)}{text}\n")
    assert any(f" {key}: " in line and message in line for line in found), found


def with_route(keys: dict[str, Any]) -> str:
    route = {key: value for key, value in {**BASE, **keys}.items() if value is not None}
    return f"{LOGIN}routes:\n- {json.dumps(route)}\n"


@pytest.mark.parametrize(("keys", "key", "message"), ROUTE_ERRORS)
def test_route_errors(tmp_path: Path, keys: dict[str, Any], key: str, message: str) -> None:
    found = problems(tmp_path, with_route(keys))
    line = len(with_route({}).splitlines())
    assert any(
        item.startswith(f"{line}: routes[0].{key}: ") and message in item for item in found
    ), found


@pytest.mark.parametrize(("keys", "key", "message"), ROUTE_WARNINGS)
def test_route_warnings(tmp_path: Path, keys: dict[str, Any], key: str, message: str) -> None:
    found = warnings(tmp_path, with_route(keys))
    assert any(f": routes[0].{key}: " in line and message in line for line in found), found
