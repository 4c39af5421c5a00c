"""gRPC servers for tests: the real GrpcServer with a small broker that says which one it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf.empty_pb2 import Empty

from gatehouse.common.clock import Clock, SystemClock, SystemRng
from gatehouse.common.config.resolved import CertificatePair, ListenAddress
from gatehouse.common.errors import AlreadyExistsError, NotFoundError
from gatehouse.common.rpc.channel import BalancedChannel
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.common.rpc.resolver import Resolver
from gatehouse.common.rpc.server import AGE_GRACE_S, GrpcServer
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.pb import databroker_pb2, databroker_pb2_grpc

SECRET = bytes(range(32))


@dataclass
class Broker(databroker_pb2_grpc.DataBrokerServiceServicer):
    """Answers ServerInfo with its number; Get and Sync do what a test asks by record id."""

    number: int
    gate: asyncio.Event = field(default_factory=asyncio.Event)  # Get "wait" waits for it
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    calls: int = 0
    peers: set[str] = field(default_factory=set)  # connections that ServerInfo came by
    streams: int = 0
    lingered: bool = False  # Get "linger" has put everything in order after its caller left

    async def ServerInfo(self, _request: Empty, context: Any) -> Any:  # noqa: N802
        self.calls += 1
        self.peers.add(context.peer())
        return databroker_pb2.ServerInfoResponse(server_version=self.number)

    async def Get(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls += 1
        match request.id:
            case "wait":
                self.entered.set()
                await self.gate.wait()
            case "linger":
                self.entered.set()
                try:
                    await self.gate.wait()
                finally:
                    await asyncio.sleep(0.3)
                    self.lingered = True
            case "missing":
                raise NotFoundError(
                    "secret detail for the log", reason="no-record", public_message="no record"
                )
            case "crash":
                raise RuntimeError("secret detail of a crash")
            case "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._refuse())
            case "abort":
                await context.abort(5, "by hand")
        return databroker_pb2.GetResponse(record=databroker_pb2.Record(version=self.number))

    async def Put(self, request: Any, _context: Any) -> Any:  # noqa: N802
        return databroker_pb2.PutResponse(server_version=self.number)

    async def Clear(self, _request: Empty, _context: Any) -> Any:  # noqa: N802
        return databroker_pb2.ClearResponse()

    async def Sync(self, request: Any, _context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Says its number, then nothing until cancelled: a stream that watches no stop event."""
        self.streams += 1
        try:
            yield databroker_pb2.SyncResponse(
                record=databroker_pb2.Record(version=self.number, type=request.type)
            )
            if request.type == "crash":
                raise RuntimeError("secret detail of a crash")
            if request.type == "once":
                return
            self.entered.set()
            await asyncio.Event().wait()
        finally:
            self.streams -= 1

    async def _refuse(self) -> None:
        raise AlreadyExistsError("taken", reason="held")


@dataclass
class Replica:
    """One running server."""

    server: GrpcServer
    broker: Broker
    health: HealthRegistry
    port: int

    def serving(self, yes: bool = True) -> None:
        """Report the broker's storage as working or not."""
        if yes:
            self.health.set_running("storage.backend")
        else:
            self.health.set_error("storage.backend", "told so by the test")


async def start_replica(
    number: int = 1,
    *,
    ip: str = "127.0.0.1",
    port: int = 0,
    unix_socket: Path | None = None,
    certificates: tuple[CertificatePair, ...] = (),
    secrets: tuple[bytes, ...] = (SECRET,),
    clock: Clock | None = None,
    max_connection_age_s: float | None = None,
    age_grace_s: float = AGE_GRACE_S,
    client_ca_pem: bytes | None = None,
) -> Replica:
    """A serving replica. The caller stops it."""
    clock = clock or SystemClock()
    health = HealthRegistry(clock)
    health.add_service("databroker", ("storage.backend",))
    server = GrpcServer(
        lambda: secrets,
        health,
        clock,
        max_connection_age_s=max_connection_age_s,
        age_grace_s=age_grace_s,
    )
    broker = Broker(number)  # type: ignore[abstract]  # a test needs few methods
    databroker_pb2_grpc.add_DataBrokerServiceServicer_to_server(broker, server.server)
    bound = await server.start(
        unix_socket=unix_socket,
        address=ListenAddress(ip, port) if unix_socket is None else None,
        certificates=certificates,
        client_ca_pem=client_ca_pem,
    )
    replica = Replica(server, broker, health, bound)
    replica.serving()
    return replica


@asynccontextmanager
async def replica(number: int = 1, **options: Any) -> AsyncIterator[Replica]:
    """A serving replica, stopped at the end."""
    one = await start_replica(number, **options)
    try:
        yield one
    finally:
        await one.server.stop(0)


def make_channel(
    *urls: str,
    subject: str = "databroker",
    secrets: tuple[bytes, ...] = (SECRET,),
    ca_pem: bytes | None = None,
    client_certificate: CertificatePair | None = None,
    override_name: str = "",
    resolver: Resolver | None = None,
    rng: Any = None,
    health_service: str = "pomerium-databroker",
    **options: Any,
) -> BalancedChannel:
    """A channel to databrokers, as `subject`."""
    clock = SystemClock()
    return BalancedChannel(
        urls,
        audience="databroker",
        health_service=health_service,
        credentials=ServiceCredentials(subject, lambda: secrets, clock),
        ca_pem=ca_pem,
        client_certificate=client_certificate,
        override_name=override_name,
        clock=clock,
        rng=rng or SystemRng(),
        resolver=resolver,
        **options,
    )


def broker_stub(channel: grpc.aio.Channel) -> databroker_pb2_grpc.DataBrokerServiceStub:
    """A stub over any channel."""
    return databroker_pb2_grpc.DataBrokerServiceStub(channel)


@asynccontextmanager
async def following(channel: BalancedChannel) -> AsyncIterator[BalancedChannel]:
    """`channel` with its `run`, closed at the end."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(channel.run(stop))
        try:
            yield channel
        finally:
            stop.set()
            await channel.close()


async def until(check: Callable[[], Any], timeout_s: float = 60.0) -> None:
    """Wait for something that happens on its own elsewhere."""
    async with asyncio.timeout(timeout_s):
        while True:
            result = check()
            if await result if asyncio.iscoroutine(result) else result:
                return
            await asyncio.sleep(0.01)  # what it is of is out of reach
