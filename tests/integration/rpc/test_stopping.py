"""A server that stops drops calls it has received and not begun: they are asked again elsewhere."""

from __future__ import annotations

import asyncio

from google.protobuf.empty_pb2 import Empty

from tests.integration.rpc.test_channel import IPS, replicas, until_answered_by
from tests.support.rpc import broker_stub, make_channel, start_replica

ROUNDS = 4


async def test_a_stopping_server_costs_no_idempotent_call() -> None:
    async with replicas(2) as running:
        port = running[0].port
        channel = make_channel(*(f"http://{ip}:{port}" for ip in IPS[:2]))
        stub = broker_stub(channel.channel())
        await until_answered_by(channel, {1, 2})
        done = asyncio.Event()

        async def ask() -> None:
            while not done.is_set():
                await stub.ServerInfo(Empty(), timeout=60)

        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(ask())
            for _ in range(ROUNDS):
                await running[1].server.stop(5)
                running[1] = await start_replica(2, ip=IPS[1], port=port)
                await until_answered_by(channel, {1, 2})
            done.set()
        await channel.close()
