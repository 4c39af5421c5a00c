"""The change table beside a real databroker: current while it answers, and only then."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from gatehouse.common.clock import SystemClock
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.ids import SESSION, USER
from gatehouse.common.record_keys import record_key, type_key
from gatehouse.pb.databroker_pb2 import Record
from gatehouse.pb.session_pb2 import Session
from gatehouse.proxy.core.decision_table import HEADER_WORDS, WORDS, slot_of
from gatehouse.proxy.edge.change_watch import ChangeWatch
from gatehouse.proxy.edge.decision_table import ChangeTable
from tests.support.databroker_client import client_of, databroker
from tests.support.envoy import eventually
from tests.support.tcp_fault_proxy import Fault, TcpFaultProxy

SLOTS = 1 << 10


class Reader:
    """The table as Envoy sees it: by its path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def word(self, name: str) -> int:
        return self._words()[WORDS[name]]

    def slot(self, key: int) -> int:
        return self._words()[HEADER_WORDS + slot_of(key, SLOTS)]

    def _words(self) -> memoryview:
        try:
            return memoryview(self.path.read_bytes()).cast("Q")
        except FileNotFoundError:
            return memoryview(bytes(HEADER_WORDS * 8)).cast("Q")

    @property
    def age_s(self) -> float:
        if not self.word("fresh_at") or self.word("retired"):
            return float("inf")
        return (time.monotonic_ns() - self.word("fresh_at")) / 1e9

    async def current(self) -> None:
        """Until it has become current once more from now on."""
        now_ns = time.monotonic_ns()

        async def is_newer() -> bool:
            return not self.word("retired") and self.word("fresh_at") >= now_ns

        await eventually(is_newer)


def session(record_id: str) -> Record:
    record = Record(type=SESSION, id=record_id)
    record.data.Pack(Session(id=record_id))
    return record


@contextlib.asynccontextmanager
async def watching(
    client: DatabrokerClient, path: Path, changed: Any = lambda _keys: None
) -> AsyncIterator[ChangeWatch]:
    stop = asyncio.Event()
    watch = ChangeWatch(client, ChangeTable(path, slots=SLOTS), SystemClock(), changed)
    watch.configure(1000)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(watch.run(stop))
        try:
            yield watch
        finally:
            stop.set()
            await running


async def test_changes_are_in_the_table_before_it_is_called_current(tmp_path: Path):
    async with databroker(tmp_path / "b.sock"), client_of(tmp_path / "b.sock") as client:
        first = await client.put([session("old")])
        reader = Reader(tmp_path / "table")
        async with watching(client, reader.path):
            await reader.current()
            floor = first.records[0].version
            # Nobody knows what changed before: every slot says that it may have been that.
            assert reader.slot(record_key(SESSION, "never")) == floor
            put = await client.put([session("a"), session("b")])
            await reader.current()
            for record in put.records:
                assert reader.slot(record_key(SESSION, record.id)) == record.version
            assert reader.slot(type_key(SESSION)) == put.records[-1].version
            assert reader.slot(type_key(USER)) == floor
            gone = await client.delete(SESSION, "a")
            await reader.current()
            assert reader.slot(record_key(SESSION, "a")) == gone.records[0].version
            assert reader.word("server_version") == gone.server_version
            assert reader.word("budget") == 1000
        assert reader.word("retired") == 1


async def test_a_databroker_that_is_gone_is_noticed_and_a_new_one_begins_anew(tmp_path: Path):
    path, reader = tmp_path / "b.sock", Reader(tmp_path / "table")
    async with client_of(path) as client:
        async with databroker(path):
            watch = watching(client, reader.path)
            await watch.__aenter__()
            await reader.current()
            history = reader.word("server_version")

        async def stale() -> bool:
            return reader.age_s > 2.0

        await eventually(stale)
        async with databroker(path):  # over an empty store
            await reader.current()
            assert reader.word("server_version") != history
            put = await client.put([session("a")])
            await reader.current()
            assert reader.slot(record_key(SESSION, "a")) == put.records[0].version
            await watch.__aexit__(None, None, None)


async def test_a_cleared_store_is_another_history(tmp_path: Path):
    reader = Reader(tmp_path / "table")
    async with (
        databroker(tmp_path / "b.sock") as servicer,
        client_of(tmp_path / "b.sock") as client,
    ):
        await client.put([session("a")])
        async with watching(client, reader.path):
            await reader.current()
            old, new = await servicer._storage.clear()

            async def moved() -> bool:
                return bool(reader.word("server_version") == new)

            await eventually(moved)
            assert old != new
            await reader.current()


async def test_new_settings_are_in_the_table_at_once(tmp_path: Path):
    reader = Reader(tmp_path / "table")
    async with (
        databroker(tmp_path / "b.sock"),
        client_of(tmp_path / "b.sock") as client,
        watching(client, reader.path) as watch,
    ):
        await reader.current()
        configuration = reader.word("configuration")
        watch.configure(6)
        assert reader.word("configuration") > configuration
        assert reader.word("budget") == 6


async def test_who_watches_open_connections_hears_of_changes(tmp_path: Path):
    heard: list[set[int] | None] = []
    async with databroker(tmp_path / "b.sock"), client_of(tmp_path / "b.sock") as client:
        reader = Reader(tmp_path / "table")
        async with watching(
            client, reader.path, changed=lambda keys: heard.append(keys and set(keys))
        ):
            await reader.current()
            assert heard == [None]
            await client.put([session("a")])
            await reader.current()
            assert heard[1:] == [{record_key(SESSION, "a"), type_key(SESSION)}]


async def test_a_partition_makes_it_stale_and_its_end_brings_what_was_missed(tmp_path: Path):
    """Nothing is reset: packets just stop. What changed meanwhile is in before it is current."""
    path, reader = tmp_path / "b.sock", Reader(tmp_path / "table")
    async with databroker(path), client_of(path) as beside:
        between = TcpFaultProxy(str(path))
        async with between.running():
            url = f"http://127.0.0.1:{between.port}"
            async with client_of(url) as client, watching(client, reader.path):
                await reader.current()
                between.set(Fault.BLACK_HOLE)

                async def stale() -> bool:
                    return reader.age_s > 2.0

                await eventually(stale)
                put = await beside.put([session("a")])
                assert reader.slot(record_key(SESSION, "a")) < put.records[0].version
                between.set(Fault.NONE)
                between.cut()
                await reader.current()
                assert reader.slot(record_key(SESSION, "a")) == put.records[0].version
