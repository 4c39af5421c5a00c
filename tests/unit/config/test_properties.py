"""Settings survive being written and read again, and nothing makes the loader crash."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.load import load_settings
from gatehouse.common.config.model import Route, Settings
from gatehouse.common.config.resolve import load_and_resolve
from gatehouse.common.config.schema import settings_schema
from tests.support.config_values import JSON, of_model, written
from tests.support.json_schema import violations

SCHEMA = settings_schema()
SLOW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
WORDS = st.sampled_from(
    sorted({*Settings.model_fields, *(info.alias or n for n, info in Route.model_fields.items())})
)
NEAR = st.recursive(
    JSON | WORDS | st.floats() | st.sampled_from(["https://a", "/x", "5m", "http://b,1", "a:1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=20,
)


def loaded(text: str | bytes, suffix: str = ".yaml") -> Settings:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"config{suffix}"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_settings(path, {"HOME": "/h"}).settings


def survives(path: Path) -> None:
    """Loading and resolving end well or with ConfigError, whose issues can be printed."""
    try:
        _, found = load_and_resolve(path, {"HOME": "/h"}, random_secret=lambda: b"r" * 32)
    except ConfigError as error:
        found = error.everything
    for issue in found:
        assert str(issue)
        assert issue.message


@SLOW
@given(of_model(Settings))
def test_round_trip(raw: dict[str, Any]) -> None:
    first = loaded(yaml.safe_dump(raw, allow_unicode=True))
    assert loaded(yaml.safe_dump(written(first), allow_unicode=True)) == first
    assert loaded(json.dumps(written(first)), ".json") == first


@SLOW
@given(of_model(Route, most=12))
def test_routes_round_trip(raw: dict[str, Any]) -> None:
    first = loaded(yaml.safe_dump({"routes": [raw]}, allow_unicode=True))
    assert loaded(yaml.safe_dump(written(first), allow_unicode=True)) == first


@SLOW
@given(of_model(Settings))
def test_the_schema_lets_in_what_the_model_does(raw: dict[str, Any]) -> None:
    raw = {key: value for key, value in raw.items() if key not in {"routes", "policy"}}
    assert list(violations(raw, SCHEMA, SCHEMA)) == []


@SLOW
@given(of_model(Settings))
@example({"tls_derive": "\xa0"})
@example({"tls_derive": "a" * 65})
@example({"tls_derive": "a..b"})
def test_whatever_the_model_lets_in_is_judged_without_a_crash(raw: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(raw, allow_unicode=True))
        survives(path)


@SLOW
@given(of_model(Route, most=12), st.sampled_from(["https://a", "tcp+https://a:1", "https://*"]))
def test_routes_are_judged_without_a_crash(raw: dict[str, Any], from_url: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        routes = [{"from": from_url, "to": "http://b", **raw}]
        path.write_text(yaml.safe_dump({"routes": routes * 2}, allow_unicode=True))
        survives(path)


@pytest.mark.parametrize("suffix", [".yaml", ".json", ".toml", ".env"])
@SLOW
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@example(b"\xef\xbb\xbfroutes: 1")
@example(b"a: &a [*a]")
@example(b"? [a]\n: b")
@example(b"!!python/object:os.system x")
@example(b"- " * 3000)
@example(b"[" * 3000)
@example(b'{"a":' * 3000)
@example(b"routes: !!binary x")
@example(b"timeout_read: 0x" + b"f" * 5000)
@example(b"timeout_read: " + b"9" * 5000)
@example(b'{"timeout_read": ' + b"9" * 5000 + b"}")
@example(b"timeout_read = " + b"9" * 5000)
@example(b"log_level: \x00")
@example(b"\xff\xfe")
def test_any_bytes(suffix: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"config{suffix}"
        path.write_bytes(data)
        survives(path)


@SLOW
@given(st.dictionaries(WORDS, NEAR, max_size=6))
def test_any_yaml_near_the_truth(raw: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(raw, allow_unicode=True))
        survives(path)


@SLOW
@given(st.dictionaries(WORDS.map(str.upper), st.text(max_size=30), max_size=5))
def test_any_environment(environ: dict[str, str]) -> None:
    with contextlib.suppress(ConfigError):
        load_and_resolve(None, environ, random_secret=lambda: b"r" * 32)
