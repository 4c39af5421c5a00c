"""How settings in force reach the processes that this one starts.

Bytes for a private pipe between a process and its own children, and for nothing else: reading them
runs what they say.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from gatehouse.common.config.resolved import ResolvedSettings


def encode_settings(settings: ResolvedSettings) -> bytes:
    """The settings with all their secrets."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(settings)
    return buffer.getvalue()


def decode_settings(data: bytes) -> ResolvedSettings:
    """What `encode_settings` of the parent process wrote."""
    settings = pickle.loads(data)  # noqa: S301 - from the process that started this one
    assert isinstance(settings, ResolvedSettings), type(settings)
    return settings


class _Pickler(pickle.Pickler):
    """Also takes private keys, as DER."""

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            der = value.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
            return _private_key, (der,)
        return NotImplemented


def _private_key(der: bytes) -> Any:
    return load_der_private_key(der, password=None)
