"""The RPCs over a real server: messages, statuses, limits. On all three stores."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from gatehouse.pb import databroker_pb2 as pb
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User
from tests.support.storage import SECRET, Served, StorageCase, served

SESSION = "type.googleapis.com/session.Session"
DEADLINE_S = 60.0


@pytest.fixture
async def broker(case: StorageCase) -> AsyncIterator[Served]:
    async with served(case.storage) as made:
        yield made


def record(id_: str, user: str = "u", **fields: Any) -> pb.Record:
    made = pb.Record(type=SESSION, id=id_, **fields)
    made.data.Pack(Session(id=id_, user_id=user))
    return made


async def refusal(call: Any) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    metadata = dict(caught.value.trailing_metadata() or ())
    return caught.value.code(), caught.value.details() or "", metadata.get("gatehouse-reason", "")


async def test_put_get_delete(broker: Served) -> None:
    given = record("a", version=77)
    given.modified_at.FromJsonString("2001-01-01T00:00:00Z")
    reply = await broker.stub.Put(pb.PutRequest(records=[given]), timeout=DEADLINE_S)
    (put,) = reply.records
    assert reply.server_version > 0
    assert (put.version, put.type, put.id, put.data) == (1, SESSION, "a", given.data)
    assert put.modified_at.seconds > 1_600_000_000  # the server's time, not the client's
    got = await broker.stub.Get(pb.GetRequest(type=SESSION, id="a"), timeout=DEADLINE_S)
    assert got.record == put
    given.deleted_at.GetCurrentTime()
    reply = await broker.stub.Put(pb.PutRequest(records=[given]), timeout=DEADLINE_S)
    assert reply.records[0].version == 2
    assert reply.records[0].HasField("deleted_at")
    status, _, reason = await refusal(
        broker.stub.Get(pb.GetRequest(type=SESSION, id="a"), timeout=DEADLINE_S)
    )
    assert (status, reason) == (grpc.StatusCode.NOT_FOUND, "record-not-found")


async def test_the_type_may_be_left_to_the_payload(broker: Served) -> None:
    given = record("a")
    given.type = ""
    reply = await broker.stub.Put(pb.PutRequest(records=[given]), timeout=DEADLINE_S)
    assert reply.records[0].type == SESSION


async def test_patch(broker: Served) -> None:
    await broker.stub.Put(pb.PutRequest(records=[record("a")]), timeout=DEADLINE_S)
    patch = pb.PatchRequest(
        records=[record("a", "new"), record("gone", "new")],
        field_mask=FieldMask(paths=["user_id"]),
    )
    reply = await broker.stub.Patch(patch, timeout=DEADLINE_S)
    assert [item.version for item in reply.records] == [2]
    patch.field_mask.paths.append("claims.email")
    status, details, _ = await refusal(broker.stub.Patch(patch, timeout=DEADLINE_S))
    assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert "claims" in details


async def test_query(broker: Served) -> None:
    await broker.stub.Put(
        pb.PutRequest(records=[record("a"), record("b", "v"), record("c")]), timeout=DEADLINE_S
    )
    filter_ = Struct()
    filter_.update({"user_id": "u"})
    request = pb.QueryRequest(
        type=SESSION, filter=filter_, limit=1, offset=1, minimum_record_version_hint=99
    )
    reply = await broker.stub.Query(request, timeout=DEADLINE_S)
    assert [item.id for item in reply.records] == ["c"]
    assert (reply.total_count, reply.record_version) == (2, 3)
    info = await broker.stub.ServerInfo(Empty(), timeout=DEADLINE_S)
    assert reply.server_version == info.server_version
    assert (info.earliest_record_version, info.latest_record_version) == (1, 3)
    types = await broker.stub.ListTypes(Empty(), timeout=DEADLINE_S)
    assert list(types.types) == [SESSION]


@pytest.mark.parametrize(
    ("filter_", "more", "status"),
    [
        ({"a": {"$startsWith": "x"}}, {}, grpc.StatusCode.UNIMPLEMENTED),
        ({"a": {"$bogus": "x"}}, {}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"a": None}, {}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"$and": "x"}, {}, grpc.StatusCode.INVALID_ARGUMENT),
        ({}, {"limit": -1}, grpc.StatusCode.INVALID_ARGUMENT),
        ({}, {"limit": 1001}, grpc.StatusCode.INVALID_ARGUMENT),
        ({}, {"offset": -1}, grpc.StatusCode.INVALID_ARGUMENT),
        ({}, {"type": "a\x00"}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_bad_queries(
    broker: Served, filter_: dict[str, Any], more: dict[str, Any], status: grpc.StatusCode
) -> None:
    struct = Struct()
    struct.update(filter_)
    request = pb.QueryRequest(**{"type": SESSION, "filter": struct, **more})
    assert (await refusal(broker.stub.Query(request, timeout=DEADLINE_S)))[0] is status


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (pb.Record(type=SESSION), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.Record(id="a"), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.Record(type=SESSION, id="a\x00b"), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.Record(type="t\x00", id="a"), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.Record(type=SESSION, id="é" * 257), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.Record(type="t" * 257, id="a"), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_bad_records_write_nothing(
    broker: Served, bad: pb.Record, status: grpc.StatusCode
) -> None:
    request = pb.PutRequest(records=[record("good"), bad])
    assert (await refusal(broker.stub.Put(request, timeout=DEADLINE_S)))[0] is status
    assert (await refusal(broker.stub.Patch(pb.PatchRequest(records=[bad]), timeout=DEADLINE_S)))[
        0
    ] is status
    info = await broker.stub.ServerInfo(Empty(), timeout=DEADLINE_S)
    assert info.latest_record_version == 0


async def test_limits_of_a_write(broker: Served) -> None:
    many = pb.PutRequest(records=(record(f"{number}") for number in range(1001)))
    status, _, reason = await refusal(broker.stub.Put(many, timeout=DEADLINE_S))
    assert (status, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too-many-records")
    del many.records[0]
    reply = await broker.stub.Put(many, timeout=DEADLINE_S)
    assert len(reply.records) == 1000
    large = pb.Record(type="t", id="a")
    large.data.Pack(User(name="x" * (1 << 20)))
    status, _, reason = await refusal(
        broker.stub.Put(pb.PutRequest(records=[large]), timeout=DEADLINE_S)
    )
    assert (status, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "record-too-large")


async def test_options(broker: Served) -> None:
    get = pb.GetOptionsRequest(type="t")
    status, _, reason = await refusal(broker.stub.GetOptions(get, timeout=DEADLINE_S))
    assert (status, reason) == (grpc.StatusCode.NOT_FOUND, "options-not-found")
    options = pb.Options(capacity=3, indexable_fields=["name"], ttl=Duration(seconds=90))
    request = pb.SetOptionsRequest(type="t", options=options)
    assert (await broker.stub.SetOptions(request, timeout=DEADLINE_S)).options == options
    assert (await broker.stub.GetOptions(get, timeout=DEADLINE_S)).options == options
    empty = pb.SetOptionsRequest(type="t")
    assert (await refusal(broker.stub.SetOptions(empty, timeout=DEADLINE_S)))[0] is (
        grpc.StatusCode.NOT_FOUND
    )
    for bad in (
        pb.Options(ttl=Duration(seconds=-1)),
        pb.Options(capacity=1 << 63),
        pb.Options(indexable_fields=[""]),
        pb.Options(indexable_fields=["$index"]),
        pb.Options(indexable_fields=[f"f{number}" for number in range(17)]),
    ):
        request = pb.SetOptionsRequest(type="t", options=bad)
        assert (await refusal(broker.stub.SetOptions(request, timeout=DEADLINE_S)))[0] is (
            grpc.StatusCode.INVALID_ARGUMENT
        )


async def test_leases(broker: Served) -> None:
    minute = Duration(seconds=60)
    acquire = pb.AcquireLeaseRequest(name="job", duration=minute)
    lease = await broker.stub.AcquireLease(acquire, timeout=DEADLINE_S)
    assert uuid.UUID(lease.id).version == 4
    status, _, reason = await refusal(broker.stub.AcquireLease(acquire, timeout=DEADLINE_S))
    assert (status, reason) == (grpc.StatusCode.ALREADY_EXISTS, "lease-held")
    renew = pb.RenewLeaseRequest(name="job", id="somebody", duration=minute)
    assert (await refusal(broker.stub.RenewLease(renew, timeout=DEADLINE_S)))[0] is (
        grpc.StatusCode.ALREADY_EXISTS
    )
    renew.id = lease.id
    await broker.stub.RenewLease(renew, timeout=DEADLINE_S)
    release = pb.ReleaseLeaseRequest(name="job", id=lease.id)
    await broker.stub.ReleaseLease(release, timeout=DEADLINE_S)
    await broker.stub.ReleaseLease(release, timeout=DEADLINE_S)
    assert (await broker.stub.AcquireLease(acquire, timeout=DEADLINE_S)).id != lease.id
    for seconds in (0, -1, 10**9):
        bad = pb.AcquireLeaseRequest(name="x", duration=Duration(seconds=seconds))
        assert (await refusal(broker.stub.AcquireLease(bad, timeout=DEADLINE_S)))[0] is (
            grpc.StatusCode.INVALID_ARGUMENT
        )


async def test_clear_and_checkpoint(broker: Served) -> None:
    checkpoint = pb.Checkpoint(server_version=(1 << 64) - 1, record_version=7)
    await broker.checkpoints.SetCheckpoint(
        pb.SetCheckpointRequest(checkpoint=checkpoint), timeout=DEADLINE_S
    )
    held = await broker.checkpoints.GetCheckpoint(pb.GetCheckpointRequest(), timeout=DEADLINE_S)
    assert (held.checkpoint, held.is_leader) == (checkpoint, True)
    before = await broker.stub.ServerInfo(Empty(), timeout=DEADLINE_S)
    cleared = await broker.stub.Clear(Empty(), timeout=DEADLINE_S)
    after = await broker.stub.ServerInfo(Empty(), timeout=DEADLINE_S)
    assert cleared.old_server_version == before.server_version
    assert cleared.new_server_version == after.server_version
    held = await broker.checkpoints.GetCheckpoint(pb.GetCheckpointRequest(), timeout=DEADLINE_S)
    assert held.checkpoint == pb.Checkpoint()


async def test_r39_no_rpc_without_the_shared_secret_jwt(broker: Served) -> None:
    """Every method by its descriptor, so that a new one is covered without a change here."""
    from gatehouse.common.clock import SystemClock  # noqa: PLC0415
    from gatehouse.common.jose.hs256 import encode_hs256  # noqa: PLC0415

    later = int(SystemClock().now_s()) + 3000
    bad = {
        "none": None,
        "wrong key": encode_hs256({"exp": later}, bytes(32)),
        "one more claim, as in a service account's": encode_hs256(
            {"exp": later, "sub": "account"}, SECRET
        ),
    }
    async with grpc.aio.insecure_channel(f"127.0.0.1:{broker.port}") as channel:
        for service in pb.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                path = f"/{service.full_name}/{method.name}"
                for name, token in bad.items():
                    metadata = None if token is None else (("jwt", token),)
                    status, _, _ = await refusal(raw_call(channel, path, method, metadata))
                    assert status is grpc.StatusCode.UNAUTHENTICATED, (path, name)


def raw_call(channel: Any, path: str, method: Any, metadata: Any) -> Any:
    if method.server_streaming:
        return channel.unary_stream(path)(b"", metadata=metadata, timeout=DEADLINE_S).read()
    return channel.unary_unary(path)(b"", metadata=metadata, timeout=DEADLINE_S)


async def test_modified_at_has_microseconds(broker: Served) -> None:
    reply = await broker.stub.Put(pb.PutRequest(records=[record("a")]), timeout=DEADLINE_S)
    modified: Timestamp = reply.records[0].modified_at
    assert modified.nanos % 1000 == 0
