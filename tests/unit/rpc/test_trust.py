"""Which authorities a client believes."""

from __future__ import annotations

from gatehouse.common.rpc.trust import roots_pem, system_roots_pem


def test_configured_authorities_join_the_systems() -> None:
    roots = roots_pem(b"-----BEGIN CERTIFICATE-----\nx\n")
    assert roots is not None
    assert roots.startswith(system_roots_pem())
    assert roots.endswith(b"-----BEGIN CERTIFICATE-----\nx\n")


def test_without_configured_ones_the_systems_alone() -> None:
    assert roots_pem(None) == (system_roots_pem() or None)
