"""Whom a TLS client believes: the system's authorities, and the configured ones besides."""

from __future__ import annotations

import functools
import ssl
from pathlib import Path
from typing import Final

# Where distributions keep the bundle when OpenSSL's own default is missing.
_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


@functools.cache
def system_roots_pem() -> bytes:
    """The system's authorities as PEM; empty where there are none. Honours SSL_CERT_FILE."""
    for name in (ssl.get_default_verify_paths().cafile, *_BUNDLES):
        if name and Path(name).is_file():
            return Path(name).read_bytes()
    return b""


def roots_pem(ca_pem: bytes | None) -> bytes | None:
    """System roots and `ca_pem` together; None leaves the choice to the TLS library."""
    if ca_pem is None:
        return system_roots_pem() or None
    return system_roots_pem() + b"\n" + ca_pem
