"""The reference is made from the model and misses nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from gatehouse.common.config.model import Route, Settings
from gatehouse.common.config.reference import key_references
from gatehouse.common.config.reference_pages import routes_page, settings_page
from gatehouse.common.config.unavailable import (
    IDLE,
    IDLE_IN_ROUTE,
    REFUSED,
    REFUSED_IN_ROUTE,
    note,
    unavailable_settings,
)

ROOT = Path(__file__).resolve().parents[3]
# Modules that know keys without serving them.
DESCRIBING = frozenset(
    {"model.py", "route_model.py", "global_checks.py", "route_checks.py", "balancing_checks.py"}
    | {"unavailable.py", "weaknesses.py", "keys.py", "reference_pages.py", "reference.py"}
    | {"schema.py", "shape.py"}
)

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


def serving_text() -> str:
    """All sources that could do something with a key."""
    files = [file for top in ("services", "libs", "cli") for file in (ROOT / top).rglob("*.py")]
    return "\n".join(
        file.read_text()
        for file in files
        if not (file.name in DESCRIBING and file.parent.name == "config")
    )


@pytest.mark.parametrize(("model", "of_route"), [(Settings, False), (Route, True)])
def test_keys_that_nothing_reads_are_marked(model: type[BaseModel], of_route: bool) -> None:
    read = set(re.findall(r"[.\"](\w+)\b", serving_text()))
    unread = {name for name in model.model_fields if name not in read}
    assert {name for name in unread if not note(name, of_route=of_route)} == set()


def test_marks_are_of_keys_there_are() -> None:
    assert Settings.model_fields.keys() >= REFUSED | IDLE
    assert Route.model_fields.keys() >= REFUSED_IN_ROUTE | IDLE_IN_ROUTE


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_marked_as_an_error_is_one(name: str) -> None:
    default = Settings.model_fields[name].default
    value: Any = {bool: True, tuple: (1,), str: "x", SecretStr: SecretStr("x")}.get(type(default))
    used = Settings().model_copy(update={name: {} if value is None else value})
    assert name in {key for key, _ in unavailable_settings(used)}


def test_marks_are_on_the_pages() -> None:
    assert "ACME directory URL. **No effect yet.**" in settings_page()
    assert "| obtain certificates by ACME. **Not available yet: using it is" in settings_page()
    assert "forward CONNECT to an http(s) upstream. **No effect yet.**" in routes_page()
