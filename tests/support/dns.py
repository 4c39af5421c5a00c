"""A small real DNS server on loopback, for UDP and TCP, whose answers a test changes."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset


@dataclass
class Zone:
    """What the server says. Names are absolute, lower case, with the final dot."""

    a: dict[str, list[str]] = field(default_factory=dict)
    aaaa: dict[str, list[str]] = field(default_factory=dict)
    cname: dict[str, str] = field(default_factory=dict)
    ttl: int = 60
    silent: bool = False  # receive and never answer
    failing: set[dns.rdatatype.RdataType] = field(default_factory=set)  # answered with SERVFAIL
    questions: list[tuple[str, str]] = field(default_factory=list)
    asked: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def wait_asked(self, name: str, count: int) -> None:
        """Until `name` was asked for `count` times (A and AAAA each count)."""
        async with asyncio.timeout(20), self.asked:
            await self.asked.wait_for(
                lambda: sum(1 for asked, _ in self.questions if asked == name) >= count
            )

    def respond(self, wire: bytes) -> bytes | None:
        """The answer to one question, or None for silence."""
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text().lower()
        self.questions.append((name, dns.rdatatype.to_text(question.rdtype)))
        if self.silent:
            return None
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        if question.rdtype in self.failing:
            response.set_rcode(dns.rcode.SERVFAIL)
            return response.to_wire()
        owner = name
        while owner in self.cname:
            target = self.cname[owner]
            response.answer.append(
                dns.rrset.from_text(owner, self.ttl, dns.rdataclass.IN, "CNAME", target)
            )
            owner = target
        records = {dns.rdatatype.A: self.a, dns.rdatatype.AAAA: self.aaaa}.get(question.rdtype, {})
        if owner not in self.a and owner not in self.aaaa:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif records.get(owner):
            response.answer.append(
                dns.rrset.from_text(
                    owner, self.ttl, dns.rdataclass.IN, question.rdtype, *records[owner]
                )
            )
        return response.to_wire()


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, zone: Zone, noted: asyncio.Event) -> None:
        self._zone = zone
        self._noted = noted
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._transport is not None
        answer = self._zone.respond(data)
        self._noted.set()
        if answer is not None:
            self._transport.sendto(answer, addr)


class DnsServer:
    """`ip`, `port` and the `zone` it serves. `stop` and `start` make it come and go."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.ip = "127.0.0.1"
        self.port = 0
        self._noted = asyncio.Event()
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen: on a free port the first time, later on the same one."""
        loop = asyncio.get_running_loop()
        self._tcp = await asyncio.start_server(self._serve_tcp, self.ip, self.port)
        self.port = self._tcp.sockets[0].getsockname()[1]
        self._udp, _ = await loop.create_datagram_endpoint(
            lambda: _Udp(self.zone, self._noted), local_addr=(self.ip, self.port)
        )

    async def stop(self) -> None:
        """Close both sockets: questions are then refused."""
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()
            await self._tcp.wait_closed()

    async def pump(self) -> None:
        """Wake those who wait for questions."""
        while True:
            await self._noted.wait()
            self._noted.clear()
            async with self.zone.asked:
                self.zone.asked.notify_all()

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            answer = self.zone.respond(await reader.readexactly(length))
            self._noted.set()
            if answer is not None:
                writer.write(struct.pack("!H", len(answer)) + answer)
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def dns_server(zone: Zone | None = None) -> AsyncIterator[DnsServer]:
    """A running server; closed at the end."""
    server = DnsServer(zone or Zone())
    await server.start()
    async with asyncio.TaskGroup() as group:
        pump = group.create_task(server.pump())
        try:
            yield server
        finally:
            pump.cancel()
            await server.stop()
