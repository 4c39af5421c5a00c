"""Databrokers for client tests: the real one over memory, and one that misbehaves on command."""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.replica import Replica
from gatehouse.common.databroker.syncer import ReplicaFeed
from gatehouse.common.errors import GatehouseError, NotFoundError
from gatehouse.common.rpc.channel import BalancedChannel
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.common.rpc.server import GrpcServer
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.databroker.edge.access_times import AccessTimesServicer
from gatehouse.databroker.edge.backends.memory import MemoryStorage
from gatehouse.databroker.edge.change_hub import ChangeHub
from gatehouse.databroker.edge.servicer import DataBrokerServicer
from gatehouse.pb import access_times_pb2_grpc
from gatehouse.pb import databroker_pb2 as pb
from gatehouse.pb import databroker_pb2_grpc as pb_grpc
from tests.support.model_broker import TYPE, text_of

# For the type checker the generated base is abstract in every method; these fakes have only some.
if TYPE_CHECKING:
    _Servicer = object
else:
    _Servicer = pb_grpc.DataBrokerServiceServicer

SECRET = bytes(range(32))
CLOCK, RNG = SystemClock(), SystemRng()


@asynccontextmanager
async def grpc_server(
    servicer: Any, path: Path, access_times: AccessTimesServicer | None = None
) -> AsyncIterator[GrpcServer]:
    """Serve on a Unix socket, as a healthy databroker."""
    health = HealthRegistry(CLOCK)
    health.add_service("databroker", ("storage.backend",))
    server = GrpcServer(lambda: (SECRET,), health, CLOCK)
    pb_grpc.add_DataBrokerServiceServicer_to_server(servicer, server.server)
    if access_times is not None:
        access_times_pb2_grpc.add_AccessTimesServicer_to_server(access_times, server.server)
    await server.start(unix_socket=path, address=None)
    health.set_running("storage.backend")
    try:
        yield server
    finally:
        await server.stop(0)


@asynccontextmanager
async def databroker(path: Path, prepare: Callable[[Any], Any] | None = None) -> AsyncIterator[Any]:
    """The real service over a fresh memory store; `prepare(storage)` runs before it serves."""
    storage = MemoryStorage(CLOCK, RNG)
    await storage.open()
    hub = ChangeHub(storage, CLOCK, RNG)
    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(asyncio.TaskGroup())
        tasks = [group.create_task(work) for work in (storage.run(), hub.run())]
        await hub.ready()
        servicer = DataBrokerServicer(storage, hub, CLOCK, RNG)
        if prepare is not None:
            await prepare(servicer)
        try:
            async with grpc_server(servicer, path, AccessTimesServicer(storage, CLOCK)):
                yield servicer
                hub.close()
        finally:
            hub.close()
            for task in tasks:
                task.cancel()
            await storage.close()


@asynccontextmanager
async def channel_to(
    *targets: Path | str, subject: str = "databroker"
) -> AsyncIterator[BalancedChannel]:
    """A running channel over Unix sockets, or to URLs."""
    channel = BalancedChannel(
        [target if isinstance(target, str) else f"unix://{target}" for target in targets],
        audience="databroker",
        health_service="pomerium-databroker",
        credentials=ServiceCredentials(subject, lambda: (SECRET,), CLOCK),
        ca_pem=None,
        clock=CLOCK,
        rng=RNG,
    )
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(channel.run(stop))
        try:
            yield channel
        finally:
            stop.set()
            await channel.close()


@asynccontextmanager
async def client_of(
    *targets: Path | str, timeout_s: float = 30.0
) -> AsyncIterator[DatabrokerClient]:
    """A client over Unix sockets, or of URLs."""
    async with channel_to(*targets) as channel:
        yield DatabrokerClient(channel, unary_timeout_s=timeout_s)


@asynccontextmanager
async def feeding(client: DatabrokerClient, replica: Replica, **options: Any) -> AsyncIterator[Any]:
    """A running feed, stopped at the end."""
    options.setdefault("rng", QuickRng())
    feed = ReplicaFeed(client, replica, CLOCK, **options)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(feed.run(stop))
        try:
            yield feed
        finally:
            stop.set()


class QuickRng(SystemRng):
    """Shortens every back-off to next to nothing."""

    def uniform(self, low: float, high: float) -> float:
        return 0.01


def replica_of_type() -> Replica:
    """A replica of the test type."""
    return Replica({TYPE: text_of})


async def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait until the condition holds; fails the test when it does not in time."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - any condition, not only our own events
            await asyncio.sleep(0.002)


Script = list[Any]  # messages to send; then an error to raise, HANG, or the end of the stream
HANG = object()


@dataclass
class ScriptedBroker(_Servicer):
    """Plays one script per stream, in the order the streams are opened; the last one repeats."""

    latest: list[Script] = field(default_factory=list)
    changes: list[Script] = field(default_factory=list)
    opened: list[tuple[str, int, int]] = field(default_factory=list)
    gets: list[GatehouseError | None] = field(default_factory=list)
    calls: int = 0
    hanging: int = 0

    async def SyncLatest(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.opened.append(("latest", 0, 0))
        async for message in self._play(self.latest):
            yield message

    async def Sync(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.opened.append(("changes", request.server_version, request.record_version))
        async for message in self._play(self.changes):
            yield message

    async def Get(self, request: Any, context: Any) -> Any:
        self.calls += 1
        error = self.gets.pop(0) if self.gets else NotFoundError("no such record")
        if error is not None:
            raise error
        return pb.GetResponse(record=pb.Record(type=request.type, id=request.id, version=1))

    async def Put(self, request: Any, context: Any) -> Any:
        self.calls += 1
        error = self.gets.pop(0) if self.gets else None
        if error is not None:
            raise error
        return pb.PutResponse(server_version=1)

    async def ServerInfo(self, request: Any, context: Any) -> Any:
        self.calls += 1
        await asyncio.Event().wait()

    async def _play(self, scripts: list[Script]) -> AsyncIterator[Any]:
        script = scripts.pop(0) if len(scripts) > 1 else scripts[0]
        for item in script:
            if item is HANG:
                self.hanging += 1
                try:
                    await asyncio.Event().wait()
                finally:
                    self.hanging -= 1
            if isinstance(item, Exception):
                raise item
            yield item


def latest(made: Any) -> Any:
    return pb.SyncLatestResponse(record=made)


def versions(server_version: int, record_version: int) -> Any:
    return pb.SyncLatestResponse(
        versions=pb.Versions(server_version=server_version, latest_record_version=record_version)
    )


def change(made: Any) -> Any:
    return pb.SyncResponse(record=made)


def heartbeat(server_version: int, record_version: int) -> Any:
    return pb.SyncResponse(
        heartbeat=pb.Versions(server_version=server_version, latest_record_version=record_version)
    )
