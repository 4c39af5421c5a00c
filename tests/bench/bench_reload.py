"""P5: from the configuration file being saved to Envoy serving it, at rest and under requests.

For each number of routes: all of them change, then one. Yardstick, in the same run: a bare Envoy
that is handed the finished resources over ADS. Every request is checked (no decision is
remembered); those that did not get a 200 are counted and must be none.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from gatehouse.proxy.edge.ads import AdsServer
from tests.bench.figures import Figure
from tests.support.envoy import proxy
from tests.support.identity import provider_mock
from tests.support.stack import Stack, running
from tests.support.upstream import EchoUpstream

SIZES = (1_000, 10_000)
TARGET_SIZE = 10_000
RUNS = 3
ALL_TARGET_S = 5.0
ONE_TARGET_S = 1.0
STALL_TARGET_MS = 50.0  # how long a reload may keep a check waiting
LIMIT_S = 60.0
POLL_S = 0.01


class Steady(threading.Thread):
    """One request after the other to a route that never changes."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(daemon=True)
        self.stack = stack
        self.done = threading.Event()
        self.failures: dict[str, int] = {}
        self.latencies: list[tuple[float, float]] = []  # when it began, how long it took

    def run(self) -> None:
        with self.stack.client() as client:
            while not self.done.is_set():
                began = time.monotonic()
                try:
                    answer = client.get(
                        self.stack.url("public.localhost"), headers={"accept": "application/json"}
                    )
                    kind = "" if answer.status_code == 200 else str(answer.status_code)
                except httpx.HTTPError as error:
                    kind = type(error).__name__
                if kind:
                    self.failures[kind] = self.failures.get(kind, 0) + 1
                self.latencies.append((began, time.monotonic() - began))

    def split(self, spans: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
        """Latencies in ms of the requests that met one of these spans of time, and of the rest."""
        inside: list[float] = []
        outside: list[float] = []
        for began, took in self.latencies:
            met = any(began < end and began + took > start for start, end in spans)
            (inside if met else outside).append(took * 1000)
        return inside, outside


@dataclass
class Measured:
    """Of one configuration: seconds of each change, and what requests met meanwhile."""

    whole: list[float] = field(default_factory=list)
    one: list[float] = field(default_factory=list)
    during: list[float] = field(default_factory=list)  # ms, of requests during a change
    between: list[float] = field(default_factory=list)  # ms, of the others
    spans: list[tuple[float, float]] = field(default_factory=list)  # of the changes
    sent: int = 0
    failures: dict[str, int] = field(default_factory=dict)


def route(host: str, upstream: str) -> dict[str, Any]:
    return {
        "from": f"https://{host}",
        "to": upstream,
        "allow_public_unauthenticated_access": True,
    }


def routes(count: int, upstream: str, mark: str) -> list[dict[str, Any]]:
    """`count` hosts of their own, each with a prefix that carries `mark`."""
    many = [
        route(f"h{number}.example.com", upstream) | {"prefix": f"/{mark}"}
        for number in range(count)
    ]
    steady = route("public.localhost", upstream) | {"response": {"status": 200, "body": "yes"}}
    del steady["to"]  # Envoy answers, once authorize has let the request pass
    return [steady, *many]


def save(stack: Stack, routes: list[dict[str, Any]]) -> None:
    stack.routes = routes
    stack.write_config()


def span_until(client: httpx.Client, stack: Stack, host: str, wanted: int) -> tuple[float, float]:
    """From now until `host` answers with the wanted status."""
    began = time.monotonic()
    while client.get(stack.url(host)).status_code != wanted:
        assert time.monotonic() - began < LIMIT_S
        time.sleep(POLL_S)
    return began, time.monotonic()


@contextlib.contextmanager
def product(directory: Path, count: int, upstream: str) -> Iterator[Stack]:
    with provider_mock() as issuer:
        stack = Stack(
            directory=directory,
            issuer=issuer,
            client_id="gatehouse",
            client_secret="bench",
            routes=[],
            extra={"decision_cache": False},
        )
        save(stack, routes(count, upstream, "a"))
        with running(stack):
            yield stack


def change(stack: Stack, count: int, upstream: str, name: str) -> Measured:
    """Change all routes and then one, several times."""
    measured = Measured()
    with stack.client() as client:
        for number in range(RUNS):
            all_new = routes(count, upstream, f"{name}{number}")
            # A new route shows that what stands before it is in force.
            save(stack, [*all_new, route("new.localhost", upstream)])
            whole = span_until(client, stack, "new.localhost", 200)
            time.sleep(0.5)
            save(stack, all_new)
            one = span_until(client, stack, "new.localhost", 404)
            time.sleep(0.5)
            measured.whole.append(whole[1] - whole[0])
            measured.one.append(one[1] - one[0])
            measured.spans += [whole, one]
    return measured


def under_load(stack: Stack, count: int, upstream: str) -> Measured:
    """The same while requests come in."""
    steady = Steady(stack)
    steady.start()
    time.sleep(2)
    measured = change(stack, count, upstream, "load")
    time.sleep(2)
    steady.done.set()
    steady.join(10)
    measured.during, measured.between = steady.split(measured.spans)
    measured.sent, measured.failures = len(steady.latencies), steady.failures
    return measured


async def bare(count: int, upstream: str) -> tuple[list[float], list[float]]:
    """Seconds that Envoy takes for the finished resources: all new, and with one new route."""

    def config(mark: str, *more: dict[str, Any]) -> dict[str, Any]:
        return {"routes": [*routes(count, upstream, mark), *more]}

    def in_force(version: str, ads: AdsServer) -> bool:
        return ads.in_force == version

    whole: list[float] = []
    one: list[float] = []
    async with proxy({"routes": []}, insecure=False) as envoy:
        for number in range(RUNS):
            new = route("new.localhost", upstream)
            for kept, given in ((whole, (f"a{number}",)), (one, (f"a{number}", new))):
                snapshot = envoy.snapshot(config(*given))
                began = time.monotonic()
                envoy.ads.publish(snapshot)
                await envoy.ads.wait_for(functools.partial(in_force, snapshot.version), LIMIT_S)
                kept.append(time.monotonic() - began)
    return whole, one


def percentile(values: Sequence[float], share: int) -> float:
    return statistics.quantiles(values, n=100)[share - 1] if len(values) > 1 else 0.0


def run() -> list[Figure]:
    figures: list[Figure] = []
    with EchoUpstream().running() as upstream, tempfile.TemporaryDirectory() as name:
        for count in SIZES:
            alone_whole, alone_one = asyncio.run(bare(count, upstream.url))
            with product(Path(name) / str(count), count, upstream.url) as stack:
                rest = change(stack, count, upstream.url, "rest")
                load = under_load(stack, count, upstream.url)
            targets = count == TARGET_SIZE
            for how, measured in (("at rest", rest), ("under load", load)):
                for what, runs, target, alone in (
                    ("all", measured.whole, ALL_TARGET_S, alone_whole),
                    ("one", measured.one, ONE_TARGET_S, alone_one),
                ):
                    figures.append(
                        Figure(
                            f"P5 {what} of {count:,} routes changed, {how}: saved to served",
                            "s",
                            tuple(runs),
                            target if targets else None,
                            "Envoy alone",
                            statistics.median(alone),
                        )
                    )
            figures += [
                Figure(
                    f"   {count:,}: failed requests", "", (float(sum(load.failures.values())),), 0.0
                ),
                Figure(
                    f"   {count:,}: p99 of checked requests during a reload",
                    "ms",
                    (percentile(load.during, 99),),
                    None,
                    "without a reload",
                    percentile(load.between, 99),
                ),
                Figure(
                    f"   {count:,}: slowest of them (how long a reload stalls a check)",
                    "ms",
                    (max(load.during, default=0.0),),
                    STALL_TARGET_MS if targets else None,
                    "without a reload",
                    max(load.between, default=0.0),
                ),
            ]
            print(f"  {count:,} routes: {load.sent} requests, failed: {load.failures or 'none'}")
    return figures
