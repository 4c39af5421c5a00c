"""Routes of the databroker in the running product: served, refused alone, and gone again."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from google.protobuf import json_format

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.config.route_records import ROUTE
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.records import record_of
from gatehouse.common.rpc.allow_list import OPERATOR
from gatehouse.common.rpc.channel import BalancedChannel
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.pb import config_pb2
from tests.e2e.conftest import GRACE
from tests.e2e.test_lifecycle import wait_for
from tests.support.sign_in import sign_in
from tests.support.stack import Stack
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

Fresh = Callable[..., tuple[Stack, EchoUpstream]]


def as_operator(stack: Stack, act: Callable[[DatabrokerClient], Awaitable[object]]) -> None:
    key = base64.b64decode(stack.shared_secret)
    clock = SystemClock()

    async def run() -> None:
        channel = BalancedChannel(
            [f"http://127.0.0.1:{stack.grpc_ports['proxy']}"],
            audience="databroker",
            health_service="pomerium-databroker",
            credentials=ServiceCredentials(OPERATOR, lambda: (key,), clock),
            ca_pem=None,
            clock=clock,
            rng=SystemRng(),
        )
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(channel.run(stop))
            try:
                await act(DatabrokerClient(channel))
            finally:
                stop.set()
                await channel.close()

    asyncio.run(run())


def put(stack: Stack, record_id: str, **keys: Any) -> None:
    message = json_format.ParseDict(keys, config_pb2.Route())
    as_operator(stack, lambda client: client.put([record_of(message, record_id)]))


def status(client: httpx.Client, stack: Stack, host: str) -> int:
    return client.get(stack.url(host)).status_code


def portal(client: httpx.Client, stack: Stack) -> dict[str, Any]:
    """What the page of applications lists, by name."""
    answer = client.get(stack.url("app.localhost", "/.pomerium/api/v1/routes"))
    return {route["name"]: route for route in answer.json()["routes"]}


STORED_IN: dict[str, dict[str, Any]] = {
    "rest": {},
    "short": {"prefix": "/a"},
    "long": {"prefix": "/a/b"},
    "expression": {"regex": "/r/.*"},
    "first": {"regex": "/[a-z]/1", "regexPriorityOrder": 5},
    "path": {"path": "/a/b/c"},
}
TAKEN_BY = {
    "/a/b/c": "path",
    "/a/b/d": "long",
    "/ab": "short",
    "/a/1": "first",
    "/r/1": "first",
    "/r/2": "expression",
    "/z": "rest",
}


def taken(client: httpx.Client, stack: Stack, path: str) -> str:
    """The stored route that takes a path."""
    answer = client.get(stack.url("new.localhost", path))
    if answer.status_code != 200:
        return ""
    rewritten: str = answer.json()["path"].removeprefix("/")
    (found,) = (name for name in STORED_IN if rewritten.startswith(name))
    return found


def test_a_stored_route_is_served_a_bad_one_refused_alone_and_a_deleted_one_gone(
    fresh_stack: Fresh,
) -> None:
    stack, upstream = fresh_stack()
    stack.start()
    process = stack.processes["proxy"]
    public = {"to": [upstream.url], "allowPublicUnauthenticatedAccess": True}
    with stack.client() as client:
        assert status(client, stack, "new.localhost") == 404
        put(stack, "good", **{"from": "https://new.localhost"}, **public)
        wait_for(lambda: status(client, stack, "new.localhost") == 200)
        named = {"name": "Kitchen", "description": "What is cooking", "to": [upstream.url]}
        put(stack, "k", **{"from": "https://k.localhost"}, **named, allowAnyAuthenticatedUser=True)
        put(stack, "no", **{"from": "https://no.localhost"}, to=[upstream.url])
        sign_in(client, stack.url("app.localhost"), GRACE)
        wait_for(lambda: "Kitchen" in portal(client, stack))
        shown = portal(client, stack)
        assert shown["Kitchen"]["description"] == "What is cooking"
        assert shown["Kitchen"]["from"] == "https://k.localhost"
        assert {"new.localhost"} <= set(shown)
        assert "no.localhost" not in shown  # its policy lets nobody in

        bad = {"from": "https://nobody.localhost", "to": [upstream.url]}
        put(stack, "bad", **bad, tlsCustomCaFile="/etc/passwd", allowAnyAuthenticatedUser=True)
        wait_for(lambda: status(client, stack, "nobody.localhost") == 503)
        process.wait_log("Route bad.tls_custom_ca_file")
        assert status(client, stack, "new.localhost") == 200
        assert status(client, stack, "public.localhost") == 200
        wait_for(lambda: "Route bad" in process.probe("/status").text)
        assert process.probe("/readyz").status_code == 200
        assert process.log().count("Route bad.tls_custom_ca_file") == 1

        policy = {"sourcePpl": "allow: {or: [{no_such_criterion: 1}]}"}
        mistaken = {"from": "https://new.localhost", "to": [upstream.url], "policies": [policy]}
        put(stack, "good", **mistaken)
        wait_for(lambda: status(client, stack, "new.localhost") == 503)
        process.wait_log("no_such_criterion")
        assert status(client, stack, "public.localhost") == 200

        as_operator(stack, lambda databroker: databroker.delete(ROUTE, "bad"))
        as_operator(stack, lambda databroker: databroker.delete(ROUTE, "good"))
        wait_for(lambda: status(client, stack, "new.localhost") == 404)
        wait_for(lambda: status(client, stack, "nobody.localhost") == 404)
        assert status(client, stack, "public.localhost") == 200

        # Whatever order they were stored in: paths, expressions by their own order, prefixes.
        for record_id, keys in STORED_IN.items():
            named = {"from": "https://new.localhost", "prefixRewrite": f"/{record_id}"}
            put(stack, record_id, **named, **keys, **public)
        wait_for(lambda: {path: taken(client, stack, path) for path in TAKEN_BY} == TAKEN_BY)
