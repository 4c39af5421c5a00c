"""Which of Envoy's resources a changed key touches (spec: configuration.md, reload classes).

A listener that changes drains its connections; routes, clusters and secrets disturb nobody.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.proxy.core.xds.resource import CLUSTER, LISTENER, ROUTE_CONFIGURATION, SECRET
from gatehouse.proxy.core.xds.snapshot import build_snapshot
from tests.support.envoy import environment, resolved
from tests.support.golden_settings import CERTIFICATE, KEY
from tests.support.tls import Authority

C, L, R = CLUSTER, LISTENER, ROUTE_CONFIGURATION
ENVIRONMENT = environment("/run/gatehouse", system_ca_pem=CERTIFICATE.read_bytes())
TLS = {"certificate_file": str(CERTIFICATE), "certificate_key_file": str(KEY)}
PUBLIC = {"allow_public_unauthenticated_access": True}
ROUTE: dict[str, Any] = {
    "from": "https://app.example.com",
    "to": "https://app.internal",
    **PUBLIC,
}
SECRET_TEXT = base64.b64encode(b"another secret of thirty-two byt").decode()


def of(**keys: Any) -> ResolvedSettings:
    return resolved({**TLS, "services": "proxy", "authorize_service_url": "http://z", **keys})


def touched(before: ResolvedSettings, after: ResolvedSettings) -> set[str]:
    one, two = build_snapshot(before, ENVIRONMENT), build_snapshot(after, ENVIRONMENT)
    assert after.generation != before.generation
    return {kind for kind in one.resources if one.resources[kind] != two.resources[kind]}


GLOBAL: list[tuple[dict[str, Any], set[str]]] = [
    # H0: nothing in Envoy changes
    ({"cookie_secret": SECRET_TEXT}, set()),
    ({"cookie_expire": "1h"}, set()),
    ({"authorize_log_fields": ["path"]}, set()),
    ({"primary_color": "#123456"}, set()),
    ({"signout_redirect_url": "https://away.example.com"}, set()),
    ({"databroker_service_url": "https://d"}, set()),
    ({"debug_address": "127.0.0.1:9999"}, set()),
    ({"metrics_basic_auth": base64.b64encode(b"a:b").decode()}, set()),
    ({"max_staleness": "1m"}, set()),
    ({"shutdown_grace": "10s"}, set()),
    ({"health_check_addr": "127.0.0.1:28081"}, set()),
    ({"installation_id": "x"}, set()),
    ({"idp_scopes": ["openid"]}, set()),
    ({"idp_request_params": {"prompt": "login"}}, set()),
    ({"programmatic_redirect_domain_whitelist": ["a.example"]}, set()),
    ({"cookie_domain": "example.com"}, set()),
    ({"cookie_same_site": "lax"}, set()),
    ({"cookie_http_only": False}, set()),
    ({"authenticate_internal_service_url": "https://inside.example.com"}, set()),
    ({"databroker_service_urls": ["http://d"]}, set()),
    ({"error_message_first_paragraph": "Ask us."}, set()),
    ({"decision_cache_bytes": 1 << 20}, set()),  # told to the proxy's own filters while running
    # H1: routes or clusters; a cluster without a name is called by its content, which routes say
    ({"cookie_name": "other"}, {R}),
    ({"signing_key": "made below"}, {R}),
    ({"idp_client_id": "other"}, {R}),
    ({"jwt_claims_headers": ["email"]}, {R}),
    ({"pass_identity_headers": True}, {R}),
    ({"default_upstream_timeout": "5s"}, {R}),
    ({"allow_upgrades": ["other"]}, {R}),
    ({"authorize_service_url": "http://y"}, {C}),
    ({"authorize_internal_service_url": "http://y"}, {C}),
    ({"circuit_breaker_thresholds": {"max_requests": 3}}, {R, C}),
    ({"dns_refresh_rate": "3s"}, {R, C}),
    ({"dns_lookup_family": "ALL"}, {R, C}),
    ({"envoy_bind_config_source_address": "127.0.0.1"}, {R, C}),
    ({"certificate_authority": "made below"}, {R, C}),
    ({"authenticate_service_url": "https://other.example.com"}, {R}),
    ({"idp_access_token_allowed_audiences": ["a"]}, {R}),
    ({"identity_providers": {"a": {"issuer": "https://i", "audiences": ["a"]}}}, {R}),
    ({"jwt_issuer_format": "uri"}, {R}),
    ({"google_cloud_serverless_authentication_service_account": '{"a": 1}'}, {R}),
    ({"runtime_flags": {"match_any_incoming_port": False}}, {R}),
    ({"authorize_service_urls": ["http://y"]}, {C}),
    ({"envoy_bind_config_freebind": True}, {R, C}),
    ({"dns_failure_refresh_rate": "3s"}, {R, C}),
    ({"dns_query_timeout": "3s"}, {R, C}),
    ({"dns_query_tries": 3}, {R, C}),
    ({"dns_udp_max_queries": 3}, {R, C}),
    ({"dns_use_tcp": True}, {R, C}),
    ({"dns_resolvers": ["udp://192.0.2.1:53"]}, {R, C}),
    # H2: a listener
    ({"xff_num_trusted_hops": 1}, {L, R}),
    ({"downstream_mtls": "made below"}, {L, R}),
    ({"otel_traces_exporter": "otlp", "otel_exporter_otlp_endpoint": "http://c:4317"}, {L, R}),
    ({"tls_derive": "a.example.com"}, {L, R, C}),
    ({"address": "127.0.0.1:8443"}, {L}),
    ({"codec_type": "http2"}, {L}),
    ({"certificate_file": "made below"}, {L}),
    ({"timeout_read": "5s"}, {L}),
    ({"timeout_idle": "5s"}, {L}),
    ({"timeout_write": "50s"}, {L}),
    ({"merge_slashes": False}, {L}),
    ({"normalize_path": False}, {L}),
    ({"headers_with_underscores_action": "allow"}, {L}),
    ({"path_with_escaped_slashes_action": "keep_unchanged"}, {L}),
    ({"skip_xff_append": True}, {L, R}),
    ({"use_proxy_protocol": True}, {L}),
    ({"grpc_client_timeout": "3s"}, {L}),
    ({"http_redirect_addr": ":80"}, {L}),
    ({"access_log_fields": ["path"]}, {L}),
    ({"log_level": "warn"}, {L}),
    ({"proxy_log_level": "error"}, {L}),
    ({"decision_cache": False}, {L, R}),
    ({"set_response_headers": {"X-A": "1"}}, {L, R}),
    ({"metrics_address": "127.0.0.1:9902"}, {L, C}),
    ({"envoy_admin_address": "127.0.0.1:9901"}, {L, C}),
]


def made(keys: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Keys whose values need files or fresh keys."""
    if "certificate_file" in keys:
        leaf = Authority(folder).leaf("other.example.com")
        return {
            "certificate_file": str(leaf.certificate),
            "certificate_key_file": str(leaf.key),
        }
    if "certificate_authority" in keys:
        pem = Authority(folder).path.read_bytes()
        return {"certificate_authority": base64.b64encode(pem).decode()}
    if "downstream_mtls" in keys:
        pem = Authority(folder).path.read_bytes()
        return {"downstream_mtls": {"ca": base64.b64encode(pem).decode()}}
    if "signing_key" in keys:
        return {"signing_key": Authority(folder).leaf("signer").key.read_text()}
    return keys


@pytest.mark.parametrize(("keys", "kinds"), GLOBAL, ids=[next(iter(keys)) for keys, _ in GLOBAL])
def test_a_global_key_touches_what_its_class_says(
    tmp_path: Path, keys: dict[str, Any], kinds: set[str]
) -> None:
    routes = [ROUTE]
    assert touched(of(routes=routes), of(routes=routes, **made(keys, tmp_path))) == kinds


TRACED = {"otel_traces_exporter": "otlp", "otel_exporter_otlp_endpoint": "http://c:4317"}
REMOTE = {"authorize_service_url": "https://z"}
MORE: list[tuple[dict[str, Any], dict[str, Any], set[str]]] = [
    (TRACED, {"otel_traces_sampler_arg": 0.5}, {L}),
    (TRACED, {"otel_attribute_value_length_limit": 100}, {L}),
    (TRACED, {"otel_resource_attributes": "a=b"}, {L}),
    # What the spans take on their way out of this process is no business of Envoy's.
    (TRACED, {"otel_exporter_otlp_headers": "a=b"}, set()),
    (TRACED, {"otel_exporter_otlp_traces_endpoint": "http://d:4317"}, set()),
    (TRACED, {"otel_bsp_max_export_batch_size": 5}, set()),
    (REMOTE, {"override_certificate_name": "z.example.com"}, {C}),
]


@pytest.mark.parametrize(("before", "keys", "kinds"), MORE, ids=[next(iter(k)) for _, k, _ in MORE])
def test_a_key_beside_others_touches_what_its_class_says(
    before: dict[str, Any], keys: dict[str, Any], kinds: set[str]
) -> None:
    first = {"routes": [ROUTE], **before}
    assert touched(of(**first), of(**{**first, **keys})) == kinds


ROUTES: list[tuple[list[dict[str, Any]], set[str]]] = [
    ([], {R, C}),
    ([ROUTE, {**ROUTE, "from": "https://new.example.com", "to": "http://new"}], {R, C}),
    ([ROUTE, {**ROUTE, "prefix": "/same-upstream"}], {R}),
    ([{**ROUTE, "prefix_rewrite": "/x"}], {R}),
    ([{**ROUTE, "timeout": "3s"}], {R}),
    ([{**ROUTE, "to": "https://other.internal"}], {R, C}),
    ([{**ROUTE, "to": ["https://app.internal,3"]}], {R, C}),
    (
        [
            {
                **ROUTE,
                "allow_public_unauthenticated_access": False,
                "policy": [{"allow": {"or": [{"email": "a@b.c"}]}}],
            }
        ],
        {R},
    ),
    ([{**ROUTE, "set_response_headers": {"X-A": "1"}}], {R}),
]


@pytest.mark.parametrize(("routes", "kinds"), ROUTES)
def test_routes_touch_no_listener(routes: list[dict[str, Any]], kinds: set[str]) -> None:
    assert touched(of(routes=[ROUTE]), of(routes=routes)) == kinds


def test_a_client_authority_of_a_route_joins_those_of_the_listener(tmp_path: Path) -> None:
    pem = base64.b64encode(Authority(tmp_path).path.read_bytes()).decode()
    changed = touched(of(routes=[ROUTE]), of(routes=[{**ROUTE, "tls_downstream_client_ca": pem}]))
    assert changed == {L, R}


def test_a_shared_secret_touches_no_listener() -> None:
    """The token for authorize is a secret of its own; the environment holds it."""
    before, after = of(routes=[ROUTE]), of(routes=[ROUTE], shared_secret=SECRET_TEXT)
    assert touched(before, after) == {R}  # assertions are signed by a key made of it
    kinds = build_snapshot(before, ENVIRONMENT).resources
    assert SECRET in kinds
