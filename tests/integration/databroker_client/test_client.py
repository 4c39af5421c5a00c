"""The client against the real databroker, over a real channel and server."""

from __future__ import annotations

import asyncio
import time

import pytest

from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.records import record_of, unpack
from gatehouse.common.errors import (
    AbortedError,
    AlreadyExistsError,
    DeadlineExceededError,
    InternalError,
    UnavailableError,
)
from gatehouse.common.ids import SESSION, USER
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User
from tests.support.databroker_client import (
    HANG,
    ScriptedBroker,
    channel_to,
    client_of,
    databroker,
    grpc_server,
    versions,
)


@pytest.fixture
async def client(tmp_path):
    async with databroker(tmp_path / "s"), client_of(tmp_path / "s") as made:
        yield made


@pytest.fixture
async def scripted(tmp_path):
    broker = ScriptedBroker()
    async with grpc_server(broker, tmp_path / "s"), client_of(tmp_path / "s") as made:
        yield broker, made


async def test_records_are_put_read_and_deleted(client):
    session = Session(id="s", user_id="u")
    written = await client.put([record_of(session, "s"), record_of(User(id="u"), "u")])
    assert written.server_version > 0
    assert [made.version for made in written.records] == [1, 2]
    found = await client.get(SESSION, "s")
    assert found is not None
    assert unpack(found, Session) == session
    await client.delete(SESSION, "s")
    await client.delete(SESSION, "never-there")
    assert await client.get(SESSION, "s") is None
    assert await client.get(USER, "u") is not None


async def test_a_patch_changes_only_the_named_fields(client):
    await client.put([record_of(Session(id="s", user_id="u", idp_id="i"), "s")])
    await client.patch([record_of(Session(user_id="v", idp_id="j"), "s")], ["user_id"])
    found = await client.get(SESSION, "s")
    assert found is not None
    assert unpack(found, Session) == Session(id="s", user_id="v", idp_id="i")
    absent = await client.patch([record_of(Session(user_id="v"), "x")], ["user_id"])
    assert list(absent.records) == []


async def test_queries_filter_and_page(client):
    await client.put([record_of(User(id=f"u{n}", email=f"{n}@x"), f"u{n}") for n in range(5)])
    found = await client.query(USER, {"id": "u3"}, 10)
    assert [made.id for made in found.records] == ["u3"]
    page = await client.query(USER, None, 2, 1)
    assert [made.id for made in page.records] == ["u1", "u2"]
    assert page.total_count == 5
    either = await client.query(USER, {"$or": [{"id": "u0"}, {"id": "u4"}]}, 10)
    assert [made.id for made in either.records] == ["u0", "u4"]
    assert [made.id for made in (await client.query(USER, limit=9, query="4@X")).records] == ["u4"]


async def test_a_lease_has_one_holder(client):
    held = await client.acquire_lease("work", 30)
    assert held is not None
    assert await client.acquire_lease("work", 30) is None
    await client.renew_lease("work", held, 30)
    with pytest.raises(AlreadyExistsError):
        await client.renew_lease("work", "somebody-else", 30)
    await client.release_lease("work", "somebody-else")
    assert await client.acquire_lease("work", 30) is None
    await client.release_lease("work", held)
    assert await client.acquire_lease("work", 30) not in {None, held}


async def test_access_times_are_kept_beside_the_records(client):
    await client.put([record_of(User(id="u"), "u")])
    await client.put_access_times({(USER, "u"): 1_700_000_000.25, (USER, "absent"): 5.0})
    assert await client.access_times(USER, ["u", "absent"]) == {"u": 1_700_000_000.25}
    assert (await client.server_info()).latest_record_version == 1


async def test_server_info_tells_the_span_of_the_log(client):
    await client.put([record_of(User(id="u"), "u")])
    info = await client.server_info()
    assert info.server_version > 0
    assert info.latest_record_version == 1


async def test_versions_of_another_history_are_aborted(client):
    info = await client.server_info()
    with pytest.raises(AbortedError):
        await anext(client.sync(info.server_version ^ 1, 0, USER))


async def test_streams_deliver_and_end_when_closed(client):
    await client.put([record_of(User(id="u"), "u")])
    seen = [message.WhichOneof("response") async for message in client.sync_latest(USER)]
    assert seen == ["record", "versions"]
    info = await client.server_info()
    stream = client.sync(info.server_version, 0, USER, 10.0)
    first, second = await anext(stream), await anext(stream)
    assert first.record.id == "u"
    assert second.heartbeat.latest_record_version == 1
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


# When things go wrong.


async def test_nothing_listening_is_unavailable_at_once(tmp_path):
    async with client_of(tmp_path / "nobody", timeout_s=60.0) as client:
        started_s = time.monotonic()
        with pytest.raises(UnavailableError):
            await client.get(USER, "u")
        assert time.monotonic() - started_s < 30.0


async def test_a_databroker_that_never_answers_costs_no_more_than_the_deadline(tmp_path):
    path = tmp_path / "s"
    async with grpc_server(ScriptedBroker(), path), client_of(path, timeout_s=0.2) as client:
        started_s = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            await client.server_info()
        assert time.monotonic() - started_s < 15.0


async def test_reading_is_tried_once_more_when_a_databroker_goes_away(scripted):
    broker, client = scripted
    broker.gets = [UnavailableError("stopping"), None]
    assert (await client.get(USER, "u")).id == "u"
    assert broker.calls == 2


async def test_reading_is_not_tried_for_ever(scripted):
    broker, client = scripted
    broker.gets = [UnavailableError("stopping")] * 5
    with pytest.raises(UnavailableError):
        await client.get(USER, "u")
    assert broker.calls == 2


async def test_writing_is_not_repeated(scripted):
    """It may have been done before the answer was lost."""
    broker, client = scripted
    broker.gets = [UnavailableError("stopping"), None]
    with pytest.raises(UnavailableError):
        await client.put([record_of(User(id="u"), "u")])
    assert broker.calls == 1


async def test_other_errors_are_not_repeated_and_keep_their_reason(scripted):
    broker, client = scripted
    broker.gets = [InternalError("x", reason="store-broken"), None]
    with pytest.raises(InternalError) as caught:
        await client.get(USER, "u")
    assert caught.value.reason == "store-broken"
    assert broker.calls == 1


async def test_a_closed_channel_is_an_error_of_the_stream_not_a_cancelled_task(tmp_path):
    broker = ScriptedBroker(latest=[[versions(7, 1), HANG]])
    async with grpc_server(broker, tmp_path / "s"), channel_to(tmp_path / "s") as channel:
        client = DatabrokerClient(channel)
        stream = client.sync_latest(USER)
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        await channel.close()
        with pytest.raises(UnavailableError):
            await waiting


async def test_a_cancelled_task_stays_cancelled(scripted):
    broker, client = scripted
    broker.latest = [[versions(7, 1), HANG]]
    stream = client.sync_latest(USER)
    await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
