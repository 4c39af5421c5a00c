"""Configurations reach a running Envoy whole, in order, and without breaking what works."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.route.v3 import route_pb2
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from gatehouse.proxy.core.xds.resource import CLUSTER, ROUTE_CONFIGURATION, resource_of
from gatehouse.proxy.core.xds.snapshot import Snapshot, build_snapshot
from gatehouse.proxy.edge.ads import AdsServer
from tests.support.dns import Zone, dns_server
from tests.support.envoy import Proxy, environment, eventually, proxy, resolved
from tests.support.ports import free_ports
from tests.support.raw_http import http1, swallow
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

HOST = "app.example.com"


@pytest.fixture
def upstream() -> Iterator[EchoUpstream]:
    with EchoUpstream().running() as running:
        yield running


def to(url: str, **keys: Any) -> dict[str, Any]:
    return {
        "from": f"http://{HOST}",
        "to": url,
        "allow_public_unauthenticated_access": True,
        **keys,
    }


@contextlib.asynccontextmanager
async def steady_requests(running: Proxy) -> AsyncIterator[list[int]]:
    """Requests one after the other while the block runs; their statuses."""
    statuses: list[int] = []
    stop = asyncio.Event()

    async def go_on() -> None:
        while not stop.is_set():
            statuses.append((await http1(running.port)).status)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(go_on())
        try:
            yield statuses
        finally:
            stop.set()


async def test_the_handshake_ends_with_everything_in_force(upstream: EchoUpstream):
    async with proxy({"routes": [to(upstream.url)]}) as running:
        snapshot = running.ads.snapshot
        assert snapshot is not None
        assert running.ads.in_force == snapshot.version
        assert running.ads.serving
        records = running.health.snapshot().records
        for check in ("xds.cluster", "xds.listener", "xds.route-configuration"):
            assert records[check].healthy
        dump = json.dumps(await running.admin.config_dump())
        for resources in snapshot.resources.values():
            for resource in resources.values():
                assert f'"version_info": "{resource.version}"' in dump
        assert (await http1(running.port)).status == 200


async def test_routes_are_added_changed_and_removed(upstream: EchoUpstream):
    with EchoUpstream().running() as other:
        async with proxy({"routes": [to(upstream.url)]}) as running:
            new = {**to(other.url), "from": "http://new.example.com"}
            assert (await http1(running.port, host="new.example.com")).status == 404
            await running.push({"routes": [to(upstream.url), new]})
            assert (await http1(running.port, host="new.example.com")).status == 200
            await running.push({"routes": [to(other.url)]})
            assert (await http1(running.port)).status == 200
            assert (await http1(running.port, host="new.example.com")).status == 404
            assert len(other.requests) == 2
            names = await running.admin.stats(r"^cluster_manager\.active_clusters$")
            # control plane (gRPC, HTTP), authorize, authenticate, stream guard, the one upstream
            assert names == {"cluster_manager.active_clusters": 6}


def with_routes(snapshot: Snapshot, change: Any) -> Snapshot:
    """The snapshot with its route configuration changed in place by `change`."""
    message = route_pb2.RouteConfiguration()
    message.ParseFromString(snapshot.resources[ROUTE_CONFIGURATION]["main"].body)
    change(message)
    routes = {"main": resource_of(message, "main")}
    return Snapshot("bad", {**snapshot.resources, ROUTE_CONFIGURATION: routes}, snapshot.files)


async def test_a_refused_route_configuration_leaves_the_last_good_one_in_force(
    upstream: EchoUpstream,
):
    async with proxy({"routes": [to(upstream.url)]}) as running:

        def break_it(message: route_pb2.RouteConfiguration) -> None:
            message.virtual_hosts[0].domains.append("*")

        good = running.snapshot({"routes": [to(upstream.url, prefix_rewrite="/x")]})
        reason = await running.push_refused(with_routes(good, break_it))
        assert "Only a single wildcard domain" in reason
        record = running.health.snapshot().records["xds.route-configuration"]
        assert record.error == reason
        assert (await http1(running.port)).status == 200
        await running.push({"routes": [to(upstream.url, prefix_rewrite="/y")]})
        assert running.health.snapshot().records["xds.route-configuration"].healthy
        assert json.loads((await http1(running.port, "/")).body)["path"] == "/y"


async def test_a_refused_cluster_leaves_the_whole_old_configuration_in_force(
    upstream: EchoUpstream,
):
    with EchoUpstream().running() as other:
        async with proxy({"routes": [to(upstream.url)]}) as running:
            next_one = running.snapshot({"routes": [to(other.url)]})
            (name,) = (name for name in next_one.resources[CLUSTER] if name.startswith("route-"))
            cluster = cluster_pb2.Cluster()
            cluster.ParseFromString(next_one.resources[CLUSTER][name].body)
            cluster.connect_timeout.seconds = -1
            bad = {**next_one.resources[CLUSTER], name: resource_of(cluster, name)}
            reason = await running.push_refused(
                Snapshot("bad", {**next_one.resources, CLUSTER: bad}, {})
            )
            assert "Invalid duration" in reason
            assert (await http1(running.port)).status == 200
            assert (len(upstream.requests), len(other.requests)) == (1, 0)
            await running.push({"routes": [to(other.url)]})
            assert (await http1(running.port)).status == 200
            assert len(other.requests) == 1
            assert running.health.snapshot().records["xds.cluster"].healthy


async def test_a_listener_whose_address_is_taken_is_reported(upstream: EchoUpstream):
    taken = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    async with taken, proxy({"routes": [to(upstream.url)]}) as running:
        reason = await running.push_refused(
            {
                "address": f"127.0.0.1:{port}",
                "routes": [to(upstream.url)],
            }
        )
        assert "http-ingress" in reason
        assert "Address already in use" in reason or "cannot bind" in reason
        assert (await http1(running.port)).status == 200


async def test_a_new_address_serves_at_once_and_the_old_one_takes_nobody_new(
    upstream: EchoUpstream,
):
    (other,) = free_ports(1)
    config = {"routes": [to(upstream.url)]}
    ask = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    async with proxy(config) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        await running.push({"address": f"127.0.0.1:{other}", **config})
        assert (await http1(other)).status == 200

        async def refuses() -> bool:
            try:
                _, late = await asyncio.open_connection("127.0.0.1", running.port)
            except ConnectionRefusedError:
                return True
            late.close()
            return False

        await eventually(refuses)
        writer.write(ask)  # who was there before is served on
        assert b" 200 " in await reader.readline()
        draining = "listener_manager.total_listeners_draining"
        assert await running.admin.stats(f"^{draining}$") == {draining: 1}
        writer.close()


async def test_a_listener_whose_address_was_taken_comes_when_it_is_free(upstream: EchoUpstream):
    """Without a change to the configuration, which nobody would make."""
    taken = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    config = {"address": f"127.0.0.1:{port}", "routes": [to(upstream.url)]}
    async with proxy({"routes": [to(upstream.url)]}, first_retry_s=0.05) as running:
        async with taken:
            await running.push_refused(config)
            rejected = "listener_manager.lds.update_rejected"

            async def tried(times: int) -> bool:
                return (await running.admin.stats(f"^{rejected}$"))[rejected] >= times

            await eventually(functools.partial(tried, 3))
            assert (await http1(running.port)).status == 200  # the last good one
            assert not running.health.snapshot().records["xds.listener"].healthy
        wanted = running.ads.snapshot
        assert wanted is not None
        await running.ads.wait_for(functools.partial(_in_force, wanted.version), 20)
        assert (await http1(port)).status == 200
        assert running.health.snapshot().records["xds.listener"].healthy


async def test_what_is_wrong_in_itself_is_sent_once(upstream: EchoUpstream):
    async with proxy({"routes": [to(upstream.url)]}, first_retry_s=0.01) as running:

        def break_it(message: route_pb2.RouteConfiguration) -> None:
            message.virtual_hosts[0].domains.append("*")

        good = running.snapshot({"routes": [to(upstream.url, prefix_rewrite="/x")]})
        await running.push_refused(with_routes(good, break_it))
        for _ in range(50):  # more than enough time for another try
            assert (await http1(running.port)).status == 200
        rejected = "http.ingress.rds.main.update_rejected"
        assert await running.admin.stats(f"^{rejected}$") == {rejected: 1}


async def test_editing_routes_keeps_connections_open(upstream: EchoUpstream):
    async def echo(websocket: Any) -> None:
        async for message in websocket:
            await websocket.send(message)

    async with serve(echo, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ws = {**to(url, allow_websockets=True), "from": "http://ws.example.com"}
        async with proxy({"routes": [ws]}) as running:
            uri = "ws://ws.example.com/"
            async with connect(uri, host="127.0.0.1", port=running.port, proxy=None) as client:
                await client.send("before")
                assert await client.recv() == "before"
                reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
                await running.push({"routes": [to(upstream.url), ws]})
                await running.push({"routes": [{**ws, "prefix": "/"}, to(upstream.url)]})
                await running.push({"routes": [{**ws, "set_response_headers": {"x-a": "1"}}]})
                await client.send("after")
                assert await client.recv() == "after"
                writer.write(b"GET /ping HTTP/1.1\r\nHost: ws.example.com\r\n\r\n")
                assert b"200" in await reader.readline()
                writer.close()
                draining = await running.admin.stats(
                    r"^listener_manager\.total_filter_chains_draining$"
                )
                assert draining == {"listener_manager.total_filter_chains_draining": 0}


async def test_a_changed_upstream_costs_no_request_while_its_name_is_being_resolved(
    upstream: EchoUpstream,
):
    zone = Zone(a={"slow.internal.": ["127.0.0.1"]}, silent=True)
    with EchoUpstream().running() as other:
        async with dns_server(zone) as dns:
            keys: dict[str, Any] = {
                "dns_resolvers": [f"udp://127.0.0.1:{dns.port}"],
                "dns_query_timeout": "1s",
                "dns_query_tries": 5,
                "dns_lookup_family": "V4_ONLY",
            }
            async with proxy({"routes": [to(upstream.url)]}, **keys) as running:
                async with steady_requests(running) as statuses, asyncio.TaskGroup() as tasks:
                    target = f"http://slow.internal:{other.port}"
                    push = tasks.create_task(running.push({"routes": [to(target)]}))
                    await zone.wait_asked("slow.internal.", 1)
                    before = len(statuses)
                    await eventually(functools.partial(_longer, statuses, before + 20))
                    assert not push.done()
                    assert other.requests == []
                    zone.silent = False
                    await push
                    now = len(statuses)
                    await eventually(functools.partial(_longer, statuses, now + 3))
                assert set(statuses) == {200}
                assert other.requests


def _in_force(version: str, ads: AdsServer) -> bool:
    return ads.in_force == version


async def _longer(found: list[int], count: int) -> bool:
    return len(found) > count


async def test_a_new_service_token_costs_no_request(upstream: EchoUpstream):
    config = {"routes": [to(upstream.url)]}
    async with proxy(config) as running:
        settings = resolved({**config, **running.changes, "address": f"127.0.0.1:{running.port}"})
        async with steady_requests(running) as statuses:
            for token in ("second", "third"):
                snapshot = build_snapshot(
                    settings, environment(str(running.run_dir), authorize_jwt=token)
                )
                running.ads.publish(snapshot)
                await running.ads.wait_for(functools.partial(_in_force, snapshot.version), 60)
                await eventually(functools.partial(_longer, statuses, len(statuses) + 5))
                assert running.authorize.metadata[-1]["jwt"] == token
        assert set(statuses) == {200}


async def test_the_newest_of_many_configurations_wins(upstream: EchoUpstream):
    async with proxy({"routes": [to(upstream.url)]}) as running:
        snapshots = [
            running.snapshot({"routes": [to(upstream.url, prefix_rewrite=f"/{index}")]})
            for index in range(20)
        ]
        for snapshot in snapshots:
            running.ads.publish(snapshot)
        await running.ads.wait_for(lambda ads: ads.in_force == snapshots[-1].version, 60)
        assert json.loads((await http1(running.port, "/")).body)["path"] == "/19"
        stats = await running.admin.stats(r"^http\.ingress\.rds\.main\.update_success$")
        assert stats["http.ingress.rds.main.update_success"] < 10
