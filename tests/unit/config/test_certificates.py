"""Derived certificates: the same for the same secret, and good for TLS."""

from __future__ import annotations

import datetime as dt
import hashlib

from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from gatehouse.common.config.certificates import derive_certificate, names_of

SECRET = b"s" * 32


def test_derived_certificates_verify_against_their_authority() -> None:
    derived = derive_certificate(SECRET, "svc.example.com", "x")
    authority = x509.load_pem_x509_certificate(derived.authority_pem)
    leaf = x509.load_pem_x509_certificate(derived.pair.certificate_pem)
    verifier = (
        PolicyBuilder()
        .store(Store([authority]))
        .time(dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
        .build_server_verifier(x509.DNSName("svc.example.com"))
    )
    assert verifier.verify(leaf, []) == [leaf, authority]


def test_derivation_is_deterministic_and_bound_to_secret_and_name() -> None:
    one = derive_certificate(SECRET, "a", "x")
    assert one == derive_certificate(SECRET, "a", "x")
    other_name = derive_certificate(SECRET, "b", "x")
    assert other_name.authority_pem == one.authority_pem
    assert other_name.pair.key_pem != one.pair.key_pem
    assert derive_certificate(b"t" * 32, "a", "x").authority_pem != one.authority_pem


def test_derived_certificates_hold_from_2022_to_2050() -> None:
    derived = derive_certificate(SECRET, "svc.example.com", "x")
    for pem in (derived.authority_pem, derived.pair.certificate_pem):
        certificate = x509.load_pem_x509_certificate(pem)
        assert certificate.not_valid_before_utc == dt.datetime(2022, 12, 1, tzinfo=dt.UTC)
        assert certificate.not_valid_after_utc == dt.datetime(2050, 12, 1, tzinfo=dt.UTC)


def test_the_bytes_never_change() -> None:
    """Replicas of different versions must agree on the authority of one secret."""
    digest = hashlib.sha256(derive_certificate(SECRET, "a", "x").authority_pem).hexdigest()
    assert digest == ("93a36670fb362ab8253010e37b756dff7c7df630dc92a8a09bb4b9d2f3d2dab8")


def test_addresses_are_address_names() -> None:
    assert names_of(derive_certificate(SECRET, "127.0.0.1", "x").pair.certificate_pem) == (
        "127.0.0.1",
    )
