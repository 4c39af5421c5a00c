"""What stands around a databroker under measure, each in a process of its own.

`python -m tests.bench.broker_peers replica PORT` keeps authorize's copy and says when it is ready,
what it weighs and what it sees. `... subscribers PORT COUNT` follows with that many streams; told
how many changes there were, it waits until every stream has had them all and says how far behind
they were. `... copies PORT COUNT` takes so many copies at once and throws them away. All write JSON
lines, and end with their standard input.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty

from gatehouse.authorize.core.records import RecordReader
from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.replica import Changed, Replica
from gatehouse.common.databroker.syncer import ReplicaFeed
from gatehouse.common.extauthz_context import DATABROKER_SERVICE
from gatehouse.common.ids import SESSION
from gatehouse.common.rpc.channel import BalancedChannel
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.pb.databroker_pb2 import (
    WITHOUT_TOKENS,
    CopyPlace,
    SyncLatestRequest,
    SyncLatestResponse,
    SyncRequest,
    SyncResponse,
)
from gatehouse.pb.databroker_pb2_grpc import DataBrokerServiceStub
from tests.bench.figures import percentile
from tests.support.check import SECRET

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MARK = "mark-"  # ids that hold the moment they were written at, CLOCK_MONOTONIC nanoseconds


def credentials(subject: str) -> ServiceCredentials:
    return ServiceCredentials(subject, lambda: (SECRET,), SystemClock())


def channel_to(port: int, subject: str) -> BalancedChannel:
    return BalancedChannel(
        [f"http://127.0.0.1:{port}"],
        audience="databroker",
        health_service=DATABROKER_SERVICE,
        credentials=credentials(subject),
        ca_pem=None,
        clock=SystemClock(),
        rng=SystemRng(),
    )


def resident_bytes(pid: int | str = "self") -> int:
    """What a process has in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * PAGE_BYTES


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


async def replica(port: int) -> None:
    """Ready from cold, then every marked change, until standard input ends."""
    reader = RecordReader()
    copy = Replica(reader.decoders)
    ready = asyncio.Event()

    def seen(change: object) -> None:
        if copy.ready:
            ready.set()
        if isinstance(change, Changed) and change.id.startswith(MARK):
            late_ns = time.monotonic_ns() - int(change.id.removeprefix(MARK))
            say(late_ms=late_ns / 1e6)

    copy.subscribe(seen)
    gc.collect()
    before = resident_bytes()
    begun_s = time.monotonic()
    channel = channel_to(port, "authorize")
    feed = ReplicaFeed(
        DatabrokerClient(channel), copy, SystemClock(), SystemRng(), projection=WITHOUT_TOKENS
    )
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(channel.run(stop))
        group.create_task(feed.run(stop))
        await ready.wait()
        ready_s = time.monotonic() - begun_s
        gc.collect()
        count = copy.count(SESSION)
        say(ready_s=ready_s, sessions=count, bytes=resident_bytes() - before)
        await asyncio.to_thread(sys.stdin.read)
        stop.set()
    await channel.close()


async def subscribers(port: int, count: int) -> None:
    """So many streams over ten connections, as of ten processes; lateness of every message."""
    late_ms: list[float] = []
    records = [0] * count
    metadata = credentials("authorize").metadata("databroker")
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) for _ in range(10)]
    info = await DataBrokerServiceStub(channels[0]).ServerInfo(
        Empty(), metadata=metadata, timeout=10
    )
    request = SyncRequest(
        server_version=info.server_version,
        record_version=info.latest_record_version,
        type=SESSION,
        projection=WITHOUT_TOKENS,
        batches=True,
        heartbeat_interval=Duration(seconds=10),
    )
    opened = 0
    heard = asyncio.Event()

    async def follow(number: int) -> None:
        nonlocal opened
        stub = DataBrokerServiceStub(channels[number % len(channels)])
        call: Any = stub.Sync(request, metadata=metadata)
        await call.initial_metadata()
        opened += 1
        if opened == count:
            say(open=count)
        message: SyncResponse
        async for message in call:
            found = message.batch.records or ([message.record] if message.record.id else [])
            if found:
                records[number] += len(found)
                oldest_ns = int(found[0].id.removeprefix(MARK))
                late_ms.append((time.monotonic_ns() - oldest_ns) / 1e6)
                heard.set()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(follow(number)) for number in range(count)]
        wanted = int(await asyncio.to_thread(sys.stdin.readline) or 0)
        async with asyncio.timeout(60):
            while min(records) < wanted:
                heard.clear()
                await heard.wait()
        for task in tasks:
            task.cancel()
    for channel in channels:
        await channel.close()
    assert set(records) == {wanted}, f"of {wanted} changes, streams had {sorted(set(records))}"
    say(
        records=sum(records),
        messages=len(late_ms),
        p50_ms=percentile(late_ms, 50),
        p99_ms=percentile(late_ms, 99),
        max_ms=max(late_ms, default=0.0),
    )


async def copies(port: int, count: int) -> None:
    """So many cold replicas at the same moment, as far as the databroker can tell."""
    metadata = credentials("authorize").metadata("databroker")
    request = SyncLatestRequest(
        type=SESSION, projection=WITHOUT_TOKENS, after=CopyPlace(), zstd=True
    )
    size = 0

    async def copy() -> None:
        nonlocal size
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            call: Any = DataBrokerServiceStub(channel).SyncLatest(request, metadata=metadata)
            message: SyncLatestResponse
            async for message in call:
                size += len(message.batch.zstd)
            assert message.HasField("versions")

    begun_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(copy())
    say(seconds=time.monotonic() - begun_s, bytes=size)


if __name__ == "__main__":
    if sys.argv[1] == "replica":
        asyncio.run(replica(int(sys.argv[2])))
    elif sys.argv[1] == "copies":
        asyncio.run(copies(int(sys.argv[2]), int(sys.argv[3])))
    else:
        asyncio.run(subscribers(int(sys.argv[2]), int(sys.argv[3])))
