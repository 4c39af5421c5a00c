"""The hosts file and the loopback names, which never reach a DNS server."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatehouse.common.errors import UnavailableError
from gatehouse.common.rpc.resolver import NameServer, Resolver, hosts_addresses

HOSTS = """\
# comment
127.0.0.1 localhost
10.1.0.1  Broker broker.internal  # trailing
fd00::1\tbroker
10.1.0.2 authorize#glued
not-an-ip broker
10.1.0.3
"""


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("broker", ["10.1.0.1", "fd00::1"]),
        ("broker.internal", ["10.1.0.1"]),
        ("authorize", ["10.1.0.2"]),
        ("comment", []),
        ("glued", []),
        ("", []),
    ],
)
def test_hosts_lines(host: str, found: list[str]) -> None:
    assert hosts_addresses(HOSTS, host) == found


@pytest.mark.parametrize(
    ("family", "found"),
    [
        ("", {"10.1.0.1", "fd00::1"}),
        ("ALL", {"10.1.0.1", "fd00::1"}),
        ("AUTO", {"fd00::1"}),
        ("V4_PREFERRED", {"10.1.0.1"}),
        ("V4_ONLY", {"10.1.0.1"}),
        ("V6_ONLY", {"fd00::1"}),
    ],
)
async def test_families(tmp_path: Path, family: str, found: set[str]) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(HOSTS)
    answer = await Resolver(lookup_family=family, hosts_file=hosts).resolve("broker", 5443)
    assert {one.ip for one in answer.addresses} == found
    assert {one.port for one in answer.addresses} == {5443}
    assert answer.complete


async def test_a_family_that_the_name_lacks(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("10.1.0.2 authorize\n")
    with pytest.raises(UnavailableError, match="V6_ONLY"):
        await Resolver(lookup_family="V6_ONLY", hosts_file=hosts).resolve("authorize", 1)


@pytest.mark.parametrize("host", ["localhost", "broker.localhost", "a.b.localhost"])
async def test_localhost_names_are_loopback_without_asking(host: str) -> None:
    """The name server given does not exist: asking it would fail."""
    resolver = Resolver(nameservers=(NameServer("127.0.0.1", 1),), timeout_s=0.2)
    answer = await resolver.resolve(host, 80)
    assert {one.ip for one in answer.addresses} <= {"127.0.0.1", "::1"}
    assert "127.0.0.1" in {one.ip for one in answer.addresses}
