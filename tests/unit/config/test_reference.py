"""The reference is made from the model and misses nothing."""

from __future__ import annotations

from gatehouse.common.config.model import Route, Settings
from gatehouse.common.config.reference import key_references

REFERENCES = {reference.path: reference for reference in key_references()}


def test_every_key_is_there_and_explained() -> None:
    for name, info in Settings.model_fields.items():
        assert REFERENCES[info.alias or name].meaning
    for name, info in Route.model_fields.items():
        assert REFERENCES[f"routes[].{info.alias or name}"].meaning


def test_defaults_are_as_one_writes_them() -> None:
    expected = {
        "timeout_read": "30s",
        "cookie_expire": "14h",
        "normalize_path": "true",
        "codec_type": "auto",
        "address": ":443",
        "shared_secret": "",
        "otel_traces_sampler_arg": "1.0",
        "programmatic_redirect_domain_whitelist": '["localhost"]',
        "downstream_mtls.max_verify_depth": "1",
        "routes[].load_balancing_policy": "ROUND_ROBIN",
        "routes[].mcp.server.max_request_bytes": "4096",
    }
    assert {path: REFERENCES[path].default for path in expected} == expected


def test_paths_and_variables() -> None:
    assert REFERENCES["downstream_mtls.ca_file"].variable == "DOWNSTREAM_MTLS_CA_FILE"
    assert REFERENCES["address"].variable == "ADDRESS"
    assert REFERENCES["certificates[].cert"].variable == ""
    assert "identity_providers.<name>.issuer" in REFERENCES
    assert "routes[].health_checks[].http_health_check.path" in REFERENCES
