"""Who may connect to a gRPC server that asks for client certificates, and how that changes."""

from __future__ import annotations

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.empty_pb2 import Empty
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gatehouse.common.clock import SystemClock
from gatehouse.common.config.resolved import CertificatePair, ListenAddress
from gatehouse.common.errors import FailedPreconditionError
from gatehouse.common.rpc.channel import BalancedChannel
from gatehouse.common.rpc.server import GrpcServer
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.pb import databroker_pb2
from tests.support.client_pki import CLIENT, DAY, SERVER, Issued
from tests.support.pki import Authority
from tests.support.rpc import (
    SECRET,
    Replica,
    broker_stub,
    make_channel,
    replica,
    start_replica,
)

SERVERS = Authority()
CLIENTS = Issued.root()
OTHER = Issued.root("another authority")


def pair(issued: Issued) -> CertificatePair:
    return CertificatePair(issued.pem.encode(), issued.key_pem.encode(), "test")


def channel_of(one: Replica, client: CertificatePair | None, **options: Any) -> BalancedChannel:
    options.setdefault("ca_pem", SERVERS.ca_pem)
    return make_channel(f"https://127.0.0.1:{one.port}", client_certificate=client, **options)


async def served(channel: BalancedChannel) -> bool:
    """Whether a call gets through; anything but a refused connection fails the test."""
    try:
        answer = await broker_stub(channel.channel()).ServerInfo(Empty(), timeout=60)
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE, error  # noqa: PT017 - else it raises
        return False
    return bool(answer.server_version == 1)


def asking(**options: Any) -> Any:
    options.setdefault("client_ca_pem", CLIENTS.pem.encode())
    return replica(1, certificates=(SERVERS.issue("127.0.0.1"),), **options)


@pytest.mark.parametrize(
    ("client", "is_served"),
    [
        (CLIENTS.issue(purposes=CLIENT), True),
        (CLIENTS.issue(purposes=(*CLIENT, *SERVER)), True),
        (CLIENTS.issue(), True),  # no purpose named: good for all
        (None, False),
        (OTHER.issue(purposes=CLIENT), False),
        (CLIENTS.issue(purposes=SERVER), False),
        (CLIENTS.issue(purposes=CLIENT, begins=-3 * DAY, ends=-DAY), False),
        (CLIENTS.issue(purposes=CLIENT, begins=DAY, ends=3 * DAY), False),
    ],
    ids=["client", "both", "any", "none", "other-ca", "server-only", "expired", "not-yet"],
)
async def test_r39_only_a_good_client_certificate_connects(
    client: Issued | None, is_served: bool
) -> None:
    async with asking() as one:
        channel = channel_of(one, None if client is None else pair(client))
        assert await served(channel) is is_served
        await channel.close()


async def test_not_even_health_answers_without_one() -> None:
    async with asking() as one:
        trusted = grpc.ssl_channel_credentials(SERVERS.ca_pem)
        async with grpc.aio.secure_channel(f"127.0.0.1:{one.port}", trusted) as bare:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health_pb2_grpc.HealthStub(bare).Check(
                    health_pb2.HealthCheckRequest(), timeout=10
                )
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_is_no_credential() -> None:
    """Both are needed: the certificate to connect, the shared secret to call."""
    async with asking() as one:
        client = pair(CLIENTS.issue(purposes=CLIENT))
        channel = channel_of(one, client, secrets=(bytes(32),))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await broker_stub(channel.channel()).ServerInfo(Empty(), timeout=60)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        await channel.close()


async def test_the_unix_socket_asks_for_none(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    async with replica(1, unix_socket=path, client_ca_pem=CLIENTS.pem.encode()):
        channel = make_channel(f"unix://{path}")
        assert await served(channel)
        await channel.close()


async def test_plain_text_and_client_certificates_do_not_go_together() -> None:
    clock = SystemClock()
    server = GrpcServer(lambda: (SECRET,), HealthRegistry(clock), clock)
    with pytest.raises(FailedPreconditionError, match="grpc_insecure"):
        await server.start(
            unix_socket=None,
            address=ListenAddress("127.0.0.1", 0),
            client_ca_pem=CLIENTS.pem.encode(),
        )
    await server.stop(0)


async def test_everything_is_replaced_without_a_lost_call() -> None:
    """New authority on both sides while calls are made and a stream is open."""
    old_client, new_client = CLIENTS.issue(purposes=CLIENT), OTHER.issue(purposes=CLIENT)
    async with asking() as one:
        before = channel_of(one, pair(old_client))
        stub = broker_stub(before.channel())
        stream: Any = stub.Sync(databroker_pb2.SyncRequest(), timeout=60)
        assert (await stream.read()).record.version == 1
        under_way = asyncio.ensure_future(
            stub.Get(databroker_pb2.GetRequest(id="wait"), timeout=60)
        )
        await one.broker.entered.wait()

        both = CLIENTS.pem.encode() + OTHER.pem.encode()
        one.server.replace_certificates((SERVERS.issue("127.0.0.1"),), both)
        during = [channel_of(one, pair(client)) for client in (old_client, new_client)]
        assert [await served(channel) for channel in during] == [True, True]

        one.server.replace_certificates((SERVERS.issue("127.0.0.1"),), OTHER.pem.encode())
        after = channel_of(one, pair(old_client))
        assert not await served(after), "the old authority is trusted no longer"
        assert [await served(channel) for channel in during] == [True, True]
        assert await served(before), "what was connected goes on"
        one.broker.gate.set()
        assert (await under_way).record.version == 1
        assert one.broker.streams == 1
        stream.cancel()
        for channel in (before, *during, after):
            await channel.close()


async def test_a_star_in_the_override_name() -> None:
    pair_of_server = SERVERS.issue("*.internal.test")
    async with replica(1, certificates=(pair_of_server,)) as one:
        for name, is_served in (("*.internal.test", True), ("*.other.test", False)):
            channel = channel_of(one, None, override_name=name)
            assert await served(channel) is is_served
            await channel.close()


async def test_a_chain_through_an_intermediate_authority() -> None:
    middle = CLIENTS.authority("middle")
    leaf = middle.issue(purposes=CLIENT)
    async with asking() as one:
        whole = CertificatePair(leaf.chain(middle).encode(), leaf.key_pem.encode(), "test")
        for client, is_served in ((whole, True), (pair(leaf), False)):
            channel = channel_of(one, client)
            assert await served(channel) is is_served
            await channel.close()


async def test_an_expired_server_is_refused_by_clients() -> None:
    old = Issued.root("servers", begins=-3 * DAY)
    expired = old.issue("127.0.0.1", begins=-3 * DAY, ends=-dt.timedelta(hours=1))
    one = await start_replica(1, certificates=(pair(expired),))
    channel = channel_of(one, None, ca_pem=old.pem.encode())
    assert not await served(channel)
    await channel.close()
    await one.server.stop(0)
