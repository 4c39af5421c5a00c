"""Connections that stay open end when access does, and only then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from gatehouse.proxy.core.open_streams import ACCESS_HAS_ENDED
from gatehouse.proxy.edge import stream_guard
from gatehouse.proxy.edge.decision_metrics import GuardCollector
from gatehouse.proxy.edge.stream_guard import StreamGuard
from tests.support.decision_memory import Memory, kept
from tests.support.envoy import Proxy, allow, deny, eventually, proxy
from tests.support.event_stream import EventSource
from tests.support.raw_http import http1

pytestmark = pytest.mark.e2e

COOKIE = {"Cookie": "_pomerium=handle; other=1"}
ENDLESS = {"timeout": "0s", "idle_timeout": "0s"}


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[str]:
    async def answer(socket: Any) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in socket:
                await socket.send(message)

    async with serve(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def private(to: str, host: str = "app.example.com", **keys: Any) -> dict[str, Any]:
    return {
        "from": f"http://{host}",
        "to": to,
        "policy": [{"allow": {"and": [{"authenticated_user": True}]}}],
        **keys,
    }


@contextlib.asynccontextmanager
async def websockets(**keys: Any) -> AsyncIterator[tuple[Proxy, Memory]]:
    """A running Envoy with a WebSocket route, whose allows rest on record "a"."""
    async with (
        echo() as url,
        proxy({"routes": [private(url, allow_websockets=True, **keys)]}) as running,
    ):
        running.authorize.decide = lambda _request: kept(records=["a"])
        yield running, Memory(running)


@contextlib.asynccontextmanager
async def talking(running: Proxy, **headers: str) -> AsyncIterator[ClientConnection]:
    """An open WebSocket that the guard has asked about once."""
    before = running.guard.asked
    async with connect(
        "ws://app.example.com/chat?x=1",
        host="127.0.0.1",
        port=running.port,
        proxy=None,
        additional_headers={**COOKIE, **headers},
    ) as socket:
        await passes(socket)
        await asked_again(running, before)
        yield socket


async def passes(socket: ClientConnection) -> None:
    await socket.send("hello")
    assert await asyncio.wait_for(socket.recv(), 5) == "hello"


async def is_cut(socket: ClientConnection) -> None:
    async with asyncio.timeout(60):
        with contextlib.suppress(ConnectionClosed):
            while True:
                await socket.recv()


async def asked_again(running: Proxy, before: int) -> None:
    async def was() -> bool:
        return running.guard.asked > before

    await eventually(was)


async def test_a_websocket_is_cut_when_a_record_changes():
    async with websockets() as (running, memory), talking(running) as socket:
        running.authorize.decide = lambda _request: deny()
        memory.change("a", 11)
        await is_cut(socket)
        assert (running.guard.open, running.guard.ended) == (0, 1)
        (line,) = await running.access_lines(1)
        assert line["response-code"] == 101
        assert ACCESS_HAS_ENDED.replace(" ", "_") in line["response-code-details"]
        counted = {
            sample.name: sample.value
            for family in GuardCollector(running.guard).collect()
            for sample in family.samples
        }
        assert counted["pomerium_open_connections_watched"] == 0
        assert counted["pomerium_open_connections_cut_total"] == 1


async def test_the_question_is_the_one_that_envoy_asked():
    assertion = {"X-Pomerium-JWT-Assertion": "mine", "X-Twice": "a", "X-More": "b"}
    async with websockets() as (running, _), talking(running, **assertion):
        envoys, guards = (request.attributes for request in running.authorize.requests[:2])
        theirs, ours = envoys.request.http, guards.request.http
        assert dict(ours.headers) == dict(theirs.headers)
        for name in ("method", "path", "host", "scheme"):
            assert getattr(ours, name) == getattr(theirs, name), name
        assert guards.context_extensions == envoys.context_extensions
        assert guards.metadata_context.filter_metadata == envoys.metadata_context.filter_metadata
        assert "com.gatehouse.client-assertion" in guards.metadata_context.filter_metadata
        address = envoys.source.address.socket_address
        assert guards.source.address.socket_address.address == address.address
        assert guards.source.address.socket_address.port_value == address.port_value


async def test_only_what_concerns_it_is_asked_about_and_an_allow_lets_it_go_on():
    async with websockets() as (running, memory), talking(running) as socket:
        asked = running.guard.asked
        for version in range(11, 20):
            memory.change("b", version)
        await passes(socket)
        assert running.guard.asked == asked
        running.authorize.decide = lambda _request: kept(records=["a"], version=20)
        memory.change("a", 20)
        await asked_again(running, asked)
        await passes(socket)
        assert running.guard.ended == 0
        memory.change("a", 20)  # nothing new
        await passes(socket)
        assert running.guard.asked == asked + 1


async def test_an_authorize_that_lags_behind_is_not_believed():
    async with websockets() as (running, memory), talking(running) as socket:
        asked = running.guard.asked
        memory.change("a", 11)  # authorize still answers as of 10

        async def again() -> bool:
            return running.guard.asked > asked + 2

        await eventually(again)
        await passes(socket)
        running.authorize.decide = lambda _request: deny()
        await is_cut(socket)


async def test_a_decision_is_asked_about_when_its_time_is_over():
    async with websockets() as (running, _):
        running.authorize.decide = lambda _request: kept(records=["a"], lifetime_ms=700)
        async with talking(running) as socket:
            asked = running.guard.asked
            await asked_again(running, asked + 1)
            await passes(socket)
            running.authorize.decide = lambda _request: deny(401)
            await is_cut(socket)


async def test_a_new_configuration_asks_by_its_own_checksum():
    async with (
        echo() as url,
        proxy({"routes": [private(url, allow_websockets=True)]}) as running,
    ):
        Memory(running)
        running.authorize.decide = lambda _request: kept(records=["a"])
        async with talking(running) as socket:
            before = running.authorize.requests[-1].attributes.context_extensions["route_checksum"]

            def decide(request: Any) -> Any:
                same = request.attributes.context_extensions["route_checksum"] == before
                return kept(records=["a"]) if same else deny()

            running.authorize.decide = decide
            changed = private(url, allow_websockets=True)
            changed["policy"] = [{"allow": {"and": [{"email": {"is": "a@b.c"}}]}}]
            await running.push({"routes": [changed]})
            await is_cut(socket)


async def test_nobody_is_cut_while_authorize_is_away_for_a_moment():
    async with websockets() as (running, memory), talking(running) as socket:
        asked = running.guard.asked

        def away(_request: Any) -> Any:
            raise RuntimeError("not there")

        running.authorize.decide = away
        memory.change("a", 11)

        async def again() -> bool:
            return running.guard.asked > asked + 2

        await eventually(again)
        await passes(socket)
        running.authorize.decide = lambda _request: kept(records=["a"], version=11)

        async def calm() -> bool:
            count = running.guard.asked
            await asyncio.sleep(0.3)
            return running.guard.asked == count

        await eventually(calm)
        await passes(socket)
        assert running.guard.ended == 0


async def test_an_answer_that_says_nothing_is_no_allow():
    async with websockets() as (running, memory), talking(running) as socket:

        def empty(_request: Any) -> Any:
            answer = allow()
            answer.ClearField("dynamic_metadata")
            return answer

        running.authorize.decide = empty
        memory.change("a", 11)
        await is_cut(socket)


async def test_a_decision_without_grounds_is_asked_about_with_every_change():
    async with websockets() as (running, memory):
        running.authorize.decide = lambda _request: allow()
        async with talking(running) as socket:
            await passes(socket)
            running.authorize.decide = lambda _request: deny()
            memory.change("anything", 11)
            await is_cut(socket)


@pytest.mark.parametrize("http2", [False, True])
async def test_server_sent_events_are_cut(http2: bool):
    async with EventSource().running() as events:
        route = private(events.url, "127.0.0.1", **ENDLESS)
        async with proxy({"routes": [route]}) as running:
            memory = Memory(running)
            running.authorize.decide = lambda _request: kept(records=["a"])
            headers = {**COOKIE, "Accept": "text/event-stream", "Host": "127.0.0.1"}
            async with (
                httpx.AsyncClient(http1=not http2, http2=http2, trust_env=False) as client,
                client.stream("GET", f"{running.url}/", headers=headers, timeout=10) as response,
            ):
                assert response.status_code == 200
                chunks = response.aiter_bytes()
                assert b"data: 1" in await anext(chunks)
                await asked_again(running, 0)
                assert events.open == 1
                running.authorize.decide = lambda _request: deny()
                memory.change("a", 11)
                with pytest.raises(httpx.RemoteProtocolError):
                    async for _ in chunks:
                        pass

            async def left() -> bool:
                return events.open == 0

            await eventually(left)
            assert "_pomerium" not in events.heads[0]


async def test_brief_requests_beside_streams_are_not_watched_and_are_remembered():
    plain = ["Cookie: _pomerium=x", "Accept: */*"]
    stream = ["Cookie: _pomerium=x", "Content-Type: application/grpc"]
    async with (
        EventSource().running() as events,
        proxy({"routes": [private(events.url, **ENDLESS)]}) as running,
    ):
        memory = Memory(running)
        running.authorize.decide = lambda _request: kept(records=["a"])
        for lines, count in ((plain, 0), (plain, 0), (plain, 0), (stream, 1)):
            memory.refresh()
            answer = await http1(running.port, "/brief", lines=lines)
            assert answer.body == b"ok"
            assert await _streams(running) == count
        assert (memory.counted()["hits"], memory.counted()["bypass_upgrade"]) == (2, 1)


async def _streams(running: Proxy) -> float:
    """How many streams Envoy has opened to the guard."""
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in (await running.admin.prometheus()).decode().splitlines()
        if "ext_proc" in line and "streams_started" in line and line[0] != "#"
    )


async def test_r50_without_the_guard_nothing_stays_open(monkeypatch):
    """What cannot be watched is not let through: 503, and the upstream hears nothing."""
    refused: list[Any] = []

    async def broken(_self: Any, _messages: Any, context: Any) -> None:
        refused.append(context)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "broken")

    async with EventSource().running() as events:
        monkeypatch.setattr(StreamGuard, "Process", broken)
        async with proxy({"routes": [private(events.url, **ENDLESS)]}) as running:
            answer = await http1(running.port, "/", lines=["Accept: text/event-stream"])
            assert answer.status == 503
            assert refused
            assert events.heads == []


async def test_where_nobody_can_say_that_access_goes_on_it_ends(monkeypatch):
    monkeypatch.setattr(stream_guard, "UNCONFIRMED_S", 0.5)
    async with websockets() as (running, memory), talking(running) as socket:

        def away(_request: Any) -> Any:
            raise RuntimeError("not there")

        running.authorize.decide = away
        memory.change("a", 11)
        await is_cut(socket)
        assert running.guard.ended == 1
