"""What the keys of metrics and tracing come to."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.resolve import load_and_resolve
from gatehouse.common.config.resolved import ListenAddress, ResolvedSettings
from tests.support.envoy import BASE
from tests.support.tls import Authority

EXPORT = {"otel_traces_exporter": "otlp", "otel_exporter_otlp_endpoint": "http://c:4317"}


def load(tmp_path: Path, environ: Any = None, **keys: Any) -> tuple[ResolvedSettings, list[str]]:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**BASE, "insecure_server": True, **keys}))
    resolved, warnings = load_and_resolve(path, environ or {}, random_secret=lambda: bytes(32))
    return resolved, [str(warning) for warning in warnings]


def test_without_an_address_there_are_no_metrics(tmp_path: Path) -> None:
    assert load(tmp_path)[0].metrics is None
    assert load(tmp_path, metrics_basic_auth="YTpi")[0].metrics is None


def test_the_metrics_listener(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    leaf = authority.leaf("metrics.example.com")
    metrics = load(
        tmp_path,
        metrics_address="127.0.0.1:9902",
        metrics_basic_auth=base64.b64encode(b"a:b").decode(),
        metrics_certificate=base64.b64encode(leaf.certificate.read_bytes()).decode(),
        metrics_certificate_file="/the/inline/form/wins",
        metrics_certificate_key_file=str(leaf.key),
        metrics_client_ca_file=str(authority.path),
    )[0].metrics
    assert metrics is not None
    assert metrics.address == ListenAddress("127.0.0.1", 9902)
    assert metrics.basic_auth == b"a:b"
    assert metrics.certificate is not None
    assert metrics.client_ca_pem == authority.path.read_bytes().strip() + b"\n"
    assert "a:b" not in repr(metrics)


def test_certificates_cannot_be_asked_for_without_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with pytest.raises(ConfigError, match="cannot ask readers for certificates without TLS"):
        load(tmp_path, metrics_address=":9902", metrics_client_ca_file=str(authority.path))


def test_a_pair_that_does_not_match_is_an_error(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, other = authority.leaf("a.example", stem="a"), authority.leaf("b.example", stem="b")
    with pytest.raises(ConfigError, match="metrics_certificate_file"):
        load(
            tmp_path,
            metrics_address=":9902",
            metrics_certificate_file=str(one.certificate),
            metrics_certificate_key_file=str(other.key),
        )


def test_envoy_listens_for_metrics_on_addresses_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"metrics\.example\.com. is not an IP"):
        load(tmp_path, metrics_address="metrics.example.com:9902")


@pytest.mark.parametrize(
    ("keys", "url", "is_grpc"),
    [
        ({}, "http://c:4317", True),
        (
            {"otel_exporter_otlp_endpoint": "http://c:4318/"},
            "http://c:4318/v1/traces",
            False,
        ),
        (
            {"otel_exporter_otlp_endpoint": "https://c", "otel_exporter_otlp_protocol": "grpc"},
            "https://c",
            True,
        ),
        (
            {
                "otel_exporter_otlp_traces_endpoint": "https://c/whole",
                "otel_exporter_otlp_protocol": "grpc",
                "otel_exporter_otlp_traces_protocol": "http/protobuf",
            },
            "https://c/whole",
            False,
        ),
    ],
)
def test_the_collector(tmp_path: Path, keys: dict[str, str], url: str, is_grpc: bool) -> None:
    tracing = load(tmp_path, **EXPORT | keys)[0].tracing
    assert tracing is not None
    assert (tracing.collector.url, tracing.collector.is_grpc) == (url, is_grpc)


def test_tracing_in_full(tmp_path: Path) -> None:
    keys = {
        "otel_exporter_otlp_headers": "a=b,c=d%20e",
        "otel_exporter_otlp_traces_timeout": 1500,
        "otel_traces_sampler_arg": 7,
        "otel_resource_attributes": ["deployment=blue"],
        "otel_bsp_schedule_delay": 250,
        "otel_bsp_max_export_batch_size": 9,
        "otel_attribute_value_length_limit": 5,
        "otel_log_level": "WARN",
    }
    resolved, warnings = load(tmp_path, **EXPORT | keys)
    tracing = resolved.tracing
    assert tracing is not None
    assert tracing.collector.headers == (("a", "b"), ("c", "d e"))
    assert tracing.collector.timeout_s == 1.5
    assert tracing.sampled_share == 1.0
    assert tracing.resource == {"deployment": "blue"}
    assert (tracing.batch_delay_s, tracing.batch_spans, tracing.value_limit) == (0.25, 9, 64)
    assert tracing.log_level == "warn"
    assert "d e" not in repr(tracing)
    assert len([line for line in warnings if "is read as" in line]) == 2


@pytest.mark.parametrize("exporter", ["", "none", "noop", "zipkin"])
def test_other_exporters_send_nothing(tmp_path: Path, exporter: str) -> None:
    assert load(tmp_path, **EXPORT | {"otel_traces_exporter": exporter})[0].tracing is None


def test_the_switch_of_the_environment_and_a_missing_endpoint(tmp_path: Path) -> None:
    assert load(tmp_path, {"OTEL_SDK_DISABLED": "True"}, **EXPORT)[0].tracing is None
    resolved, warnings = load(tmp_path, otel_traces_exporter="otlp")
    assert resolved.tracing is None
    assert any("no endpoint is set" in line for line in warnings)


def test_an_unknown_level_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="otel_log_level"):
        load(tmp_path, **EXPORT | {"otel_log_level": "loud"})
