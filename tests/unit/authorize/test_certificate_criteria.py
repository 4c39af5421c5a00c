"""`client_certificate`: what a leaf must say, by each key of the matcher."""

from __future__ import annotations

import base64
import functools
import hashlib
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.check import Desk, is_allowed, resolved_settings, route
from tests.support.client_pki import Issued
from tests.support.policy import policy_of

ROOT = Issued.root()
LEAF = ROOT.issue(
    names=[
        x509.DNSName("az.example"),
        x509.DNSName("za.example"),
        x509.RFC822Name("ada@example.com"),
        x509.UniformResourceIdentifier("spiffe://example.com/ada"),
    ]
)
BARE = ROOT.issue()
FINGERPRINT = hashlib.sha256(LEAF.certificate.public_bytes(Encoding.DER)).hexdigest()
PAIRS = ":".join(FINGERPRINT.upper()[i : i + 2] for i in range(0, 64, 2))
OTHER_FINGERPRINT = "0" * 64
SPKI = base64.b64encode(
    hashlib.sha256(
        LEAF.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).digest()
).decode()
OTHER_SPKI = base64.b64encode(bytes(32)).decode()


@functools.cache
def desk(matcher: str) -> Desk:
    return Desk(
        resolved_settings(
            route(policy_of(f"allow: {{or: [{{client_certificate: {matcher}}}]}}")),
        )
    )


@pytest.mark.parametrize(
    ("matcher", "leaf", "bare"),
    [
        ({}, True, True),
        ({"fingerprint": FINGERPRINT}, True, False),
        ({"fingerprint": PAIRS}, True, False),
        ({"fingerprint": [OTHER_FINGERPRINT, PAIRS]}, True, False),
        ({"fingerprint": OTHER_FINGERPRINT}, False, False),
        ({"fingerprint": []}, False, False),
        ({"spki_hash": SPKI}, True, False),
        ({"spki_hash": [OTHER_SPKI, SPKI]}, True, False),
        ({"spki_hash": OTHER_SPKI}, False, False),
        ({"spki_hash": []}, False, False),
        ({"san_dns": "az.example"}, True, False),
        ({"san_dns": "AZ.example"}, False, False),
        ({"san_dns": {"in": ["x", "za.example"]}}, True, False),
        ({"san_dns": {"in": []}}, False, False),
        ({"san_dns": {"starts_with": "a", "ends_with": "a.example"}}, True, False),
        ({"san_dns": {"not": "az.example"}}, True, False),
        ({"san_dns": {"contains": "ada"}}, False, False),
        ({"san_email": {"ends_with": "@example.com"}}, True, False),
        ({"san_email": "spiffe://example.com/ada"}, False, False),
        ({"san_email": {"not": "ada@example.com"}}, False, False),  # the only one differs not
        ({"san_uri": "spiffe://example.com/ada"}, True, False),
        ({"san_uri": {"starts_with": "https://"}}, False, False),
        ({"san_uri": {}}, True, False),
        # All keys must hold.
        ({"fingerprint": FINGERPRINT, "spki_hash": SPKI, "san_dns": "az.example"}, True, False),
        ({"fingerprint": FINGERPRINT, "spki_hash": OTHER_SPKI}, False, False),
        ({"fingerprint": FINGERPRINT, "san_uri": "x"}, False, False),
    ],
)
def test_what_a_leaf_must_say(matcher: dict[str, Any], leaf: bool, bare: bool) -> None:
    one = desk(yaml.safe_dump(matcher, default_flow_style=True, width=10_000).strip())
    assert is_allowed(one.check(certificate=LEAF.pem)) is leaf
    assert is_allowed(one.check(certificate=BARE.pem)) is bare
    # The leaf is the first of the chain, and what comes after it says nothing.
    assert is_allowed(one.check(certificate=BARE.pem + LEAF.pem)) is bare
    assert not is_allowed(one.check())
    for broken in ("", "nonsense", LEAF.pem[:200], "-----BEGIN CERTIFICATE-----\nAAAA\n"):
        assert not is_allowed(one.check(certificate=broken))
