"""A process that calls databrokers with different stores says so."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from gatehouse.common.clock import SystemClock
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.one_store import CHECK, watch_one_store
from gatehouse.common.runtime.health import HealthRegistry
from tests.support.rpc import make_channel, replica, until


async def test_databrokers_with_different_stores_make_not_ready_until_one_is_left() -> None:
    clock, stop = SystemClock(), asyncio.Event()
    health = HealthRegistry(clock)
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(replica(1))
        other = await stack.enter_async_context(replica(2))
        channel = make_channel(*(f"http://127.0.0.1:{each.port}" for each in (one, other)))
        stack.push_async_callback(channel.close)
        client = DatabrokerClient(channel, clock=clock)
        async with asyncio.TaskGroup() as group:
            group.create_task(
                watch_one_store(client, health, clock, stop, every_s=0.02, telling_s=0.3)
            )
            await until(lambda: not health.snapshot().ready)
            assert "different stores" in health.snapshot().records[CHECK].error
            other.serving(False)
            await until(lambda: health.snapshot().ready)
            stop.set()


async def test_databrokers_of_one_store_are_no_news() -> None:
    clock, stop = SystemClock(), asyncio.Event()
    health = HealthRegistry(clock)
    async with replica(7) as one, replica(7) as other:
        channel = make_channel(*(f"http://127.0.0.1:{each.port}" for each in (one, other)))
        client = DatabrokerClient(channel, clock=clock)
        async with asyncio.TaskGroup() as group:
            group.create_task(
                watch_one_store(client, health, clock, stop, every_s=0.01, telling_s=0.1)
            )
            await until(lambda: one.broker.calls > 50 and other.broker.calls > 50)
            assert CHECK not in health.snapshot().records
            stop.set()
        await channel.close()
