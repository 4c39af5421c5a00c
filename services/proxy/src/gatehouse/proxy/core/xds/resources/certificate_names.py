"""Which certificate is for which names, so that a name finds its own in whatever letters it comes.

Envoy compares the name a client asks for with the names in certificates letter by letter, but gives
filter chains the name in lower case. So names get filter chains of their own, each with only the
certificates for it; all else about the chains is the same.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from cryptography import x509

from gatehouse.common.config.resolved import CertificatePair

# Each chain costs every Envoy worker a copy of the filters. Beyond that many sets of certificates,
# several share a chain: a changed certificate drains the connections of those beside it too, and
# names in unusual letters get the first certificate of their chain.
MAX_CHAINS: Final = 16

_NAME: Final = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")


def certificates_by_names(
    pairs: Sequence[CertificatePair],
) -> list[tuple[tuple[str, ...], tuple[CertificatePair, ...]]]:
    """Names and the certificates for them, in order; empty when there is nothing to choose."""
    if len(pairs) < 2:
        return []
    for_name: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        for name in names_in(pair.certificate_pem):
            for_name.setdefault(name, []).append(index)
    names_of: dict[tuple[int, ...], list[str]] = {}
    for name, indexes in for_name.items():
        names_of.setdefault(tuple(indexes), []).append(name)
    if len(names_of) > MAX_CHAINS:
        names_of = _shared(names_of)
    return _in_order(pairs, names_of)


def _shared(names_of: Mapping[tuple[int, ...], list[str]]) -> dict[tuple[int, ...], list[str]]:
    """Sets of certificates put together, by their names alone.

    So a certificate that is added, removed or renewed leaves all others where they are.
    """
    shares: dict[int, tuple[set[int], list[str]]] = {}
    for indexes, names in names_of.items():
        share = zlib.crc32(min(names).encode()) % MAX_CHAINS
        together, all_names = shares.setdefault(share, (set(), []))
        together.update(indexes)
        all_names.extend(names)
    found: dict[tuple[int, ...], list[str]] = {}
    for together, all_names in shares.values():
        found.setdefault(tuple(sorted(together)), []).extend(all_names)
    return found


def _in_order(
    pairs: Sequence[CertificatePair], names_of: Mapping[tuple[int, ...], Iterable[str]]
) -> list[tuple[tuple[str, ...], tuple[CertificatePair, ...]]]:
    return [
        (tuple(sorted(names)), tuple(pairs[index] for index in indexes))
        for indexes, names in sorted(names_of.items())
    ]


@functools.lru_cache(maxsize=1024)
def names_in(certificate_pem: bytes) -> tuple[str, ...]:
    """The DNS names that a filter chain can be chosen by, in lower case; else the common name."""
    leaf = x509.load_pem_x509_certificates(certificate_pem)[0]
    try:
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = extension.value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        found = leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        names = [str(each.value) for each in found]
    lower = (name.lower() for name in names)
    return tuple(dict.fromkeys(name for name in lower if _NAME.fullmatch(name)))
