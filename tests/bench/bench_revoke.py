"""P4: from a session's deletion being sent to the refusal of its next request, and to the end of
its open WebSocket.

A remembered decision is in place at every proxy, and requests follow each other without a pause.
The WebSocket's end is that which the application sees: no more passes; the client's side is closed
within the second that Envoy gives clients. All-in-one, and split with two proxies, two authorize
and PostgreSQL; of two proxies the later one counts. The yardstick is the deletion itself: until the
databroker has acknowledged it.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import queue
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import serve

from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.ids import SESSION
from tests.bench.envoys import answering, envoy_below
from tests.bench.figures import Figure, percentile
from tests.bench.progress import attempted, progress, whole
from tests.bench.worlds import (
    POLICY,
    Cpus,
    counters_of,
    host,
    protected_routes,
    running_already,
    sign_in_all,
    with_client,
)
from tests.support.ports import free_ports
from tests.support.postgres import fresh_database
from tests.support.stack import Stack

TARGET_MS = 250.0
DELETIONS = int(os.environ.get("DELETIONS", "200"))
CUTS = max(1, min(30, DELETIONS // 4))
CUT_TARGET_MS = 1000.0
_WEBSOCKET_HOST = "ws.localhost"
_WATCHED_S = 1.2  # by then the guard has asked once and knows what the decision rests on
_GIVE_UP_S = 20.0
_WARM_REQUESTS = 5
_START_S = 120.0


@dataclass(frozen=True)
class World:
    """A running product and the ports of its proxies."""

    stack: Stack
    ports: Sequence[int]
    envoys: Sequence[int]


@dataclass(frozen=True)
class Talker:
    """A WebSocket server, and the moments at which its connections ended."""

    port: int
    ends_s: queue.SimpleQueue[float]


@contextlib.contextmanager
def talker() -> Iterator[Talker]:
    ends_s: queue.SimpleQueue[float] = queue.SimpleQueue()

    def listen(connection: Any) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                connection.recv()
        ends_s.put(time.monotonic())

    with serve(listen, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield Talker(server.socket.getsockname()[1], ends_s)
        server.shutdown()


def _stack(directory: Path, upstream: int, talk: int, *, split: bool, postgres: str = "") -> Stack:
    sockets = {
        "from": f"https://{_WEBSOCKET_HOST}",
        "to": f"http://127.0.0.1:{talk}",
        "policy": POLICY,
        "allow_websockets": True,
    }
    return Stack(
        directory=directory,
        issuer="http://127.0.0.1:1",
        client_id="gatehouse",
        client_secret="bench",
        routes=[*protected_routes(1, upstream), sockets],
        split=split,
        postgres=postgres,
        extra={"decision_cache": True, "grpc_insecure": True},
    )


@contextlib.contextmanager
def all_in_one(directory: Path, upstream: int, talk: int) -> Iterator[World]:
    stack = _stack(directory, upstream, talk, split=False)
    with running_already(stack):
        stack.start()
        envoy = envoy_below(stack.processes["proxy"].process.pid)
        yield World(stack, [stack.port], [envoy])


@contextlib.contextmanager
def split(directory: Path, upstream: int, talk: int) -> Iterator[World]:
    """One databroker over PostgreSQL, two authorize, authenticate, two proxies."""
    with fresh_database() as dsn:
        stack = _stack(directory, upstream, talk, split=True, postgres=dsn)
        second, grpc, other_grpc, health, other_health = free_ports(5)
        stack.environment = {
            "AUTHORIZE_SERVICE_URL": f"http://127.0.0.1:{stack.grpc_ports['authorize']}",
            "AUTHORIZE_SERVICE_URLS": f"http://127.0.0.1:{grpc}",
        }
        with running_already(stack):
            for name in ("databroker", "authorize", "authenticate", "proxy"):
                stack.spawn(name)
            for name, more in (
                ("authorize", {"GRPC_ADDRESS": f"127.0.0.1:{grpc}"}),
                (
                    "proxy",
                    {
                        "GRPC_ADDRESS": f"127.0.0.1:{other_grpc}",
                        "ADDRESS": f"127.0.0.1:{second}",
                    },
                ),
            ):
                first = stack.processes.pop(name)
                probe = health if name == "authorize" else other_health
                twin = stack.spawn(name, {**more, "HEALTH_CHECK_ADDR": f"127.0.0.1:{probe}"})
                twin.health_address = f"127.0.0.1:{probe}"
                stack.processes |= {name: first, f"{name}-2": twin}
            for process in stack.processes.values():
                process.wait_ready(_START_S)  # seven processes at once
            proxies = [stack.processes[name].process.pid for name in ("proxy", "proxy-2")]
            envoys = [envoy_below(process) for process in proxies]
            yield World(stack, [stack.port, second], envoys)


class Asker(threading.Thread):
    """One signed-in client at one proxy, asking without a pause until it is refused."""

    def __init__(self, port: int, cookie: str, context: ssl.SSLContext) -> None:
        super().__init__(daemon=True)
        self._connection = http.client.HTTPSConnection(
            "127.0.0.1", port, context=context, timeout=_GIVE_UP_S
        )
        self._headers = {"host": host(0), "cookie": cookie, "accept": "application/json"}
        self.warm = threading.Event()
        self.refused_at_s = 0.0
        self.problem = ""

    def _status(self) -> int:
        self._connection.request("GET", "/", headers=self._headers)
        answer = self._connection.getresponse()
        answer.read()
        return answer.status

    def run(self) -> None:
        began_s = time.monotonic()
        try:
            allowed = 0
            while (status := self._status()) == 200:
                allowed += 1
                if allowed == _WARM_REQUESTS:
                    self.warm.set()
                if time.monotonic() > began_s + _GIVE_UP_S:
                    self.problem = "never refused"
                    return
            self.refused_at_s = time.monotonic()
            if status != 401 or allowed < _WARM_REQUESTS:
                self.problem = f"{status} after {allowed} allowed requests"
        except OSError as error:
            self.problem = str(error)
        finally:
            self.warm.set()
            self._connection.close()


def _trusting() -> ssl.SSLContext:
    """Certificates are not what is measured."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def cuts_ms(world: World, talk: Talker, cookies: Sequence[str], first: int) -> list[float]:
    """Of each session, the first of which has this number: until its last WebSocket was cut."""
    found: list[float] = []

    async def use(client: DatabrokerClient) -> None:
        with progress(f"WebSockets cut, {len(world.ports)} proxies", len(cookies)) as advance:
            for number, cookie in enumerate(cookies, first):
                with contextlib.ExitStack() as stack:
                    for port in world.ports:
                        opened = connect(
                            f"wss://{_WEBSOCKET_HOST}:{port}/",
                            sock=socket.create_connection(("127.0.0.1", port)),
                            ssl=_trusting(),
                            additional_headers={"Cookie": cookie},
                            proxy=None,
                            close_timeout=0.1,
                        )
                        stack.enter_context(opened)
                    await asyncio.sleep(_WATCHED_S)
                    assert talk.ends_s.empty(), "a WebSocket ended before its session"
                    sent_s = time.monotonic()
                    await client.delete(SESSION, f"s{number}")
                    ends_s = [
                        await asyncio.to_thread(talk.ends_s.get, timeout=_GIVE_UP_S)
                        for _ in world.ports
                    ]
                found.append((max(ends_s) - sent_s) * 1e3)
                advance()

    with_client(world.stack, use)
    return found


def delays_ms(world: World, cookies: Sequence[str]) -> tuple[list[float], list[float]]:
    """Of each session: until the last proxy refused it, and until the deletion was acknowledged."""
    context = _trusting()
    refused: list[float] = []
    acknowledged: list[float] = []

    async def use(client: DatabrokerClient) -> None:
        with progress(f"revoke, {len(world.ports)} proxies", len(cookies)) as advance:
            for number, cookie in enumerate(cookies):
                askers = [Asker(port, cookie, context) for port in world.ports]
                for asker in askers:
                    asker.start()
                for asker in askers:
                    assert await asyncio.to_thread(asker.warm.wait, _GIVE_UP_S)
                sent_s = time.monotonic()
                await client.delete(SESSION, f"s{number}")
                acknowledged.append((time.monotonic() - sent_s) * 1e3)
                for asker in askers:
                    await asyncio.to_thread(asker.join, _GIVE_UP_S)
                    assert not asker.problem, asker.problem
                refused.append((max(asker.refused_at_s for asker in askers) - sent_s) * 1e3)
                advance()

    with_client(world.stack, use)
    return refused, acknowledged


def measured(world: World, talk: Talker, label: str, target: float | None) -> list[Figure]:
    cookies = sign_in_all(world.stack, DELETIONS + CUTS)
    before = [counters_of(envoy)["hits"] for envoy in world.envoys]
    refused, acknowledged = delays_ms(world, cookies[:DELETIONS])
    hits = [
        counters_of(envoy)["hits"] - earlier
        for envoy, earlier in zip(world.envoys, before, strict=True)
    ]
    cut = cuts_ms(world, talk, cookies[DELETIONS:], DELETIONS)
    note = f"{label}, {DELETIONS} deletions"

    def figure(name: str, share: int, bound: float | None) -> Figure:
        return Figure(
            f"{name}, {note}: p{share} to the first refusal",
            "ms",
            (percentile(refused, share),),
            bound,
            "the deletion acknowledged",
            percentile(acknowledged, share),
        )

    return [
        figure("Session deleted", 50, None),
        figure("P4 session deleted" if target else "Session deleted", 99, target),
        Figure(
            f"{note}: remembered decisions used meanwhile, at the proxy with fewest",
            "",
            (min(hits),),
            float(DELETIONS),
            at_least=True,
        ),
        Figure(
            f"{'P4 o' if target else 'O'}pen WebSocket cut, {label}, {CUTS} deletions: p99",
            "ms",
            (percentile(cut, 99),),
            CUT_TARGET_MS,
            "p50",
            percentile(cut, 50),
        ),
    ]


def run() -> list[Figure]:
    cpus = Cpus.of_this_machine()
    everywhere = sorted({*cpus.measured, *cpus.others})
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with answering(directory / "upstream", everywhere) as upstream, talker() as talk:

            def one() -> list[Figure]:
                with all_in_one(directory / "one", upstream, talk.port) as world:
                    return measured(world, talk, "all-in-one", None)

            def apart() -> list[Figure]:
                with split(directory / "split", upstream, talk.port) as world:
                    return measured(world, talk, "split with PostgreSQL, 2 proxies", TARGET_MS)

            return whole(
                [
                    *attempted("revoke, all-in-one", one),
                    *attempted("revoke, split with PostgreSQL", apart),
                ]
            )
