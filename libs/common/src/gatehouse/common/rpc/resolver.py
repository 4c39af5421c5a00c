"""All addresses of a host name, from the hosts file and DNS (design D7).

dnspython asks for A and AAAA records together; the resolver configuration of the system is read
for each question, so that a changed one applies. `localhost` and names under it are the loopback
addresses and are never asked for (RFC 6761 §6.3).
"""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import dns.asyncresolver
import dns.exception
import dns.message
import dns.nameserver
import dns.rdatatype
import dns.resolver

from gatehouse.common.errors import UnavailableError
from gatehouse.common.rpc.address_book import REFRESH_CAP_S, Answer
from gatehouse.common.rpc.targets import Address

_TCP: Final = True  # for dnspython: no answer over UDP
QUERY_TIMEOUT_S: Final = 5.0
TRY_TIMEOUT_S: Final = 2.0  # of which one server gets this much at a time
MAX_QUERY_TIMEOUT_S: Final = 30.0  # whatever is configured
HOSTS_FILE: Final = Path("/etc/hosts")
HOSTS_LIMIT: Final = 1024 * 1024  # bytes read of the hosts file

# Envoy's names (config.cluster.v3.Cluster.DnsLookupFamily); "" is ALL.
FAMILIES: Final = ("", "ALL", "AUTO", "V4_ONLY", "V6_ONLY", "V4_PREFERRED")


@dataclass(frozen=True, slots=True)
class NameServer:
    """A DNS server to ask instead of the system's."""

    ip: str
    port: int = 53
    tcp: bool = False


@dataclass(frozen=True, slots=True)
class Resolution:
    """How names are resolved: the `dns_*` keys. None: as is customary here.

    Each question has a socket of its own, so `dns_udp_max_queries` has nothing to bound.
    """

    lookup_family: str = ""
    nameservers: tuple[NameServer, ...] = ()  # none: those of the system
    use_tcp: bool = False
    try_s: float | None = None  # dns_query_timeout
    tries: int | None = None  # dns_query_tries
    refresh_s: float | None = None  # dns_refresh_rate: asked again at least so often
    failure_refresh_s: float | None = None  # dns_failure_refresh_rate

    def resolver(self) -> Resolver:
        """What asks that way."""
        try_s = self.try_s or TRY_TIMEOUT_S
        timeout_s = try_s * self.tries if self.tries else max(QUERY_TIMEOUT_S, try_s)
        return Resolver(
            lookup_family=self.lookup_family,
            nameservers=self.nameservers,
            timeout_s=min(timeout_s, MAX_QUERY_TIMEOUT_S),
            try_s=try_s,
            use_tcp=self.use_tcp,
        )


class _OverTCP(dns.nameserver.Do53Nameserver):
    """A server that is asked over TCP alone."""

    async def async_query(
        self,
        request: dns.message.QueryMessage,
        timeout: float,  # noqa: ASYNC109  # dnspython's own signature
        source: str | None,
        source_port: int,
        max_size: bool,
        *more: Any,
        **options: Any,
    ) -> dns.message.Message:
        del max_size  # set, it means TCP
        return await super().async_query(
            request, timeout, source, source_port, _TCP, *more, **options
        )


class Resolver:
    """Asks for names. Stateless between questions, safe to share."""

    def __init__(
        self,
        *,
        lookup_family: str = "",
        nameservers: tuple[NameServer, ...] = (),
        timeout_s: float = QUERY_TIMEOUT_S,
        try_s: float = TRY_TIMEOUT_S,
        use_tcp: bool = False,
        hosts_file: Path = HOSTS_FILE,
    ) -> None:
        assert lookup_family in FAMILIES, lookup_family
        self._family = lookup_family or "ALL"
        self._nameservers = nameservers
        self._timeout_s = timeout_s
        self._try_s = try_s
        self._use_tcp = use_tcp
        self._hosts_file = hosts_file

    async def resolve(self, host: str, port: int) -> Answer:
        """The addresses of `host`, each with `port`. Raises UnavailableError when none is found."""
        known = self._from_hosts(host)
        if known:
            return self._answer(known, port, REFRESH_CAP_S, complete=True)
        resolver = self._resolver()
        async with asyncio.TaskGroup() as group:
            v4 = v6 = None
            if self._family != "V6_ONLY":
                v4 = group.create_task(self._ask(resolver, host, dns.rdatatype.A))
            if self._family != "V4_ONLY":
                v6 = group.create_task(self._ask(resolver, host, dns.rdatatype.AAAA))
        parts = [task.result() for task in (v4, v6) if task is not None]
        found = [ip for part in parts for ip in part.ips]
        errors = [part.error for part in parts if part.error]
        if not found:
            why = "; ".join(sorted(set(errors))) or "the name has no address"
            raise UnavailableError(f"cannot resolve {host}: {why}", reason="dns")
        ttl_s = min(part.ttl_s for part in parts if part.ips)
        return self._answer(found, port, ttl_s, complete=not errors)

    def _resolver(self) -> dns.asyncresolver.Resolver:
        if self._nameservers:
            resolver = dns.asyncresolver.Resolver(configure=False)
            resolver.nameservers = [
                (_OverTCP if server.tcp else dns.nameserver.Do53Nameserver)(server.ip, server.port)
                for server in self._nameservers
            ]
        else:
            try:
                resolver = dns.asyncresolver.Resolver()
            except dns.resolver.NoResolverConfiguration as error:
                raise UnavailableError(
                    "the system names no DNS server (/etc/resolv.conf)", reason="dns"
                ) from error
        resolver.lifetime = self._timeout_s
        resolver.timeout = min(self._try_s, self._timeout_s)
        return resolver

    async def _ask(
        self,
        resolver: dns.asyncresolver.Resolver,
        host: str,
        kind: dns.rdatatype.RdataType,
    ) -> _Part:
        """One record type; a name that does not exist is an answer, a silent server an error."""
        try:
            answer = await resolver.resolve(
                host, kind, search=True, raise_on_no_answer=False, tcp=self._use_tcp
            )
        except dns.resolver.NXDOMAIN:
            return _Part((), 0.0, "")
        except (dns.exception.DNSException, OSError) as error:
            return _Part((), 0.0, f"{type(error).__name__}: {error}"[:300])
        ips = tuple(record.address for record in answer.rrset or ())
        return _Part(ips, float(answer.chaining_result.minimum_ttl), "")

    def _from_hosts(self, host: str) -> list[str]:
        if host == "localhost" or host.endswith(".localhost"):
            return ["127.0.0.1", "::1"] if self._family in {"ALL", "V6_ONLY"} else ["127.0.0.1"]
        try:
            with self._hosts_file.open("rb") as file:
                text = file.read(HOSTS_LIMIT).decode("utf-8", "replace")
        except OSError:
            return []
        return hosts_addresses(text, host)

    def _answer(self, ips: list[str], port: int, ttl_s: float, *, complete: bool) -> Answer:
        addresses = {Address(str(ipaddress.ip_address(ip)), port) for ip in ips}
        v4 = {one for one in addresses if ":" not in one.ip}
        v6 = addresses - v4
        chosen = {
            "ALL": addresses,
            "AUTO": v6 or v4,
            "V4_PREFERRED": v4 or v6,
            "V4_ONLY": v4,
            "V6_ONLY": v6,
        }[self._family]
        if not chosen:
            raise UnavailableError(
                f"the name has no address of the family {self._family}", reason="dns"
            )
        return Answer(frozenset(chosen), ttl_s, complete=complete)


@dataclass(frozen=True, slots=True)
class _Part:
    """The outcome for one record type."""

    ips: tuple[str, ...]
    ttl_s: float
    error: str


def hosts_addresses(text: str, host: str) -> list[str]:
    """The addresses that a hosts file gives `host` (hosts(5)); malformed lines are skipped."""
    found: list[str] = []
    for line in text.splitlines():
        ip, *names = line.partition("#")[0].split() or [""]
        if host not in (name.lower().rstrip(".") for name in names):
            continue
        try:
            found.append(str(ipaddress.ip_address(ip)))
        except ValueError:
            continue
    return found
