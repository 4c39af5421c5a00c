"""Sealing a value so that only holders of a key can read or change it.

XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) with the nonce after ciphertext and tag.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_ABYTES,
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_aead_xchacha20poly1305_ietf_KEYBYTES,
    crypto_aead_xchacha20poly1305_ietf_NPUBBYTES,
)
from nacl.exceptions import CryptoError

from gatehouse.common.errors import InvalidArgumentError, InvalidTokenError

KEY_BYTES: Final = crypto_aead_xchacha20poly1305_ietf_KEYBYTES
NONCE_BYTES: Final = crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
OVERHEAD_BYTES: Final = crypto_aead_xchacha20poly1305_ietf_ABYTES + NONCE_BYTES
MAX_SEALED_BYTES: Final = 1024 * 1024


def seal(key: bytes, plaintext: bytes, *, nonce: bytes, ad: bytes = b"") -> bytes:
    """Ciphertext, 16-byte tag, then the 24-byte `nonce`, which must be random for every call.

    `ad` is bound to the result without being part of it.
    """
    _check_key(key)
    if len(nonce) != NONCE_BYTES:
        raise InvalidArgumentError(f"an AEAD nonce needs {NONCE_BYTES} bytes")
    return crypto_aead_xchacha20poly1305_ietf_encrypt(plaintext, ad, nonce, key) + nonce


def open_sealed(keys: Sequence[bytes], sealed: bytes, ad: bytes = b"") -> bytes:
    """The plaintext of a value sealed with any of `keys` and the same `ad`.

    Raises InvalidTokenError when it was cut, changed, or sealed with another key or `ad`.
    """
    if not OVERHEAD_BYTES <= len(sealed) <= MAX_SEALED_BYTES:
        raise InvalidTokenError("sealed value has an impossible length", reason="sealed-value")
    body, nonce = sealed[:-NONCE_BYTES], sealed[-NONCE_BYTES:]
    for key in keys:
        _check_key(key)
        try:
            return crypto_aead_xchacha20poly1305_ietf_decrypt(body, ad, nonce, key)
        except CryptoError:
            continue
    raise InvalidTokenError("sealed value does not verify", reason="sealed-value")


def _check_key(key: bytes) -> None:
    if len(key) != KEY_BYTES:
        raise InvalidArgumentError(f"an AEAD key needs {KEY_BYTES} bytes")
