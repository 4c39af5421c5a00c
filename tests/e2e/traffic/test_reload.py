"""What a reload touches: routes and clusters when routes change, and nothing that is open."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from websockets.sync.client import connect
from websockets.sync.server import serve

from tests.support.traffic import DOMAIN, Http2Connection, Product, eventually, https
from tests.support.traffic_load import go_on, load
from tests.support.traffic_upstreams import Application, Background

pytestmark = pytest.mark.e2e

APP = f"app.{DOMAIN}"
RDS = "http.ingress.rds.main.update_success"
CDS = "cluster_manager.cds.update_success"


@pytest.fixture(scope="module")
def talker() -> Iterator[str]:
    def echo(websocket: Any) -> None:
        for message in websocket:
            websocket.send(message)

    with serve(echo, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join(5)


@pytest.fixture(scope="module")
def other(background: Background) -> Iterator[Application]:
    with Application(background).running() as running:
        yield running


@pytest.fixture
def made(application: Application, talker: str) -> list[dict[str, Any]]:
    return [
        https("app", to=application.url),
        https("ws", to=talker, allow_websockets=True),
        https("slow", to=application.url),
    ]


@pytest.fixture(scope="module")
def world(shared: Product) -> Product:
    shared.reload([])
    return shared


def listeners(world: Product) -> dict[str, int]:
    """Everything Envoy counts about its listeners and their configuration."""
    return world.stats(r"listener_manager\..*")


def more(world: Product, name: str, before: int) -> bool:
    return world.stat(name) > before


def test_a_changed_route_touches_neither_listeners_nor_what_is_open(
    world: Product, made: list[dict[str, Any]], application: Application, other: Application
) -> None:
    world.reload(made)
    app, talk, slow = made
    elsewhere = https("slow", to=other.url)
    signed_in = {"allow_public_unauthenticated_access": False, "allow_any_authenticated_user": True}
    changes: tuple[tuple[str, list[dict[str, Any]], bool], ...] = (
        # what changes, the routes after it, whether clusters change as well
        ("added", [*made, https("new", to=other.url)], True),
        ("rewritten", [{**app, "prefix_rewrite": "/x"}, talk, slow], True),  # `new` goes
        ("headers", [{**app, "set_response_headers": {"x-a": "1"}}, talk, slow], False),
        ("policy", [app, talk, {**slow, **signed_in}], False),  # decided when it was asked
        ("order", [slow, app, talk], False),
        ("upstream", [app, talk, elsewhere], True),
        ("balancing", [{**app, "load_balancing_policy": "RANDOM"}, talk, slow], True),
        ("removed", [app, talk], True),  # with the cluster that `app` had for itself
        ("back", made, False),
    )
    raw = world.connection()
    with (
        raw,
        connect(f"ws://ws.{DOMAIN}/", sock=raw.socket, proxy=None) as chat,
        world.connection() as first,
        Http2Connection(world.port, world.client_tls("h2")) as second,
        world.connection() as waiting,
    ):
        waiting.send("/?wait=", host=f"slow.{DOMAIN}")
        eventually(lambda: application.seen and application.seen[-1].target == "/?wait=")
        before = listeners(world)
        assert before
        for name, routes, clusters in changes:
            rds, cds = world.stat(RDS), world.stat(CDS)
            world.reload(routes)
            if clusters:
                # Envoy is told of those that go after the routes.
                eventually(partial(more, world, CDS, cds))
            else:
                assert world.stat(CDS) == cds, name
            assert world.stat(RDS) == rds + 1, name
            assert listeners(world) == before, name
            chat.send(name)
            assert chat.recv(20) == name
            reply = first.request(host=APP)
            assert (reply.status, reply.value("connection")) == (200, None), name
            assert second.request(host=APP) == 200
            assert not second.going_away
        application.open_gate()
        assert waiting.answer().status == 200


def test_a_changed_limit_updates_the_listener_in_place(
    world: Product, made: list[dict[str, Any]]
) -> None:
    """Connections of before go on under what they began with."""
    world.reload(made)
    updates = "listener_manager.listener_in_place_updated"
    before = world.stat(updates)
    raw = world.connection()
    with (
        raw,
        connect(f"ws://ws.{DOMAIN}/", sock=raw.socket, proxy=None) as chat,
        world.connection() as first,
    ):
        assert first.request("/a//b", host=APP).seen["path"] == "/a/b"
        world.reload(made, merge_slashes=False)
        assert world.stat(updates) == before + 1
        assert first.request("/a//b", host=APP).seen["path"] == "/a/b"
        chat.send("after")
        assert chat.recv(20) == "after"
    assert world.get("app", "/a//b").seen["path"] == "/a//b"


def test_thousands_of_changed_routes_cost_no_request(
    world: Product, made: list[dict[str, Any]], application: Application
) -> None:
    """New connections and old ones of both versions, while all routes change and then one does."""

    def many(mark: str) -> list[dict[str, Any]]:
        hosts = [f"many{number}" for number in range(2_000)]
        return [https(host, to=application.url, prefix=f"/{mark}") for host in hosts]

    world.reload(made)
    raw = world.connection()
    with (
        load(world, APP) as threads,
        raw,
        connect(f"ws://ws.{DOMAIN}/", sock=raw.socket, proxy=None) as chat,
    ):
        before = listeners(world)
        for mark in ("a", "b"):
            world.reload([*made, *many(mark)])
            go_on(threads, 5)
            assert world.get("many1999", f"/{mark}").status == 200
        one_more = https("more", to=application.url)
        world.reload([*made, *many("b"), one_more])
        assert world.get("more").status == 200
        world.reload(made)
        assert world.get("many0", "/b").status == 404
        go_on(threads, 5)
        chat.send("still")
        assert chat.recv(20) == "still"
        assert listeners(world) == before
    # Nobody was asked to leave: routes concern no connection.
    assert [thread.connections for thread in threads] == [1, 1]
