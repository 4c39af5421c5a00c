"""Authorize over a log of records that a test writes: each copy is as far as the test lets it."""

from __future__ import annotations

from typing import Any

from gatehouse.authorize.core.records import RecordReader
from gatehouse.authorize.core.route_plan import compile_plans
from gatehouse.authorize.edge.ext_authz import ExtAuthz, build_in_force
from gatehouse.authorize.edge.replica_feed import IdentitySource
from gatehouse.common.clock import Clock, Rng
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.databroker.replica import Replica
from gatehouse.common.databroker.sync_core import Position
from gatehouse.pb.databroker_pb2 import Record


class Log:
    """What the databroker has committed."""

    def __init__(self, history: int) -> None:
        self.history = history
        self.records: list[Record] = []

    @property
    def latest(self) -> int:
        return len(self.records)

    def commit(self, record: Record, *, deleted: bool = False) -> Record:
        stored = Record()
        stored.CopyFrom(record)
        stored.version = self.latest + 1
        if deleted:
            stored.deleted_at.GetCurrentTime()
        self.records.append(stored)
        return stored


class LaggingAuthorize:
    """One authorize: its copy holds the log up to `at`, and it knows that it does."""

    def __init__(
        self, settings: ResolvedSettings, log: Log, clock: Clock, rng: Rng, *, at: int | None = None
    ) -> None:
        self.log = log
        self.clock = clock
        reader = RecordReader()
        self.replica = Replica(reader.decoders)
        self.source = IdentitySource(self.replica, reader, _no_client, clock)
        self.external = self.source.hold(compile_plans(settings).record_types)
        self.at = log.latest if at is None else at
        for replica in self._replicas():
            for type_url in replica.types:
                replica.begin_copy(type_url)
                for record in log.records[: self.at]:
                    if record.type == type_url:
                        replica.stage(record)
                replica.swap(type_url, Position(log.history, self.at), now_s=clock.monotonic_s())
        self.rng = rng
        self.servicer = ExtAuthz(
            build_in_force(compile_plans(settings), clock, rng), self.source, clock
        )

    def follow(self, to: int | None = None) -> None:
        """Take up what was committed, up to a version."""
        to = self.log.latest if to is None else to
        for record in self.log.records[self.at : to]:
            for replica in self._replicas():
                if record.type in replica.types:
                    replica.apply(record)
        self.at = max(self.at, to)
        for replica in self._replicas():
            for type_url in replica.types:
                replica.advance(
                    type_url,
                    Position(self.log.history, self.at),
                    heard_s=self.clock.monotonic_s(),
                )

    def _replicas(self) -> list[Replica]:
        return [one for one in (self.replica, self.external) if one is not None]

    async def check(self, request: Any) -> Any:
        return await self.servicer.Check(request, None)  # type: ignore[arg-type]


def _no_client() -> Any:
    raise AssertionError("everything is in the copy")
