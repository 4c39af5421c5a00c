"""The checks of a process as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from gatehouse.common.clock import SystemClock
from gatehouse.common.config.resolved import ListenAddress
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.common.rpc.health_notifier import HealthNotifierServicer
from gatehouse.common.rpc.server import GrpcServer
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.pb.health_pb2 import (
    HEALTH_STATUS_RUNNING,
    HEALTH_STATUS_TERMINATING,
    HEALTH_STATUS_UNKNOWN,
    OVERALL_STATUS_RUNNING,
    OVERALL_STATUS_STARTING,
    OVERALL_STATUS_TERMINATING,
    HealthMessage,
    HealthStreamRequest,
)
from gatehouse.pb.health_pb2_grpc import HealthNotifierStub
from tests.support.rpc import SECRET

PATIENCE_S = 60.0


@pytest.fixture
def health() -> HealthRegistry:
    made = HealthRegistry(SystemClock())
    made.expect("storage.backend")
    return made


@pytest.fixture
async def channel(health: HealthRegistry) -> AsyncIterator[grpc.aio.Channel]:
    server = GrpcServer(lambda: (SECRET,), health, SystemClock())
    port = await server.start(unix_socket=None, address=ListenAddress("127.0.0.1", 0))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    await server.stop(1.0)


async def test_only_holders_of_the_secret_are_told(
    channel: grpc.aio.Channel, health: HealthRegistry
) -> None:
    stub = HealthNotifierStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.SyncHealth(HealthStreamRequest(), timeout=PATIENCE_S).read()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    metadata = ServiceCredentials("operator", lambda: (SECRET,), SystemClock()).metadata(
        "databroker"
    )
    call = stub.SyncHealth(HealthStreamRequest(), metadata=metadata, timeout=PATIENCE_S)
    first = await call.read()
    assert isinstance(first, HealthMessage)
    assert first.overall_status == OVERALL_STATUS_STARTING
    assert list(first.required) == ["storage.backend"]
    health.set_running("storage.backend")
    health.terminate()  # is told at once
    second = await call.read()
    assert isinstance(second, HealthMessage)
    assert second.overall_status == OVERALL_STATUS_TERMINATING
    assert second.statuses["storage.backend"].status == HEALTH_STATUS_TERMINATING
    call.cancel()


async def told(messages: AsyncIterator[HealthMessage]) -> HealthMessage:
    async with asyncio.timeout(PATIENCE_S):
        return await anext(messages)


async def test_changes_are_told_together(health: HealthRegistry) -> None:
    notifier = HealthNotifierServicer(health, batch_s=0.05, resend_s=3600.0)
    messages = notifier.SyncHealth(HealthStreamRequest(), None)  # type: ignore[arg-type]
    first = await told(messages)
    assert first.statuses["storage.backend"].status == HEALTH_STATUS_UNKNOWN
    assert not first.HasField("overall_err")
    pending = asyncio.ensure_future(told(messages))
    await asyncio.sleep(0)
    health.set_running("storage.backend", backend="file")
    health.set_error("storage.backend", "the disk is full")
    health.set_error("other", "no answer")
    second = await pending
    assert second.overall_status == OVERALL_STATUS_RUNNING
    status = second.statuses["storage.backend"]
    assert status.status == HEALTH_STATUS_RUNNING
    assert status.attributes == {"backend": "file"}
    assert status.err == "the disk is full"
    assert second.overall_err == "other: no answer; storage.backend: the disk is full"


async def test_all_is_told_again_now_and_then(health: HealthRegistry) -> None:
    notifier = HealthNotifierServicer(health, resend_s=0.05)
    messages = notifier.SyncHealth(HealthStreamRequest(), None)  # type: ignore[arg-type]
    assert await told(messages) == await told(messages) == await told(messages)
