"""Every default, written out from the configuration reference and not taken from the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from gatehouse.common.config.choices import RUNTIME_FLAGS
from gatehouse.common.config.model import Settings
from tests.support.configuration import load

DEFAULTS: dict[str, Any] = {
    "services": "all",
    "programmatic_redirect_domain_whitelist": ("localhost",),
    "bearer_token_format": "default",
    "jwt_issuer_format": "hostOnly",
    "cookie_name": "_pomerium",
    "cookie_http_only": True,
    "cookie_expire": 14 * 3600,
    "address": ":443",
    "grpc_address": ":443",
    "grpc_client_timeout": 10,
    "health_check_addr": "127.0.0.1:28080",
    "codec_type": "auto",
    "normalize_path": True,
    "merge_slashes": True,
    "path_with_escaped_slashes_action": "reject_request",
    "headers_with_underscores_action": "reject_request",
    "timeout_read": 30,
    "timeout_idle": 300,
    "default_upstream_timeout": 30,
    "dns_lookup_family": "V4_PREFERRED",
    "log_level": "info",
    "access_log_fields": (
        *("upstream-cluster", "method", "authority", "path", "user-agent", "referer"),
        *("forwarded-for", "request-id", "duration", "size", "response-code"),
        "response-code-details",
    ),
    "authorize_log_fields": (
        *("request-id", "check-request-id", "method", "path", "host", "ip", "session-id"),
        *("impersonate-session-id", "impersonate-user-id", "impersonate-email"),
        *("removed-groups-count", "service-account-id", "user", "email"),
        *("envoy-route-checksum", "envoy-route-id", "route-checksum", "route-id"),
    ),
    "otel_traces_sampler_arg": 1,
    "otel_bsp_schedule_delay": 5000,
    "otel_bsp_max_export_batch_size": 512,
    "envoy_admin_access_log_path": "/dev/null",
    "envoy_admin_profile_path": "/dev/null",
    "databroker_storage_type": "memory",
    "session_recording_concurrency": 8,
    "decision_cache": True,
    "decision_cache_bytes": 64 * 1024 * 1024,
    "max_staleness": 300,
    "authorize_workers": 1,
    "shutdown_grace": 25,
    "runtime_flags": {
        "add_extra_metrics_labels": True,
        "allow_any_sign_out_redirect_uri": False,
        "authorize_use_synced_data": True,
        "config_hot_reload": True,
        "debug_admin_endpoints": False,
        "envoy_resource_manager": True,
        "grpc_databroker_keepalive": True,
        "match_any_incoming_port": True,
        "mcp": True,
        "mcp_dynamic_client_registration": False,
        "pomerium_jwt_endpoint": False,
        "refresh_session_at_id_token_expiration": True,
        "routes_portal": True,
        "set_envoy_concurrency_to_go_max_procs": True,
        "ssh_allow_direct_tcpip": False,
        "ssh_routes_portal": False,
        "ssh_upstream_tunnel": False,
    },
}
# No keys of that reference: their defaults are told with what they belong to.
OTHERS = {
    *("idp_pkce", "directory_refresh_interval", "directory_max_shrink"),
    *("sign_in_timeout", "shutdown_delay"),
}


@pytest.mark.parametrize("key", DEFAULTS)
def test_a_key_that_is_left_out_has_the_documented_value(tmp_path: Path, key: str) -> None:
    assert getattr(load(tmp_path, "").settings, key) == DEFAULTS[key]


def test_all_other_keys_are_off_or_empty(tmp_path: Path) -> None:
    settings = load(tmp_path, "").settings
    told = {*DEFAULTS, *OTHERS, "downstream_mtls"}
    unset: tuple[Any, ...] = (None, False, "", 0, (), {}, SecretStr(""))
    assert {
        name: getattr(settings, name)
        for name in Settings.model_fields
        if name not in told and getattr(settings, name) not in unset
    } == {}


def test_client_certificates_are_denied_by_default_and_one_step_deep(tmp_path: Path) -> None:
    mtls = load(tmp_path, "downstream_mtls: {}\n").settings.downstream_mtls
    assert (mtls.enforcement, mtls.max_verify_depth) == ("policy_with_default_deny", 1)
    assert (mtls.ca, mtls.ca_file, mtls.crl, mtls.crl_file) == ("", "", "", "")
    assert mtls.match_subject_alt_names == ()


@pytest.mark.parametrize("flag", RUNTIME_FLAGS)
def test_each_flag_is_set_alone(tmp_path: Path, flag: str) -> None:
    other = not RUNTIME_FLAGS[flag]
    text = f"runtime_flags: {{{flag.upper()}: {str(other).lower()}}}\n"
    assert load(tmp_path, text).settings.runtime_flags == {**RUNTIME_FLAGS, flag: other}
