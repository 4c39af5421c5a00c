"""Contradictions among global keys, each fed through a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.configuration import LOGIN, problems, warnings

ISSUER = "issuer: 'https://i', audiences: [a]"


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("envoy_bind_config_source_address: x", "envoy_bind_config_source_address", "not an IP"),
        ("http_redirect_addr: x", "http_redirect_addr", "is not an address"),
        ("cookie_name: 'a b'", "cookie_name", "is not a cookie name"),
        ("cookie_domain: 'a b'", "cookie_domain", "is no domain"),
        (
            "cookie_domain: example.com\ncookie_name: __Host-gate",
            "cookie_name",
            "browsers drop such a cookie",
        ),
        (
            "cookie_domain: example.com\ncookie_audience: true",
            "cookie_audience",
            "cookie_domain gives it to all",
        ),
        ("cookie_expire: 0s", "cookie_expire", "would end every session"),
        ("sign_in_timeout: 59s", "sign_in_timeout", "out of range"),
        ("sign_in_timeout: 61m", "sign_in_timeout", "out of range"),
        (
            "autocert_trusted_ca: x\nautocert_trusted_ca_file: /x",
            "autocert_trusted_ca_file",
            "cannot set both",
        ),
        ("autocert_eab_key_id: x", "autocert_eab_key_id", "belong together"),
        ("metrics_basic_auth: hunter2", "metrics_basic_auth", "is not base64 of user:password"),
        ("metrics_address: 'x:0'", "metrics_address", "is not an address"),
        ("health_check_addr: '28080'", "health_check_addr", "is not an address"),
        ("tls_derive: 'a b'", "tls_derive", "is no domain"),
        ("dns_refresh_rate: 100us", "dns_refresh_rate", "is not above 1ms"),
        ("dns_query_timeout: -1s", "dns_query_timeout", "is negative"),
        ("dns_resolvers: ['1.1.1.1:53']", "dns_resolvers[0]", "is not a resolver"),
        ("dns_resolvers: ['udp://one:53']", "dns_resolvers[0]", "is not a resolver"),
        (
            "downstream_mtls: {match_subject_alt_names: [{dns: a, email: b}]}",
            "downstream_mtls.match_subject_alt_names[0]",
            "has 2 keys",
        ),
        (
            "downstream_mtls: {match_subject_alt_names: [{name: a}]}",
            "downstream_mtls.match_subject_alt_names[0]",
            "unknown type 'name'",
        ),
        (
            "downstream_mtls: {match_subject_alt_names: [{dns: 'a('}]}",
            "downstream_mtls.match_subject_alt_names[0].dns",
            "is not a regular expression",
        ),
        (
            f"identity_providers: {{a: {{{ISSUER}}}, b: {{{ISSUER}}}}}",
            "identity_providers.b.issuer",
            "a has the same issuer",
        ),
        ("identity_providers: {a/b: {" + ISSUER + "}}", "identity_providers.a/b", "provider name"),
        (
            "identity_providers: {a: {issuer: 'http://i', audiences: [a]}}",
            "identity_providers.a.issuer",
            "is not https",
        ),
        (
            "identity_providers: {a: {issuer: 'https://i'}}",
            "identity_providers.a.audiences",
            "is empty",
        ),
        (
            "identity_providers: {a: {" + ISSUER + ", supported_algs: [HS256]}}",
            "identity_providers.a.supported_algs",
            "unsupported algorithm 'HS256'",
        ),
        (
            (
                "identity_providers: {a: {issuer: 'kubernetes:///', jwks_url: 'https://x', "
                "audiences: [a]}}"
            ),
            "identity_providers.a.jwks_url",
            "has no place",
        ),
        (
            "databroker_cluster_nodes: [{id: a}]",
            "databroker_cluster_nodes[0].grpc_address",
            "requi",
        ),
        ("databroker_cluster_node_id: a", "databroker_cluster_node_id", "'a' is not a node"),
        (
            "authenticate_service_url: https://a/x",
            "authenticate_service_url",
            "more than scheme, host and port",
        ),
    ],
)
def test_errors(tmp_path: Path, text: str, key: str, message: str) -> None:
    name = text.partition(":")[0]
    base = "".join(
        line for line in LOGIN.splitlines(keepends=True) if not line.startswith(f"{name}:")
    )
    found = problems(tmp_path, f"{base}{text}\n")
    assert any(
        line.partition(": ")[2].startswith(f"{key}: ") and message in line for line in found
    ), found
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("services: authenticate\naddress: nowhere", "address"),
        ("access_log_fields: [method, nonsense]", "access_log_fields[1]"),
        ("authorize_log_fields: [nonsense]", "authorize_log_fields[0]"),
        ("envoy_dynamic_extensions: [x]", "envoy_dynamic_extensions"),
        ("metrics_certificate: x", "metrics_certificate"),
        ("databroker_storage_connection_string: file:///x", "databroker_storage_connection_string"),
        ("services: databroker\nenvoy_admin_address: 'a:1'", "envoy_admin_address"),
        ("services: databroker\nhttp_redirect_addr: ':80'", "http_redirect_addr"),
    ],
)
def test_warnings(tmp_path: Path, text: str, key: str) -> None:
    found = warnings(tmp_path, f"{LOGIN}{text}\n")
    assert any(f" {key}: " in line for line in found), found


@pytest.mark.parametrize(
    "text",
    [
        "access_log_fields: [headers.X-A, client-certificate, cluster-stat-name, ip, query]",
        (
            "authorize_log_fields: [headers.X-A, body, cluster-stat-name, headers, id-token, "
            "id-token-claims, mcp-method, mcp-tool, mcp-tool-parameters, query]"
        ),
    ],
)
def test_log_fields_beyond_the_usual_ones(tmp_path: Path, text: str) -> None:
    assert warnings(tmp_path, f"{LOGIN}{text}\n") == []


@pytest.mark.parametrize(
    "key", ["mcp_allowed_client_id_domains", "mcp_allowed_as_metadata_domains"]
)
def test_without_mcp_nobody_minds_an_empty_domain(tmp_path: Path, key: str) -> None:
    text = f"{key}: ['']\nruntime_flags: {{mcp: false}}\n"
    assert problems(tmp_path, LOGIN + text) == []


def test_quotes_around_the_redirect_address(tmp_path: Path) -> None:
    assert problems(tmp_path, f"{LOGIN}http_redirect_addr: \"':80'\"\n") == []


def test_the_name_of_an_issuer_is_lower_case(tmp_path: Path) -> None:
    """The file's names are made so; those of a variable are not."""
    given = '{"Corp": {"issuer": "https://i", "audiences": ["a"]}}'
    (line,) = problems(tmp_path, LOGIN, {"IDENTITY_PROVIDERS": given})
    said = "is not a provider name (lower case, without /)"
    assert line == f"IDENTITY_PROVIDERS.Corp: {said}"


@pytest.mark.parametrize("kind", ["dns", "email", "ip_address", "uri", "user_principal_name"])
def test_every_kind_of_name_in_client_certificates(tmp_path: Path, kind: str) -> None:
    text = f"downstream_mtls: {{match_subject_alt_names: [{{{kind}: '.*'}}]}}\n"
    assert problems(tmp_path, LOGIN + text) == []


def test_good_trusted_issuers(tmp_path: Path) -> None:
    text = (
        "identity_providers:\n"
        f"  a: {{{ISSUER}, supported_algs: [ES256, EdDSA]}}\n"
        "  b: {issuer: 'http://localhost:1', audiences: [a]}\n"
        "  c: {issuer: 'kubernetes:///', audiences: [a]}\n"
        "  d: {issuer: 'http://127.0.0.1:1', audiences: [a]}\n"
        "  e: {issuer: 'http://[::1]:1', audiences: [a]}\n"
        "  f: {issuer: 'https://f', audiences: [a], supported_algs: [RS256, RS384, RS512, PS256, "
        "PS384, PS512, ES256, ES384, ES512, EdDSA]}\n"
    )
    found = problems(tmp_path, LOGIN + text)
    assert found == []


@pytest.mark.parametrize(
    ("services", "fits"),
    [
        ("all", True),
        ("authorize", True),
        ("authorize,authenticate", True),
        ("authorize,proxy", True),
        ("authorize,proxy,databroker", True),
        ("databroker", True),
        ("authorize,databroker", False),
        ("authorize,authenticate,databroker", False),
    ],
)
def test_workers_need_an_address_of_their_own(tmp_path: Path, services: str, *, fits: bool) -> None:
    text = f"services: {services}\nauthorize_workers: 2\n"
    found = problems(tmp_path, LOGIN + text)
    told = [line for line in found if "authorize_workers" in line]
    assert bool(told) is not fits, found
    assert all("cannot share grpc_address with databroker" in line for line in told)
