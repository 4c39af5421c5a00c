"""The schema for editors lets in what the loader does, and marks the usual mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from gatehouse.common.config.model import Route, Settings
from gatehouse.common.config.schema import settings_schema
from tests.support.configuration import LOGIN
from tests.support.json_schema import violations

SCHEMA = settings_schema()


def found(text: str) -> list[str]:
    return list(violations(yaml.safe_load(text), SCHEMA, SCHEMA))


def test_every_key_is_there_in_the_users_spelling() -> None:
    top, route = SCHEMA["properties"], SCHEMA["definitions"]["Route"]["properties"]
    for info_of, properties in ((Settings.model_fields, top), (Route.model_fields, route)):
        for name, info in info_of.items():
            assert properties[info.alias or name]["description"]
    assert {"http_redirect_address", "grpc_addr"} <= set(top)
    assert {"lb_policy", "from"} <= set(route)
    assert "from_" not in route


def test_the_schema_is_json_and_all_references_resolve() -> None:
    text = json.dumps(SCHEMA)
    for part in text.split('"$ref": "#/definitions/')[1:]:
        assert part.partition('"')[0] in SCHEMA["definitions"]
    assert "default" not in SCHEMA["properties"]["shared_secret"]
    assert SCHEMA["properties"]["shared_secret"]["writeOnly"] is True


@pytest.mark.parametrize(
    "text",
    [
        LOGIN,
        "timeout_read: 30s\ntimeout_write: 0\ntimeout_idle: 1h30m\ncookie_expire: 0.5h",
        "codec_type: HTTP2\njwt_issuer_format: URI",
        "codec_type: CODEC_TYPE_HTTP1\nlog_level: warn\ncookie_same_site: Lax",
        "bearer_token_format: idp_access_token",
        "idp_scopes: openid,profile\naccess_log_fields: [method, headers.X-A]",
        "grpc_addr: ':80'\nhttp_redirect_address: ':80'\ndownstream_mtls.ca_file: /x",
        "downstream_mtls: {enforcement: policy, match_subject_alt_names: [{dns: a}]}",
        "jwt_claims_headers: [email]",
        "jwt_claims_headers: {X-Email: email}",
        "idp_provider:\nroutes:\npassthrough_x.y: 1",
        "circuit_breaker_thresholds: {max_requests: 5}",
        "identity_providers: {a: {issuer: https://i, audiences: [x]}}",
        "certificates: [{cert: /a, key: /b}]",
        "routes: [{from: https://a, to: http://b, timeout: 0s, lb_policy: random}]",
        "routes: [{from: https://a, to: ['http://b,1', 'http://c,2'], policy: {allow: {}}}]",
        "routes: [{from: https://a, redirect: {host_redirect: b, port_redirect: 443}}]",
        (
            "routes: [{from: https://a, response: {status: 200}, "
            "health_checks: [{timeout: 1.5s, tcp_health_check: {}}]}]"
        ),
    ],
)
def test_sound_files(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timeout_read: 30", "30"),
        ("timeout_read: 30 s", "30 s"),
        ("codec_type: http4", "http4"),
        ("log_level: INFO", "INFO"),
        ("adress: ':443'", "adress is unknown"),
        ("insecure_server: maybe", "maybe"),
        ("xff_num_trusted_hops: -1", "out of range"),
        ("authenticate_service_url: authenticate.example.com", "does not match"),
        ("metrics_address: 9902", "9902"),
        ("set_response_headers: {'a b': c}", "a b"),
        ("routes: {from: a}", "is not of type"),
        ("routes: [{to: http://b}]", "fits 0 of anyOf"),
        ("routes: [{from: https://a}]", "of anyOf"),
        ("routes: [{from: https://a, to: http://b, redirect: {}}]", "of anyOf"),
        ("routes: [{from: https://a, to: http://b, prefx: /}]", "of anyOf"),
        ("routes: [{from: https://a, to: http://b, timeout: 5}]", "of anyOf"),
        ("routes: [{from: https://a, to: b, health_checks: [{timeout: 1m}]}]", "of anyOf"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    problems = found(text)
    if message.endswith("of anyOf"):
        assert problems
    else:
        assert any(message in problem for problem in problems), problems


def test_no_key_is_of_an_unknown_kind() -> None:
    def walk(part: Any) -> None:
        if isinstance(part, dict):
            for name, item in part.get("properties", {}).items():
                free = {"policy", "explain_policy", "ssh_policy", "transport_socket_match_criteria"}
                assert item.keys() & {"type", "anyOf", "enum"} or name in free, name
            for item in part.values():
                walk(item)

    walk(SCHEMA)


def test_the_demo_needs_no_exception(tmp_path: Path) -> None:
    from gatehouse.cli.demo.settings import ports_from, prepare  # noqa: PLC0415

    demo = prepare(tmp_path / "demo", ports_from({}))
    assert found(demo.config.read_text()) == []
