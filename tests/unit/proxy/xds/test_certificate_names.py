"""Which names get filter chains of their own."""

from __future__ import annotations

from pathlib import Path

from gatehouse.common.config.resolved import CertificatePair
from gatehouse.proxy.core.xds.resources.certificate_names import (
    MAX_CHAINS,
    certificates_by_names,
    names_in,
)
from tests.support.tls import Authority


def pair(authority: Authority, *names: str) -> CertificatePair:
    leaf = authority.leaf(*names, stem=names[0].replace("*", "star"))
    return CertificatePair(leaf.certificate.read_bytes(), leaf.key.read_bytes(), names[0])


def test_names_are_lower_case_and_what_no_chain_can_match_is_left_out(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    assert names_in(
        pair(authority, "A.Example.COM", "*.B.example", "127.0.0.1").certificate_pem
    ) == (
        "a.example.com",
        "*.b.example",
    )
    assert names_in(pair(authority, "*").certificate_pem) == ()


def test_a_single_certificate_needs_no_choice(tmp_path: Path) -> None:
    assert certificates_by_names([pair(Authority(tmp_path), "a.example")]) == []
    assert certificates_by_names([]) == []


def test_names_with_equal_certificates_share_a_chain(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one = pair(authority, "a.example", "c.example")
    two = pair(authority, "b.example", "c.example")
    assert certificates_by_names([one, two]) == [
        (("a.example",), (one,)),
        (("c.example",), (one, two)),
        (("b.example",), (two,)),
    ]


def test_the_number_of_chains_is_bounded(tmp_path: Path) -> None:
    """And each name still finds its certificate, in a chain that others leave as it is."""
    authority = Authority(tmp_path)
    pairs = [pair(authority, f"n{number}.example", f"*.n{number}.example") for number in range(40)]
    assert len(certificates_by_names(pairs[:MAX_CHAINS])) == MAX_CHAINS
    chains = certificates_by_names(pairs)
    assert 2 < len(chains) <= MAX_CHAINS
    for one in pairs:
        for name in names_in(one.certificate_pem):
            (chain,) = [certificates for names, certificates in chains if name in names]
            assert one in chain
    renewed = [pair(authority, "n7.example", "*.n7.example"), pair(authority, "new.example")]
    after = certificates_by_names([*pairs[:7], renewed[0], *pairs[8:], renewed[1]])
    changed = [names for names, certificates in chains if (names, certificates) not in after]
    assert len(changed) <= 2
    assert any("n7.example" in names for names in changed)
