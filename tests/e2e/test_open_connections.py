"""Connections that are open end when access does: session, policy, time (design D5)."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from gatehouse.common.ids import SESSION
from tests.e2e.conftest import GRACE
from tests.e2e.test_decision_cache import line_of, with_databroker
from tests.support.open_upstreams import echoing_websockets, event_stream
from tests.support.sign_in import sign_in
from tests.support.stack import Stack, decision_cache_choice

pytestmark = pytest.mark.e2e

Fresh = Callable[..., tuple[Stack, Any]]
# Far more than it takes (`make bench` measures that), far less than a minute, after which every
# connection is asked about. Decisions that say nothing of what they rest on: every ten seconds.
BOUND_S = 20.0 if decision_cache_choice()["decision_cache"] else 30.0
PATIENCE_S = 15.0


@pytest.fixture(scope="module")
def talker() -> Iterator[str]:
    with echoing_websockets() as url:
        yield url


@pytest.fixture(scope="module")
def events() -> Iterator[str]:
    with event_stream() as url:
        yield url


def routes(talker: str, events: str, *criteria: dict[str, Any]) -> list[dict[str, Any]]:
    policy = [{"allow": {"and": [{"email": {"is": GRACE}}, *criteria]}}]
    return [
        {
            "from": "https://ws.localhost",
            "to": talker,
            "allow_websockets": True,
            "policy": policy,
        },
        {
            "from": "https://app.localhost",
            "to": events,
            "timeout": "0s",
            "idle_timeout": "0s",
            "policy": policy,
        },
    ]


class Listener:
    """Reads events until the connection ends."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.count = 0
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(httpx.HTTPError, httpx.StreamError):
            for chunk in self._response.iter_raw():
                self.count += chunk.count(b"data")
        self.ended.set()

    def hears(self) -> None:
        before, deadline = self.count, time.monotonic() + PATIENCE_S
        while self.count == before:
            assert not self.ended.is_set()
            assert time.monotonic() < deadline
            time.sleep(0.02)


@contextlib.contextmanager
def open_connections(
    stack: Stack, client: httpx.Client, events_host: str = "app.localhost"
) -> Iterator[tuple[ClientConnection, Listener]]:
    """A WebSocket and a stream of events, both alive."""
    for host in ("ws.localhost", events_host):
        sign_in(client, stack.url(host), GRACE)
    trust = ssl.create_default_context(cafile=str(stack.certificates.authority))
    cookie = client.build_request("GET", stack.url("ws.localhost")).headers["cookie"]
    raw = socket.create_connection(("127.0.0.1", stack.port))
    accept = {"accept": "text/event-stream"}
    with (
        connect(
            f"wss://ws.localhost:{stack.port}/",
            sock=raw,
            ssl=trust,
            server_hostname="ws.localhost",
            additional_headers={"Cookie": cookie},
            proxy=None,
            close_timeout=1,
        ) as talk,
        client.stream(
            "GET", stack.url(events_host), headers=accept, timeout=PATIENCE_S
        ) as response,
    ):
        assert response.status_code == 200
        listener = Listener(response)
        listener.hears()
        talk.send("hello")
        assert talk.recv(PATIENCE_S) == "hello"
        time.sleep(1.0)  # until each has been asked about once; nothing shows it from outside
        listener.hears()
        yield talk, listener


def both_end(talk: ClientConnection, listener: Listener, bound_s: float = BOUND_S) -> None:
    deadline = time.monotonic() + bound_s
    with pytest.raises(ConnectionClosed):
        talk.recv(bound_s)
    assert listener.ended.wait(max(0.1, deadline - time.monotonic()))


@pytest.mark.parametrize("split", [False, True])
def test_r44_open_connections_are_cut_when_the_session_is_deleted(
    fresh_stack: Fresh, request: pytest.FixtureRequest, talker: str, events: str, split: bool
) -> None:
    dsn = request.getfixturevalue("postgres_dsn") if split else ""
    stack, _ = fresh_stack(split=split, postgres=dsn, routes=routes(talker, events))
    stack.start()
    with stack.client() as client, open_connections(stack, client) as (talk, listener):
        # A databroker or an authorize that is away for a moment cuts nobody.
        if split:
            for name in ("authorize", "databroker"):
                assert stack.processes[name].stop() == 0
                listener.hears()
                stack.spawn(name).wait_ready()
            listener.hears()
            talk.send("still there")
            assert talk.recv(PATIENCE_S) == "still there"
        page = client.get(stack.url("app.localhost"))
        session = line_of(stack, page)["session-id"]
        with_databroker(stack, lambda broker: broker.delete(SESSION, session))
        both_end(talk, listener)


def test_r43_open_connections_are_cut_when_the_policy_or_the_time_says_so(
    fresh_stack: Fresh, talker: str, events: str
) -> None:
    stack, _ = fresh_stack(routes=routes(talker, events))
    stack.start()
    with stack.client() as client:
        with open_connections(stack, client) as (talk, listener):
            stack.routes = routes(talker, events, {"http_method": {"is": "PUT"}})
            stack.write_config()
            both_end(talk, listener)
        soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=12)
        stack.routes = routes(talker, events, {"date": {"before": soon.isoformat()}})
        stack.write_config()
        deadline = time.monotonic() + PATIENCE_S
        while client.get(stack.url("app.localhost")).status_code != 200:
            assert time.monotonic() < deadline
        with open_connections(stack, client) as (talk, listener):
            left_s = (soon - dt.datetime.now(dt.UTC)).total_seconds()
            both_end(talk, listener, max(0.0, left_s) + BOUND_S)
            assert dt.datetime.now(dt.UTC) >= soon
        stack.routes = routes(talker, events)
        stack.write_config()
        deadline = time.monotonic() + PATIENCE_S
        while client.get(stack.url("app.localhost")).status_code != 200:
            assert time.monotonic() < deadline
        with open_connections(stack, client) as (talk, listener):
            stack.routes = []  # a route that is gone lets nobody in either
            stack.write_config()
            both_end(talk, listener)
