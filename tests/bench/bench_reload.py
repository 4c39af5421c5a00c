"""P5: 10,000 routes, from the file being saved to Envoy serving the change, under steady requests.

Yardstick: the same change with 10 routes in the same run. Requests that did not get a 200 are
counted and must be none.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.bench.figures import Figure
from tests.support.identity import provider_mock
from tests.support.stack import Stack, running
from tests.support.upstream import EchoUpstream

ROUTES = 10_000
RUNS = 3
ALL_TARGET_S = 5.0
ONE_TARGET_S = 1.0


class Steady(threading.Thread):
    """One request after the other to a route that never changes."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(daemon=True)
        self.stack = stack
        self.done = threading.Event()
        self.sent = 0
        self.failed = 0
        self.kinds: dict[str, int] = {}
        self.slowest_s = 0.0

    def run(self) -> None:
        with self.stack.client() as client:
            while not self.done.is_set():
                began = time.monotonic()
                try:
                    answer = client.get(
                        self.stack.url("public.localhost"), headers={"accept": "application/json"}
                    )
                    kind = "" if answer.status_code == 200 else answer.text[:200]
                except httpx.HTTPError as error:
                    kind = type(error).__name__
                self.sent += 1
                if kind:
                    self.failed += 1
                    kind = kind.replace(answer.headers.get("x-request-id", "-"), "")
                    self.kinds[kind] = self.kinds.get(kind, 0) + 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)


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
    return [route("public.localhost", upstream), *many]


def seconds_until(stack: Stack, host: str, wanted: int) -> float:
    """From now until `host` answers with the wanted status."""
    began = time.monotonic()
    with stack.client() as client:
        while client.get(stack.url(host)).status_code != wanted:
            assert time.monotonic() - began < 60
    return time.monotonic() - began


@contextlib.contextmanager
def product(directory: Path, count: int, upstream: str) -> Iterator[Stack]:
    with provider_mock() as issuer:
        stack = Stack(
            directory=directory,
            issuer=issuer,
            client_id="gatehouse",
            client_secret="bench",
            routes=routes(count, upstream, "a"),
        )
        with running(stack):
            yield stack


def measure(directory: Path, count: int, upstream: str) -> tuple[list[float], list[float], Steady]:
    """Seconds for a change of all routes, seconds for one more route, and the steady client."""
    whole: list[float] = []
    one: list[float] = []
    with product(directory, count, upstream) as stack:
        steady = Steady(stack)
        steady.start()
        for number in range(RUNS):
            # Every route changes, and a new one shows that all of it is in force.
            stack.routes = [
                *routes(count, upstream, f"b{number}"),
                route("new.localhost", upstream),
            ]
            stack.write_config()
            whole.append(seconds_until(stack, "new.localhost", 200))
            stack.routes = stack.routes[:-1]
            stack.write_config()
            one.append(seconds_until(stack, "new.localhost", 404))
        steady.done.set()
        steady.join(10)
    return whole, one, steady


def run() -> list[Figure]:
    with EchoUpstream().running() as upstream, tempfile.TemporaryDirectory() as name:
        small_whole, small_one, _ = measure(Path(name) / "small", 10, upstream.url)
        whole, one, steady = measure(Path(name) / "large", ROUTES, upstream.url)
    print(
        f"  during the {ROUTES} route changes: {steady.sent} requests, {steady.failed} failed, "
        f"slowest {steady.slowest_s * 1000:.0f} ms {steady.kinds or ''}"
    )
    return [
        Figure(
            f"P5 {ROUTES:,} routes changed: saved to served",
            "s",
            tuple(whole),
            ALL_TARGET_S,
            "10 routes",
            min(small_whole),
        ),
        Figure(
            f"P5 one of {ROUTES:,} routes changed: saved to served",
            "s",
            tuple(one),
            ONE_TARGET_S,
            "one of 10",
            min(small_one),
        ),
        Figure("   failed requests meanwhile", "", (float(steady.failed),), 0.0),
    ]
