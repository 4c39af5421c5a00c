"""What of a request counts for a route's decisions, as proxy and authorize both see it."""

from __future__ import annotations

from typing import Any

import pytest

from gatehouse.common.config.decision_inputs import DecisionDeclarations, DecisionInputs
from tests.support.envoy import resolved


def declared(everywhere: dict[str, Any] | None = None, **keys: Any) -> DecisionInputs | None:
    route = {"from": "https://app.example.com", "to": "http://127.0.0.1:1", **keys}
    if "policy" not in keys:
        route["allow_any_authenticated_user"] = True
    settings = resolved({"routes": [route], **(everywhere or {})})
    return DecisionDeclarations(settings).of(settings.routes[0])


def policy(criterion: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"allow": {"and": [{"authenticated_user": True}, criterion]}}]


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ({"email": {"is": "a@b"}}, DecisionInputs()),
        ({"http_method": {"is": "GET"}}, DecisionInputs(method=True)),
        ({"http_path": {"is": "/"}}, DecisionInputs(path=True)),
        ({"source_ip": ["10.0.0.0/8"]}, DecisionInputs(source=True)),
        ({"day_of_week": "mon"}, DecisionInputs()),  # ends by its lifetime
        ({"client_certificate": {"fingerprint": "0" * 64}}, DecisionInputs(certificate=True)),
        (
            {"cors_preflight": True},
            DecisionInputs(method=True, headers=("access-control-request-method", "origin")),
        ),
    ],
)
def test_policies_declare(criterion, expected) -> None:
    assert declared(policy=policy(criterion)) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain $$", DecisionInputs()),
        ("$pomerium.jwt", DecisionInputs()),
        ('${pomerium.request.headers["X-A"]}', DecisionInputs(headers=("x-a",))),
        (
            '${pomerium.request.headers[":access-token"]}',
            DecisionInputs(headers=(":access-token",)),
        ),
        ('${pomerium.request.headers[""]}', DecisionInputs()),
        ("$pomerium.client_cert_fingerprint", DecisionInputs(certificate=True)),
        ("$pomerium.client_cert_san_dns", DecisionInputs(certificate=True)),
        ("$pomerium.access_token", None),
        ("$pomerium.id_token", None),
        ('$pomerium.id_token ${pomerium.request.headers[":id-token"]}', None),
    ],
)
def test_case_f_templates_declare(template, expected) -> None:
    assert declared(set_request_headers={"X": template}) == expected


def test_trusted_hops_make_the_header_count() -> None:
    networks = policy({"source_ip": ["10.0.0.0/8"]})
    assert declared({"xff_num_trusted_hops": 1}, policy=networks) == DecisionInputs(
        source=True, forwarded=True
    )
    hidden = {"xff_num_trusted_hops": 1, "skip_xff_append": True, "use_proxy_protocol": True}
    assert declared(hidden, policy=networks) is None
    assert declared(hidden) == DecisionInputs()


def test_what_is_never_remembered() -> None:
    assert declared({"decision_cache": False}) is None
    assert declared(enable_google_cloud_serverless_authentication=True) is None
