"""Replicas that come, go, are killed and restarted while people work: nobody notices.

Three authorize processes on loopback addresses behind one name that a small DNS server answers for,
two databrokers on PostgreSQL, one load that knows every right answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import httpx
import pytest

from tests.e2e.conftest import ADA, GRACE
from tests.support.dns import DnsServer, Zone, dns_server
from tests.support.load import Load, Outcome, Person, cookies_of
from tests.support.ports import free_ports
from tests.support.sign_in import sign_in
from tests.support.stack import Gatehouse, Stack
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

NAME = "authorize.test"
IPS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
Fresh = Callable[..., tuple[Stack, EchoUpstream]]


@contextmanager
def dns_in_thread(zone: Zone) -> Iterator[DnsServer]:
    """The DNS server in a loop of its own: the test itself is not asynchronous."""
    started = threading.Event()
    found: list[tuple[DnsServer, asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        async with dns_server(zone) as server:
            stop = asyncio.Event()
            found.append((server, asyncio.get_running_loop(), stop))
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    server, loop, stop = found[0]
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


def port_on_all(ips: list[str], candidates: list[int]) -> int:
    """The first port that is free on every address."""
    for port in candidates:
        probes = [socket.socket() for _ in ips]
        try:
            for probe, ip in zip(probes, ips, strict=True):
                probe.bind((ip, port))
        except OSError:
            continue
        else:
            return port
        finally:
            for probe in probes:
                probe.close()
    raise AssertionError("no port is free on all addresses")


def wait_for(what: str, check: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class Replicas:
    """Starts further processes of a service, each on an address of its own."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def start(self, service: str, *ips: str) -> list[Gatehouse]:
        """One more on each address, named "service ip"; all are ready."""
        started = []
        for ip in ips:
            health = f"{ip}:{self.stack.health_ports[service]}"
            where = {
                "GRPC_ADDRESS": f"{ip}:{self.stack.grpc_ports[service]}",
                "HEALTH_CHECK_ADDR": health,
            }
            one = dataclasses.replace(self.stack.spawn(service, where), health_address=health)
            del self.stack.processes[service]
            self.stack.processes[f"{service} {ip}"] = one
            started.append(one)
        for one in started:
            one.wait_ready()
        return started

    def stop(self, service: str, ip: str) -> None:
        """SIGTERM, and the end of it; it must end well."""
        assert self.stack.processes.pop(f"{service} {ip}").stop() == 0


def decides(one: Gatehouse) -> bool:
    return "authorize check" in one.log()


def email_is(email: str) -> Callable[[httpx.Response], bool]:
    def is_right(response: httpx.Response) -> bool:
        if response.status_code != 200:
            return False
        return ["x-pomerium-claim-email", email] in response.json()["headers"]

    return is_right


def people(stack: Stack) -> list[Person]:
    found = []
    with stack.client() as ada, stack.client() as grace:
        for client, email in ((ada, ADA), (grace, GRACE)):
            assert sign_in(client, stack.url("app.localhost"), email)[-1].status_code == 200
            status = sign_in(client, stack.url("admin.localhost"), email)[-1].status_code
            assert status == (200 if email == ADA else 403)
        for client, email in ((ada, ADA), (grace, GRACE)):
            cookies = cookies_of(client)
            app = Person(f"{email} app", stack.url("app.localhost"), cookies, email_is(email))
            found.append(dataclasses.replace(app, url=app.url.rstrip("/")))
        denied = stack.url("admin.localhost", "/x")
        found += [
            Person("ada admin", denied, cookies_of(ada), email_is(ADA)),
            Person("grace admin", denied, cookies_of(grace), lambda got: got.status_code == 403),
            Person("stranger", denied, (), lambda got: got.status_code == 302),
        ]
    return found


@pytest.mark.timeout(400)  # eleven processes start, on whatever machine
def test_replicas_come_and_go_unnoticed(fresh_stack: Fresh, postgres_dsn: str) -> None:
    zone = Zone(a={f"{NAME}.": [IPS[0]]}, ttl=600)  # as Docker's own server has it
    with dns_in_thread(zone) as server:
        stack, _ = fresh_stack(
            split=True,
            postgres=postgres_dsn,
            extra={
                "dns_resolvers": [f"udp://{server.ip}:{server.port}"],
                "dns_refresh_rate": "500ms",
                "dns_lookup_family": "V4_ONLY",
                "jwt_claims_headers": {"X-Pomerium-Claim-Email": "email"},
            },
        )
        candidates = free_ports(8)
        stack.grpc_ports["authorize"] = port_on_all(list(IPS), candidates[:4])
        stack.grpc_ports["databroker"] = port_on_all(list(IPS), candidates[4:])
        brokers = ",".join(f"http://{ip}:{stack.grpc_ports['databroker']}" for ip in IPS[:2])
        stack.environment |= {
            "AUTHORIZE_SERVICE_URL": f"http://{NAME}:{stack.grpc_ports['authorize']}",
            "DATABROKER_SERVICE_URL": brokers.split(",")[0],
            "DATABROKER_SERVICE_URLS": brokers,
        }
        replicas = Replicas(stack)
        for name in ("authenticate", "proxy"):
            stack.spawn(name)
        replicas.start("databroker", *IPS[:2])
        replicas.start("authorize", IPS[0])
        for name in ("authenticate", "proxy"):
            stack.processes[name].wait_ready()

        with Load(stack.client, people(stack)) as load:
            # Scaled up: used as soon as the name has the new addresses.
            new = replicas.start("authorize", *IPS[1:])
            zone.a[f"{NAME}."] = list(IPS)
            for one in new:
                wait_for(f"{one.log_path} is not used", partial(decides, one))

            # Scaled down: the name loses an address as its process is told to stop.
            zone.a[f"{NAME}."] = list(IPS[1:])
            replicas.stop("authorize", IPS[0])

            # Killed: what it had under way is asked again elsewhere.
            killed = stack.processes.pop(f"authorize {IPS[1]}")
            killed.process.kill()
            killed.process.wait(10)

            # Restarted one after another, each as an upgrade does it.
            for ip in IPS[:2]:
                replicas.stop("databroker", ip)
                replicas.start("databroker", ip)
            seen = len(load.answers)
            wait_for("the load goes on", lambda: len(load.answers) > seen + 10)

        bad = [one for one in load.answers if one.outcome is not Outcome.RIGHT]
        told = [line for line in stack.processes["proxy"].log().splitlines() if "503" in line]
        assert not bad, (bad[:5], told[:20])
        with stack.client() as client:
            assert sign_in(client, stack.url("app.localhost"), ADA)[-1].status_code == 200
        order = ("proxy", "authenticate", *sorted(set(stack.processes) - {"proxy", "authenticate"}))
        assert [stack.processes.pop(name).stop() for name in order] == [0] * len(order)
