"""Sync and SyncLatest over a real server. On all three stores."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty

from gatehouse.common.clock import SystemClock
from gatehouse.common.databroker.compressed import unpack
from gatehouse.databroker.core.options import TypeRules
from gatehouse.pb import databroker_pb2 as pb
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User
from tests.support.clock import FakeClock
from tests.support.storage import StorageCase, incoming, served, storage_case

SESSION = "type.googleapis.com/session.Session"
PATIENCE_S = 60.0


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
            server_version=position.server_version, latest_record_version=602, stamp=position.stamp
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
        options = await take(all_, len(await case.storage.all_options()))
        assert set(kinds(options)) == {"options"}
        assert [item.record.version for item in await take(all_, 3)] == [3, 4, 5]
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
    assert await case.storage.prune(60_000_000, 1 << 40) == 3
    version = await server_version(case)
    async with served(case.storage) as broker:
        request = pb.SyncRequest(server_version=version, record_version=3, type="t", wait=False)
        assert [item.record.version for item in await collect(broker.stub.Sync(request))] == [4]
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
        assert second.heartbeat == pb.Versions(
            server_version=version,
            latest_record_version=1,
            stamp=first.record.modified_at.ToMicroseconds(),
        )
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
        async with asyncio.timeout(PATIENCE_S):
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
        fields = ["user_id", "expires_at", "idp_session_id", "id_token.subject"]
        assert list(items[0].options.options.indexable_fields) == fields


def session() -> Session:
    made = Session(id="s", user_id="u")
    made.oauth_token.access_token = "at-secret"
    made.oauth_token.refresh_token = "rt-secret"
    made.id_token.raw = "id-secret"
    return made


async def test_streams_without_tokens(case: StorageCase) -> None:
    await case.put(incoming(SESSION, "s", session()))
    version = await server_version(case)
    async with served(case.storage) as broker:
        latest = await collect(
            broker.stub.SyncLatest(pb.SyncLatestRequest(type=SESSION, projection=pb.WITHOUT_TOKENS))
        )
        request = pb.SyncRequest(
            server_version=version, type=SESSION, projection=pb.WITHOUT_TOKENS, wait=False
        )
        drained = await collect(broker.stub.Sync(request))
        request.ClearField("wait")
        call = broker.stub.Sync(request)
        followed = await take(call, 2)  # options, then what came before
        changed = session()
        changed.user_id = "v"
        await case.put(incoming(SESSION, "s", changed))
        followed += await take(call, 1)
        call.cancel()
    shown = latest + drained + followed
    assert [item.record.version for item in shown if item.HasField("record")] == [1, 1, 1, 2]
    for item in shown:
        assert b"secret" not in item.SerializeToString()
        if item.HasField("record"):
            held = Session.FromString(item.record.data.value)
            assert held.id == "s"
            assert held.oauth_token.has_refresh_token


async def test_streams_of_keys_only(case: StorageCase) -> None:
    await case.put(incoming(SESSION, "s", session()), incoming("t", "a", User(id="a")))
    version = await server_version(case)
    async with served(case.storage) as broker:
        latest = await collect(
            broker.stub.SyncLatest(pb.SyncLatestRequest(projection=pb.KEYS_ONLY))
        )
        records = [item.record for item in latest if item.HasField("record")]
        made = {change.version: change.modified_at_us for change in await case.changes()}
        assert all(
            record.modified_at.ToMicroseconds() == made[record.version] for record in records
        )
        for record in records:
            record.ClearField("modified_at")
        assert records == [
            pb.Record(version=2, type="t", id="a"),
            pb.Record(version=1, type=SESSION, id="s"),
        ]
        call = broker.stub.Sync(
            pb.SyncRequest(
                server_version=version,
                record_version=2,
                projection=pb.KEYS_ONLY,
                heartbeat_interval=Duration(seconds=3600),
            )
        )
        options = await take(call, len([item for item in latest if item.HasField("options")]))
        assert set(kinds(options)) == {"options"}
        (first,) = await take(call, 1)
        stamp = (await case.storage.position()).stamp
        assert first.heartbeat == pb.Versions(
            server_version=version, latest_record_version=2, stamp=stamp
        )
        await case.put(incoming("t", "a"))
        (gone,) = await take(call, 1)
        assert (gone.record.version, gone.record.type, gone.record.id) == (3, "t", "a")
        assert gone.record.HasField("deleted_at")
        assert not gone.record.HasField("data")
        call.cancel()


async def test_an_unknown_projection_is_refused(case: StorageCase) -> None:
    version = await server_version(case)
    async with served(case.storage) as broker:
        for call in (
            broker.stub.SyncLatest(pb.SyncLatestRequest(projection=cast("Any", 9))),
            broker.stub.Sync(pb.SyncRequest(server_version=version, projection=cast("Any", 9))),
        ):
            code, _ = await ended_with(call)
            assert code == grpc.StatusCode.INVALID_ARGUMENT


def ids(items: list[Any]) -> list[str]:
    return [record.id for item in items for record in item.batch.records]


async def test_a_copy_in_batches_is_gone_on_with(case: StorageCase) -> None:
    names = [f"{number:04}" for number in range(1_200)]
    await put(case, *names[:1_000])
    await put(case, *names[1_000:])
    async with served(case.storage) as broker:
        whole = await collect(
            broker.stub.SyncLatest(pb.SyncLatestRequest(type="t", after=pb.CopyPlace()))
        )
        assert kinds(whole) == ["batch"] * 3 + ["versions"]
        assert ids(whole) == names
        first = whole[0].batch
        assert first.position == whole[-1].versions
        # Meanwhile one that was copied changes, and one that was not.
        await case.put(incoming("t", names[0]), incoming("t", names[-1]))
        place = pb.CopyPlace(position=first.position, type="t", id=first.records[-1].id)
        rest = await collect(broker.stub.SyncLatest(pb.SyncLatestRequest(type="t", after=place)))
        assert ids(rest) == names[len(first.records) : -1]
        # What happened since the first batch comes with Sync.
        assert rest[-1].versions == first.position
        changes = await collect(
            broker.stub.Sync(
                pb.SyncRequest(
                    server_version=first.position.server_version,
                    record_version=first.position.latest_record_version,
                    stamp=first.position.stamp,
                    type="t",
                    wait=False,
                )
            )
        )
        assert [item.record.id for item in changes] == [names[0], names[-1]]


async def test_a_copy_may_be_compressed(case: StorageCase) -> None:
    await put(case, *(f"{number:04}" for number in range(1_000)))
    async with served(case.storage) as broker:
        plain, packed = [
            await collect(
                broker.stub.SyncLatest(
                    pb.SyncLatestRequest(type="t", after=pb.CopyPlace(), zstd=zstd)
                )
            )
            for zstd in (False, True)
        ]
        assert kinds(packed) == ["batch", "batch", "versions"]
        assert all(item.batch.zstd for item in packed[:-1])
        for item in packed[:-1]:
            unpack(item.batch)
        assert packed == plain
        # Whoever does not take batches does not take compressed ones either.
        single = await collect(broker.stub.SyncLatest(pb.SyncLatestRequest(type="t", zstd=True)))
        assert kinds(single) == ["record"] * 1_000 + ["versions"]


@pytest.mark.parametrize(
    ("other", "version", "stamp", "reason"),
    [
        (1, 0, 0, "invalid-server-version"),
        (0, 9, 0, "record-version-unknown"),
        (0, 2, 77, "record-version-replaced"),
    ],
)
async def test_a_copy_that_is_too_old_is_not_gone_on_with(
    case: StorageCase, other: int, version: int, stamp: int, reason: str
) -> None:
    await put(case, "a", "b")
    position = pb.Versions(
        server_version=await server_version(case) + other,
        latest_record_version=version,
        stamp=stamp,
    )
    async with served(case.storage) as broker:
        place = pb.CopyPlace(position=position, type="t", id="a")
        call = broker.stub.SyncLatest(pb.SyncLatestRequest(type="t", after=place))
        assert await ended_with(call) == (grpc.StatusCode.ABORTED, reason)


async def test_changes_at_hand_come_together(case: StorageCase) -> None:
    version = await server_version(case)
    await put(case, *(f"{number}" for number in range(100)))
    async with served(case.storage) as broker:
        call = broker.stub.Sync(pb.SyncRequest(server_version=version, type="t", batches=True))
        items = await take(call, 2)
        assert kinds(items) == ["batch", "batch"]
        versions = [record.version for item in items for record in item.batch.records]
        assert versions == list(range(1, 101))
        await put(case, "one more")
        (item,) = await take(call, 1)
        assert item.record.version == 101
        call.cancel()


@pytest.mark.parametrize("later", [(), ("c",)], ids=["the newest", "an older one"])
async def test_a_reader_of_another_log_is_sent_away(
    case: StorageCase, later: tuple[str, ...]
) -> None:
    """Version 2 is there, and is not the one that it has seen."""
    await put(case, "a", "b")
    position = await case.storage.position()
    await put(case, *later)
    async with served(case.storage) as broker:
        request = pb.SyncRequest(
            server_version=position.server_version,
            record_version=2,
            stamp=position.stamp + 1,
            type="t",
            wait=False,
        )
        code, reason = await ended_with(broker.stub.Sync(request))
        assert (code, reason) == (grpc.StatusCode.ABORTED, "record-version-replaced")


async def test_a_reader_that_names_no_stamp_is_believed(case: StorageCase) -> None:
    await put(case, "a", "b", "c")
    async with served(case.storage) as broker:
        request = pb.SyncRequest(
            server_version=await server_version(case), record_version=2, type="t", wait=False
        )
        assert kinds(await collect(broker.stub.Sync(request))) == ["record"]


async def test_a_stream_outlives_the_token_that_opened_it(tmp_path: Path) -> None:
    """Tokens are good for an hour and streams for longer; nothing new begins with an old one."""
    clock = FakeClock(SystemClock().now_s())
    async with (
        storage_case("memory", tmp_path) as case,
        served(case.storage, server_clock=clock) as broker,
    ):
        await put(case, "a")
        version = await server_version(case)
        request = pb.SyncRequest(server_version=version, record_version=0, type="t")
        call = broker.stub.Sync(request)
        assert [item.record.id for item in await take(call, 1)] == ["a"]
        clock.advance(2 * 3600)
        await put(case, "b")
        assert [item.record.id for item in await take(call, 1)] == ["b"]
        status, reason = await ended_with(broker.stub.Sync(request))
        assert (status, reason) == (grpc.StatusCode.UNAUTHENTICATED, "expired")
