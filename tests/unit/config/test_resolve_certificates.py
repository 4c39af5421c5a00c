"""Certificates, trust and derived pairs: what is taken, made and refused."""

from __future__ import annotations

import base64
import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gatehouse.common.config.certificates import derive_certificate, names_of
from tests.support.configuration import (
    LOGIN,
    SECRET,
    authority_pem,
    pem_pair,
    problems,
    resolved,
    warnings,
    without,
)
from tests.support.tls import Authority


def test_all_certificate_forms_combine_in_order(tmp_path: Path) -> None:
    one, two = pem_pair("one"), pem_pair("two")
    text = f"""{LOGIN}
certificate: {base64.b64encode(one[0]).decode()}
certificate_key: {base64.b64encode(one[1]).decode()}
certificates: [{{cert: /two.pem, key: /two.key}}]
"""
    settings, _ = resolved(tmp_path, text, files={"/two.pem": two[0], "/two.key": two[1]})
    assert [names_of(pair.certificate_pem) for pair in settings.certificates] == [
        ("one",),
        ("two",),
        ("*.example.com",),
    ]
    assert "PRIVATE" not in repr(settings.certificates)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("certificate: eA==\n", "bad cert base64: its other half is missing"),
        ("certificate_key: eA==\n", "bad cert base64: its other half is missing"),
        ("certificate: '%'\ncertificate_key: eA==\n", "is not base64"),
        ("certificates: [{cert: /tls/cert.pem}]\n", "bad cert entry, file reference invalid"),
        ("certificates: [{cert: /tls/cert.pem, key: /none}]\n", "/none cannot be read"),
        (
            "certificates: [{cert: /tls/cert.pem, key: /other.key}]\n",
            "bad cert entry, file reference invalid: the key does not belong",
        ),
        ("certificates: [{cert: /p384.pem, key: /p384.key}]\n", "EC keys must be P-256"),
        ("certificate_authority: eA==\n", "does not decode to PEM"),
        ("certificate_authority_file: /tls/key.pem\n", "no readable PEM certificate"),
        ("downstream_mtls: {ca: '%'}\n", "is not base64"),
        ("downstream_mtls: {crl_file: /tls/key.pem}\n", "holds no PEM revocation list"),
        ("downstream_mtls: {ca: eA==, ca_file: /x}\n", "cannot set both ca and ca_file"),
        ("downstream_mtls: {crl: eA==, crl_file: /x}\n", "cannot set both crl and crl_file"),
        ("grpc_client_certificate_file: /tls/cert.pem\n", "its other half is missing"),
    ],
)
def test_bad_certificates(tmp_path: Path, text: str, message: str) -> None:
    p384 = ec.generate_private_key(ec.SECP384R1())
    files = {
        "/other.key": pem_pair("other")[1],
        "/p384.key": p384.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        "/p384.pem": self_signed(p384),
    }
    assert any(message in line for line in problems(tmp_path, LOGIN + text, files=files))


def self_signed(key: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(dt.datetime(2024, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(2044, 1, 1, tzinfo=dt.UTC))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def test_without_certificates_one_is_made_from_the_secret(tmp_path: Path) -> None:
    text = without(LOGIN, "certificate")
    settings, found = resolved(tmp_path, text)
    assert settings.certificates == ()
    assert settings.fallback_certificate is not None
    assert names_of(settings.fallback_certificate.certificate_pem) == ("*",)
    assert any("browsers reject" in issue.message for issue in found)
    assert resolved(tmp_path, text)[0].fallback_certificate == settings.fallback_certificate


def test_grpc_without_a_certificate_is_warned_about(tmp_path: Path) -> None:
    text = without(LOGIN, "certificate") + "services: databroker\n"
    assert any("which no peer trusts" in line for line in warnings(tmp_path, text))
    assert warnings(tmp_path, text + "grpc_insecure: true\n") == []


def test_tls_derive(tmp_path: Path) -> None:
    settings, _ = resolved(tmp_path, LOGIN + "tls_derive: Svc.Internal\n")
    derived = settings.certificates[-1]
    assert (derived.source, names_of(derived.certificate_pem)) == ("tls_derive", ("svc.internal",))
    assert settings.fallback_certificate is not None
    assert settings.ca_bundle_pem == derive_certificate(SECRET, "x", "").authority_pem


def test_the_trust_bundle_holds_every_source(tmp_path: Path) -> None:
    inline, file = authority_pem(), derive_certificate(b"z" * 32, "z", "").authority_pem
    text = f"{LOGIN}certificate_authority: {base64.b64encode(inline).decode()}\n"
    text += "certificate_authority_file: /ca\n"
    assert resolved(tmp_path, text, files={"/ca": file})[0].ca_bundle_pem == inline + file
    assert resolved(tmp_path, LOGIN)[0].ca_bundle_pem is None


def test_files_of_other_services_are_not_read(tmp_path: Path) -> None:
    """One file for four containers, each with its own secrets mounted."""
    text = f"""{LOGIN}
certificate_file: /missing.pem
certificate_key_file: /missing.key
grpc_insecure: true
routes:
- from: https://a.example.com
  to: https://a
  tls_custom_ca_file: /missing.ca
  tls_client_cert_file: /missing.pem
  tls_client_key_file: /missing.key
""".replace("certificate_file: /tls/cert.pem\n", "").replace(
        "certificate_key_file: /tls/key.pem\n", ""
    )
    assert problems(tmp_path, text + "services: authorize\n") == []
    assert problems(tmp_path, text + "services: databroker\n") == []
    assert len(problems(tmp_path, text + "services: proxy\n")) >= 3
    authenticate = problems(tmp_path, text + "services: authenticate\n")
    assert all("certificate" in line.split(": ")[1] for line in authenticate)


def test_a_certificate_that_demands_a_staple_is_refused(tmp_path: Path) -> None:
    """Envoy would refuse the listener that serves it, and with it every other certificate."""
    leaf = Authority(tmp_path / "authority").leaf("a.example.com", must_staple=True)
    files = {"/s.pem": leaf.certificate.read_bytes(), "/s.key": leaf.key.read_bytes()}
    text = f"{LOGIN}certificates: [{{cert: /s.pem, key: /s.key}}]\n"
    found = problems(tmp_path, text, files=files)
    assert any("demands a stapled OCSP answer" in line for line in found), found
