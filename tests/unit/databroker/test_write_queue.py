"""Many writers, one committer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gatehouse.common.errors import (
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from gatehouse.databroker.core.records import Incoming, Put, StoredRecord, Write, keys_of
from gatehouse.databroker.edge.backends.write_queue import (
    MAX_BATCH_BYTES,
    MAX_BATCH_RECORDS,
    MAX_PENDING,
    Committed,
    WriteQueue,
)
from gatehouse.databroker.edge.tasks import background


class Committer:
    """Answers with one record per write; holds each commit until told to go on."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = asyncio.Semaphore(0)
        self.entered = asyncio.Event()
        self.failure: UnavailableError | None = None

    async def __call__(self, writes: Sequence[Write]) -> Committed:
        ids = [item.id for write in writes if isinstance(write, Put) for item in write.records]
        self.batches.append(ids)
        self.entered.set()
        await self.go.acquire()
        if self.failure is not None:
            raise self.failure
        return Committed(
            9,
            tuple(
                InvalidArgumentError("bad")
                if keys_of([write]) == {("t", "bad")}
                else tuple(StoredRecord(1, *key, b"", 0) for key in sorted(keys_of([write])))
                for write in writes
            ),
        )


def write(id_: str, size: int = 1) -> Put:
    return Put((Incoming("t", id_, bytes(size)),))


async def test_writes_that_wait_share_the_next_commit() -> None:
    commit = Committer()
    queue = WriteQueue(commit)
    queue.accept()
    async with background(queue.run()), asyncio.TaskGroup() as group:
        first = group.create_task(queue.submit(write("1")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert commit.batches == [["1"]]
        others = [asyncio.ensure_future(queue.submit(write(id_))) for id_ in ("2", "bad", "3")]
        await asyncio.sleep(0)
        commit.go.release()
        assert (await first).records[0].id == "1"
        commit.go.release()
        results = await asyncio.gather(*others, return_exceptions=True)
        assert commit.batches == [["1"], ["2", "bad", "3"]]
        assert isinstance(results[1], InvalidArgumentError)
        assert not isinstance(results[2], BaseException)
        assert (results[2].server_version, results[2].records[0].id) == (9, "3")


async def test_a_failed_commit_fails_its_writes_and_no_others() -> None:
    commit = Committer()
    queue = WriteQueue(commit)
    queue.accept()
    async with background(queue.run()):
        commit.failure = UnavailableError("no store")
        commit.go.release()
        with pytest.raises(UnavailableError):
            await queue.submit(write("1"))
        commit.failure = None
        commit.go.release()
        assert (await queue.submit(write("2"))).records[0].id == "2"


async def test_a_caller_that_left_before_the_commit_is_skipped() -> None:
    commit = Committer()
    queue = WriteQueue(commit)
    queue.accept()
    async with background(queue.run()), asyncio.TaskGroup() as group:
        group.create_task(queue.submit(write("1")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        left = group.create_task(queue.submit(write("2")))
        stayed = group.create_task(queue.submit(write("3")))
        await asyncio.sleep(0)
        left.cancel()
        commit.go.release()
        commit.go.release()
        await stayed
    assert commit.batches == [["1"], ["3"]]


@pytest.mark.parametrize(("records", "size"), [(MAX_BATCH_RECORDS, 0), (4, MAX_BATCH_BYTES // 4)])
async def test_batches_are_bounded(records: int, size: int) -> None:
    commit = Committer()
    queue = WriteQueue(commit)
    queue.accept()
    full = Put(tuple(Incoming("t", f"{number}", bytes(size)) for number in range(records)))
    commit.go.release()
    commit.go.release()
    async with background(queue.run()):
        await asyncio.gather(queue.submit(write("first")), queue.submit(full))
    assert commit.batches[0] == ["first"]
    assert len(commit.batches[1]) == records


async def test_the_queue_is_bounded() -> None:
    queue = WriteQueue(Committer())
    queue.accept()
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(queue.submit(write("x"))) for _ in range(MAX_PENDING)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhaustedError):
            await queue.submit(write("one too many"))
        for task in waiting:
            task.cancel()


async def test_closing_fails_what_is_left_and_what_comes() -> None:
    commit = Committer()
    queue = WriteQueue(commit)
    with pytest.raises(UnavailableError):
        await queue.submit(write("too early"))
    queue.accept()
    async with asyncio.TaskGroup() as group:
        runner = group.create_task(queue.run())
        writes = [asyncio.ensure_future(queue.submit(write(id_))) for id_ in "123"]
        await commit.entered.wait()
        runner.cancel()
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(result).__mro__[1] for result in results] == [UnavailableError] * 3
    with pytest.raises(UnavailableError):
        await queue.submit(write("too late"))
