"""kill -9 of whole databrokers in the middle of writes, seen from their clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.records import record_of
from gatehouse.common.databroker.replica import Replica
from gatehouse.common.errors import DeadlineExceededError, UnavailableError
from gatehouse.common.extauthz_context import DATABROKER_SERVICE
from gatehouse.common.ids import USER
from gatehouse.pb.user_pb2 import User
from tests.support.databroker_client import feeding, until
from tests.support.databroker_process import DatabrokerProcess
from tests.support.postgres import fresh_database
from tests.support.rpc import SECRET, following, make_channel

PATIENCE_S = 30.0
WRITERS = 4


class Ledger:
    """Writers that never give up, and what was acknowledged to them."""

    def __init__(self, client: DatabrokerClient) -> None:
        self.client = client
        self.acknowledged: dict[str, int] = {}
        self.failures = 0

    async def write(self, writer: int) -> None:
        number = 0
        while True:
            id_ = f"{writer}-{number}"
            try:
                answer = await self.client.put([record_of(User(id=id_, name="x" * 2_000), id_)])
            except (UnavailableError, DeadlineExceededError):
                self.failures += 1
                await asyncio.sleep(0.02)
                continue
            self.acknowledged[id_] = answer.records[0].version
            number += 1

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.write(writer)) for writer in range(WRITERS)]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    async def grown_by(self, count: int) -> None:
        before = len(self.acknowledged)
        await until(lambda: len(self.acknowledged) >= before + count, PATIENCE_S)

    async def check(self, copy: Replica) -> None:
        """Every acknowledged write is there, and the copy has come to hold all of it."""
        assert self.acknowledged
        for id_, version in self.acknowledged.items():
            held = await self.client.get(USER, id_)
            assert held is not None, id_
            assert held.version == version
        await until(
            lambda: all(
                (shown := copy.get(USER, id_)) is not None and shown.version == version
                for id_, version in self.acknowledged.items()
            ),
            PATIENCE_S,
        )


@asynccontextmanager
async def clients_of(*brokers: DatabrokerProcess) -> AsyncIterator[tuple[Ledger, Replica]]:
    channel = make_channel(
        *(broker.url for broker in brokers), subject="operator", health_service=DATABROKER_SERVICE
    )
    copy = Replica({USER: lambda record: record.id})
    async with following(channel):
        client = DatabrokerClient(channel)
        async with feeding(client, copy, heartbeat_s=0.2, silence_s=3.0):
            ledger = Ledger(client)
            async with ledger.writing():
                await ledger.grown_by(20)  # they are up
                await until(lambda: copy.ready, PATIENCE_S)
                yield ledger, copy
            await ledger.check(copy)


async def test_a_killed_databroker_comes_back_with_its_file(tmp_path: Path) -> None:
    broker = DatabrokerProcess("file", f"file://{tmp_path / 'store'}", tmp_path, SECRET)
    with broker.running():
        async with clients_of(broker) as (ledger, copy):
            for _ in range(2):
                await ledger.grown_by(40)
                failures = ledger.failures
                await asyncio.to_thread(broker.kill)
                await until(lambda: ledger.failures > failures)  # noqa: B023
                broker.start()
                await ledger.grown_by(20)
            assert copy.ready


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[DatabrokerProcess, DatabrokerProcess]]:
    with ExitStack() as stack:
        dsn = stack.enter_context(fresh_database())
        brokers = [DatabrokerProcess("postgres", dsn, tmp_path, SECRET) for _ in range(2)]
        for broker in brokers:
            stack.enter_context(broker.running())
        yield brokers[0], brokers[1]


@pytest.mark.postgres
async def test_the_other_databroker_goes_on_and_nobody_has_to_be_told(
    two: tuple[DatabrokerProcess, DatabrokerProcess],
) -> None:
    """Each is killed once, so that whichever the copy hangs on goes away."""
    async with clients_of(*two) as (ledger, copy):
        for broker in two:
            await asyncio.to_thread(broker.kill)
            await ledger.grown_by(40)
            before = len(ledger.acknowledged)
            await until(lambda: copy.count(USER) >= before, PATIENCE_S)  # noqa: B023
            broker.start()
            await ledger.grown_by(20)
