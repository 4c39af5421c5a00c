"""Configuration for tests: text in, settings or issues out, with files held in memory."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gatehouse.common.config.certificates import derive_certificate
from gatehouse.common.config.issues import ConfigError, Issue, Severity
from gatehouse.common.config.load import LoadedSettings, load_settings
from gatehouse.common.config.resolve import resolve
from gatehouse.common.config.resolved import ResolvedSettings

SECRET = b"0123456789abcdef0123456789abcdef"
SECRET_TEXT = base64.b64encode(SECRET).decode()
RANDOM = b"r" * 32

LOGIN = f"""
authenticate_service_url: https://authenticate.example.com
shared_secret: {SECRET_TEXT}
cookie_secret: {SECRET_TEXT}
idp_provider: oidc
idp_provider_url: https://idp.example.com
idp_client_id: client
idp_client_secret: client-secret
certificate_file: /tls/cert.pem
certificate_key_file: /tls/key.pem
"""


PUBLIC = """
routes:
- from: https://a.example.com
  to: http://a
  allow_public_unauthenticated_access: true
"""
PRIVATE = """
routes:
- from: https://a.example.com
  to: http://a
  allow_any_authenticated_user: true
"""


def without(text: str, *keys: str) -> str:
    return "".join(
        line for line in text.splitlines(keepends=True) if not line.startswith(tuple(keys))
    )


def pem_pair(name: str = "*.example.com") -> tuple[bytes, bytes]:
    pair = derive_certificate(b"test" * 8, name, "test").pair
    return pair.certificate_pem, pair.key_pem


def pem_key(curve: ec.EllipticCurve) -> bytes:
    return ec.generate_private_key(curve).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def authority_pem() -> bytes:
    return derive_certificate(b"test" * 8, "x", "test").authority_pem


CERTIFICATE, KEY = pem_pair()
FILES: Mapping[str, bytes] = {"/tls/cert.pem": CERTIFICATE, "/tls/key.pem": KEY}


def write(folder: Path, text: str, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    path.chmod(0o600)
    return path


def load(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> LoadedSettings:
    return load_settings(write(folder, text), environ or {})


def resolved(
    folder: Path,
    text: str,
    environ: Mapping[str, str] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> tuple[ResolvedSettings, tuple[Issue, ...]]:
    known = {**FILES, **(files or {})}

    def read_file(path: Path) -> bytes:
        if str(path) not in known:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return known[str(path)]

    return resolve(
        load(folder, text, environ),
        read_file=read_file,
        environ=environ or {},
        random_secret=lambda: RANDOM,
    )


def problems(
    folder: Path,
    text: str,
    environ: Mapping[str, str] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> list[str]:
    """The errors of a configuration, as `key: message (fix)`; empty when it is sound."""
    try:
        resolved(folder, text, environ, files)
    except ConfigError as error:
        return [shown(issue) for issue in error.issues if issue.severity is Severity.ERROR]
    return []


def warnings(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    return [shown(issue) for issue in resolved(folder, text, environ)[1]]


def shown(issue: Issue) -> str:
    where = f"{issue.line}: " if issue.line is not None else ""
    return f"{where}{issue.key}: {issue.message} ({issue.fix})"
