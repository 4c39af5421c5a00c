"""Which certificates a local authority vouches for: made once, renewed in time, under one key each.

Keys are written once and never replaced; certificates are made anew around them when they near
their end or lack a name. Two processes may do this at once. The authority may vouch for the names
it was made for and for nothing else (X.509 name constraints, RFC 5280 section 4.2.1.10), so that
trusting it in a browser puts no other site at risk.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

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

from gatehouse.cli.files import write_file
from gatehouse.common.errors import FailedPreconditionError

_AUTHORITY_LIFE: Final = dt.timedelta(days=3650)
_LEAF_LIFE: Final = dt.timedelta(days=180)
_AUTHORITY_RENEW: Final = dt.timedelta(days=365)  # a leaf must fit well within what is left
_LEAF_RENEW: Final = dt.timedelta(days=30)
_SKEW: Final = dt.timedelta(hours=1)

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Scope:
    """What an authority may vouch for. A domain covers itself and all names below it."""

    domains: tuple[str, ...]
    networks: tuple[Network, ...] = ()

    def holds(self, host: str) -> bool:
        """True when the authority may vouch for this name; `*.` in front is for all below it."""
        name = host.removeprefix("*.")
        return any(name == domain or name.endswith(f".{domain}") for domain in self.domains)


@dataclass(frozen=True, slots=True)
class Leaf:
    """Files, PEM. `certificate` holds the leaf alone."""

    certificate: Path
    key: Path


class LocalAuthority:
    """An authority in a directory of its own. The directory gets mode 0700, keys 0600.

    Raises FailedPreconditionError when a file there is not what it should be.
    """

    def __init__(self, directory: Path, *, name: str, scope: Scope, now_s: float) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        self._directory = directory
        self._scope = scope
        self._now = dt.datetime.fromtimestamp(now_s, dt.UTC)
        self.path = directory / "authority.pem"
        self._key = _key(directory / "authority-key.pem")
        known = _certificate(self.path)
        self.made = known is None or not self._is_good_authority(known)  # nobody trusts it yet
        if known is None or self.made:
            known = self._make_authority(name)
            write_file(self.path, known.public_bytes(Encoding.PEM), mode=0o644)
        self._certificate = known

    def leaf(
        self, stem: str, hosts: Sequence[str], addresses: Sequence[str] = (), *, client: bool
    ) -> Leaf:
        """The certificate `stem`.pem for these names, its key in `stem`-key.pem.

        `client`: it may also prove who a client is.
        """
        wrong = [host for host in hosts if not self._scope.holds(host)]
        if wrong:
            raise FailedPreconditionError(
                f"this authority is for {', '.join(self._scope.domains)} and names below it,"
                f" not for {', '.join(map(repr, wrong))}"
            )
        made = Leaf(self._directory / f"{stem}.pem", self._directory / f"{stem}-key.pem")
        known = _certificate(made.certificate)
        if known is not None and known.issuer != self._certificate.subject:
            raise FailedPreconditionError(
                f"{made.certificate} was issued by {known.issuer.rfc4514_string()}, not by the"
                f" authority in {self._directory}: it is left as it is; remove it and {made.key}"
                " to have another made"
            )
        key = _key(made.key)
        if known is None or not self._is_good_leaf(known, key, hosts, client=client):
            known = self._make_leaf(key, hosts, addresses, client=client)
            write_file(made.certificate, known.public_bytes(Encoding.PEM), mode=0o644)
        return made

    def _is_good_authority(self, certificate: x509.Certificate) -> bool:
        try:
            constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints)
        except x509.ExtensionNotFound:
            return False
        return (
            certificate.public_key() == self._key.public_key()
            and certificate.not_valid_before_utc <= self._now
            and certificate.not_valid_after_utc - self._now > _AUTHORITY_RENEW
            and constraints.value.permitted_subtrees == self._permitted()
        )

    def _permitted(self) -> list[x509.GeneralName]:
        names: list[x509.GeneralName] = [x509.DNSName(domain) for domain in self._scope.domains]
        return names + [x509.IPAddress(network) for network in self._scope.networks]

    def _is_good_leaf(
        self,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        hosts: Sequence[str],
        *,
        client: bool,
    ) -> bool:
        try:
            certificate.verify_directly_issued_by(self._certificate)
            extensions = certificate.extensions
            names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        return (
            certificate.public_key() == key.public_key()
            and set(hosts) <= set(names.get_values_for_type(x509.DNSName))
            and (ExtendedKeyUsageOID.CLIENT_AUTH in usages or not client)
            and certificate.not_valid_before_utc <= self._now
            and certificate.not_valid_after_utc - self._now > _LEAF_RENEW
        )

    def _make_authority(self, common_name: str) -> x509.Certificate:
        name = _name(common_name)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - _SKEW)
            .not_valid_after(self._now + _AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(certificates=True), critical=True)
            .add_extension(x509.NameConstraints(self._permitted(), None), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, SHA256())
        )

    def _make_leaf(
        self,
        key: ec.EllipticCurvePrivateKey,
        hosts: Sequence[str],
        addresses: Sequence[str],
        *,
        client: bool,
    ) -> x509.Certificate:
        names: list[x509.GeneralName] = [x509.DNSName(host) for host in dict.fromkeys(hosts)]
        names += [x509.IPAddress(ipaddress.ip_address(text)) for text in addresses]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH]
        if client:
            usages.append(ExtendedKeyUsageOID.CLIENT_AUTH)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(_name("Gatehouse"))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - _SKEW)
            .not_valid_after(self._now + _LEAF_LIFE)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(identifier, critical=False)
            .sign(self._key, SHA256())
        )


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
        f"{path} should be {expected}; remove {path.parent} to have everything made anew"
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
