"""The HPKE public key that is published for software which encrypts sign-in parameters to us.

Gatehouse takes no encrypted parameters; the key is there because others look for it. It follows
from the shared secret, so that every replica shows the same.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

KEY_BYTES: Final = 32

_INFO: Final = b"pomerium/hpke"
_KEM_ID: Final = 0x0020  # DHKEM(X25519, HKDF-SHA256)
_SUITE: Final = b"KEM" + _KEM_ID.to_bytes(2, "big")


def public_key(shared_secret: bytes) -> bytes:
    """The 32 raw bytes of the key derived from a shared secret."""
    seed = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=_INFO).derive(shared_secret)
    return derive_private_key(seed).public_key().public_bytes_raw()


def derive_private_key(ikm: bytes) -> X25519PrivateKey:
    """DeriveKeyPair of RFC 9180 section 7.1.3 for X25519."""
    prk = HKDF.extract(SHA256(), b"", b"HPKE-v1" + _SUITE + b"dkp_prk" + ikm)
    info = KEY_BYTES.to_bytes(2, "big") + b"HPKE-v1" + _SUITE + b"sk"
    scalar = HKDFExpand(algorithm=SHA256(), length=KEY_BYTES, info=info).derive(prk)
    return X25519PrivateKey.from_private_bytes(scalar)
