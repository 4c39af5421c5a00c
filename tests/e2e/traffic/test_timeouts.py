"""How long a request may take: the route's limits, the global ones, and what escapes them.

The cases of a configuration run side by side; each has a host, and Envoy's log says what ended it.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import Server, serve

from tests.support.traffic import DOMAIN, Product, eventually, https, together
from tests.support.traffic_upstreams import Application

pytestmark = pytest.mark.e2e

JSON = [("Accept", "application/json")]

UPSTREAM, IDLE, TOTAL = (
    "response_timeout",
    "stream_idle_timeout",
    "max_duration_timeout",
)


@dataclass(frozen=True)
class Case:
    """A route and a request; `status` 0 is an answer that broke off after its headers."""

    name: str
    wishes: str
    status: int
    after_s: float = 0.0  # not before
    before_s: float = 10.0
    because: str = "via_upstream"
    keys: dict[str, Any] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return f"t-{self.name}"


# Envoy holds back the end of a broken HTTP/1 answer for a second (delayed_close_timeout), so cut
# answers take that much longer.
def limits(**keys: str) -> dict[str, Any]:
    return dict(keys)


WEBSOCKETS = {"allow_websockets": True}
IDLE_S, READ_S, DEFAULT_S = 2.0, 1.0, 0.8
PLAIN: dict[str, Any] = {
    "default_upstream_timeout": f"{DEFAULT_S}s",
    "timeout_idle": f"{IDLE_S}s",
    "timeout_read": f"{READ_S}s",
}
CASES = (
    Case("default", "delay=9", 504, DEFAULT_S, 5, UPSTREAM),
    Case("shorter", "delay=9", 504, 0.3, DEFAULT_S, UPSTREAM, limits(timeout="0.3s")),
    Case("longer", "delay=1.2", 200, keys=limits(timeout="9s")),
    Case("unlimited", "delay=1.2", 200, keys=limits(timeout="0s")),
    Case("total", "drip=9,0.2", 0, 0.6, 5, UPSTREAM, limits(timeout="0.6s")),
    # An idle timeout alone lifts the response timeout.
    Case("lively", "drip=7,0.2", 200, 1.2, keys=limits(idle_timeout="0.6s")),
    Case("lifted", "delay=1.2", 200, keys=limits(idle_timeout="0s")),
    Case("both", "delay=9", 504, 0.4, 9, UPSTREAM, limits(timeout="0.4s", idle_timeout="1.5s")),
    Case("quiet", "stall=", 0, 0.5, IDLE_S + 0.9, IDLE, limits(idle_timeout="0.5s")),
    Case("mute", "delay=9", 504, 0.5, IDLE_S, IDLE, limits(idle_timeout="0.5s")),
    # Without an idle timeout of its own the global one holds, and no route exceeds it.
    Case("global", "stall=", 0, IDLE_S, 8, IDLE, limits(timeout="0s")),
    Case("capped", "stall=", 0, IDLE_S, 8, IDLE, limits(idle_timeout="60s")),
    Case("off", "drip=2,2.4", 200, 2.4, keys=limits(timeout="0s", idle_timeout="0s")),
    # Routes for WebSockets have no limits unless told.
    Case("ws-plain", "drip=2,2.4", 200, 2.4, keys=WEBSOCKETS),
    Case("ws-told", "delay=9", 504, 0.3, 5, UPSTREAM, {**WEBSOCKETS, **limits(timeout="0.3s")}),
    Case("upgrades", "delay=1.2", 200, keys={"allow_upgrades": ["WebSocket"]}),
    Case("spdy", "delay=9", 504, DEFAULT_S, 5, UPSTREAM, {"allow_spdy": True}),
)

WRITE_S = 1.0
WRITE: dict[str, Any] = {"timeout_write": f"{WRITE_S}s"}
WRITE_CASES = (
    Case("w-stream", "drip=9,0.3", 0, WRITE_S, 5, TOTAL, limits(timeout="0s", idle_timeout="0s")),
    Case("w-capped", "delay=9", 504, WRITE_S, 5, "", limits(timeout="60s")),
    Case("w-shorter", "delay=9", 504, 0.3, WRITE_S, UPSTREAM, limits(timeout="0.3s")),
    Case("w-plain", "drip=9,0.3", 0, WRITE_S, 5, TOTAL, WEBSOCKETS),
)


@contextmanager
def websocket_server() -> Iterator[Server]:
    """Echoes, and says nothing by itself."""

    def echo(socket: Any) -> None:
        for message in socket:
            socket.send(message)

    with serve(echo, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(5)


@pytest.fixture(scope="module")
def talker() -> Iterator[str]:
    with websocket_server() as server:
        yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"


def routes(up: str, talker: str) -> list[dict[str, Any]]:
    cases = [https(case.host, to=up, **case.keys) for case in (*CASES, *WRITE_CASES)]
    talkers = [
        https(name, to=talker, allow_websockets=True, **keys)
        for name, keys in (
            ("talk", {}),
            ("talk-timeout", limits(timeout="1.6s")),
            ("talk-idle", limits(idle_timeout="0.5s")),
        )
    ]
    return [*cases, *talkers, https("plain", to=up), https("read", to=up, timeout="0.3s")]


@pytest.fixture(scope="module")
def world(shared: Product, application: Application, talker: str) -> Product:
    shared.reload(routes(application.url, talker), **PLAIN)
    return shared


def outcome(world: Product, case: Case) -> tuple[int, float]:
    """(status or 0, seconds it took)."""
    started = time.monotonic()
    with world.connection() as connection:
        try:
            reply = connection.request(
                f"/?{case.wishes}", host=f"{case.host}.{DOMAIN}", headers=JSON
            )
        except http.client.IncompleteRead:
            return 0, time.monotonic() - started
        return reply.status, time.monotonic() - started


def check(world: Product, cases: tuple[Case, ...], *more: Callable[[], Any]) -> list[Any]:
    """All at once; what `more` gave."""
    found = together([*((lambda case=case: outcome(world, case)) for case in cases), *more])
    for case, (status, took_s) in zip(cases, found, strict=False):
        line = world.logged(case.host)[-1]
        got = (status, line["response-code-details"], took_s)
        assert status == case.status, (case, got)
        assert case.after_s - 0.05 <= took_s < case.before_s, (case, got)
        assert case.because in line["response-code-details"], (case, got)
    return found[len(cases) :]


# -- WebSockets


@contextmanager
def websocket(world: Product, host: str) -> Iterator[ClientConnection]:
    raw = world.connection()
    with (
        raw,
        connect(
            f"ws://{host}.{DOMAIN}/", sock=raw.socket, proxy=None, ping_interval=None
        ) as client,
    ):
        yield client


def alive_after(world: Product, host: str, silence_s: float) -> bool:
    """True when a WebSocket still echoes after a silence."""
    with websocket(world, host) as client:
        client.send("before")
        assert client.recv(20) == "before"
        time.sleep(silence_s)
        client.send("after")
        return client.recv(20) == "after"


def lifetime(world: Product, host: str, every_s: float | None) -> float:
    """Seconds until a WebSocket is cut; it echoes `every_s` seconds, or stays silent."""
    started = time.monotonic()
    with websocket(world, host) as client:
        try:
            while time.monotonic() - started < 9:
                if every_s is not None:
                    client.send("tick")
                    client.recv(9)
                    time.sleep(every_s)
                else:
                    client.recv(9)
        except ConnectionClosed:
            pass
        return time.monotonic() - started


# -- requests that do not end


def slow_request(world: Product, parts: int, every_s: float) -> int:
    """The status for a body of `parts` bytes that come one at a time; the last one is held back
    when `every_s` is negative."""
    with world.connection() as connection:
        headers = [("Content-Length", str(parts))]
        connection.send(host=f"read.{DOMAIN}", method="POST", headers=headers)
        if every_s >= 0:
            for _ in range(parts):
                time.sleep(every_s)
                connection.socket.sendall(b"x")
        response = connection.answer()
        response.read()
        return response.status


def idle_connection(world: Product) -> float:
    """Seconds until a connection without a request begins to be closed."""
    closing = "http.ingress.downstream_cx_idle_timeout"
    with world.connection() as connection:
        before, started = world.stat(closing), time.monotonic()
        connection.request(host=f"plain.{DOMAIN}")
        eventually(lambda: world.stat(closing) > before, every_s=0.1)
        return time.monotonic() - started


def test_limits_of_routes_and_global_ones(world: Product) -> None:
    found = check(
        world,
        CASES,
        lambda: alive_after(world, "talk", IDLE_S + 0.4),
        lambda: lifetime(world, "talk-timeout", 0.2),
        lambda: lifetime(world, "talk-idle", None),
        lambda: slow_request(world, 5, 0.14),
        lambda: slow_request(world, 5, -1),
        lambda: idle_connection(world),
    )
    alive, by_timeout, by_idle, slow, held, idle = found
    assert alive
    assert 1.55 <= by_timeout < 5
    assert 0.45 <= by_idle < IDLE_S + 0.9
    assert slow == 200  # the timeout counts from the end of the request
    assert held == 408
    assert IDLE_S - 0.1 <= idle < 8


def test_the_write_timeout_cuts_every_stream_but_websockets(
    world: Product, application: Application, talker: str
) -> None:
    world.reload(routes(application.url, talker), **WRITE)
    alive, by_timeout = check(
        world,
        WRITE_CASES,
        lambda: alive_after(world, "talk", WRITE_S + 0.5),
        lambda: lifetime(world, "talk-timeout", 0.2),
    )
    assert alive
    assert 1.55 <= by_timeout < 5  # its own, which is longer


def test_an_upstream_that_does_not_answer_is_let_go(world: Product) -> None:
    """A request that was ended here holds nothing there."""
    active = r"cluster\.route-.*\.upstream_rq_active"
    assert world.stats(active)
    eventually(lambda: sum(world.stats(active).values()) == 0)
