"""How a process comes to the routes that the databroker holds.

Follows the configuration records; what changed is taken up by the next reload, the same way as a
changed file. Until the first complete copy the file's routes serve alone; without a databroker the
last known records stay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gatehouse.common.config.issues import Issue, Severity
from gatehouse.common.config.resolved import ResolvedSettings, ServiceName
from gatehouse.common.config.route_records import RECORD_TYPES, SOURCE, ConfigRecord
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.connection import DatabrokerConnection
from gatehouse.common.databroker.replica import Replica
from gatehouse.common.databroker.syncer import ReplicaFeed
from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.ids import TypeUrl
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.observability.metrics import CONFIG_DB_ERRORS, CONFIG_DB_VERSION
from gatehouse.common.runtime.context import ProcessContext
from gatehouse.pb.databroker_pb2 import Record

CHECK: Final = "config.databroker"  # on /status; readiness does not rest on it
MAX_RECORDS: Final = 10_000
MAX_BYTES: Final = 64 * 1024 * 1024  # of all records together
SETTLE_S: Final = 0.1  # records that are written together make one reload
MAX_SETTLE_S: Final = 2.0
_TYPES: Final = tuple(map(TypeUrl, RECORD_TYPES))
_MAX_LINES: Final = 100  # of the log, for one change
_MAX_SHOWN: Final = 10  # on /status

_FOLLOWERS: Final = (ServiceName.PROXY, ServiceName.AUTHORIZE, ServiceName.AUTHENTICATE)

_log = get_logger("gatehouse")


@dataclass(slots=True)
class StoredRecords:
    """The records that the next load of the configuration takes. A load may run in a thread."""

    records: tuple[ConfigRecord, ...] = ()


def follows_records(settings: ResolvedSettings) -> bool:
    """Whether a process with these settings has a use for stored routes, and a databroker."""
    return settings.has_databroker and any(map(settings.runs, _FOLLOWERS))


class RecordFollower:
    """Keeps `stored` up to date while it runs, and tells what became of the routes."""

    def __init__(
        self,
        context: ProcessContext,
        stored: StoredRecords,
        changed: Callable[[], None],
        *,
        max_records: int = MAX_RECORDS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """`changed` asks for a reload; it is called on the event loop."""
        self._context = context
        self._stored = stored
        self._tell = changed
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._replica = Replica(dict.fromkeys(_TYPES, _config_record))
        self._moved = asyncio.Event()
        self._replica.subscribe(lambda _: self._moved.set())
        self._reported: frozenset[Issue] = frozenset()
        self._refused = False
        subject = next(name for name in _FOLLOWERS if context.config.current.runs(name))
        self._connection = DatabrokerConnection(context, str(subject))
        context.config.join("stored routes", self._connection.prepare)

    async def run(self, stop: asyncio.Event) -> None:
        """Follow until `stop`; a databroker that cannot be reached is tried again and again."""
        context = self._context
        client = DatabrokerClient(self._connection, clock=context.clock)
        feed = ReplicaFeed(client, self._replica, context.clock, context.rng)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._connection.run(stop), name="stored routes channel")
            tasks.create_task(feed.run(stop), name="stored routes feed")
            taking = tasks.create_task(self._take_changes(), name="stored routes")
            await stop.wait()
            taking.cancel()

    def applied(self, settings: ResolvedSettings) -> None:
        """Say what is wrong with stored routes, each thing once for as long as it lasts."""
        issues = dict.fromkeys(settings.left_out)
        new = [issue for issue in issues if issue not in self._reported]
        for issue in new[:_MAX_LINES]:
            level = _log.error if issue.severity is Severity.ERROR else _log.warning
            level("stored route", issue=str(issue))
        if len(new) > _MAX_LINES:
            _log.error("stored routes: more was found", count=len(new) - _MAX_LINES)
        self._reported = frozenset(issues)
        self._show()

    async def _take_changes(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._moved.wait()
            latest_s = loop.time() + MAX_SETTLE_S
            while self._moved.is_set() and loop.time() < latest_s:
                self._moved.clear()
                await asyncio.sleep(SETTLE_S)
            self._moved.clear()
            if self._replica.ready:
                self._take()

    def _take(self) -> None:
        found = tuple(
            held.value
            for type_url in _TYPES
            for _, held in sorted(self._replica.live(type_url).items())
            if isinstance(held.value, ConfigRecord)
        )
        size = sum(len(record.data) for record in found)
        refused = len(found) > self._max_records or size > self._max_bytes
        if refused and not self._refused:
            _log.error(
                "stored routes not applied: there are too many, the last known stay in force",
                records=len(found),
                bytes=size,
                max_records=self._max_records,
                max_bytes=self._max_bytes,
            )
        self._refused = refused
        self._show()
        if not refused and found != self._stored.records:
            self._stored.records = found
            self._tell()

    def _show(self) -> None:
        """On /status, and as metrics."""
        positions = self._replica.positions().values()
        version = max((position.record_version for position in positions), default=0)
        errors = [issue for issue in self._reported if issue.severity is Severity.ERROR]
        CONFIG_DB_VERSION.labels(SOURCE).set(version)
        CONFIG_DB_ERRORS.labels(SOURCE).set(-1 if self._refused else len(errors))
        # Attributes, never an error: who writes a bad route must not make the process unhealthy.
        self._context.health.set_running(
            CHECK,
            records=str(len(self._stored.records)),
            refused="too many records" if self._refused else "",
            left_out=str(len(errors)),
            reasons="; ".join(sorted(map(str, errors))[:_MAX_SHOWN]),
        )


def _config_record(record: Record) -> ConfigRecord:
    if record.data.type_url != record.type:
        raise InvalidArgumentError(
            f"databroker record {record.type} {record.id!r} (version {record.version}) holds "
            f"{record.data.type_url or 'nothing'}",
            reason="record-unreadable",
            public_message="A stored record cannot be read.",
        )
    return ConfigRecord(record.type, record.id, record.data.value)
