"""Whether certificates and keys are sound, and those made from the shared secret.

Pure: PEM in, PEM out. What is derived is the same for the same secret in every process and version:
keys come from HKDF, signatures are deterministic (RFC 6979), dates are fixed.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gatehouse.common.config.resolved import CertificatePair
from gatehouse.common.config.values import decode_base64
from gatehouse.common.errors import InvalidArgumentError

_NOT_BEFORE: Final = dt.datetime(2022, 12, 1, tzinfo=dt.UTC)
_NOT_AFTER: Final = dt.datetime(2050, 12, 1, tzinfo=dt.UTC)
_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_SUBJECT_ALT_NAME: Final = x509.ObjectIdentifier("2.5.29.17")


class CertificateError(InvalidArgumentError):
    """PEM that cannot serve. Never holds key material."""

    default_reason = "certificate"


@dataclass(frozen=True, slots=True)
class DerivedCertificate:
    """An authority and a server certificate of one name, made from a secret."""

    authority_pem: bytes
    pair: CertificatePair


def decode_pem(text: str) -> bytes:
    """Base64 of PEM, or PEM itself, as PEM; CertificateError for anything else."""
    if "-----BEGIN" in text:
        return text.strip().encode() + b"\n"
    decoded = decode_base64(text)
    if decoded is None:
        raise CertificateError("is not base64")
    if b"-----BEGIN" not in decoded:
        raise CertificateError("does not decode to PEM")
    return decoded.strip() + b"\n"


def check_authorities(pem: bytes) -> bytes:
    """PEM that holds at least one certificate and nothing that is not readable."""
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise CertificateError("holds no readable PEM certificate") from None
    assert certificates
    return pem.strip() + b"\n"


def serves_clients(certificate_pem: bytes) -> bool:
    """True when the first certificate of a chain may be shown by a TLS client (RFC 5280 4.2.1.12).

    One that names no purpose serves every purpose.
    """
    leaf = x509.load_pem_x509_certificates(certificate_pem)[0]
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return bool(
        {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(usage)
    )


def wants_staple(certificate_pem: bytes) -> bool:
    """True for a certificate that clients refuse without a stapled OCSP answer (RFC 7633)."""
    leaf = x509.load_pem_x509_certificates(certificate_pem)[0]
    try:
        feature = leaf.extensions.get_extension_for_class(x509.TLSFeature)
    except x509.ExtensionNotFound:
        return False
    return x509.TLSFeatureType.status_request in feature.value


def check_revocation_lists(pem: bytes) -> bytes:
    """PEM of one or more certificate revocation lists."""
    blocks = re.findall(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", pem, re.DOTALL)
    if not blocks:
        raise CertificateError("holds no PEM revocation list")
    for block in blocks:
        try:
            x509.load_pem_x509_crl(block + b"\n")
        except ValueError:
            raise CertificateError("holds a revocation list that cannot be read") from None
    return pem.strip() + b"\n"


def make_pair(certificate_pem: bytes, key_pem: bytes, source: str) -> CertificatePair:
    """A certificate chain and its key, checked against each other."""
    try:
        leaf = x509.load_pem_x509_certificates(certificate_pem)[0]
    except (ValueError, IndexError):
        raise CertificateError("the certificate holds no readable PEM certificate") from None
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except TypeError:
        raise CertificateError("the key is encrypted; give it without password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError("the key holds no readable PEM private key") from None
    spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if leaf.public_key().public_bytes(*spki) != key.public_key().public_bytes(*spki):
        raise CertificateError("the key does not belong to the certificate")
    if isinstance(key, ec.EllipticCurvePrivateKey) and not isinstance(key.curve, ec.SECP256R1):
        raise CertificateError(f"the key is on curve {key.curve.name}; EC keys must be P-256")
    return CertificatePair(certificate_pem.strip() + b"\n", key_pem.strip() + b"\n", source)


def names_of(certificate_pem: bytes) -> tuple[str, ...]:
    """The DNS names and addresses of the first certificate in a chain."""
    leaf = x509.load_pem_x509_certificates(certificate_pem)[0]
    try:
        names = leaf.extensions.get_extension_for_oid(_SUBJECT_ALT_NAME).value
    except x509.ExtensionNotFound:
        return ()
    assert isinstance(names, x509.SubjectAlternativeName)
    addresses = (str(address) for address in names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def derive_certificate(secret: bytes, name: str, source: str) -> DerivedCertificate:
    """The authority of `secret` and a server certificate for exactly `name` (it may be `*`)."""
    authority_key = _derive_key(secret, b"gatehouse-derived-authority")
    leaf_key = _derive_key(secret, b"gatehouse-derived-certificate\x00" + name.encode())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Gatehouse Derived CA")])
    authority = _sign(
        _builder(authority_name, authority_name, authority_key, b"authority")
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False
        ),
        authority_key,
    )
    leaf_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    leaf = _sign(
        _builder(leaf_name, authority_name, leaf_key, name.encode())
        .add_extension(x509.SubjectAlternativeName([_general_name(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        ),
        authority_key,
    )
    pem = serialization.Encoding.PEM
    key_pem = leaf_key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return DerivedCertificate(
        authority.public_bytes(pem), CertificatePair(leaf.public_bytes(pem), key_pem, source)
    )


def _derive_key(secret: bytes, info: bytes) -> ec.EllipticCurvePrivateKey:
    stream = HKDF(algorithm=hashes.SHA256(), length=40, salt=None, info=info).derive(secret)
    scalar = int.from_bytes(stream, "big") % (_P256_ORDER - 1) + 1
    return ec.derive_private_key(scalar, ec.SECP256R1())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, label: bytes
) -> x509.CertificateBuilder:
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    serial = int.from_bytes(hashlib.sha256(label + b"\x00" + public).digest()[:16], "big") >> 1
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial | 1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
    )


def _sign(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    return builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
