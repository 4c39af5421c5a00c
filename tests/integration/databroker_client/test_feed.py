"""The feed over real gRPC: against the real databroker, and against one that misbehaves."""

from __future__ import annotations

import asyncio
import time

import pytest
from structlog.testing import capture_logs

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.replica import Held, Replaced, Replica
from gatehouse.common.databroker.sync_core import Phase
from gatehouse.common.databroker.syncer import INITIAL_SYNC_CHECK
from gatehouse.common.errors import AbortedError, InternalError, UnavailableError
from gatehouse.common.observability.metrics import REGISTRY
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.pb.databroker_pb2 import PutRequest
from tests.support.databroker_client import (
    HANG,
    ScriptedBroker,
    change,
    channel_to,
    client_of,
    databroker,
    feeding,
    grpc_server,
    heartbeat,
    latest,
    replica_of_type,
    until,
    versions,
)
from tests.support.model_broker import OTHER, TYPE, UNREADABLE, record, text_of


def counted(what: str) -> float:
    """How often it was done with records of the test type."""
    name = f"pomerium_databroker_syncer_{what}_total"
    return REGISTRY.get_sample_value(name, {"type": TYPE}) or 0.0


def shown(replica: Replica, record_id: str = "a") -> object:
    held = replica.get(TYPE, record_id)
    return None if held is None else held.value


# Against the real databroker.


async def test_a_replica_follows_writes_and_deletions(tmp_path):
    replica = replica_of_type()
    async with databroker(tmp_path / "s"), client_of(tmp_path / "s") as client:
        await client.put([record("a", 0, "before")])
        async with feeding(client, replica) as feed:
            await asyncio.wait_for(feed.wait_synced(), 60)
            assert shown(replica) == "before"
            await client.put([record("a", 0, "changed"), record("b", 0, "new")])
            await until(lambda: (shown(replica), shown(replica, "b")) == ("changed", "new"))
            await client.delete(TYPE, "a")
            await until(lambda: shown(replica) is None)


async def test_heartbeats_vouch_for_what_this_type_does_not_see(tmp_path):
    replica = replica_of_type()
    async with (
        databroker(tmp_path / "s"),
        client_of(tmp_path / "s") as client,
        feeding(client, replica, heartbeat_s=0.1) as feed,
    ):
        await asyncio.wait_for(feed.wait_synced(), 60)
        written = await client.put([record("a", 0, "x", type_url=OTHER)])
        version = written.records[0].version
        await until(lambda: replica.state(TYPE).record_version == version)
        state = replica.state(TYPE)
        assert state.server_version == written.server_version
        await until(lambda: (replica.state(TYPE).last_heard_s or 0) > (state.last_heard_s or 0))


async def test_a_restarted_store_is_copied_anew_while_the_old_copy_serves(tmp_path):
    replica = replica_of_type()

    async def refill(servicer):
        records = [record("canary", 0, "there"), *(record(f"n{n}", 0) for n in range(300))]
        await servicer.Put(PutRequest(records=records), None)

    async with client_of(tmp_path / "s") as client, feeding(client, replica) as feed:
        async with databroker(tmp_path / "s", refill):
            await asyncio.wait_for(feed.wait_synced(), 60)
            await client.put([record("gone", 0, "only in the first history")])
            await until(lambda: shown(replica, "gone"))
            first = replica.state(TYPE).server_version
        misses: list[object] = []
        changes: list[object] = []
        replica.subscribe(changes.append)
        async with asyncio.TaskGroup() as group:

            async def look():
                while True:
                    if shown(replica, "canary") is None or replica.count(TYPE) < 301:
                        misses.append(replica.state(TYPE))
                    await asyncio.sleep(0)

            looking = group.create_task(look())
            async with databroker(tmp_path / "s", refill):
                await until(lambda: replica.state(TYPE).server_version not in {0, first})
                looking.cancel()
        assert misses == []
        assert [type(one) for one in changes] == [Replaced]
        assert shown(replica, "gone") is None
        assert replica.count(TYPE) == 301


async def test_a_databroker_that_comes_late_is_waited_for(tmp_path):
    replica = replica_of_type()
    health = HealthRegistry(SystemClock())
    async with client_of(tmp_path / "s") as client, feeding(client, replica, health=health) as feed:
        await until(lambda: health.snapshot().records.get(INITIAL_SYNC_CHECK))
        record_of_check = health.snapshot().records[INITIAL_SYNC_CHECK]
        assert "SyncLatest failed (unavailable)" in record_of_check.error
        assert not health.ready()
        async with databroker(tmp_path / "s"):
            await asyncio.wait_for(feed.wait_synced(), 20)
            assert health.ready()
        await until(lambda: feed.states()[TYPE].phase is Phase.WAITING)
        assert health.ready()  # an old copy is still a copy


class SlowRng(SystemRng):
    """Draws every back-off out to the longest there is."""

    def uniform(self, low: float, high: float) -> float:
        return 1000.0


async def test_a_databroker_that_was_away_is_followed_as_soon_as_it_is_back(tmp_path):
    """What is revoked just after an outage must not wait for the end of a back-off."""
    replica = replica_of_type()

    async def filled(servicer):
        await servicer.Put(PutRequest(records=[record("a", 0, "there")]), None)

    async with client_of(tmp_path / "s") as client, feeding(client, replica, rng=SlowRng()) as feed:
        await until(lambda: feed.states()[TYPE].phase is Phase.WAITING)
        async with databroker(tmp_path / "s", filled):
            await until(lambda: shown(replica) == "there", 20)
            copies, changes = counted("clear_records"), counted("update_records")
            await client.put([record("a", 0, "changed")])
            await until(lambda: shown(replica) == "changed")
            assert (counted("clear_records"), counted("update_records")) == (copies, changes + 1)
            assert copies >= 1


async def test_stopping_is_prompt(tmp_path):
    replica = replica_of_type()
    async with databroker(tmp_path / "s"), client_of(tmp_path / "s") as client:
        async with feeding(client, replica) as feed:
            await asyncio.wait_for(feed.wait_synced(), 60)
            started_s = time.monotonic()
        assert time.monotonic() - started_s < 5.0


# Against one that misbehaves.


@pytest.fixture
async def scripted(tmp_path):
    broker = ScriptedBroker()
    async with grpc_server(broker, tmp_path / "s"), client_of(tmp_path / "s") as client:
        yield broker, client


COPY = [latest(record("a", 3, "copied")), versions(7, 5)]


async def test_copies_that_break_are_discarded_and_tried_again(scripted):
    broker, client = scripted
    broker.latest = [
        [latest(record("ghost", 2))],  # an end without versions
        [latest(record("ghost", 2)), InternalError("broken")],
        [latest(record("ghost", 2)), versions(0, 5)],  # an unknown history
        COPY,
    ]
    broker.changes = [[HANG]]
    replica = replica_of_type()
    with capture_logs() as logs:
        async with feeding(client, replica) as feed:
            await asyncio.wait_for(feed.wait_synced(), 60)
            await until(lambda: broker.hanging)
    assert replica.get(TYPE, "a") == Held(3, "copied")
    assert replica.get(TYPE, "ghost") is None
    assert [kind for kind, *_ in broker.opened] == ["latest"] * 4 + ["changes"]
    assert [line["problem"] for line in logs if line.get("service") == "databroker-client"] == [
        "SyncLatest ended without versions",
        "SyncLatest failed",
        "the databroker gave server version 0, which stands for unknown",
    ]


async def test_a_broken_stream_is_resumed_from_the_last_version(scripted):
    broker, client = scripted
    broker.latest = [COPY]
    broker.changes = [
        [change(record("a", 6, "new")), UnavailableError("stopping")],
        [change(record("a", 6, "again, and not to be taken")), change(record("b", 8, "more"))],
        [heartbeat(7, 20), InternalError("broken")],
        [HANG],
    ]
    replica = replica_of_type()
    async with feeding(client, replica):
        await until(lambda: broker.hanging)
    assert broker.opened[1:] == [
        ("changes", 7, 5),
        ("changes", 7, 6),
        ("changes", 7, 8),
        ("changes", 7, 20),
    ]
    assert replica.get(TYPE, "a") == Held(6, "new")
    assert replica.get(TYPE, "b") == Held(8, "more")


async def test_aborted_means_a_new_copy_at_once(scripted):
    broker, client = scripted
    broker.latest = [COPY, [latest(record("a", 1, "other history")), versions(8, 1)]]
    broker.changes = [[heartbeat(7, 5), AbortedError("invalid server version")], [HANG]]
    replica = replica_of_type()
    async with feeding(client, replica):
        await until(lambda: broker.hanging)
    assert [kind for kind, *_ in broker.opened] == ["latest", "changes", "latest", "changes"]
    assert broker.opened[-1] == ("changes", 8, 1)
    assert shown(replica) == "other history"


async def test_options_and_unknown_messages_are_passed_over(scripted):
    broker, client = scripted
    options = versions(7, 5)
    options.options.typeURL = TYPE
    changed = heartbeat(7, 5)
    changed.options.typeURL = TYPE
    broker.latest = [[options, *COPY]]
    broker.changes = [[changed, type(changed)(), change(record("a", 6, "new")), HANG]]
    replica = replica_of_type()
    async with feeding(client, replica):
        await until(lambda: shown(replica) == "new")


async def test_silence_after_heartbeats_is_noticed(scripted):
    broker, client = scripted
    broker.latest = [COPY]
    broker.changes = [[heartbeat(7, 5), HANG], [change(record("a", 6, "new")), HANG]]
    replica = replica_of_type()
    async with feeding(client, replica, silence_s=0.1):
        await until(lambda: shown(replica) == "new")
    assert broker.opened[2] == ("changes", 7, 5)


async def test_a_broker_without_heartbeats_may_be_silent(scripted):
    broker, client = scripted
    broker.latest = [COPY]
    broker.changes = [[HANG]]
    replica = replica_of_type()
    async with feeding(client, replica, silence_s=0.05):
        await until(lambda: broker.hanging)
        started_s = time.monotonic()
        await until(lambda: time.monotonic() - started_s > 0.2)
        assert len(broker.opened) == 2


async def test_a_copy_that_hangs_is_given_up(scripted):
    broker, client = scripted
    broker.latest = [[latest(record("a", 3)), HANG], COPY]
    broker.changes = [[HANG]]
    replica = replica_of_type()
    async with feeding(client, replica, silence_s=0.1) as feed:
        await asyncio.wait_for(feed.wait_synced(), 60)
        await until(lambda: broker.hanging == 1)  # the given-up stream is closed at the server


async def test_unreadable_records_are_logged_once_in_a_while_and_never_shown(scripted):
    broker, client = scripted
    broker.latest = [[latest(record(f"n{n}", n + 1, UNREADABLE)) for n in range(50)] + COPY]
    broker.changes = [[HANG]]
    replica = replica_of_type()
    with capture_logs() as logs:
        async with feeding(client, replica) as feed:
            await asyncio.wait_for(feed.wait_synced(), 60)
    kept_out = [line for line in logs if "kept out" in line["event"]]
    assert len(kept_out) == 1
    assert kept_out[0]["reason"] == "ValueError"
    assert "must not show" not in str(logs)
    assert replica.state(TYPE).unreadable == 50


class _OneTypeBroken(ScriptedBroker):
    async def SyncLatest(self, request, context):  # noqa: N802
        if request.type == OTHER:
            raise InternalError("broken for this type")
        async for message in super().SyncLatest(request, context):
            yield message


async def test_one_type_in_trouble_does_not_hold_up_another(tmp_path):
    broker = _OneTypeBroken(latest=[COPY], changes=[[change(record("a", 6, "new")), HANG]])
    replica = Replica({TYPE: text_of, OTHER: text_of})
    async with (
        grpc_server(broker, tmp_path / "s"),
        client_of(tmp_path / "s") as client,
        feeding(client, replica) as feed,
    ):
        await until(lambda: shown(replica) == "new" and feed.states()[OTHER].failures >= 3)
        assert not replica.ready


async def test_misplaced_records_do_not_flood_the_log(scripted):
    broker, client = scripted
    broker.latest = [[latest(record(f"n{n}", 1, type_url=OTHER)) for n in range(50)] + COPY]
    broker.changes = [[HANG]]
    replica = replica_of_type()
    with capture_logs() as logs:
        async with feeding(client, replica) as feed:
            await asyncio.wait_for(feed.wait_synced(), 60)
    assert len([line for line in logs if "another type" in line.get("problem", "")]) == 1
    assert replica.count(TYPE) == 1


async def test_a_channel_closed_under_the_feed_does_not_end_it_silently(tmp_path):
    broker = ScriptedBroker(latest=[COPY], changes=[[HANG]])
    replica = replica_of_type()
    async with (
        grpc_server(broker, tmp_path / "s"),
        channel_to(tmp_path / "s") as channel,
        feeding(DatabrokerClient(channel), replica) as feed,
    ):
        await until(lambda: broker.hanging)
        await channel.close()
        await until(lambda: feed.states()[TYPE].failures >= 2)  # it keeps trying
    assert shown(replica) == "copied"


async def test_a_subscriber_that_raises_ends_the_feed_loudly(scripted):
    broker, client = scripted
    broker.latest, broker.changes = [COPY], [[HANG]]
    replica = replica_of_type()

    def broken(_change):
        raise ZeroDivisionError

    replica.subscribe(broken)
    with pytest.raises(ExceptionGroup) as caught:
        async with feeding(client, replica):
            await asyncio.sleep(10)
    assert caught.group_contains(ZeroDivisionError)
