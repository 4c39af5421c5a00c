"""The service as a process hosts it: life, health, refusal of what it cannot do."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.config.hub import ConfigHub
from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.resolved import ListenAddress, ResolvedSettings
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.common.rpc.server import GrpcServer
from gatehouse.common.runtime.context import ProcessContext
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.databroker.service import DatabrokerService, build
from gatehouse.pb import databroker_pb2 as pb
from gatehouse.pb.databroker_pb2_grpc import DataBrokerServiceStub
from gatehouse.pb.user_pb2 import User
from tests.support.postgres import disconnect, fresh_database
from tests.support.web_settings import SHARED, settings

PATIENCE_S = 60.0


def stored(kind: str, connection: str) -> ResolvedSettings:
    return dataclasses.replace(
        settings(databroker_storage_type=kind), databroker_connection=connection
    )


def context(resolved: ResolvedSettings, run_dir: Path) -> ProcessContext:
    clock = SystemClock()
    return ProcessContext(
        ConfigHub(resolved), HealthRegistry(clock), clock, SystemRng(), run_dir, grace_s=5.0
    )


class Hosted:
    """A service under a gRPC server, and a stub for it."""

    def __init__(self, ctx: ProcessContext, service: DatabrokerService, stub: Any) -> None:
        self.ctx = ctx
        self.service = service
        self.stub = stub
        self.stop = asyncio.Event()
        self.ready = asyncio.Event()

    @property
    def metadata(self) -> Any:
        credentials = ServiceCredentials("databroker", lambda: (SHARED,), self.ctx.clock)
        return credentials.metadata("databroker")

    async def call(self, method: str, request: Any) -> Any:
        return await getattr(self.stub, method)(request, metadata=self.metadata, timeout=PATIENCE_S)

    def check(self, name: str) -> Any:
        return self.ctx.health.snapshot().records.get(name)

    def error(self) -> str:
        check = self.check("storage.backend")
        return check.error if check else ""

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a change of health brings the condition about."""
        changed = asyncio.Event()
        unsubscribe = self.ctx.health.subscribe(changed.set)
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                changed.clear()
                await changed.wait()
        unsubscribe()


@asynccontextmanager
async def hosted(
    resolved: ResolvedSettings, run_dir: Path, *, wait: bool = True
) -> AsyncIterator[Hosted]:
    ctx = context(resolved, run_dir)
    service = build(ctx)
    server = GrpcServer(lambda: (SHARED,), ctx.health, ctx.clock)
    service.register_grpc(server.server)
    port = await server.start(unix_socket=None, address=ListenAddress("127.0.0.1", 0))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        made = Hosted(ctx, service, DataBrokerServiceStub(channel))
        try:
            async with asyncio.TaskGroup() as group:
                running = group.create_task(service.run(made.stop, made.ready.set))
                if wait:
                    async with asyncio.timeout(PATIENCE_S):
                        await made.ready.wait()
                yield made
                made.stop.set()
                async with asyncio.timeout(PATIENCE_S):
                    await running
        finally:
            await server.stop(1.0)


def record(id_: str) -> pb.Record:
    made = pb.Record(type="t", id=id_)
    made.data.Pack(User(id=id_))
    return made


@pytest.mark.parametrize(
    "kind", ["memory", "file", pytest.param("postgres", marks=pytest.mark.postgres)]
)
async def test_it_serves_and_stops(kind: str, tmp_path: Path) -> None:
    with fresh_database() as dsn:
        connection = {"memory": "", "file": f"file://{tmp_path}/store", "postgres": dsn}[kind]
        async with hosted(stored(kind, connection), tmp_path) as made:
            reply = await made.call("Put", pb.PutRequest(records=[record("a")]))
            assert reply.records[0].version == 1
            await made.until(made.ctx.health.ready)
            assert made.check("storage.backend").attributes == {"backend": kind}
            version = reply.server_version
            stream = made.stub.Sync(
                pb.SyncRequest(server_version=version, record_version=1, type="t"),
                metadata=made.metadata,
            )
            await stream.wait_for_connection()
            made.stop.set()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async with asyncio.timeout(PATIENCE_S):
                    await stream.read()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        if kind == "file":
            async with hosted(stored(kind, connection), tmp_path) as again:
                info = await again.call("ServerInfo", Empty())
                assert (info.server_version, info.latest_record_version) == (version, 1)


async def test_changing_the_store_needs_a_restart(tmp_path: Path) -> None:
    ctx = context(stored("memory", ""), tmp_path)
    build(ctx)
    await ctx.config.apply(stored("memory", ""))
    with pytest.raises(ConfigError) as caught:
        await ctx.config.apply(stored("file", "file:///secret-directory"))
    assert {issue.key for issue in caught.value.issues} == {
        "databroker_storage_type",
        "databroker_storage_connection_string",
    }
    assert "restart" in str(caught.value)
    assert "secret-directory" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "connection"),
    [("postgres", ""), ("postgres", "postgres://u:hunter2@h/x?nope=1"), ("file", "ftp://hunter2")],
)
def test_a_bad_connection_string_is_a_configuration_error(
    kind: str, connection: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        build(context(stored(kind, connection), tmp_path))
    (issue,) = caught.value.issues
    assert issue.key == "databroker_storage_connection_string"
    assert "hunter2" not in str(caught.value)


async def test_a_directory_in_use_ends_the_start_with_a_configuration_error(
    tmp_path: Path,
) -> None:
    connection = f"file://{tmp_path}/store"
    async with hosted(stored("file", connection), tmp_path):
        second = build(context(stored("file", connection), tmp_path))
        with pytest.raises(ConfigError, match="in use by process"):
            await second.run(asyncio.Event(), lambda: None)


@pytest.mark.postgres
async def test_an_unreachable_store_is_waited_for_and_reported(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        connection = f"postgres://u:hunter2@127.0.0.1:{taken.getsockname()[1]}/x"
        async with hosted(stored("postgres", connection), tmp_path, wait=False) as made:
            await made.until(lambda: bool(made.error()))
            assert not made.ready.is_set()
            assert not made.ctx.health.ready()
            assert "hunter2" not in made.error()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await made.call("Get", pb.GetRequest(type="t", id="a"))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.postgres
async def test_losing_the_store_shows_in_health_and_heals(tmp_path: Path) -> None:
    with fresh_database() as dsn:
        async with hosted(stored("postgres", dsn), tmp_path) as made:
            await made.call("Put", pb.PutRequest(records=[record("a")]))
            for _ in range(3):
                disconnect(dsn)
                # A write that has not begun finds itself another connection.
                await made.call("Put", pb.PutRequest(records=[record("b")]))
            await made.until(made.ctx.health.ready)
