"""When records were last used: beside the records, never in their stream. On all three stores."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from gatehouse.common.rpc.allow_list import check_request
from gatehouse.pb.access_times_pb2 import (
    AccessTime,
    GetAccessTimesRequest,
    PutAccessTimesRequest,
)
from gatehouse.pb.user_pb2 import User
from tests.support.storage import StorageCase, incoming, served


async def put(case: StorageCase, *ids: str) -> None:
    await case.put(*(incoming("t", id_, User(id=id_)) for id_ in ids))


def used(**times: int) -> dict[tuple[str, str], int]:
    return {("t", id_): time_us for id_, time_us in sorted(times.items())}


async def test_the_later_time_stays(case: StorageCase) -> None:
    await put(case, "a", "b")
    await case.storage.put_access_times(used(a=5, b=7))
    await case.storage.put_access_times(used(a=9, b=6))
    assert await case.storage.access_times("t", ["a", "b", "c"]) == {"a": 9, "b": 7}
    assert await case.storage.access_times("other", ["a"]) == {}


async def test_they_make_no_version(case: StorageCase) -> None:
    await put(case, "a")
    before = await case.storage.position()
    held = await case.storage.get("t", "a")
    await case.storage.put_access_times(used(a=5))
    assert await case.storage.position() == before
    assert await case.storage.get("t", "a") == held


async def test_those_of_absent_records_are_passed_over(case: StorageCase) -> None:
    await put(case, "a")
    await case.storage.put_access_times(used(a=5, gone=5))
    await put(case, "gone")
    assert await case.storage.access_times("t", ["a", "gone"]) == {"a": 5}


async def test_they_go_with_their_record(case: StorageCase) -> None:
    await put(case, "a", "b")
    await case.storage.put_access_times(used(a=5, b=6))
    await case.put(incoming("t", "a"))
    assert await case.storage.access_times("t", ["a", "b"]) == {"b": 6}
    await put(case, "a", "b")
    assert await case.storage.access_times("t", ["a", "b"]) == {"b": 6}
    await case.storage.clear()
    await put(case, "b")
    assert await case.storage.access_times("t", ["a", "b"]) == {}


async def test_a_whole_batch_beside_writers_and_other_batches(case: StorageCase) -> None:
    ids = [f"{number:05}" for number in range(1_000)]
    await put(case, *ids)
    batches = [
        case.storage.put_access_times({("t", id_): time_us for id_ in ids}) for time_us in (3, 1, 2)
    ]
    await asyncio.gather(*batches, case.put(*(incoming("t", id_) for id_ in reversed(ids[:500]))))
    known = await case.storage.access_times("t", ids)
    assert known == dict.fromkeys(ids[500:], 3)


async def test_over_rpc(case: StorageCase) -> None:
    await put(case, "a", "b")
    async with served(case.storage) as broker:
        moment = Timestamp(seconds=1_700_000_000, nanos=5_000)
        await broker.access_times.PutAccessTimes(
            PutAccessTimesRequest(
                access_time=[AccessTime(type="t", id=id_, accessed_at=moment) for id_ in "ba"]
            )
        )
        answer = await broker.access_times.GetAccessTimes(
            GetAccessTimesRequest(type="t", id=["b", "x", "a"])
        )
        assert [item.id for item in answer.access_time] == ["b", "a"]
        assert answer.access_time[0] == AccessTime(type="t", id="b", accessed_at=moment)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await broker.access_times.PutAccessTimes(
                PutAccessTimesRequest(access_time=[AccessTime(type="t", id="a")])
            )
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        empty = await broker.access_times.PutAccessTimes(PutAccessTimesRequest())
        assert not empty.ByteSize()


async def test_ten_thousand_fit_in_a_message() -> None:
    item = AccessTime(
        type="type.googleapis.com/session.Session",
        id="0" * 36,
        accessed_at=Timestamp(seconds=1_700_000_000, nanos=999_999_000),
    )
    request = PutAccessTimesRequest(access_time=[item] * 10_000)
    assert request.ByteSize() < 4 << 20
    check_request("authorize", PutAccessTimesRequest(access_time=[item]))
