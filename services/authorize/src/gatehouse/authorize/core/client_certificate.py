"""What a client certificate says, without judging whether to trust it."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

PEM_BLOCK: Final = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class LeafFacts:
    """The first certificate of a chain."""

    fingerprint: str  # SHA-256 of the DER, lower-case hex
    spki_hash: str  # SHA-256 of the key info, base64
    dns_names: tuple[str, ...]
    email_addresses: tuple[str, ...]
    uris: tuple[str, ...]


def leaf_pem(chain_pem: str) -> str | None:
    """The first certificate of a chain; None when there is none."""
    block = PEM_BLOCK.search(chain_pem)
    return block[0] if block is not None else None


def has_controls(name: str) -> bool:
    """True for a name that programs may read differently (a NUL ends a string in C)."""
    return _CONTROLS.search(name) is not None


def leaf_facts(chain_pem: str) -> LeafFacts | None:
    """The facts of a chain's leaf, or None when there is none that parses."""
    pem = leaf_pem(chain_pem)
    return _facts(pem) if pem is not None else None


@functools.lru_cache(maxsize=512)
def _facts(pem: str) -> LeafFacts | None:
    try:
        leaf = x509.load_pem_x509_certificate(pem.encode())
        names = _subject_alternative_names(leaf)
        key_info = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except Exception:  # noqa: BLE001 - many kinds of errors, all meaning: not a certificate
        return None
    return LeafFacts(
        fingerprint=leaf.fingerprint(SHA256()).hex(),
        spki_hash=base64.b64encode(hashlib.sha256(key_info).digest()).decode(),
        dns_names=tuple(names.get_values_for_type(x509.DNSName)) if names else (),
        email_addresses=tuple(names.get_values_for_type(x509.RFC822Name)) if names else (),
        uris=tuple(names.get_values_for_type(x509.UniformResourceIdentifier)) if names else (),
    )


def _subject_alternative_names(leaf: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        extension = leaf.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    except x509.ExtensionNotFound:
        return None
    assert isinstance(extension.value, x509.SubjectAlternativeName)
    return extension.value
