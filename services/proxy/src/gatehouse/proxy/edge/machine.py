"""What this machine can do that settings do not say: IPv6, trusted authorities."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path
from typing import Final

import certifi

_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # macOS, OpenBSD
)


def has_ipv6() -> bool:
    """True when a listener on `::` can be had."""
    if not socket.has_ipv6:
        return False
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def system_ca_pem() -> bytes:
    """The machine's trusted roots: SSL_CERT_FILE, the system's bundle, else the one of certifi."""
    candidates = [os.environ.get("SSL_CERT_FILE", ""), *_BUNDLES]
    candidates.append(ssl.get_default_verify_paths().cafile or "")
    candidates.append(certifi.where())
    for name in candidates:
        if not name:
            continue
        try:
            pem = Path(name).read_bytes()
        except OSError:
            continue
        if pem.strip():
            return pem
    return b""
