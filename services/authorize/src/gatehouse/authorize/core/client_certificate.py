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

_PEM: Final = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class LeafFacts:
    """The first certificate of a chain."""

    fingerprint: str  # SHA-256 of the DER, lower-case hex
    spki_hash: str  # SHA-256 of the key info, base64
    dns_names: tuple[str, ...]
    email_addresses: tuple[str, ...]
    uris: tuple[str, ...]


@functools.lru_cache(maxsize=512)
def leaf_facts(chain_pem: str) -> LeafFacts | None:
    """The facts of a chain's leaf, or None when there is none that parses."""
    block = _PEM.search(chain_pem)
    if block is None:
        return None
    try:
        leaf = x509.load_pem_x509_certificate(block[0].encode())
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
