"""Answers which certificates the demo serves: a local authority made once, and a leaf it signs.

The authority can vouch for names below localhost and for loopback addresses, nothing else (X.509
name constraints, RFC 5280 section 4.2.1.10), so trusting it in a browser puts no other site at
risk. Keys are written once and never replaced; certificates are made anew around them when they
near their end or lack a name. Two processes may do this at once.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gatehouse.cli.demo.files import write_file
from gatehouse.common.clock import Clock, SystemClock
from gatehouse.common.errors import FailedPreconditionError

# OpenSSL accepts no wildcard right below a single label, so each host stands here by name; the
# wildcard serves browsers for hosts that nobody thought of.
DEMO_HOSTS: Final = (
    "localhost",
    "*.localhost",
    "app.localhost",
    "admin.localhost",
    "public.localhost",
    "authenticate.localhost",
)

_AUTHORITY_LIFE: Final = dt.timedelta(days=3650)
_LEAF_LIFE: Final = dt.timedelta(days=180)
_AUTHORITY_RENEW: Final = dt.timedelta(days=365)  # a leaf must fit well within what is left
_LEAF_RENEW: Final = dt.timedelta(days=30)
_SKEW: Final = dt.timedelta(hours=1)
_LOOPBACK: Final = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files, all PEM. `certificate` holds the leaf alone; clients trust `authority`."""

    authority: Path
    certificate: Path
    key: Path
    authority_made: bool  # by this call: a browser has not seen it yet


def ensure_certificates(
    directory: Path, *, hosts: Sequence[str] = DEMO_HOSTS, clock: Clock | None = None
) -> Certificates:
    """Make what is missing, about to expire or short of a name; leave the rest as it is.

    `hosts` are names below localhost. The directory gets mode 0700, the keys 0600. Raises
    FailedPreconditionError when a file there is not what it should be.
    """
    wrong = [host for host in hosts if host != "localhost" and not host.endswith(".localhost")]
    if wrong:
        raise FailedPreconditionError(
            f"demo certificates are for localhost and names below it, not for {', '.join(wrong)}"
        )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    now = dt.datetime.fromtimestamp((clock or SystemClock()).now_s(), dt.UTC)
    authority_path = directory / "authority.pem"
    leaf_path = directory / "localhost.pem"
    leaf_key_path = directory / "localhost-key.pem"
    authority_key = _key(directory / "authority-key.pem")
    leaf_key = _key(leaf_key_path)

    authority = _certificate(authority_path)
    made = authority is None or not _is_good_authority(authority, authority_key, now)
    if authority is None or made:
        authority = _make_authority(authority_key, now)
        write_file(authority_path, authority.public_bytes(Encoding.PEM), mode=0o644)
    leaf = _certificate(leaf_path)
    if leaf is None or not _is_good_leaf(leaf, leaf_key, authority, hosts, now):
        leaf = _make_leaf(leaf_key, authority, authority_key, hosts, now)
        write_file(leaf_path, leaf.public_bytes(Encoding.PEM), mode=0o644)
    return Certificates(authority_path, leaf_path, leaf_key_path, authority_made=made)


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Load the key, or make it: whoever is first wins, all others use that one."""
    if not path.exists():
        fresh = ec.generate_private_key(ec.SECP256R1())
        pem = fresh.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_file(path, pem, mode=0o600, replace=False)
    path.chmod(0o600)
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise _not_ours(path, "an unencrypted private key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _not_ours(path, "an EC private key")
    return key


def _certificate(path: Path) -> x509.Certificate | None:
    if not path.exists():
        return None
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise _not_ours(path, "a certificate in PEM form") from error


def _not_ours(path: Path, expected: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{path} should be {expected}; remove {path.parent} to have the demo make everything anew"
    )


def _is_good_authority(
    certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, now: dt.datetime
) -> bool:
    return (
        certificate.public_key() == key.public_key()
        and certificate.not_valid_before_utc <= now
        and certificate.not_valid_after_utc - now > _AUTHORITY_RENEW
    )


def _is_good_leaf(
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    hosts: Sequence[str],
    now: dt.datetime,
) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return (
        certificate.public_key() == key.public_key()
        and set(hosts) <= set(names.get_values_for_type(x509.DNSName))
        and certificate.not_valid_before_utc <= now
        and certificate.not_valid_after_utc - now > _LEAF_RENEW
    )


def _make_authority(key: ec.EllipticCurvePrivateKey, now: dt.datetime) -> x509.Certificate:
    name = _name("Gatehouse demo authority (this machine only)")
    permitted: list[x509.GeneralName] = [x509.DNSName("localhost")]
    permitted += [x509.IPAddress(network) for network in _LOOPBACK]
    usage = _usage(certificates=True)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.NameConstraints(permitted, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )


def _make_leaf(
    key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str],
    now: dt.datetime,
) -> x509.Certificate:
    names: list[x509.GeneralName] = [x509.DNSName(host) for host in dict.fromkeys(hosts)]
    names += [x509.IPAddress(ipaddress.ip_address(text)) for text in ("127.0.0.1", "::1")]
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(_name("Gatehouse demo"))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _LEAF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(identifier, critical=False)
        .sign(authority_key, SHA256())
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
