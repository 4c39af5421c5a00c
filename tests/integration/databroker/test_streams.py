"""Sync and SyncLatest over a real server. On all three stores."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty

from gatehouse.databroker.core.options import TypeRules
from gatehouse.pb import databroker_pb2 as pb
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User
from tests.support.storage import StorageCase, incoming, served

SESSION = "type.googleapis.com/session.Session"
PATIENCE_S = 10.0


async def put(case: StorageCase, *ids: str) -> None:
    await case.put(*(incoming("t", id_, User(id=id_)) for id_ in ids))


async def server_version(case: StorageCase) -> int:
    return (await case.storage.position()).server_version


async def collect(call: Any) -> list[Any]:
    async with asyncio.timeout(PATIENCE_S):
        return [item async for item in call]


async def take(call: Any, count: int) -> list[Any]:
    async with asyncio.timeout(PATIENCE_S):
        return [await call.read() for _ in range(count)]


async def ended_with(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(call)
    metadata = dict(caught.value.trailing_metadata() or ())
    return caught.value.code(), metadata.get("gatehouse-reason", "")


def kinds(items: list[Any]) -> list[str]:
    return [item.WhichOneof("response") for item in items]


async def test_sync_latest_sends_records_then_options_then_one_position(case: StorageCase) -> None:
    await case.storage.set_options("t", TypeRules(capacity=1000))
    ids = [f"{number:04}" for number in range(600)]
    await put(case, *ids)
    await case.put(incoming("t", "0000"), incoming("other", "x", User()))
    async with served(case.storage) as broker:
        items = await collect(broker.stub.SyncLatest(pb.SyncLatestRequest(type="t")))
        assert kinds(items) == ["record"] * 599 + ["options", "versions"]
        assert [item.record.id for item in items[:599]] == ids[1:]
        assert items[-2].options.typeURL == "t"
        assert items[-2].options.options.capacity == 1000
        position = await case.storage.position()
        assert items[-1].versions == pb.Versions(
            server_version=position.server_version, latest_record_version=602
        )
        everything = await collect(broker.stub.SyncLatest(pb.SyncLatestRequest()))
        assert kinds(everything).count("record") == 600
        assert kinds(everything).count("versions") == 1
        assert kinds(everything)[-1] == "versions"
        nothing = await collect(broker.stub.SyncLatest(pb.SyncLatestRequest(type="none")))
        assert kinds(nothing) == ["versions"]


async def test_sync_without_waiting_sends_what_there_is(case: StorageCase) -> None:
    await put(case, *(f"{number}" for number in range(200)))
    await case.put(incoming("other", "x", User()), incoming("t", "5"))
    version = await server_version(case)
    async with served(case.storage) as broker:
        request = pb.SyncRequest(server_version=version, record_version=150, type="t", wait=False)
        items = await collect(broker.stub.Sync(request))
        assert [item.record.version for item in items] == [*range(151, 201), 202]
        assert items[-1].record.HasField("deleted_at")
        request.record_version = 202
        assert await collect(broker.stub.Sync(request)) == []
        await case.storage.set_options("t", TypeRules(capacity=1000))
        assert kinds(await collect(broker.stub.Sync(request))) == ["options"]


async def test_sync_follows_changes_of_its_type_in_order(case: StorageCase) -> None:
    await put(case, "a", "b")
    version = await server_version(case)
    async with served(case.storage) as broker:
        typed = broker.stub.Sync(pb.SyncRequest(server_version=version, type="t"))
        all_ = broker.stub.Sync(pb.SyncRequest(server_version=version, record_version=2))
        assert [item.record.version for item in await take(typed, 2)] == [1, 2]
        await case.put(incoming("other", "x", User()), incoming("t", "a"))
        await put(case, "c")
        assert [item.record.version for item in await take(typed, 2)] == [4, 5]
        seen = [item for item in await take(all_, 9) if item.HasField("record")]
        assert [item.record.version for item in seen][:3] == [3, 4, 5]
        typed.cancel()
        all_.cancel()


@pytest.mark.parametrize("from_the_ring", [True, False])
async def test_a_stream_moves_from_backlog_to_changes_without_a_gap(
    case: StorageCase, from_the_ring: bool
) -> None:
    version = await server_version(case)
    if not from_the_ring:
        await put(case, *(f"{number}" for number in range(150)))
    async with served(case.storage) as broker:
        if from_the_ring:
            await put(case, *(f"{number}" for number in range(150)))
        call = broker.stub.Sync(pb.SyncRequest(server_version=version, type="t"))

        async def write() -> None:
            for number in range(150, 400):
                await put(case, f"{number}")

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            items = await take(call, 400)
        assert [item.record.version for item in items] == list(range(1, 401))
        call.cancel()


async def test_sync_refuses_what_it_cannot_continue(case: StorageCase) -> None:
    await put(case, "a", "b", "c")
    await case.age(3600)
    await put(case, "d")
    assert await case.storage.prune(60_000_000) == 3
    version = await server_version(case)
    async with served(case.storage) as broker:
        for request, reason in (
            (pb.SyncRequest(server_version=version + 1), "invalid-server-version"),
            (pb.SyncRequest(), "invalid-server-version"),
            (pb.SyncRequest(server_version=version, record_version=2), "record-version-too-old"),
            (pb.SyncRequest(server_version=version, record_version=5), "record-version-unknown"),
        ):
            request.type = "t"
            assert await ended_with(broker.stub.Sync(request)) == (
                grpc.StatusCode.ABORTED,
                reason,
            )
        request = pb.SyncRequest(server_version=version, record_version=3, type="t", wait=False)
        assert [item.record.version for item in await collect(broker.stub.Sync(request))] == [4]


async def test_clear_aborts_open_streams(case: StorageCase) -> None:
    await put(case, "a")
    version = await server_version(case)
    async with served(case.storage) as broker:
        request = pb.SyncRequest(server_version=version, record_version=1, type="t")
        call = broker.stub.Sync(request)
        ending = asyncio.ensure_future(ended_with(call))
        await call.wait_for_connection()
        await broker.stub.Clear(Empty(), timeout=PATIENCE_S)
        assert await ending == (grpc.StatusCode.ABORTED, "invalid-server-version")


async def test_heartbeats_say_how_far_the_stream_is(case: StorageCase) -> None:
    await put(case, "a")
    version = await server_version(case)
    async with served(case.storage) as broker:
        interval = Duration(nanos=200_000_000)
        request = pb.SyncRequest(server_version=version, type="t", heartbeat_interval=interval)
        call = broker.stub.Sync(request)
        first, second, third = await take(call, 3)
        assert first.record.version == 1
        assert second.heartbeat == third.heartbeat
        assert second.heartbeat == pb.Versions(server_version=version, latest_record_version=1)
        # A change of another type moves the heartbeat, not the stream.
        await case.put(incoming("other", "x", User()))
        async with asyncio.timeout(PATIENCE_S):
            while (item := await call.read()).heartbeat.latest_record_version != 2:
                assert item.WhichOneof("response") == "heartbeat"
        call.cancel()


async def test_no_heartbeat_unless_asked_for(case: StorageCase) -> None:
    version = await server_version(case)
    async with served(case.storage) as broker:
        plain = broker.stub.Sync(pb.SyncRequest(server_version=version, type="t"))
        await plain.wait_for_connection()
        interval = Duration(nanos=100_000_000)
        asking = broker.stub.Sync(
            pb.SyncRequest(server_version=version, type="t", heartbeat_interval=interval)
        )
        assert kinds(await take(asking, 3)) == ["heartbeat"] * 3
        await put(case, "a")
        assert kinds(await take(plain, 1)) == ["record"]
        plain.cancel()
        asking.cancel()


async def test_a_hundred_streams_share_one_reader(case: StorageCase) -> None:
    version = await server_version(case)
    async with served(case.storage) as broker:
        calls = [
            broker.stub.Sync(pb.SyncRequest(server_version=version, type="t")) for _ in range(90)
        ]
        await put(case, "a", "b", "c")
        for call in calls:
            assert [item.record.version for item in await take(call, 3)] == [1, 2, 3]
            call.cancel()


async def test_a_slow_subscriber_is_cut_and_others_are_not(case: StorageCase) -> None:
    version = await server_version(case)
    async with served(case.storage, ring_changes=64) as broker:
        slow = broker.stub.Sync(pb.SyncRequest(server_version=version, type="big"))
        await case.put(incoming("big", "first", User(id="x")))
        assert [item.record.version for item in await take(slow, 1)] == [1]
        # Far more than the windows of the connection hold, and nobody reads.
        payload = "x" * 100_000
        for number in range(300):
            await case.put(incoming("big", f"{number}", User(name=payload)))
        fast = broker.stub.Sync(
            pb.SyncRequest(server_version=version, record_version=300, type="big")
        )
        assert [item.record.version for item in await take(fast, 1)] == [301]
        fast.cancel()
        assert await ended_with(slow) == (grpc.StatusCode.ABORTED, "slow-subscriber")


async def test_streams_end_at_once_when_the_hub_closes(case: StorageCase) -> None:
    version = await server_version(case)
    async with served(case.storage) as broker:
        call = broker.stub.Sync(pb.SyncRequest(server_version=version, type="t"))
        ending = asyncio.ensure_future(ended_with(call))
        await call.wait_for_connection()
        broker.hub.close()
        async with asyncio.timeout(2):
            assert await ending == (grpc.StatusCode.UNAVAILABLE, "draining")


async def test_payloads_travel_byte_for_byte(case: StorageCase) -> None:
    async with served(case.storage) as broker:
        given = pb.Record(type="odd", id="a")
        given.data.type_url = "type.googleapis.com/no.such.Type"
        given.data.value = b"\x00\xff\xfe"
        reply = await broker.stub.Put(pb.PutRequest(records=[given]), timeout=PATIENCE_S)
        request = pb.SyncRequest(server_version=reply.server_version, type="odd", wait=False)
        (item,) = await collect(broker.stub.Sync(request))
        assert item.record.data == given.data
        latest = await collect(broker.stub.SyncLatest(pb.SyncLatestRequest(type="odd")))
        assert latest[0].record.data == given.data


async def test_sessions_sync_with_their_built_in_options(case: StorageCase) -> None:
    await case.put(incoming(SESSION, "s", Session(id="s")))
    version = await server_version(case)
    async with served(case.storage) as broker:
        request = pb.SyncRequest(server_version=version, type=SESSION, wait=False)
        items = await collect(broker.stub.Sync(request))
        assert kinds(items) == ["options", "record"]
        assert list(items[0].options.options.indexable_fields) == ["user_id", "expires_at"]
