"""Which client certificates a route accepts: chain, purpose, validity now, names, revocation.

Envoy passes on whatever a client presents (except under `reject_connection`), so this is where it
is verified, against the authorities of the route. https://www.rfc-editor.org/rfc/rfc5280
"""

from __future__ import annotations

import datetime as dt
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.asn1 import decode_der
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from gatehouse.authorize.core.client_certificate import PEM_BLOCK, has_controls
from gatehouse.authorize.core.lru import LruCache
from gatehouse.authorize.errors import UnreadableCertificateError
from gatehouse.common.config.routes import compile_regex

_REVOCATIONS: Final = re.compile(b"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)
_UPN: Final = x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")
_PURPOSES: Final = frozenset(
    {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
)
_MAX_PRESENTED: Final = 10  # certificates in one chain: verifying more costs more than it can give
_MAX_INTERMEDIATES: Final = 8  # when max_verify_depth sets no limit
_KNOWN_SIGNATURES: Final = 64

Verdicts: TypeAlias = "LruCache[tuple[ClientTrust, bytes], Judgement]"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is thought of a chain, and how long that holds."""

    problem: str  # "" when the chain is good
    since_s: float  # Unix seconds; before it and from `until_s` on it must be judged anew
    until_s: float

    @property
    def is_valid(self) -> bool:
        """True when the client may be taken for whom its certificate names."""
        return not self.problem


class ClientTrust:
    """Verifies chains against one set of authorities, revocation lists and constraints.

    `max_depth`: certificates above the leaf, the authority included; 0 is no limit. `names`: pairs
    of kind and RE2 expression, of which one must match a whole name; none: any name will do.
    `verdicts` remembers judgements, and may be shared.
    """

    def __init__(
        self,
        authorities_pem: bytes,
        revocations_pem: bytes = b"",
        *,
        max_depth: int = 1,
        names: Sequence[tuple[str, str]] = (),
        verdicts: Verdicts | None = None,
    ) -> None:
        self._authorities = x509.load_pem_x509_certificates(authorities_pem)
        self._store = Store(self._authorities)
        self._revocations = _revocations(revocations_pem)
        self._max_depth = max_depth
        self._names = tuple((kind, compile_regex(pattern)) for kind, pattern in names)
        self._verdicts: Verdicts = LruCache(1000) if verdicts is None else verdicts
        self._signatures: LruCache[tuple[int, bytes], bool] = LruCache(_KNOWN_SIGNATURES)

    def judge(self, chain_pem: str, now_s: float) -> Judgement:
        """Judge a chain as presented, leaf first. Raises UnreadableCertificateError."""
        key = (self, hashlib.sha256(chain_pem.encode("utf-8", "surrogatepass")).digest())
        known = self._verdicts.get(key)
        if known is not None and known.since_s <= now_s < known.until_s:
            return known
        made = self._judge(chain_pem, math.floor(now_s))
        self._verdicts.put(key, made)
        return made

    def _judge(self, chain_pem: str, now_s: int) -> Judgement:
        blocks = PEM_BLOCK.findall(chain_pem)
        if not blocks:
            return Judgement("no certificate can be made out", -math.inf, math.inf)
        if len(blocks) > _MAX_PRESENTED:
            return Judgement("too many certificates", -math.inf, math.inf)
        try:
            leaf = x509.load_pem_x509_certificate(blocks[0].encode())
            names = _Names(leaf)
        except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
            raise UnreadableCertificateError(
                f"the client certificate cannot be read: {type(error).__name__}",
                public_message="The client certificate cannot be read.",
            ) from None
        intermediates = list(_readable(blocks[1:]))
        since_s, until_s = _interval([leaf, *intermediates, *self._authorities], now_s)
        problem = self._problem(leaf, names, intermediates, now_s)
        return Judgement(problem, since_s, until_s)

    def _problem(
        self,
        leaf: x509.Certificate,
        names: _Names,
        intermediates: list[x509.Certificate],
        now_s: int,
    ) -> str:
        depth = self._max_depth - 1 if self._max_depth else _MAX_INTERMEDIATES
        builder = (
            PolicyBuilder()
            .store(self._store)
            .time(dt.datetime.fromtimestamp(now_s, dt.UTC))
            .max_chain_depth(depth)
            .extension_policies(ca_policy=_AUTHORITY_POLICY, ee_policy=_LEAF_POLICY)
        )
        try:
            chain = builder.build_client_verifier().verify(leaf, intermediates).chain
        except VerificationError as error:
            return f"the chain does not verify: {error}"
        except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
            return f"the chain cannot be verified: {type(error).__name__}"
        # The library does not count authorities that signed themselves under another key.
        if self._max_depth and len(chain) - 1 > self._max_depth:
            return "the chain is too long"
        if names.have_controls:
            return "a name holds control characters"
        if self._names and not any(
            pattern.fullmatch(name) for kind, pattern in self._names for name in names.of(kind)
        ):
            return "no name matches match_subject_alt_names"
        return self._revocation_problem(leaf, chain[1] if len(chain) > 1 else leaf)

    def _revocation_problem(self, leaf: x509.Certificate, issuer: x509.Certificate) -> str:
        """Every list of the leaf's issuer counts; one that does not verify cannot be trusted."""
        for number, revocations in enumerate(self._revocations):
            if revocations.issuer != issuer.subject or _is_of_other_key(revocations, issuer):
                continue
            if not self._is_signed(number, revocations, issuer):
                return "the issuer's revocation list is not signed by it"
            if revocations.get_revoked_certificate_by_serial_number(leaf.serial_number) is not None:
                return "the certificate is revoked"
        return ""

    def _is_signed(
        self, number: int, revocations: x509.CertificateRevocationList, issuer: x509.Certificate
    ) -> bool:
        key = (number, hashlib.sha256(issuer.public_bytes(Encoding.DER)).digest())
        known = self._signatures.get(key)
        if known is None:
            known = _signature_holds(revocations, issuer)
            self._signatures.put(key, known)
        return known


class _Names:
    """The alternative names of a leaf, by kind."""

    def __init__(self, leaf: x509.Certificate) -> None:
        found: Mapping[str, tuple[str, ...]] = {}
        try:
            extension = leaf.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
        except x509.ExtensionNotFound:
            pass
        else:
            value = extension.value
            assert isinstance(value, x509.SubjectAlternativeName)
            found = {
                "dns": tuple(value.get_values_for_type(x509.DNSName)),
                "email": tuple(value.get_values_for_type(x509.RFC822Name)),
                "uri": tuple(value.get_values_for_type(x509.UniformResourceIdentifier)),
                "ip_address": tuple(map(str, value.get_values_for_type(x509.IPAddress))),
                "user_principal_name": tuple(_principals(value)),
            }
        self._found = found

    @property
    def have_controls(self) -> bool:
        """True when a program written in C might read less than is there (CVE-2026-47778)."""
        return any(has_controls(name) for names in self._found.values() for name in names)

    def of(self, kind: str) -> tuple[str, ...]:
        return self._found.get(kind, ())


def _principals(names: x509.SubjectAlternativeName) -> Iterator[str]:
    for other in names.get_values_for_type(x509.OtherName):
        if other.type_id == _UPN:
            yield decode_der(str, other.value)


def _readable(blocks: Iterable[str]) -> Iterator[x509.Certificate]:
    """Intermediates only help: one that cannot be read helps nobody."""
    for block in blocks:
        try:
            certificate = x509.load_pem_x509_certificate(block.encode())
        except ValueError:
            continue
        yield certificate


def _interval(certificates: Iterable[x509.Certificate], now_s: int) -> tuple[float, float]:
    """Around now, when none of the certificates begins or ceases to be valid."""
    since_s, until_s = -math.inf, math.inf
    for certificate in certificates:
        begins_s = certificate.not_valid_before_utc.timestamp()
        # Still valid in the last second itself (RFC 5280 section 4.1.2.5).
        ends_s = certificate.not_valid_after_utc.timestamp() + 1
        for moment_s in (begins_s, ends_s):
            if moment_s <= now_s:
                since_s = max(since_s, moment_s)
            else:
                until_s = min(until_s, moment_s)
    return since_s, until_s


def _revocations(pem: bytes) -> tuple[x509.CertificateRevocationList, ...]:
    return tuple(x509.load_pem_x509_crl(block + b"\n") for block in _REVOCATIONS.findall(pem))


def _is_of_other_key(revocations: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    """True when both name their key and it is not the same: an authority may change its key."""
    try:
        theirs = revocations.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        ours = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return theirs.key_identifier is not None and theirs.key_identifier != ours.digest


def _signature_holds(revocations: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    try:
        key: Any = issuer.public_key()
        return revocations.is_signature_valid(key)
    except (TypeError, ValueError, UnsupportedAlgorithm, InvalidSignature):
        return False


def _check_purpose(
    policy: Policy, certificate: x509.Certificate, usage: x509.ExtendedKeyUsage | None
) -> None:
    del policy, certificate
    # Without the extension a certificate is for every purpose (RFC 5280 section 4.2.1.12).
    if usage is not None and _PURPOSES.isdisjoint(usage):
        raise ValueError("is not for authenticating clients")


def _check_signs(
    policy: Policy, certificate: x509.Certificate, usage: x509.KeyUsage | None
) -> None:
    del policy, certificate
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("may not sign certificates")


_LEAF_POLICY: Final = ExtensionPolicy.permit_all().may_be_present(
    x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _check_purpose
)
# Beyond what browsers ask of public authorities, small private ones leave much out: only what
# makes an authority is demanded.
_AUTHORITY_POLICY: Final = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _check_signs)
    .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _check_purpose)
)
