"""Authorities of every kind, and the client certificates and revocation lists that they sign."""

from __future__ import annotations

import datetime as dt
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
SERVER = (ExtendedKeyUsageOID.SERVER_AUTH,)
UPN = x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")
DAY = dt.timedelta(days=1)


def principal(name: str) -> x509.OtherName:
    """A user principal name: UTF8String in DER."""
    raw = name.encode()
    return x509.OtherName(UPN, bytes([0x0C, len(raw)]) + raw)


@dataclass(frozen=True)
class Issued:
    """A certificate with its key; as authority it signs others."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def chain(self, *above: Issued) -> str:
        """As a client presents it."""
        return "".join(each.pem for each in (self, *above))

    @property
    def key_pem(self) -> str:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()

    def issue(self, name: str = "client", **changes: Any) -> Issued:
        """Sign a leaf; see `issued`."""
        return issued(name, self, **changes)

    def authority(self, name: str, **changes: Any) -> Issued:
        """Sign an intermediate authority."""
        return issued(name, self, is_authority=True, **changes)

    def revoke(
        self,
        *revoked: Issued,
        key: ec.EllipticCurvePrivateKey | None = None,
        ends: dt.timedelta = DAY,
    ) -> str:
        """A revocation list of this authority, in PEM."""
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - 3 * DAY)
            .next_update(now + ends)
        )
        for each in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(each.certificate.serial_number)
                .revocation_date(now - 2 * DAY)
                .build()
            )
        return builder.sign(key or self.key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()

    def load_into(self, context: ssl.SSLContext, *above: Issued) -> None:
        """Present this certificate in handshakes of `context`."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "client.pem"
            path.write_text(self.chain(*above) + self.key_pem)
            context.load_cert_chain(path)

    @classmethod
    def root(cls, name: str = "client authority", **changes: Any) -> Self:
        made = issued(name, None, is_authority=True, **changes)
        return cls(made.certificate, made.key)


def issued(
    name: str,
    issuer: Issued | None,
    *,
    is_authority: bool = False,
    names: Sequence[x509.GeneralName] = (),
    purposes: Sequence[x509.ObjectIdentifier] | None = None,
    extensions: Sequence[x509.ExtensionType] = (),
    critical: bool = False,
    begins: dt.timedelta = -DAY,
    ends: dt.timedelta = DAY,
    now: dt.datetime | None = None,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> Issued:
    """A certificate, signed by itself without an issuer; times are from `now`."""
    now = now or dt.datetime.now(dt.UTC)
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
    )
    if is_authority:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
    if purposes is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical)
    return Issued(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)
