"""Spellings that mean the same, and operands that mean nothing."""

from __future__ import annotations

import base64
import ipaddress

import pytest

from gatehouse.common.policy.ast import freeze
from gatehouse.common.policy.errors import PolicyError
from gatehouse.common.policy.matchers import (
    parse_certificate_matcher,
    parse_networks,
    parse_string_matcher,
)

HEX = "0123456789abcdef" * 4
PAIRS = ":".join(HEX.upper()[i : i + 2] for i in range(0, 64, 2))
HASH = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.1.2.3", "10.1.2.3/32"),
        ("192.168.1.1/24", "192.168.1.0/24"),
        ("::1", "::1/128"),
        ("2001:db8::1/32", "2001:db8::/32"),
        ("::ffff:10.1.2.3", "10.1.2.3/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::/0", "::/0"),
        ("::ffff:0:0/95", "::fffe:0:0/95"),
    ],
)
def test_networks(text: str, network: str) -> None:
    assert parse_networks(text) == (ipaddress.ip_network(network),)


def test_certificate_spellings() -> None:
    matcher = parse_certificate_matcher(
        freeze({"fingerprint": [HEX, PAIRS], "spki_hash": HASH, "san_dns": "a", "san_uri": {}})
    )
    assert matcher.fingerprints == frozenset({HEX})
    assert matcher.spki_hashes == frozenset({HASH})
    assert matcher.san_dns == parse_string_matcher("a")
    assert matcher.san_email is None
    assert matcher.san_uri is not None
    assert matcher.san_uri.tests == ()


@pytest.mark.parametrize("spelling", [HEX.upper(), PAIRS.lower(), HEX[:-1], HEX + "0", f" {HEX}"])
def test_other_fingerprint_spellings_are_refused(spelling: str) -> None:
    with pytest.raises(PolicyError, match="unsupported certificate fingerprint format"):
        parse_certificate_matcher(freeze({"fingerprint": spelling}))


def test_an_empty_list_matches_nothing_and_is_no_missing_condition() -> None:
    assert parse_certificate_matcher(freeze({"fingerprint": []})).fingerprints == frozenset()
