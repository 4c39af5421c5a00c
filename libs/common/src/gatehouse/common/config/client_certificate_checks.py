"""Whether what is asked about client certificates can come true.

Spec: configuration.md section 4.8. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from cryptography import x509

from gatehouse.common.config.issues import Finding, Severity
from gatehouse.common.config.model import MTLSEnforcement, Settings

_LISTS: Final = re.compile(b"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)
_AUTHORITY_KEYS: Final = ("tls_downstream_client_ca", "tls_downstream_client_ca_file")
_MOST_NAMED: Final = 3

Place = tuple[str | int, ...]


def check_client_certificates(settings: Settings) -> Iterator[Finding]:
    """Keys that ask for certificates which no client can show, or that nothing is held against."""
    mtls = settings.downstream_mtls
    places = list(_authorities(settings))
    if settings.insecure_server:
        refuses = mtls.enforcement is not MTLSEnforcement.POLICY
        what = f": {mtls.enforcement} refuses every request" if refuses else ""
        for place in places:
            yield Finding(
                Severity.WARNING,
                place,
                f"without TLS (insecure_server) no client can show a certificate{what}",
                "insecure_server: false with a certificate, or no client authority",
            )
    if places:
        return
    for key in ("crl", "crl_file", "match_subject_alt_names", "enforcement"):
        harmless = key == "enforcement" and mtls.enforcement is MTLSEnforcement.POLICY
        if key in mtls.model_fields_set and getattr(mtls, key) and not harmless:
            yield Finding(
                Severity.WARNING,
                ("downstream_mtls", key),
                "has no effect: without authorities no client is asked for a certificate",
                "downstream_mtls.ca or ca_file",
            )


def check_revocation(
    settings: Settings, authorities_pem: Iterable[bytes], lists_pem: bytes | None
) -> Iterator[Finding]:
    """What Envoy makes of revocation lists that authorize would see otherwise."""
    mtls = settings.downstream_mtls
    if lists_pem is None or mtls.enforcement is not MTLSEnforcement.REJECT_CONNECTION:
        return
    issuers = {
        x509.load_pem_x509_crl(block + b"\n").issuer.rfc4514_string()
        for block in _LISTS.findall(lists_pem)
    }
    without = dict.fromkeys(
        name
        for pem in authorities_pem
        for certificate in x509.load_pem_x509_certificates(pem)
        if (name := certificate.subject.rfc4514_string()) not in issuers
    )
    named = ", ".join(list(without)[:_MOST_NAMED])
    more = f" and {len(without) - _MOST_NAMED} more" if len(without) > _MOST_NAMED else ""
    missing = f"; it refuses all clients of {named}{more}, who have no list" if without else ""
    yield Finding(
        Severity.WARNING,
        ("downstream_mtls", "crl" if mtls.crl else "crl_file"),
        "with reject_connection Envoy refuses every client of an authority whose list is past its "
        f"next update{missing}",
        "a list of every authority, renewed in time; or enforcement: policy_with_default_deny",
    )


def _authorities(settings: Settings) -> Iterator[Place]:
    for key in ("ca", "ca_file"):
        if getattr(settings.downstream_mtls, key):
            yield ("downstream_mtls", key)
    for top in ("policy", "routes"):
        for index, route in enumerate(getattr(settings, top)):
            for key in _AUTHORITY_KEYS:
                if getattr(route, key):
                    yield (top, index, key)
