"""SSH keys, and user certificates that one of them signs."""

from __future__ import annotations

import base64
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    SSHCertificateBuilder,
    SSHCertificateType,
)

CERTIFIED_AT_S = 1_800_000_000.0


def line_of(key: Ed25519PrivateKey) -> str:
    """The public half as authorized_keys has it."""
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def blob_of(line: str) -> bytes:
    """The key of a line in wire format."""
    return base64.b64decode(line.split()[1])


def certificate(
    authority: Ed25519PrivateKey,
    *,
    principals: tuple[str, ...] = ("a",),
    kind: SSHCertificateType = SSHCertificateType.USER,
    valid: tuple[int, int] = (int(CERTIFIED_AT_S) - 60, int(CERTIFIED_AT_S) + 60),
    options: dict[str, str] | None = None,
) -> str:
    """A certificate line for a key of its own."""
    subject: Any = Ed25519PrivateKey.from_private_bytes(b"u" * 32).public_key()
    builder = (
        SSHCertificateBuilder()
        .public_key(subject)
        .type(kind)
        .key_id(b"someone")
        .valid_after(valid[0])
        .valid_before(valid[1])
    )
    if principals:
        builder = builder.valid_principals([name.encode() for name in principals])
    else:
        builder = builder.valid_for_all_principals()
    for name, value in (options or {}).items():
        builder = builder.add_critical_option(name.encode(), value.encode())
    return builder.sign(authority).public_bytes().decode()


USER_KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
AUTHORITY = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
OTHER_AUTHORITY = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
SSH_KEYS = (line_of(USER_KEY), line_of(AUTHORITY))
CERTIFICATE_LINE = certificate(AUTHORITY)
