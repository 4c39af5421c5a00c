"""Which headers every response of a route carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from envoy.config.core.v3 import base_pb2

from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.proxy.core.xds.resources.scalars import literal

_DISABLE: Final = "disable"
_DEFAULT: Final = {
    "x-frame-options": "SAMEORIGIN",
    "x-xss-protection": "1; mode=block",
}
_HSTS: Final = {"strict-transport-security": "max-age=31536000; includeSubDomains; preload"}


def global_headers(resolved: ResolvedSettings) -> Mapping[str, str]:
    """The headers of `set_response_headers`, or the default ones; names in lower case.

    HSTS is promised only where a certificate was configured: a browser that remembers it for a
    host with a self-made one would lock its user out.
    """
    custom = resolved.settings.set_response_headers
    if custom:
        lowered = {name.lower(): value for name, value in custom.items()}
        return {} if _DISABLE in lowered else lowered
    if resolved.has_configured_certificate and not resolved.settings.autocert_use_staging:
        return _DEFAULT | _HSTS
    return _DEFAULT


def route_headers(resolved: ResolvedSettings, own: Mapping[str, str]) -> Mapping[str, str]:
    """The route's own headers on top of the global ones; `disable` drops them all."""
    lowered = {name.lower(): value for name, value in own.items()}
    if _DISABLE in lowered:
        return {}
    return dict(global_headers(resolved)) | lowered


def header_options(headers: Mapping[str, str]) -> list[base_pb2.HeaderValueOption]:
    """`headers` as Envoy sets them: sorted, replacing what the upstream sent."""
    return [
        base_pb2.HeaderValueOption(
            header=base_pb2.HeaderValue(key=name, value=literal(value)),
            append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
        )
        for name, value in sorted(headers.items())
    ]
