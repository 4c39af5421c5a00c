"""The databroker's three stores as test subjects, with time that tests can move."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import psycopg
from google.protobuf import any_pb2
from google.protobuf.message import Message

from gatehouse.common.clock import Clock, SystemClock, SystemRng
from gatehouse.common.config.resolved import ListenAddress
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.common.rpc.server import GrpcServer
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.databroker.core.records import Incoming, Put, StoredRecord, Write
from gatehouse.databroker.edge.access_times import AccessTimesServicer
from gatehouse.databroker.edge.admin import AdminServicer
from gatehouse.databroker.edge.backends.base import Storage, running
from gatehouse.databroker.edge.backends.connections import parse_postgres
from gatehouse.databroker.edge.backends.memory import MemoryStorage
from gatehouse.databroker.edge.backends.postgres import PostgresStorage
from gatehouse.databroker.edge.backends.sqlite import SqliteStorage
from gatehouse.databroker.edge.change_hub import ChangeHub
from gatehouse.databroker.edge.registry import RegistryServicer
from gatehouse.databroker.edge.servicer import CheckpointServicer, DataBrokerServicer
from gatehouse.databroker.edge.tasks import background
from gatehouse.pb import (
    access_times_pb2_grpc,
    databroker_admin_pb2_grpc,
    databroker_pb2_grpc,
    registry_pb2_grpc,
)
from tests.support.clock import FakeClock
from tests.support.postgres import fresh_database

BACKENDS: Final = ("memory", "file", "postgres")
SECRET: Final = bytes(range(32))


def secrets() -> tuple[bytes, ...]:
    """Return the shared secrets of the stores in tests."""
    return (SECRET,)


@dataclass(frozen=True)
class StorageCase:
    """An open store; `age` makes everything in it older by that many seconds."""

    storage: Storage
    age: Callable[[float], Awaitable[None]]
    dsn: str = ""

    async def put(self, *writes: Incoming) -> tuple[StoredRecord, ...]:
        return await self.write(Put(writes))

    async def write(self, write: Write) -> tuple[StoredRecord, ...]:
        return (await self.storage.write(write)).records

    async def changes(self, after: int = 0, type_: str = "") -> list[StoredRecord]:
        """Everything after a version."""
        found: list[StoredRecord] = []
        while True:
            page = await self.storage.changes(after, type_=type_, limit=50)
            found += page.changes
            after = page.end
            if after >= page.position.latest:
                return found


def incoming(type_: str, id_: str, payload: Message | None = None) -> Incoming:
    """Return a record as a client writes it; without a payload a deletion."""
    if payload is None:
        return Incoming(type_, id_, b"", is_deletion=True)
    return Incoming(type_, id_, packed(payload))


def packed(payload: Message) -> bytes:
    """Return the serialized Any of a message, the same bytes each time."""
    value = payload.SerializeToString(deterministic=True)
    any_ = any_pb2.Any(type_url=f"type.googleapis.com/{payload.DESCRIPTOR.full_name}", value=value)
    return any_.SerializeToString()


@contextlib.asynccontextmanager
async def storage_case(backend: str, directory: Path) -> AsyncIterator[StorageCase]:
    """Open one of BACKENDS for the length of the block."""
    clock = FakeClock()

    async def move(seconds: float) -> None:
        clock.advance(seconds)

    match backend:
        case "memory":
            async with running(MemoryStorage(clock, SystemRng())) as memory:
                yield StorageCase(memory, move)
        case "file":
            async with running(
                SqliteStorage(directory / "store", clock, SystemRng(), secrets)
            ) as file:
                yield StorageCase(file, move)
        case "postgres":
            with fresh_database() as dsn:
                storage = PostgresStorage(parse_postgres(dsn), clock, SystemRng(), secrets)
                async with running(storage):
                    yield StorageCase(storage, lambda seconds: _backdate(dsn, seconds), dsn)
        case _:
            raise AssertionError(backend)


async def _backdate(dsn: str, seconds: float) -> None:
    """The database has its own clock; move what it holds instead."""
    micros = int(seconds * 1e6)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for statement in (
            "UPDATE gatehouse.records SET modified_at_us = modified_at_us - %s",
            "UPDATE gatehouse.record_changes SET modified_at_us = modified_at_us - %s",
            "UPDATE gatehouse.leases SET expires_at_us = expires_at_us - %s",
            "UPDATE gatehouse.services SET expires_at_us = expires_at_us - %s",
        ):
            await connection.execute(statement, (micros,))


@dataclass(frozen=True)
class Served:
    """A databroker's RPCs over a real server, and the hub behind them."""

    stub: Any
    checkpoints: Any
    access_times: Any
    admin: Any
    registry: Any
    hub: ChangeHub
    server: GrpcServer
    port: int


@contextlib.asynccontextmanager
async def served(
    storage: Storage,
    *,
    clock: Clock | None = None,
    server_clock: Clock | None = None,
    **hub_options: Any,
) -> AsyncIterator[Served]:
    """Serve an open store on a loopback port, with the credentials of the databroker itself.

    `server_clock` is what credentials are judged by.
    """
    clock = clock or SystemClock()
    hub = ChangeHub(storage, clock, SystemRng(), **hub_options)
    health = HealthRegistry(clock)
    health.add_service("databroker", ())
    server = GrpcServer(secrets, health, server_clock or SystemClock())
    servicer = DataBrokerServicer(storage, hub, clock, SystemRng())
    databroker_pb2_grpc.add_DataBrokerServiceServicer_to_server(servicer, server.server)
    databroker_pb2_grpc.add_CheckpointServiceServicer_to_server(
        CheckpointServicer(storage), server.server
    )
    access_times_pb2_grpc.add_AccessTimesServicer_to_server(
        AccessTimesServicer(storage, clock), server.server
    )
    databroker_admin_pb2_grpc.add_AdminServicer_to_server(AdminServicer(storage), server.server)
    registry = RegistryServicer(storage, watch_s=0.1)
    registry_pb2_grpc.add_RegistryServicer_to_server(registry, server.server)
    port = await server.start(unix_socket=None, address=ListenAddress("127.0.0.1", 0))
    credentials = ServiceCredentials("databroker", secrets, SystemClock())
    target = f"127.0.0.1:{port}"
    interceptors = [_UnaryCredentials(credentials), _StreamCredentials(credentials)]
    try:
        async with (
            background(hub.run()),
            grpc.aio.insecure_channel(target, interceptors=interceptors) as channel,
        ):
            await hub.ready()
            yield Served(
                databroker_pb2_grpc.DataBrokerServiceStub(channel),
                databroker_pb2_grpc.CheckpointServiceStub(channel),
                access_times_pb2_grpc.AccessTimesStub(channel),
                databroker_admin_pb2_grpc.AdminStub(channel),
                registry_pb2_grpc.RegistryStub(channel),
                hub,
                server,
                port,
            )
    finally:
        hub.close()
        await server.stop(1.0)


class _UnaryCredentials(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, credentials: ServiceCredentials) -> None:
        self._credentials = credentials

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(_with(self._credentials, details), request)


class _StreamCredentials(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, credentials: ServiceCredentials) -> None:
        self._credentials = credentials

    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(_with(self._credentials, details), request)


def _with(credentials: ServiceCredentials, details: Any) -> Any:
    return details._replace(metadata=grpc.aio.Metadata(*credentials.metadata("databroker")))
