"""Every contradiction inside a route, fed through a file, with the message read back."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.configuration import (
    CERTIFICATE,
    LOGIN,
    authority_pem,
    pem_pair,
    problems,
    resolved,
    warnings,
)

BASE: dict[str, Any] = {"from": "https://app.example.com", "to": "http://app"}


def config(route: dict[str, Any], top: str = "") -> str:
    return f"{LOGIN}{top}\nroutes:\n- {json.dumps(route)}\n"


def errors(folder: Path, keys: dict[str, Any], top: str = "") -> list[str]:
    route = {key: value for key, value in {**BASE, **keys}.items() if value is not None}
    return [line.partition(": ")[2] for line in problems(folder, config(route, top))]


def warned(folder: Path, keys: dict[str, Any], top: str = "") -> list[str]:
    return [line.partition(": ")[2] for line in warnings(folder, config({**BASE, **keys}, top))]


HEALTH = {"timeout": "1s", "interval": "5s", "unhealthy_threshold": 3, "healthy_threshold": 1}
TCP = {**HEALTH, "tcp_health_check": {}}


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        (
            {"to": None},
            "from",
            "policy should have either `to` or `redirect` or `response` defined",
        ),
        ({"redirect": {"host_redirect": "a"}}, "redirect", "to and redirect are given"),
        ({"response": {"status": 200}}, "response", "to and response are given"),
        ({"to": ["tcp://a:1", "http://b"]}, "to", "cannot mix tcp and non-tcp To URLs"),
        ({"to": ["udp://a:1", "http://b"]}, "to", "cannot mix udp and non-udp To URLs"),
        ({"to": "udp://a:1"}, "to", "udp:// needs a from of udp+https://"),
        ({"to": ["unix:///a", "http://b"]}, "to", "cannot mix unix and non-unix To URLs"),
        ({"to": ["https+unix:///a", "http://b"]}, "to", "cannot mix unix and non-unix To URLs"),
        ({"to": ["http://a,1", "http://b"]}, "to", "either no weights should be provided"),
        ({"to": ["http://a", "b"]}, "to[1]", "url scheme must be provided"),
        ({"to": "tcp://a:1"}, "to", "tcp:// needs a from of tcp+https://"),
        ({"to": "https+unix:///a"}, "to", "https+unix has no host to verify"),
        ({"from": "http://app.example.com"}, "from", "only secure schemes are supported"),
        ({"path": "/a", "prefix": "/b"}, "prefix", "path and prefix are given"),
        ({"path": "/a", "regex": "/b"}, "regex", "path and regex are given"),
        ({"prefix": "a"}, "prefix", "'a' does not start with /"),
        ({"regex": "a("}, "regex", "is not a regular expression"),
        (
            {"prefix_rewrite": "/a", "regex_rewrite_pattern": "b"},
            "prefix_rewrite",
            "only prefix_rewrite or regex_rewrite_pattern can be specified, but not both",
        ),
        ({"regex_rewrite_pattern": "("}, "regex_rewrite_pattern", "is not a regular expression"),
        (
            {"regex_rewrite_substitution": "x"},
            "regex_rewrite_substitution",
            "needs regex_rewrite_pattern",
        ),
        (
            {"regex_rewrite_pattern": "(a)", "regex_rewrite_substitution": r"\2"},
            "regex_rewrite_substitution",
            "refers to group 2",
        ),
        (
            {"regex_rewrite_pattern": "(a)", "regex_rewrite_substitution": r"\q"},
            "regex_rewrite_substitution",
            "before 'q'",
        ),
        (
            {"host_path_regex_rewrite_pattern": "("},
            "host_path_regex_rewrite_pattern",
            "is not a regular expression",
        ),
        (
            {"host_rewrite": "a", "host_rewrite_header": "b"},
            "host_rewrite_header",
            "host_rewrite and host_rewrite_header are given",
        ),
        (
            {"host_rewrite": "a", "host_path_regex_rewrite_pattern": "b"},
            "host_path_regex_rewrite_pattern",
            "host_rewrite and host_path_regex_rewrite_pattern are given",
        ),
        (
            {
                "host_rewrite": "a",
                "host_rewrite_header": "b",
                "host_path_regex_rewrite_pattern": "c",
            },
            "host_rewrite_header",
            "host_rewrite and host_rewrite_header and host_path_regex_rewrite_pattern are given",
        ),
        (
            {"host_rewrite_header": "a", "host_path_regex_rewrite_pattern": "b"},
            "host_path_regex_rewrite_pattern",
            "host_rewrite_header and host_path_regex_rewrite_pattern are given",
        ),
        ({"host_rewrite_header": "a b"}, "host_rewrite_header", "is not a header name"),
        ({"set_request_headers": {"Host": "a"}}, "set_request_headers", "host cannot be set here"),
        (
            {"set_request_headers": {":path": "/a"}},
            "set_request_headers",
            "':path' is not a header",
        ),
        ({"remove_request_headers": [":path"]}, "remove_request_headers", "':path' is not a head"),
        ({"remove_request_headers": ["host"]}, "remove_request_headers", "cannot be removed"),
        (
            {"rewrite_response_headers": [{"header": "", "prefix": "a"}]},
            "rewrite_response_headers[0].header",
            "is not a header name",
        ),
        (
            {"to": None, "redirect": {"response_code": 304}},
            "redirect.response_code",
            "unsupported redirect response code 304",
        ),
        ({"to": None, "redirect": {}}, "redirect", "changes nothing"),
        ({"to": None, "response": {"status": 99}}, "response.status", "99 is out of range"),
        (
            {"to": None, "response": {"status": 200, "body": "x" * 4097}},
            "response.body",
            "has 4097 bytes",
        ),
        ({"tls_client_cert": "eA=="}, "tls_client_cert", "cert both must be non-empty"),
        ({"tls_client_key_file": "/k"}, "tls_client_key_file", "cert both must be non-empty"),
        (
            {"tls_client_cert": "eA==", "tls_client_key": "eA=="},
            "tls_client_cert",
            "does not decode to PEM",
        ),
        (
            {"tls_client_cert_file": "/none", "tls_client_key_file": "/none"},
            "tls_client_cert_file",
            "/none cannot be read",
        ),
        (
            {"tls_downstream_client_ca_file": "/none"},
            "tls_downstream_client_ca_file",
            "/none cannot",
        ),
        ({"tls_custom_ca": "%"}, "tls_custom_ca", "is not base64"),
        ({"tls_custom_ca": "eA=="}, "tls_custom_ca", "does not decode to PEM"),
        ({"tls_custom_ca_file": "/none"}, "tls_custom_ca_file", "/none cannot be read"),
        (
            {"tls_downstream_client_ca": "eA=="},
            "tls_downstream_client_ca",
            "does not decode to PEM",
        ),
        ({"health_checks": [HEALTH]}, "health_checks[0]", "has 0 checkers"),
        (
            {"health_checks": [{**TCP, "grpc_health_check": {}}]},
            "health_checks[0]",
            "has 2 checkers",
        ),
        (
            {"health_checks": [{**TCP, "timeout": None}]},
            "health_checks[0].timeout",
            "is required",
        ),
        (
            {"health_checks": [{**TCP, "interval": "0s"}]},
            "health_checks[0].interval",
            "must be above 0",
        ),
        (
            {"health_checks": [{**TCP, "unhealthy_threshold": None}]},
            "health_checks[0].unhealthy_threshold",
            "is required",
        ),
        (
            {"health_checks": [{**TCP, "healthy_threshold": None}]},
            "health_checks[0].healthy_threshold",
            "is required",
        ),
        (
            {"health_checks": [{**HEALTH, "http_health_check": {}}]},
            "health_checks[0].http_health_check.path",
            "is required",
        ),
        (
            {
                "health_checks": [
                    {
                        **HEALTH,
                        "http_health_check": {
                            "path": "/",
                            "expected_statuses": [{"start": 300, "end": 200}],
                        },
                    }
                ]
            },
            "health_checks[0].http_health_check.expected_statuses[0]",
            "is not a range",
        ),
        (
            {"health_checks": [{**HEALTH, "tcp_health_check": {"send": {"text": "zz"}}}]},
            "health_checks[0].tcp_health_check",
            "not hex text or base64",
        ),
        ({"depends_on": list("abcdef")}, "depends_on", "limited to 5 additional redirect hosts"),
        ({"depends_on": ["a/b"]}, "depends_on[0]", "unsupported depends_on value 'a/b'"),
        (
            {"identity_providers": ["x"]},
            "identity_providers",
            "is only used with bearer_token_format jwt",
        ),
        ({"bearer_token_format": "jwt"}, "bearer_token_format", "needs the global"),
        (
            {"allow_public_unauthenticated_access": True, "allowed_users": ["a"]},
            "allow_public_unauthenticated_access",
            "policy route marked as public but contains whitelists",
        ),
        (
            {"allow_public_unauthenticated_access": True, "allow_any_authenticated_user": True},
            "allow_public_unauthenticated_access",
            "policy route marked as public but contains whitelists",
        ),
        (
            {"allow_public_unauthenticated_access": True, "allowed_domains": ["a"]},
            "allow_public_unauthenticated_access",
            "policy route marked as public but contains whitelists",
        ),
        (
            {"allow_any_authenticated_user": True, "allowed_users": ["a"]},
            "allow_any_authenticated_user",
            "any authenticated user but contains whitelists",
        ),
        (
            {"allow_any_authenticated_user": True, "allowed_domains": ["a"]},
            "allow_any_authenticated_user",
            "any authenticated user but contains whitelists",
        ),
        ({"policy": {"alow": {}}}, "policy.alow", ""),
        ({"policy": [{"allow": {"and": [{"emial": 1}]}}]}, "policy[0].allow.and[0].emial", ""),
        ({"sub_policies": [{"rego": ["x"]}]}, "sub_policies[0].rego", "not available yet"),
        ({"from": "tcp+https://a:1", "to": "tcp://a:1"}, "from", "not available yet"),
        ({"from": "udp+https://a:1", "to": "udp://a:1"}, "from", "not available yet"),
        ({"from": "ssh://a", "to": "ssh://a:22"}, "from", "not available yet"),
        ({"mcp": {"server": {}}}, "mcp", "not available yet"),
        (
            {"kubernetes_service_account_token_file": "/none"},
            "kubernetes_service_account_token_file",
            "/none cannot be read",
        ),
        ({"upstream_tunnel": {}}, "upstream_tunnel", "not available yet"),
        ({"session_recording": {"enabled": True}}, "session_recording", "not available yet"),
    ],
)
def test_errors(tmp_path: Path, keys: dict[str, Any], key: str, message: str) -> None:
    found = errors(tmp_path, keys)
    assert any(line.startswith(f"routes[0].{key}: ") and message in line for line in found), found


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"from": "tcp+https://a:1", "to": "http://a:1"}, "upstream of a tcp+https route must be"),
        ({"from": "udp+https://a:1", "to": "http://a:1"}, "upstream of a udp+https route must be"),
        ({"from": "ssh://a", "to": "http://a"}, "an ssh route has exactly one ssh:// upstream"),
        (
            {"from": "ssh://a", "to": None, "redirect": {"host_redirect": "b"}},
            "an ssh route has exactly one ssh:// upstream",
        ),
        (
            {"from": "ssh://a", "to": ["ssh://a", "ssh://b"]},
            "an ssh route has exactly one ssh:// upstream",
        ),
        ({"mcp": {}}, "mcp must have either server or client set"),
        (
            {"mcp": {"server": {"authorization_server_url": "http://a"}}},
            "is not https",
        ),
        (
            {
                "kubernetes_service_account_token": "x",
                "kubernetes_service_account_token_file": "/x",
            },
            "kubernetes_service_account_token and kubernetes_service_account_token_file",
        ),
    ],
)
def test_errors_of_kinds_that_come_later(
    tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    assert any(message in line for line in errors(tmp_path, keys))


ISSUERS = "identity_providers: {main: {issuer: https://issuer.example.com, audiences: [gatehouse]}}"


def test_issuers_are_those_of_the_settings(tmp_path: Path) -> None:
    keys = {"bearer_token_format": "jwt", "identity_providers": ["Main", "other"]}
    (error,) = errors(tmp_path, {**keys, "allowed_users": ["u"]}, ISSUERS)
    assert error.startswith("routes[0].identity_providers: 'other' is not one of the global")
    assert "(one of main)" in error


def test_chaining_has_to_be_asked_for(tmp_path: Path) -> None:
    keys = {"from": "tcp+https://a:1", "to": "http://a:1", "connect_chaining": True}
    found = errors(tmp_path, keys)
    assert len(found) == 1
    assert "not available yet" in found[0]


def test_plain_http_is_for_insecure_servers(tmp_path: Path) -> None:
    keys = {"from": "http://app.example.com", "allow_public_unauthenticated_access": True}
    assert errors(tmp_path, keys, "insecure_server: true") == []


@pytest.mark.parametrize(
    ("keys", "top", "message"),
    [
        (
            {"host_rewrite": "a", "preserve_host_header": True},
            "",
            "has no effect beside host_rewrite",
        ),
        ({"timeout": "20s"}, "timeout_write: 10s", "is above timeout_write and cut to 10s"),
        ({"idle_timeout": "6m"}, "", "is above timeout_idle and cut to 300s"),
        (
            {"maglev_lb_config": {"table_size": 65537}},
            "",
            "has no effect with load_balancing_policy ROUND_ROBIN",
        ),
        (
            {"to": ["http://a,3", "http://b,1"], "lb_policy": "RANDOM"},
            "",
            "routes[0].to: the weights have no effect: RANDOM takes every upstream as often",
        ),
        (
            {"regex": "/a.*", "regex_priority_order": 3},
            "",
            "routes[0].regex_priority_order: has no effect in a file, whose routes are tried in",
        ),
        ({"idp_client_id": "x"}, "", "belong together"),
    ],
)
def test_warnings(tmp_path: Path, keys: dict[str, Any], top: str, message: str) -> None:
    assert any(message in line for line in warned(tmp_path, keys, top))


@pytest.mark.parametrize("policy", ["ROUND_ROBIN", "LEAST_REQUEST", "RING_HASH", "MAGLEV"])
def test_weights_count_elsewhere(tmp_path: Path, policy: str) -> None:
    for weights, chosen in (((3, 1), policy), ((3, 3), "RANDOM")):
        to = [f"http://a{index},{weight}" for index, weight in enumerate(weights)]
        found = warned(tmp_path, {"to": to, "lb_policy": chosen}, "")
        assert not any("weights" in line for line in found)


def test_zero_timeouts_are_not_above_anything(tmp_path: Path) -> None:
    keys = {"timeout": "0s", "idle_timeout": "0s"}
    assert not any("above" in line for line in warned(tmp_path, keys, "timeout_write: 10s"))


def test_a_route_with_everything_in_order(tmp_path: Path) -> None:
    certificate, key = pem_pair("client")
    settings, found = resolved(
        tmp_path,
        config(
            {
                **BASE,
                "to": ["https://a:1,10", "https://b:2,20"],
                "name": "n",
                "prefix": "/a",
                "regex_rewrite_pattern": "^/a/(.*)$",
                "regex_rewrite_substitution": r"/b/\1\\",
                "host_rewrite_header": "X-Host",
                "set_request_headers": {"X-A": "${pomerium.jwt}"},
                "lb_policy": "least_request",
                "least_request_lb_config": {"choice_count": 3},
                "health_checks": [
                    {
                        **HEALTH,
                        "http_health_check": {
                            "path": "/healthz",
                            "expected_statuses": [{"start": 200, "end": 300}],
                        },
                    }
                ],
                "outlier_detection": {},
                "circuit_breaker_thresholds": {"max_requests": 9},
                "depends_on": ["b.example.com", "https://c.example.com:8443/x"],
                "tls_client_cert": certificate.decode(),
                "tls_client_key": key.decode(),
                "tls_custom_ca": authority_pem().decode(),
                "policy": {"allow": {"and": [{"domain": {"is": "example.com"}}]}},
            }
        ),
    )
    (route,) = settings.routes
    assert [issue for issue in found if issue.key.startswith("routes")] == []
    assert [upstream.weight for upstream in route.upstreams] == [10, 20]
    assert route.tls_client_certificate is not None
    assert route.tls_custom_ca_pem == authority_pem()
    assert [criterion.name for criterion in route.policy.criteria()] == ["domain"]


def test_a_client_key_of_another_certificate(tmp_path: Path) -> None:
    keys = {
        "tls_client_cert": pem_pair("a")[0].decode(),
        "tls_client_key": pem_pair("b")[1].decode(),
    }
    (error,) = errors(tmp_path, keys)
    assert "the key does not belong to the certificate" in error


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("tls_custom_ca", "tls_custom_ca_pem"),
        ("tls_downstream_client_ca", "tls_downstream_client_ca_pem"),
    ],
)
def test_an_authority_in_a_file_wins(tmp_path: Path, key: str, name: str) -> None:
    inline, in_file = authority_pem(), CERTIFICATE
    text = base64.b64encode(inline).decode()
    keys = {**BASE, "to": "https://app", "allowed_users": ["u"], key: text}
    for more, expected in (({}, inline), ({f"{key}_file": "/tls/cert.pem"}, in_file)):
        (route,) = resolved(tmp_path, config({**keys, **more}))[0].routes
        assert getattr(route, name) == expected


def test_duplicate_routes_are_an_error_and_named(tmp_path: Path) -> None:
    slower = json.dumps({**BASE, "timeout": "1s"})
    text = f"{LOGIN}\npolicy:\n- {json.dumps(BASE)}\nroutes:\n- {slower}\n"
    (error,) = problems(tmp_path, text)
    assert "is not unique: policy[0] has the same name, match and destination" in error
    routes = [{**BASE, "name": "a"}, {**BASE, "name": "b"}]
    named = f"{LOGIN}\nroutes: {json.dumps(routes)}\n"
    assert problems(tmp_path, named) == []


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({}, True),
        ({"policy": [{"deny": {"and": [{"email": {"is": "a@b"}}]}}]}, True),
        ({"allowed_users": ["a"]}, False),
        ({"policy": [{"allow": {"or": [{"email": {"is": "a@b"}}]}}]}, False),
        ({"cors_allow_preflight": True}, False),
    ],
)
def test_a_route_that_nobody_may_use(tmp_path: Path, keys: dict[str, Any], told: bool) -> None:
    found = warned(tmp_path, keys)
    assert any("nobody may use this route" in line for line in found) is told
