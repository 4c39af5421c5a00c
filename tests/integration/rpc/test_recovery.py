"""How calls and streams get over what happens to one of several servers."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from google.protobuf.empty_pb2 import Empty

from gatehouse.common.errors import UnavailableError
from gatehouse.common.rpc.channel import SILENT_CALLS, BalancedChannel
from gatehouse.common.rpc.resolver import NameServer, Resolution
from gatehouse.pb import databroker_pb2
from tests.support.dns import Zone, dns_server
from tests.support.rpc import Replica, broker_stub, following, make_channel, replica, until
from tests.support.tcp_fault_proxy import Fault, TcpFaultProxy

NAME = "broker.test."
CALL_S = 1.0


@contextlib.asynccontextmanager
async def three() -> AsyncIterator[tuple[TcpFaultProxy, BalancedChannel]]:
    """A channel to servers 1, 2 and 3, of which the third stands behind a faulty line."""
    async with replica(1) as one, replica(2) as two, replica(3) as last:
        line = TcpFaultProxy(("127.0.0.1", last.port))
        async with line.running():
            ports = (one.port, two.port, line.port)
            channel = make_channel(*(f"http://127.0.0.1:{port}" for port in ports))
            await until(lambda: _answers(channel, {1, 2, 3}))
            try:
                yield line, channel
            finally:
                await channel.close()


async def _counted(channel: BalancedChannel, calls: int) -> collections.Counter[int]:
    """Who answers; 0 stands for a call that failed."""
    stub = broker_stub(await channel.ready_channel(5))
    seen: collections.Counter[int] = collections.Counter()
    for _ in range(calls):
        try:
            answer = await stub.ServerInfo(Empty(), timeout=CALL_S)
        except grpc.aio.AioRpcError:
            seen[0] += 1
        else:
            seen[answer.server_version] += 1
    return seen


async def _answers(channel: BalancedChannel, numbers: set[int]) -> bool:
    return set(await _counted(channel, 12)) == numbers


async def test_a_reset_line_costs_no_call_that_may_be_repeated() -> None:
    async with three() as (line, channel):
        line.set(Fault.REFUSE)
        line.cut()
        seen = await _counted(channel, 60)
        assert seen[0] == 0
        assert seen[1] + seen[2] == 60
        line.set(Fault.NONE)
        await until(lambda: _answers(channel, {1, 2, 3}))


async def test_an_open_line_that_falls_silent_is_given_up() -> None:
    """A frozen server takes calls and answers none: two are lost, then no more."""
    async with three() as (line, channel):
        line.set(Fault.BLACK_HOLE)
        seen = await _counted(channel, 90)
        assert seen[0] <= SILENT_CALLS
        assert seen[1] + seen[2] == 90 - seen[0]
        line.set(Fault.NONE)
        line.cut()
        await until(lambda: _answers(channel, {1, 2, 3}))


async def _stay_subscribed(channel: BalancedChannel) -> None:
    """Follow as a replica does: open the stream again whenever it ends."""
    while True:
        with contextlib.suppress(grpc.aio.AioRpcError, UnavailableError):
            stub = broker_stub(channel.channel())
            async for _ in stub.Sync(databroker_pb2.SyncRequest()):
                pass
        await asyncio.sleep(0.02)


async def test_streams_spread_to_new_servers_as_connections_age() -> None:
    ages = {"max_connection_age_s": 0.6, "age_grace_s": 0.2}
    async with contextlib.AsyncExitStack() as stack:
        running: list[Replica] = [await stack.enter_async_context(replica(1, **ages))]
        port = running[0].port
        for number in (2, 3):
            options = {**ages, "ip": f"127.0.0.{number}", "port": port}
            running.append(await stack.enter_async_context(replica(number, **options)))
        zone = Zone(a={NAME: ["127.0.0.1"]})
        server = await stack.enter_async_context(dns_server(zone))
        resolution = Resolution("V4_ONLY", (NameServer(server.ip, server.port),), refresh_s=0.1)
        channel = make_channel(f"http://broker.test:{port}", resolution=resolution)
        await stack.enter_async_context(following(channel))
        await channel.ready_channel(5)
        async with asyncio.TaskGroup() as group:
            streams = [group.create_task(_stay_subscribed(channel)) for _ in range(12)]
            await until(lambda: running[0].broker.streams == 12)
            zone.a[NAME] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
            await until(lambda: all(2 <= one.broker.streams <= 6 for one in running), timeout_s=30)
            for stream in streams:
                stream.cancel()


@pytest.mark.parametrize("over_tcp", [False, True])
async def test_the_dns_keys_say_whom_to_ask_how_and_how_often(over_tcp: bool) -> None:
    async with replica(1) as one, dns_server(Zone(a={NAME: ["127.0.0.1"]}, ttl=3600)) as server:
        if over_tcp:  # nobody hears a datagram
            assert server._udp is not None
            server._udp.close()
        resolution = Resolution(
            "V4_ONLY",
            (NameServer(server.ip, server.port, tcp=over_tcp),),
            try_s=1.0,
            tries=2,
            refresh_s=0.1,
        )
        channel = make_channel(f"http://broker.test:{one.port}", resolution=resolution)
        async with following(channel):
            assert await _answers(channel, {1})
            await server.zone.wait_asked(NAME, 5)  # although the answer is good for an hour
            server.zone.silent = True
            assert await _answers(channel, {1})


async def test_failed_questions_are_asked_again_as_told() -> None:
    async with replica(1) as one, dns_server() as server:
        name_server = NameServer(server.ip, server.port)
        resolution = Resolution("V4_ONLY", (name_server,), failure_refresh_s=0.1)
        channel = make_channel(f"http://broker.test:{one.port}", resolution=resolution)
        async with following(channel):
            await server.zone.wait_asked(NAME, 8)
            server.zone.a[NAME] = ["127.0.0.1"]
            await until(lambda: bool(channel.addresses))
            assert await _answers(channel, {1})
