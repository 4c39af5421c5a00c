"""Follows the databroker for the change table: keys and versions, never contents.

Answers how fresh remembered decisions are (see `core/change_cursor.py` for why that holds), and
tells who watches open connections what has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import Final

from gatehouse.common.clock import Clock
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.errors import Code, GatehouseError
from gatehouse.common.ids import TypeUrl
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.runtime.supervise import wait_or_stop
from gatehouse.pb.databroker_pb2 import KEYS_ONLY, Record
from gatehouse.proxy.core.change_cursor import (
    Changed,
    Close,
    CursorState,
    Ended,
    Event,
    Follow,
    Fresh,
    NewTable,
    Raise,
    Retire,
    Told,
    Vouched,
    step,
)
from gatehouse.proxy.edge.decision_table import ChangeTable

ASK_EVERY_S: Final = 0.5
_ANSWER_WITHIN_S: Final = 1.5
_HEARTBEAT_S: Final = 0.5
_ALL_TYPES: Final = TypeUrl("")

_log = get_logger("proxy")


class ChangeWatch:
    """Keeps the table current while `run` runs."""

    def __init__(
        self,
        client: DatabrokerClient,
        table: ChangeTable,
        clock: Clock,
        changed: Callable[[Iterable[int] | None], None] = lambda _keys: None,
    ) -> None:
        """`changed` is told the keys of each change; None: of changes that nobody knows."""
        self._client = client
        self._changed = changed
        self._table = table
        self._clock = clock
        self._state = CursorState()
        self._reading: asyncio.Task[None] | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._is_troubled = False

    def configure(self, budget: int) -> None:
        """Take new settings: nothing that was remembered before counts any more. Never waits."""
        self._table.configure(budget)

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until `stop`."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                while not stop.is_set():
                    await self._ask()
                    await wait_or_stop(stop, ASK_EVERY_S)
                self._close()
        finally:
            self._table.retire()

    async def _ask(self) -> None:
        asked_at_ns = int(self._clock.monotonic_s() * 1e9)
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                told = await self._client.server_info()
        except (TimeoutError, GatehouseError) as error:
            self._trouble(error)
            return
        self._calm()
        self._take(Told(asked_at_ns, told.server_version, told.latest_record_version))

    def _take(self, event: Event) -> None:
        """Nothing awaits between an event and its effects."""
        self._state, effects = step(self._state, event)
        for effect in effects:
            match effect:
                case Raise(keys=keys, version=version):
                    for key in keys:
                        self._table.raise_slot(key, version)
                    self._changed(keys)
                case Fresh(at_ns=at_ns):
                    self._table.stamp(at_ns)
                case NewTable(server_version=server_version, floor=floor):
                    self._table.begin(server_version, floor)
                    self._changed(None)
                case Retire():
                    self._table.retire()
                case Close():
                    self._close()
                case Follow():
                    self._close()
                    assert self._tasks is not None
                    self._reading = self._tasks.create_task(self._read(effect), name="changes")

    async def _read(self, follow: Follow) -> None:
        is_aborted = False
        stream = self._client.sync(
            follow.server_version,
            follow.record_version,
            _ALL_TYPES,
            _HEARTBEAT_S,
            KEYS_ONLY,
            stamp=follow.stamp,
            batches=True,
        )
        try:
            async with aclosing(stream) as messages:
                async for message in messages:
                    match message.WhichOneof("response"):
                        case "record":
                            self._take(_changed(follow, message.record))
                        case "batch":
                            for record in message.batch.records:
                                self._take(_changed(follow, record))
                        case "heartbeat":
                            position = message.heartbeat
                            vouched = Vouched(
                                follow.stream,
                                position.server_version,
                                position.latest_record_version,
                                position.stamp,
                            )
                            self._take(vouched)
        except GatehouseError as error:
            is_aborted = error.code is Code.ABORTED
            if not is_aborted:
                self._trouble(error)
        self._take(Ended(follow.stream, is_aborted))

    def _close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _trouble(self, error: Exception) -> None:
        if not self._is_troubled:
            self._is_troubled = True
            _log.info(
                "record changes cannot be followed now", reason=str(error) or "no answer in time"
            )

    def _calm(self) -> None:
        if self._is_troubled:
            self._is_troubled = False
            _log.info("record changes are followed again")


def _changed(follow: Follow, record: Record) -> Changed:
    stamp = record.modified_at.ToMicroseconds()
    return Changed(follow.stream, record.type, record.id, record.version, stamp)
