"""The configurations that have a golden snapshot, and how a snapshot is written down."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from gatehouse.common.config.model import DownstreamMTLS, MTLSEnforcement
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.config.routes import parse_from, parse_to
from gatehouse.proxy.core.xds.resources.lua_scripts import (
    CLEAN_UPSTREAM,
    LOGGED_QUERY,
    REQUEST_GUARD,
    remembering_guard,
)
from gatehouse.proxy.core.xds.snapshot import Snapshot, SnapshotEnvironment, build_snapshot
from tests.support.envoy import environment, messages, resolved

GOLDENS = Path(__file__).resolve().parents[1] / "unit" / "proxy" / "goldens"
CERTIFICATE = GOLDENS / "certificate.pem"
KEY = GOLDENS / "key.pem"
RUN_DIR = "/run/gatehouse"


def _scripts(run_dir: str) -> dict[str, str]:
    shared = (f"{run_dir}/decision-table", f"{run_dir}/decision-counters")
    return {
        REQUEST_GUARD: "<request_guard.lua>",
        remembering_guard(*shared): "<decision_cache.lua, request_guard.lua>",
        LOGGED_QUERY: "<logged_query.lua>",
        CLEAN_UPSTREAM: "<clean_upstream.lua>",
    }


_TLS = {"certificate_file": str(CERTIFICATE), "certificate_key_file": str(KEY)}
_PEM = base64.b64encode(CERTIFICATE.read_bytes()).decode()
_PUBLIC = {"allow_public_unauthenticated_access": True}


def _route(from_: str, to: Any = "http://127.0.0.1:8001", **keys: Any) -> dict[str, Any]:
    target = {} if to is None else {"to": to}
    return {"from": from_, **target, **_PUBLIC, **keys}


CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {
    "minimal": {
        "insecure_server": True,
        "decision_cache": False,
        "routes": [_route("http://app.example.com")],
    },
    "all_in_one": {
        **_TLS,
        "address": ":443",
        "routes": [
            _route("https://app.example.com", prefix="/api", prefix_rewrite="/v1"),
            _route("https://app.example.com", path="/login"),
            _route("https://app.example.com", regex="^/r/[0-9]+$", preserve_host_header=True),
            {
                "from": "https://app.example.com",
                "to": ["http://10.0.0.1:80,1", "http://10.0.0.2:80,3"],
                "allow_any_authenticated_user": True,
                "pass_identity_headers": True,
                "set_request_headers": {"X-Set": "value"},
            },
            _route("https://ws.example.com", "https://ws.internal:8443", allow_websockets=True),
            _route("https://other.example.com:8443"),
            _route("https://*.wild.example.com", "http://wild.internal/base"),
        ],
    },
    "split_proxy": {
        **_TLS,
        "services": "proxy",
        "address": "0.0.0.0:443",
        "authorize_service_urls": ["https://authorize-1.internal", "https://authorize-2.internal"],
        "certificate_authority": _PEM,
        "grpc_client_certificate_file": str(CERTIFICATE),
        "grpc_client_key_file": str(KEY),
        "jwt_claims_headers": {"X-Email": "email"},
        "routes": [
            _route("https://authenticate.example.com", "https://authenticate.internal"),
            _route("https://app.example.com", "http://app.internal:8080"),
        ],
    },
    "grpc_on_address": {
        **_TLS,
        "services": "proxy,authorize,databroker",
        "address": "127.0.0.1:443",
        "grpc_address": "127.0.0.1:443",
        "timeout_write": "60s",
        "authorize_service_url": "https://authorize.example.com",
        "databroker_service_url": "https://[2001:db8::1]:8443",
        "routes": [_route("https://app.example.com")],
    },
    "split_plain": {
        **_TLS,
        "services": "proxy",
        "address": "127.0.0.1:443",
        "authorize_service_urls": ["http://127.0.0.1:5443", "http://authorize.internal:5443"],
        "routes": [_route("https://app.example.com")],
    },
    "answers": {
        **_TLS,
        "address": "[::1]:443",
        "set_response_headers": {"X-Global": "100% sure"},
        "routes": [
            _route(
                "https://redirect.example.com",
                None,
                redirect={"host_redirect": "new.example.com", "response_code": 308},
            ),
            _route(
                "https://redirect.example.com",
                None,
                prefix="/v1",
                redirect={"prefix_rewrite": "/v2", "strip_query": True},
            ),
            _route("https://fixed.example.com", None, response={"status": 418, "body": "no 50%"}),
            _route(
                "https://headers.example.com",
                set_response_headers={"X-Own": "1", "X-Global": "mine"},
                remove_request_headers=["X-Gone", "X-Forwarded-Host"],
                rewrite_response_headers=[
                    {"header": "Location", "prefix": "http://a/", "value": "https://b/"}
                ],
            ),
            _route("https://bare.example.com", set_response_headers={"disable": "true"}),
            _route("https://host.example.com", prefix="/1", host_rewrite="other.example.com"),
            _route("https://host.example.com", prefix="/2", host_rewrite_header="X-Host"),
            _route(
                "https://host.example.com",
                prefix="/3",
                host_path_regex_rewrite_pattern="^/([^/]+)/.*$",
                host_path_regex_rewrite_substitution=r"\1",
            ),
            _route(
                "https://path.example.com",
                regex_rewrite_pattern=r"^/service/([^/]+)(/.*)$",
                regex_rewrite_substitution=r"\2/instance/\1",
            ),
        ],
    },
    "upstreams": {
        **_TLS,
        "address": "127.0.0.1:443",
        "dns_lookup_family": "V4_ONLY",
        "dns_resolvers": ["udp://127.0.0.1:5353"],
        "dns_use_tcp": True,
        "dns_query_tries": 3,
        "dns_refresh_rate": "20s",
        "circuit_breaker_thresholds": {"max_connections": 100},
        "timeout_write": "60s",
        "routes": [
            _route(
                "https://a.example.com",
                ["https://10.0.0.1", "https://10.0.0.2"],
                name="named",
                load_balancing_policy="RING_HASH",
                ring_hash_lb_config={"minimum_ring_size": 64},
                tls_upstream_server_name="app.internal",
                tls_custom_ca=_PEM,
                tls_client_cert_file=str(CERTIFICATE),
                tls_client_key_file=str(KEY),
                tls_upstream_allow_renegotiation=True,
                timeout="20s",
                circuit_breaker_thresholds={"max_requests": 5},
            ),
            _route(
                "https://b.example.com",
                ["http://b1.internal:8080", "http://b2.internal:8080"],
                load_balancing_policy="MAGLEV",
                healthy_panic_threshold=10,
                outlier_detection={"consecutive_5xx": 3, "base_ejection_time": "5s"},
                health_checks=[
                    {
                        "timeout": "1s",
                        "interval": "5s",
                        "unhealthy_threshold": 2,
                        "healthy_threshold": 1,
                        "http_health_check": {
                            "path": "/health",
                            "expected_statuses": [{"start": 200, "end": 300}],
                        },
                    }
                ],
            ),
            _route(
                "https://c.example.com",
                ["http://127.0.0.1:9001", "http://127.0.0.1:9002"],
                load_balancing_policy="LEAST_REQUEST",
                least_request_lb_config={"choice_count": 3},
                outlier_detection={},
                health_checks=[
                    {
                        "timeout": "1s",
                        "interval": "5s",
                        "unhealthy_threshold": 3,
                        "healthy_threshold": 3,
                        "tcp_health_check": {
                            "send": {"text": "504F4E47"},
                            "receive": [{"text": "4F4B"}],
                        },
                    }
                ],
            ),
            _route("https://d.example.com", "h2c://127.0.0.1:9003", idle_timeout="0s"),
            _route("https://e.example.com", "https://skip.internal", tls_skip_verify=True),
            _route("https://f.example.com", "unix:///run/app.sock"),
            _route("https://g.example.com", ["http://127.0.0.1:9004", "https://127.0.0.1:9005"]),
            _route("https://h.example.com", "http://localhost:9006", allow_spdy=True),
        ],
    },
    "listeners": {
        **_TLS,
        "address": "127.0.0.1:443",
        "codec_type": "http3",
        "http_redirect_addr": "127.0.0.1:80",
        "envoy_admin_address": "127.0.0.1:9901",
        "metrics_address": "127.0.0.1:9902",
        "metrics_certificate_file": str(CERTIFICATE),
        "metrics_certificate_key_file": str(KEY),
        "metrics_client_ca": _PEM,
        "use_proxy_protocol": True,
        "xff_num_trusted_hops": 1,
        "skip_xff_append": True,
        "timeout_read": "5s",
        "timeout_write": "40s",
        "timeout_idle": "90s",
        "headers_with_underscores_action": "drop_header",
        "path_with_escaped_slashes_action": "unescape_and_redirect",
        "merge_slashes": False,
        "log_level": "debug",
        "access_log_fields": [
            *("authority", "method", "path", "query", "ip", "referer", "client-certificate"),
            *("cluster-stat-name", "headers.X-Team", "duration"),
        ],
        "routes": [_route("https://app.example.com")],
    },
    "tunnels": {
        **_TLS,
        "address": "127.0.0.1:443",
        "timeout_write": "60s",
        "routes": [
            _route("https://a.example.com", "http://10.0.0.1:5432"),
            _route("https://b.example.com", "http://10.0.0.1:53", timeout="30s"),
            _route("https://c.example.com", "http://10.0.0.1:3128"),
        ],
    },
}

# What the loader does not let through yet, though the builders can do it.
_TUNNELS = (
    ("tcp+https://a.example.com:5432", "tcp://10.0.0.1:5432"),
    ("udp+https://b.example.com:53", "udp://10.0.0.1:53"),
    ("tcp+https://proxy.example.com/c.example.com:22/d.example.com:22", "http://10.0.0.1:3128"),
)


def _with_tunnels(settings: ResolvedSettings) -> ResolvedSettings:
    routes = tuple(
        replace(route, from_url=parse_from(from_), upstreams=(parse_to(to),))
        for route, (from_, to) in zip(settings.routes, _TUNNELS, strict=True)
    )
    return replace(settings, routes=routes)


def _with_client_certificates(settings: ResolvedSettings) -> ResolvedSettings:
    mtls = DownstreamMTLS(
        enforcement=MTLSEnforcement.REJECT_CONNECTION,
        max_verify_depth=2,
        match_subject_alt_names=({"dns": r".*\.example\.com"}, {"user_principal_name": "x"}),
    )
    return replace(
        settings,
        settings=settings.settings.model_copy(update={"downstream_mtls": mtls}),
        downstream_mtls_ca_pem=CERTIFICATE.read_bytes(),
    )


_CHANGES: Mapping[str, Callable[[ResolvedSettings], ResolvedSettings]] = {
    "tunnels": _with_tunnels,
    "listeners": _with_client_certificates,
}


def golden_settings(name: str) -> ResolvedSettings:
    """The settings of a golden; what other modules' hashes or clocks make is pinned."""
    settings = resolved(CONFIGURATIONS[name])
    if name in _CHANGES:
        settings = _CHANGES[name](settings)
    numbered = enumerate(settings.routes, 1)
    routes = tuple(replace(route, checksum=number) for number, route in numbered)
    return replace(settings, routes=routes, fallback_certificate=None)


def golden_environment(run_dir: str = RUN_DIR) -> SnapshotEnvironment:
    return environment(
        run_dir,
        error_page="<h1>%RESPONSE_CODE%</h1>",
        error_page_headers={"content-security-policy": "default-src 'none'"},
        system_ca_pem=CERTIFICATE.read_bytes(),
        ipv6=True,
    )


def golden_snapshot(name: str, run_dir: str = RUN_DIR) -> Snapshot:
    return build_snapshot(golden_settings(name), golden_environment(run_dir))


def written(snapshot: Snapshot) -> str:
    """A snapshot as people review it: protobuf JSON, scripts by name."""
    tree: dict[str, Any] = {
        type_url.rpartition(".")[2]: [
            json_format.MessageToDict(message, preserving_proto_field_name=True)
            for message in found
        ]
        for type_url, found in messages(snapshot).items()
    }
    tree["files"] = sorted(snapshot.files)
    scripts = _scripts(RUN_DIR)
    named = _replace(tree, lambda text: scripts.get(text, text))
    return json.dumps(named, indent=1, sort_keys=True) + "\n"


def read(text: str, run_dir: str) -> dict[str, Any]:
    """A written snapshot as JSON again, scripts in full, for another run directory."""
    scripts = {name: source for source, name in _scripts(run_dir).items()}
    tree: dict[str, Any] = _replace(
        json.loads(text), lambda value: scripts.get(value, value.replace(RUN_DIR, run_dir))
    )
    return tree


def _replace(tree: Any, change: Callable[[str], str]) -> Any:
    if isinstance(tree, dict):
        return {key: _replace(value, change) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_replace(value, change) for value in tree]
    return change(tree) if isinstance(tree, str) else tree
