"""Balancing, failing over and following DNS with real servers on several loopback addresses."""

from __future__ import annotations

import asyncio
import collections
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.empty_pb2 import Empty

from gatehouse.common.errors import UnavailableError
from gatehouse.common.rpc.channel import BalancedChannel
from gatehouse.common.rpc.resolver import NameServer, Resolver
from gatehouse.pb import databroker_pb2
from tests.support.dns import DnsServer, Zone, dns_server
from tests.support.pki import Authority
from tests.support.rpc import (
    Replica,
    broker_stub,
    following,
    make_channel,
    replica,
    start_replica,
    until,
)

NAME = "broker.test."
IPS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


@asynccontextmanager
async def replicas(count: int) -> AsyncIterator[list[Replica]]:
    """Servers 1..count on 127.0.0.1.. with one port for all."""
    running: list[Replica] = []
    for _ in range(10):
        running = [await start_replica(1)]
        try:
            for number in range(2, count + 1):
                running.append(
                    await start_replica(number, ip=f"127.0.0.{number}", port=running[0].port)
                )
            break
        except OSError:  # another process has that port on one of the addresses
            for one in running:
                await one.server.stop(0)
    try:
        yield running
    finally:
        for one in running:
            await one.server.stop(0)


def dns_resolver(server: DnsServer) -> Resolver:
    return Resolver(
        lookup_family="V4_ONLY",
        nameservers=(NameServer(server.ip, server.port),),
        timeout_s=1.0,
        hosts_file=Path("/nonexistent"),
    )


async def answered_by(channel: BalancedChannel, calls: int = 12) -> collections.Counter[int]:
    """Who answers, over some calls; every one of them must succeed."""
    seen: collections.Counter[int] = collections.Counter()
    stub = broker_stub(await channel.ready_channel(5))
    for _ in range(calls):
        response = await stub.ServerInfo(Empty(), timeout=30)
        seen[response.server_version] += 1
    return seen


async def until_answered_by(channel: BalancedChannel, numbers: set[int]) -> None:
    """Wait until exactly `numbers` answer. No call may fail on the way."""

    async def settled() -> bool:
        return set(await answered_by(channel)) == numbers

    await until(settled)


# -- balancing and health


async def test_calls_are_spread_over_literal_addresses_without_run() -> None:
    async with replicas(3) as running:
        port = running[0].port
        channel = make_channel(*(f"http://{ip}:{port}" for ip in IPS))
        await until_answered_by(channel, {1, 2, 3})
        seen = await answered_by(channel, 30)
        assert seen == {1: 10, 2: 10, 3: 10}
        await channel.close()


async def test_a_not_serving_address_leaves_and_returns() -> None:
    async with replicas(2) as running:
        channel = make_channel(*(f"http://{ip}:{running[0].port}" for ip in IPS[:2]))
        await until_answered_by(channel, {1, 2})
        running[1].serving(False)
        await until_answered_by(channel, {1})
        running[1].serving()
        await until_answered_by(channel, {1, 2})
        await channel.close()


async def test_channels_share_no_connection() -> None:
    """Two that did, and asked for health as it came up, crashed the process inside gRPC."""
    async with replicas(1) as running:
        channels = [make_channel(f"http://{IPS[0]}:{running[0].port}") for _ in range(3)]
        for channel in channels:
            await until_answered_by(channel, {1})
        assert len(running[0].broker.peers) == 3
        for channel in channels:
            await channel.close()


async def test_a_dead_address_costs_no_call() -> None:
    async with replicas(3) as running:
        channel = make_channel(*(f"http://{ip}:{running[0].port}" for ip in IPS))
        await until_answered_by(channel, {1, 2, 3})
        await running[1].server.stop(0)
        await until_answered_by(channel, {1, 3})
        running[1] = await start_replica(2, ip=IPS[1], port=running[0].port)
        await until_answered_by(channel, {1, 2, 3})
        await channel.close()


async def test_an_address_dead_from_the_start_is_passed_over() -> None:
    async with replicas(1) as running:
        port = running[0].port
        channel = make_channel(f"http://127.0.0.9:{port}", f"http://127.0.0.1:{port}")
        assert set(await answered_by(channel)) == {1}
        await channel.close()


async def test_when_none_is_serving_all_are_tried() -> None:
    async with replicas(2) as running:
        for one in running:
            one.serving(False)
        channel = make_channel(*(f"http://{ip}:{running[0].port}" for ip in IPS[:2]))
        stub = broker_stub(channel.channel())
        with pytest.raises(grpc.aio.AioRpcError):  # the first call learns that none is serving
            await stub.Put(databroker_pb2.PutRequest(), timeout=30)
        await until_answered_by(channel, {1, 2})
        running[0].serving()
        await until_answered_by(channel, {1})
        await channel.close()


async def test_mixed_families() -> None:
    async with replica(1) as four, replica(2, ip="::1") as six:
        channel = make_channel(f"http://127.0.0.1:{four.port}", f"http://[::1]:{six.port}")
        await until_answered_by(channel, {1, 2})
        await channel.close()


async def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    async with replica(5, unix_socket=path):
        channel = make_channel(f"unix://{path}")
        assert set(await answered_by(channel)) == {5}
        await channel.close()


async def test_credentials_go_with_every_kind_of_call() -> None:
    async with replica(4) as one:
        channel = make_channel(f"http://127.0.0.1:{one.port}", subject="proxy")
        stub = broker_stub(channel.channel())
        assert (await stub.ServerInfo(Empty(), timeout=30)).server_version == 4
        stream = stub.Sync(databroker_pb2.SyncRequest(type="once"), timeout=30)
        assert [message.record.version async for message in stream] == [4]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Clear(Empty(), timeout=30)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        await channel.close()


async def test_an_idempotent_call_is_retried_on_another_address() -> None:
    """One address answers UNAVAILABLE although it reports SERVING."""
    async with replicas(2) as running:
        channel = make_channel(*(f"http://{ip}:{running[0].port}" for ip in IPS[:2]))
        await until_answered_by(channel, {1, 2})
        running[1].server._guard._secrets = _unavailable
        assert await answered_by(channel, 20) == {1: 20}
        stub = broker_stub(channel.channel())
        outcomes = []
        for _ in range(4):
            call = stub.Put(databroker_pb2.PutRequest(), timeout=30)
            outcomes.append(await call.code())
        assert grpc.StatusCode.UNAVAILABLE in outcomes, "Put must not be repeated"
        await channel.close()


def _unavailable() -> tuple[bytes, ...]:
    raise UnavailableError("told so by the test")


async def test_a_black_hole_is_passed_over() -> None:
    """One address takes connections and never says a word."""
    async with replica(1) as one:
        with socket.create_server(("127.0.0.2", one.port)):
            channel = make_channel(f"http://127.0.0.1:{one.port}", f"http://127.0.0.2:{one.port}")
            assert await answered_by(channel, 20) == {1: 20}
            await channel.close()


# -- TLS


async def test_tls_verifies_the_name_of_each_url(tmp_path: Path) -> None:
    authority = Authority()
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(
            replica(1, certificates=(authority.issue("one.test"),))
        )
        two = await stack.enter_async_context(
            replica(2, certificates=(authority.issue("two.test"), authority.issue("three.test")))
        )
        hosts = tmp_path / "hosts"
        hosts.write_text("127.0.0.1 one.test two.test three.test wrong.test\n")
        resolver = Resolver(hosts_file=hosts)
        channel = make_channel(
            f"https://one.test:{one.port}",
            f"https://two.test:{two.port}",
            f"https://three.test:{two.port}",
            ca_pem=authority.ca_pem,
            resolver=resolver,
        )
        async with following(channel):
            await until(lambda: len(channel._turns) == 3)
            assert await answered_by(channel, 30) == {1: 10, 2: 20}
        for options in (
            {"urls": f"https://wrong.test:{one.port}", "ca_pem": authority.ca_pem},
            {"urls": f"https://one.test:{one.port}", "ca_pem": Authority().ca_pem},
            {"urls": f"https://one.test:{one.port}", "ca_pem": None},
            {"urls": f"http://one.test:{one.port}", "ca_pem": authority.ca_pem},
        ):
            refused = make_channel(
                str(options["urls"]),
                ca_pem=options["ca_pem"],  # type: ignore[arg-type]
                resolver=resolver,
            )
            async with following(refused):
                stub = broker_stub(await refused.ready_channel(5))
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.ServerInfo(Empty(), timeout=30)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_tls_with_an_override_name_and_with_an_ip() -> None:
    authority = Authority()
    pair = authority.issue("broker.internal", "127.0.0.1")
    async with replica(1, certificates=(pair,)) as one:
        url = f"https://127.0.0.1:{one.port}"
        for override in ("", "broker.internal"):
            channel = make_channel(url, ca_pem=authority.ca_pem, override_name=override)
            assert set(await answered_by(channel, 2)) == {1}
            await channel.close()
        channel = make_channel(url, ca_pem=authority.ca_pem, override_name="other.internal")
        with pytest.raises(grpc.aio.AioRpcError):
            await broker_stub(channel.channel()).ServerInfo(Empty(), timeout=30)
        await channel.close()


async def test_a_replaced_certificate_is_used_from_the_next_handshake() -> None:
    first, second = Authority(), Authority()
    async with replica(1, certificates=(first.issue("127.0.0.1"),)) as one:
        url = f"https://127.0.0.1:{one.port}"
        channel = make_channel(url, ca_pem=first.ca_pem)
        assert set(await answered_by(channel, 1)) == {1}
        one.server.replace_certificates((second.issue("127.0.0.1"),))
        other = make_channel(url, ca_pem=second.ca_pem)
        assert set(await answered_by(other, 1)) == {1}
        assert set(await answered_by(channel, 1)) == {1}  # the open connection goes on
        await channel.close()
        await other.close()


# -- DNS


async def test_following_dns_added_and_removed_addresses() -> None:
    async with replicas(3) as running, dns_server(Zone(a={NAME: list(IPS[:1])})) as server:
        url = f"http://broker.test:{running[0].port}"
        channel = make_channel(url, resolver=dns_resolver(server))
        async with following(channel):
            await until_answered_by(channel, {1})
            server.zone.a[NAME] = list(IPS)
            channel.refresh()
            await until_answered_by(channel, {1, 2, 3})

            server.zone.a[NAME] = list(IPS[:2])
            asked = len(server.zone.questions)
            channel.refresh()
            await server.zone.wait_asked(NAME, asked + 1)
            assert set(await answered_by(channel)) == {1, 2, 3}, "one absence is not enough"
            channel.refresh()
            await until_answered_by(channel, {1, 2})


async def test_dns_server_down_keeps_the_last_answer() -> None:
    async with replicas(2) as running, dns_server(Zone(a={NAME: list(IPS[:2])})) as server:
        url = f"http://broker.test:{running[0].port}"
        channel = make_channel(url, resolver=dns_resolver(server))
        async with following(channel):
            await until_answered_by(channel, {1, 2})
            server.zone.silent = True
            for _ in range(3):
                asked = len(server.zone.questions)
                channel.refresh()
                await server.zone.wait_asked(NAME, asked + 1)
            assert set(await answered_by(channel)) == {1, 2}
            await server.stop()
            channel.refresh()
            assert set(await answered_by(channel)) == {1, 2}
            server.zone.silent = False
            server.zone.a[NAME] = [IPS[0]]
            await server.start()
            channel.refresh()
            await until(lambda: server.zone.questions[-1][0] == NAME)


async def test_a_name_that_appears_late() -> None:
    async with replicas(1) as running, dns_server() as server:
        url = f"http://broker.test:{running[0].port}"
        channel = make_channel(url, resolver=dns_resolver(server))
        with pytest.raises(UnavailableError, match=r"http://broker\.test"):
            channel.channel()
        async with following(channel):
            with pytest.raises(UnavailableError, match=r"http://broker\.test"):
                await channel.ready_channel(0.05)
            server.zone.a[NAME] = [IPS[0]]
            channel.refresh()
            assert set(await answered_by(channel)) == {1}


async def test_when_nothing_answers_the_names_are_asked_for_again() -> None:
    """A replica that came back under another address is found without waiting for the TTL."""
    async with replicas(2) as running, dns_server(Zone(a={NAME: [IPS[0]]})) as server:
        url = f"http://broker.test:{running[0].port}"
        channel = make_channel(url, resolver=dns_resolver(server))
        async with following(channel):
            await until_answered_by(channel, {1})
            await running[0].server.stop(0)
            server.zone.a[NAME] = [IPS[1]]

            async def found() -> bool:
                try:
                    return 2 in await answered_by(channel, 1)
                except grpc.aio.AioRpcError:
                    return False

            await until(found)


async def test_swapping_fails_no_call_under_way() -> None:
    async with replicas(2) as running, dns_server(Zone(a={NAME: [IPS[0]]})) as server:
        url = f"http://broker.test:{running[0].port}"
        channel = make_channel(url, resolver=dns_resolver(server))
        async with following(channel):
            stub = broker_stub(await channel.ready_channel(5))
            stream: Any = stub.Sync(databroker_pb2.SyncRequest(), timeout=60)
            assert (await stream.read()).record.version == 1
            async with asyncio.TaskGroup() as group:
                slow = group.create_task(
                    _awaited(stub.Get(databroker_pb2.GetRequest(id="wait"), timeout=60))
                )
                reading = group.create_task(_outcome(stream))
                await running[0].broker.entered.wait()
                server.zone.a[NAME] = [IPS[1]]
                for _ in range(3):
                    asked = len(server.zone.questions)
                    channel.refresh()
                    await server.zone.wait_asked(NAME, asked + 1)
                await until_answered_by(channel, {2})
                assert channel._retired, "the old channel is held for its calls"
                assert not slow.done()
                assert not reading.done()
                running[0].broker.gate.set()
                assert (await slow).record.version == 1
                await running[0].server.stop(5)
                assert (await reading) is grpc.StatusCode.UNAVAILABLE
            await until(lambda: not channel._retired)


async def test_swapping_under_load_fails_nothing() -> None:
    async with replicas(3) as running, dns_server(Zone(a={NAME: [IPS[0]]})) as server:
        url = f"http://broker.test:{running[0].port}"
        channel = make_channel(url, resolver=dns_resolver(server))
        done = asyncio.Event()
        seen: collections.Counter[int] = collections.Counter()

        async def calls() -> None:
            stub = broker_stub(await channel.ready_channel(5))
            while not done.is_set():
                seen[(await stub.ServerInfo(Empty(), timeout=30)).server_version] += 1

        async with following(channel), asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(calls())
            for answer in (IPS[:2], IPS, IPS[1:], IPS[2:], IPS[:1], IPS):
                server.zone.a[NAME] = list(answer)
                for _ in range(2):
                    asked = len(server.zone.questions)
                    channel.refresh()
                    await server.zone.wait_asked(NAME, asked + 1)
                wanted = set(answer)
                await until(lambda: {one.ip for one in channel.addresses} == wanted)  # noqa: B023
            done.set()
        assert set(seen) == {1, 2, 3}


async def test_a_closed_channel_says_so() -> None:
    async with replica(1) as one:
        channel = make_channel(f"http://127.0.0.1:{one.port}")
        facade = channel.channel()
        await answered_by(channel, 1)
        await channel.close()
        with pytest.raises(UnavailableError, match="closed"):
            channel.channel()
        with pytest.raises(UnavailableError, match="closed"):
            broker_stub(facade).ServerInfo(Empty(), timeout=30)


async def test_run_ends_at_once_when_told() -> None:
    async with dns_server() as server:
        server.zone.silent = True
        channel = make_channel("http://broker.test:1", resolver=dns_resolver(server))
        stop = asyncio.Event()
        async with asyncio.timeout(4), asyncio.TaskGroup() as group:
            group.create_task(channel.run(stop))
            await server.zone.wait_asked(NAME, 1)
            stop.set()


async def test_connection_ageing_does_not_fail_calls() -> None:
    async with replica(1, max_connection_age_s=0.2) as one:
        channel = make_channel(f"http://127.0.0.1:{one.port}")
        assert await answered_by(channel, 400) == {1: 400}
        await channel.close()


async def _awaited(call: Any) -> Any:
    return await call


async def _outcome(stream: Any) -> grpc.StatusCode:
    try:
        while await stream.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK
