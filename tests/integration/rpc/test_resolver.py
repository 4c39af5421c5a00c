"""Questions to a real DNS server on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import dns.rdatatype
import pytest

from gatehouse.common.errors import UnavailableError
from gatehouse.common.rpc.address_book import Answer
from gatehouse.common.rpc.resolver import NameServer, Resolver
from tests.support.dns import DnsServer, Zone, dns_server

BOTH = Zone(
    a={"broker.test.": ["10.0.0.2", "10.0.0.1"], "only4.test.": ["10.0.0.4"]},
    aaaa={"broker.test.": ["fd00::1"], "only6.test.": ["fd00::6"]},
    cname={"alias.test.": "broker.test."},
    ttl=17,
)


@pytest.fixture
async def server() -> AsyncIterator[DnsServer]:
    zone = Zone(dict(BOTH.a), dict(BOTH.aaaa), dict(BOTH.cname), BOTH.ttl)
    async with dns_server(zone) as running:
        yield running


def resolver(
    server: DnsServer, family: str = "", *, use_tcp: bool = False, timeout_s: float = 5.0
) -> Resolver:
    return Resolver(
        lookup_family=family,
        nameservers=(NameServer(server.ip, server.port),),
        timeout_s=timeout_s,
        use_tcp=use_tcp,
        hosts_file=Path("/nonexistent"),
    )


def ips(answer: Answer) -> list[str]:
    return sorted(one.ip for one in answer.addresses)


@pytest.mark.parametrize("use_tcp", [False, True])
async def test_all_a_and_aaaa(server: DnsServer, use_tcp: bool) -> None:
    answer = await resolver(server, use_tcp=use_tcp).resolve("broker.test", 5443)
    assert ips(answer) == ["10.0.0.1", "10.0.0.2", "fd00::1"]
    assert (answer.ttl_s, answer.complete) == (17.0, True)


async def test_many_addresses_that_do_not_fit_one_datagram(server: DnsServer) -> None:
    server.zone.a["big.test."] = [f"10.1.{n // 250}.{n % 250 + 1}" for n in range(200)]
    answer = await resolver(server, "V4_ONLY").resolve("big.test", 1)
    assert len(answer.addresses) == 200


async def test_aliases_are_followed(server: DnsServer) -> None:
    assert ips(await resolver(server).resolve("alias.test", 1)) == [
        "10.0.0.1",
        "10.0.0.2",
        "fd00::1",
    ]


@pytest.mark.parametrize(
    ("family", "host", "found"),
    [
        ("V4_ONLY", "broker.test", ["10.0.0.1", "10.0.0.2"]),
        ("V6_ONLY", "broker.test", ["fd00::1"]),
        ("AUTO", "broker.test", ["fd00::1"]),
        ("AUTO", "only4.test", ["10.0.0.4"]),
        ("V4_PREFERRED", "broker.test", ["10.0.0.1", "10.0.0.2"]),
        ("V4_PREFERRED", "only6.test", ["fd00::6"]),
        ("ALL", "only4.test", ["10.0.0.4"]),
    ],
)
async def test_families(server: DnsServer, family: str, host: str, found: list[str]) -> None:
    answer = await resolver(server, family).resolve(host, 1)
    assert ips(answer) == found
    assert answer.complete


async def test_families_narrow_the_questions(server: DnsServer) -> None:
    await resolver(server, "V4_ONLY").resolve("broker.test", 1)
    assert {kind for _, kind in server.zone.questions} == {"A"}


@pytest.mark.parametrize("kind", [dns.rdatatype.A, dns.rdatatype.AAAA])
async def test_half_an_answer_is_marked_incomplete(
    server: DnsServer, kind: dns.rdatatype.RdataType
) -> None:
    server.zone.failing.add(kind)
    answer = await resolver(server, timeout_s=3.0).resolve("broker.test", 1)
    assert answer.addresses
    assert not answer.complete


async def test_unknown_names(server: DnsServer) -> None:
    with pytest.raises(UnavailableError, match=r"cannot resolve nobody\.test.*no address"):
        await resolver(server).resolve("nobody.test", 1)


async def test_servers_that_fail_or_are_silent_or_away(server: DnsServer) -> None:
    asking = resolver(server, timeout_s=0.3)
    server.zone.failing |= {dns.rdatatype.A, dns.rdatatype.AAAA}
    with pytest.raises(UnavailableError, match=r"broker\.test"):
        await asking.resolve("broker.test", 1)
    server.zone.failing.clear()
    server.zone.silent = True
    with pytest.raises(UnavailableError):
        await asking.resolve("broker.test", 1)
    await server.stop()
    with pytest.raises(UnavailableError):
        await asking.resolve("broker.test", 1)
    server.zone.silent = False
    await server.start()
    patient = resolver(server, timeout_s=10.0)
    assert ips(await patient.resolve("only4.test", 1)) == ["10.0.0.4"]


async def test_the_hosts_file_wins(server: DnsServer, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("10.9.9.9 broker.test\n")
    asking = Resolver(nameservers=(NameServer(server.ip, server.port),), hosts_file=hosts)
    assert ips(await asking.resolve("broker.test", 1)) == ["10.9.9.9"]
    assert server.zone.questions == []


async def test_the_systems_configuration_is_read(tmp_path: Path) -> None:
    """Whatever this machine has: RFC 6761 §6.4 keeps .invalid from ever having an address."""
    with pytest.raises(UnavailableError) as caught:
        await Resolver(timeout_s=0.3, hosts_file=tmp_path / "none").resolve("broker.invalid", 1)
    assert caught.value.reason == "dns"
