"""What the keys of metrics and tracing come to: addresses, certificates, collectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote, urlsplit

from gatehouse.common.config.certificates import CertificateError, make_pair
from gatehouse.common.config.choices import LOG_LEVELS
from gatehouse.common.config.inputs import Inputs
from gatehouse.common.config.model import Settings
from gatehouse.common.config.resolved import (
    CertificatePair,
    Collector,
    ListenAddress,
    MetricsListener,
    Tracing,
)
from gatehouse.common.config.values import decode_base64, one_of, parse_host_port

_GRPC_PORT: Final = 4317  # customary ports of OTLP
_DEFAULT_TIMEOUT_MS: Final = 10_000
_TRACES_PATH: Final = "/v1/traces"
_SWITCH: Final = "OTEL_SDK_DISABLED"
_VALUE_LIMIT: Final = 256


def metrics_listener(settings: Settings, inputs: Inputs) -> MetricsListener | None:
    """Where metrics are read and who may; None when `metrics_address` is not set."""
    certificate = _metrics_certificate(settings, inputs)
    # The inline form wins here, unlike with most other keys.
    inline = settings.metrics_client_ca
    file = "" if inline else settings.metrics_client_ca_file
    client_ca = inputs.authorities(("metrics_client_ca",), inline, file)
    if client_ca is not None and certificate is None and settings.metrics_address:
        inputs.error(
            ("metrics_client_ca_file" if file else "metrics_client_ca",),
            "cannot ask readers for certificates without TLS",
            "metrics_certificate and metrics_certificate_key, or leave it out",
        )
    address = parse_host_port(settings.metrics_address) if settings.metrics_address else None
    if address is None:
        return None
    basic = settings.metrics_basic_auth.get_secret_value()
    return MetricsListener(
        address=ListenAddress(*address),
        basic_auth=decode_base64(basic) if basic else None,
        certificate=certificate,
        client_ca_pem=client_ca,
    )


def _metrics_certificate(settings: Settings, inputs: Inputs) -> CertificatePair | None:
    inline, inline_key = settings.metrics_certificate, settings.metrics_certificate_key
    certificate_file = "" if inline else settings.metrics_certificate_file
    key_file = "" if inline_key else settings.metrics_certificate_key_file
    if not (inline or certificate_file) or not (inline_key or key_file):
        return None  # a lone half is warned about with the other global checks
    certificate = inputs.either(("metrics_certificate",), inline, certificate_file)
    key = inputs.either(("metrics_certificate_key",), inline_key.get_secret_value(), key_file)
    if certificate is None or key is None:
        return None
    try:
        return make_pair(certificate, key, "metrics_certificate")
    except CertificateError as error:
        where = "metrics_certificate" if inline else "metrics_certificate_file"
        inputs.error((where,), str(error), "a matching PEM pair")
        return None


def tracing(settings: Settings, inputs: Inputs, environ: Mapping[str, str]) -> Tracing | None:
    """Where spans go; None when nothing is exported."""
    if settings.otel_traces_exporter.lower() != "otlp":
        return None
    if environ.get(_SWITCH, "").lower() == "true":
        return None
    collector = _collector(settings)
    if collector is None:
        inputs.warn(
            ("otel_traces_exporter",),
            "no endpoint is set: nothing is sent",
            "otel_exporter_otlp_endpoint, such as http://127.0.0.1:4317",
        )
        return None
    level = settings.otel_log_level.lower() or "info"
    if level not in LOG_LEVELS:
        inputs.error(("otel_log_level",), "unknown level", one_of(level, LOG_LEVELS))
    limit = settings.otel_attribute_value_length_limit
    return Tracing(
        collector=collector,
        sampled_share=min(max(settings.otel_traces_sampler_arg, 0.0), 1.0),
        resource=dict(_pairs(settings.otel_resource_attributes)),
        batch_delay_s=settings.otel_bsp_schedule_delay / 1000,
        batch_spans=settings.otel_bsp_max_export_batch_size,
        value_limit=_VALUE_LIMIT if limit is None else min(max(limit, 64), 32768),
        log_level=level,
    )


def _collector(settings: Settings) -> Collector | None:
    url = settings.otel_exporter_otlp_traces_endpoint or settings.otel_exporter_otlp_endpoint
    if not url:
        return None
    parts = urlsplit(url)
    protocol = (
        settings.otel_exporter_otlp_traces_protocol or settings.otel_exporter_otlp_protocol
    ).lower()
    if not protocol:
        protocol = "grpc" if parts.port == _GRPC_PORT else "http/protobuf"
    if protocol != "grpc" and not settings.otel_exporter_otlp_traces_endpoint:
        url = url.rstrip("/") + _TRACES_PATH
    headers = (
        settings.otel_exporter_otlp_traces_headers.get_secret_value()
        or settings.otel_exporter_otlp_headers.get_secret_value()
    )
    timeout_ms = settings.otel_exporter_otlp_traces_timeout
    if timeout_ms is None:
        timeout_ms = settings.otel_exporter_otlp_timeout
    return Collector(
        url=url,
        is_grpc=protocol == "grpc",
        headers=tuple(_pairs(headers.split(","))),
        timeout_s=(timeout_ms or _DEFAULT_TIMEOUT_MS) / 1000,
    )


def _pairs(texts: tuple[str, ...] | list[str]) -> list[tuple[str, str]]:
    """`K=V` each, percent-encoded as in W3C Baggage."""
    found = []
    for text in texts:
        name, _, value = text.partition("=")
        if name.strip():
            found.append((unquote(name.strip()), unquote(value.strip())))
    return found
