"""The gRPC server over real sockets: credentials, errors, health, reflection, stopping."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.empty_pb2 import Empty
from grpc._cython import cygrpc  # type: ignore[attr-defined]
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gatehouse.common.clock import SystemClock
from gatehouse.common.config.resolved import ListenAddress
from gatehouse.common.errors import FailedPreconditionError
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.common.rpc.ending import let_handlers_end
from gatehouse.common.rpc.server import RECEIVE_LIMIT, GrpcServer
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.pb import access_times_pb2, authorize_pb2, databroker_pb2
from tests.support.rpc import SECRET, Replica, broker_stub, replica, start_replica, until

Status = health_pb2.HealthCheckResponse.ServingStatus


@pytest.fixture
async def one() -> AsyncIterator[Replica]:
    async with replica(7) as running:
        yield running


@pytest.fixture
async def bare(one: Replica) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{one.port}") as channel:
        yield channel


def credentials(subject: str = "databroker", secret: bytes = SECRET) -> ServiceCredentials:
    return ServiceCredentials(subject, lambda: (secret,), SystemClock())


def metadata(subject: str = "databroker") -> Any:
    return credentials(subject).metadata("databroker")


async def failure(call: Any) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    reason = dict(error.trailing_metadata() or ()).get("gatehouse-reason", "")
    return error.code(), error.details() or "", str(reason)


async def stream_failure(call: Any) -> tuple[grpc.StatusCode, str, str]:
    async def read() -> None:
        async for _ in call:
            pass

    return await failure(read())


# -- credentials


async def test_a_good_token_is_let_through(bare: grpc.aio.Channel) -> None:
    stub = broker_stub(bare)
    response = await stub.ServerInfo(Empty(), metadata=metadata(), timeout=60)
    assert response.server_version == 7
    plain = (("jwt", credentials().service_jwt()),)
    assert (await stub.ServerInfo(Empty(), metadata=plain, timeout=60)).server_version == 7


async def test_r39_calls_without_or_with_a_bad_token(bare: grpc.aio.Channel) -> None:
    stub = broker_stub(bare)
    refused = grpc.StatusCode.UNAUTHENTICATED
    assert await failure(stub.ServerInfo(Empty(), timeout=60)) == (
        refused,
        "unauthenticated",
        "no-credential",
    )
    wrong = credentials(secret=bytes(32)).metadata("databroker")
    assert await failure(stub.ServerInfo(Empty(), metadata=wrong, timeout=60)) == (
        refused,
        "invalid JWT",
        "bad-credential",
    )
    other = credentials().metadata("authorize")
    assert (await failure(stub.ServerInfo(Empty(), metadata=other, timeout=60)))[2] == (
        "wrong-audience"
    )


OURS = (
    (databroker_pb2.DESCRIPTOR, "authorize"),
    (access_times_pb2.DESCRIPTOR, "authorize"),
    (authorize_pb2.DESCRIPTOR, "databroker"),
)


async def test_r39_a_token_for_one_service_is_none_for_another(bare: grpc.aio.Channel) -> None:
    """Who is called, and keeps the caller's token, cannot use it elsewhere in the caller's name."""
    for file, wrong in OURS:
        for service in file.services_by_name.values():
            for method in service.methods:
                path = f"/{service.full_name}/{method.name}"
                token = credentials("operator").metadata(wrong)
                # The guard comes before anything looks at the kind of call.
                single: Any = bare.unary_unary(path)
                code, _, why = await failure(single(b"", metadata=token, timeout=60))
                assert code is grpc.StatusCode.UNAUTHENTICATED, path
                assert why == "wrong-audience", path


async def test_streams_are_refused_too_and_the_handler_never_runs(
    one: Replica, bare: grpc.aio.Channel
) -> None:
    call = broker_stub(bare).Sync(databroker_pb2.SyncRequest(), timeout=60)
    assert (await stream_failure(call))[0] is grpc.StatusCode.UNAUTHENTICATED
    assert not one.broker.entered.is_set()


async def test_r47_every_method_denies_anonymous(bare: grpc.aio.Channel) -> None:
    """Enumerated, so that a method added later is covered."""
    for service in databroker_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            path = f"/{service.full_name}/{method.name}"
            if method.server_streaming:
                streaming: Any = bare.unary_stream(path)
                code = (await stream_failure(streaming(b"", timeout=60)))[0]
            else:
                single: Any = bare.unary_unary(path)
                code = (await failure(single(b"", timeout=60)))[0]
            assert code is grpc.StatusCode.UNAUTHENTICATED, path


async def test_unknown_methods_tell_strangers_nothing(bare: grpc.aio.Channel) -> None:
    method: Any = bare.unary_unary("/no.Such/Method")
    assert (await failure(method(b"", timeout=60)))[0] is grpc.StatusCode.UNAUTHENTICATED
    with_token = method(b"", metadata=metadata("operator"), timeout=60)
    assert (await failure(with_token))[0] is grpc.StatusCode.UNIMPLEMENTED


async def test_a_changed_secret_applies_at_once() -> None:
    secrets: list[tuple[bytes, ...]] = [(SECRET,)]
    clock = SystemClock()
    health = HealthRegistry(clock)
    server = GrpcServer(lambda: secrets[0], health, clock)
    port = await server.start(unix_socket=None, address=ListenAddress("127.0.0.1", 0))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method: Any = channel.unary_unary("/no.Such/Method")
        pairs = metadata("operator")
        for accepted, expected in (
            ((SECRET,), grpc.StatusCode.UNIMPLEMENTED),
            ((bytes(32), SECRET), grpc.StatusCode.UNIMPLEMENTED),
            ((bytes(32),), grpc.StatusCode.UNAUTHENTICATED),
            ((), grpc.StatusCode.UNAUTHENTICATED),
        ):
            secrets[0] = accepted
            assert (await failure(method(b"", metadata=pairs, timeout=60)))[0] is expected
    await server.stop(0)


@pytest.mark.parametrize("secrets", [(), (b"",), (SECRET, b""), (b"short",)])
async def test_refuses_to_start_without_a_shared_secret(secrets: tuple[bytes, ...]) -> None:
    clock = SystemClock()
    server = GrpcServer(lambda: secrets, HealthRegistry(clock), clock)
    with pytest.raises(FailedPreconditionError, match="shared_secret"):
        await server.start(unix_socket=None, address=ListenAddress("127.0.0.1", 0))
    await server.stop(0)


# -- allow-list


async def test_r39_a_service_cannot_call_what_is_not_its_business(bare: grpc.aio.Channel) -> None:
    stub = broker_stub(bare)
    denied = grpc.StatusCode.PERMISSION_DENIED
    for subject in ("proxy", "authorize", "authenticate", "stranger"):
        assert (await failure(stub.Clear(Empty(), metadata=metadata(subject), timeout=60)))[
            0
        ] is denied
    await stub.Clear(Empty(), metadata=metadata("operator"), timeout=60)
    put = databroker_pb2.PutRequest(records=[databroker_pb2.Record(type="other", id="1")])
    code, _, reason = await failure(stub.Put(put, metadata=metadata("authenticate"), timeout=60))
    assert (code, reason) == (denied, "type-not-allowed")
    assert (await failure(stub.Put(put, metadata=metadata("proxy"), timeout=60)))[0] is denied


# -- errors


async def test_our_errors_keep_code_and_reason_and_show_the_public_text(
    bare: grpc.aio.Channel,
) -> None:
    stub = broker_stub(bare)
    call = stub.Get(databroker_pb2.GetRequest(id="missing"), metadata=metadata(), timeout=60)
    assert await failure(call) == (grpc.StatusCode.NOT_FOUND, "no record", "no-record")


async def test_an_error_inside_a_task_group_is_still_ours(bare: grpc.aio.Channel) -> None:
    stub = broker_stub(bare)
    call = stub.Get(databroker_pb2.GetRequest(id="group"), metadata=metadata(), timeout=60)
    assert await failure(call) == (grpc.StatusCode.ALREADY_EXISTS, "taken", "held")


async def test_the_unexpected_is_internal_without_details(bare: grpc.aio.Channel) -> None:
    stub = broker_stub(bare)
    internal = (grpc.StatusCode.INTERNAL, "internal error", "internal")
    call = stub.Get(databroker_pb2.GetRequest(id="crash"), metadata=metadata(), timeout=60)
    assert await failure(call) == internal
    stream = stub.Sync(databroker_pb2.SyncRequest(type="crash"), metadata=metadata(), timeout=60)
    assert await stream_failure(stream) == internal


async def test_a_handlers_own_abort_is_left_alone(bare: grpc.aio.Channel) -> None:
    call = broker_stub(bare).Get(
        databroker_pb2.GetRequest(id="abort"), metadata=metadata(), timeout=5
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.details() != "internal error"


async def test_messages_over_the_limit(bare: grpc.aio.Channel) -> None:
    record = databroker_pb2.Record(type="t", id="x" * (RECEIVE_LIMIT + 1))
    call = broker_stub(bare).Put(
        databroker_pb2.PutRequest(records=[record]), metadata=metadata(), timeout=20
    )
    assert (await failure(call))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


# -- health


async def test_health_check_needs_no_token_and_tells_the_truth(
    one: Replica, bare: grpc.aio.Channel
) -> None:
    health = health_pb2_grpc.HealthStub(bare)

    async def status(name: str) -> int:
        response = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=60)
        return int(response.status)

    for name in ("", "databroker", "pomerium-databroker"):
        assert await status(name) == Status.SERVING
    one.serving(False)
    for name in ("", "databroker", "pomerium-databroker"):
        assert await status(name) == Status.NOT_SERVING
    unknown = health.Check(health_pb2.HealthCheckRequest(service="authorize"), timeout=60)
    assert (await failure(unknown))[0] is grpc.StatusCode.NOT_FOUND
    one.serving()
    one.health.terminate()
    assert await status("databroker") == Status.NOT_SERVING


async def test_health_watch_follows_and_ends_with_the_server(
    one: Replica, bare: grpc.aio.Channel
) -> None:
    health = health_pb2_grpc.HealthStub(bare)
    watch = aiter(health.Watch(health_pb2.HealthCheckRequest(service="databroker"), timeout=20))
    other = aiter(health.Watch(health_pb2.HealthCheckRequest(service="nobody"), timeout=20))
    assert (await anext(watch)).status == Status.SERVING
    assert (await anext(other)).status == Status.SERVICE_UNKNOWN
    one.serving(False)
    assert (await anext(watch)).status == Status.NOT_SERVING
    one.serving()
    assert (await anext(watch)).status == Status.SERVING
    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        group.create_task(one.server.stop(20))
        assert [message.status async for message in watch] == [Status.NOT_SERVING]
        assert [message.status async for message in other] == []
    assert time.monotonic() - started < 10


async def test_a_watcher_that_leaves_is_forgotten(one: Replica, bare: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(bare)
    servicer = one.server._health_servicer
    watch = health.Watch(health_pb2.HealthCheckRequest(service=""), timeout=20)
    await watch.read()
    assert len(servicer._watchers) == 1
    watch.cancel()
    await until(lambda: not servicer._watchers)
    assert not one.health._subscribers


# -- reflection


async def test_reflection_needs_the_token_and_lists_what_is_served(
    bare: grpc.aio.Channel,
) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(bare)
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    assert (await stream_failure(stub.ServerReflectionInfo(iter([ask]), timeout=60)))[
        0
    ] is grpc.StatusCode.UNAUTHENTICATED
    call = stub.ServerReflectionInfo(iter([ask]), metadata=metadata("operator"), timeout=60)
    names = [
        service.name
        async for response in call
        for service in response.list_services_response.service
    ]
    assert names == [
        "databroker.DataBrokerService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "health.HealthNotifier",
    ]


# -- listening


async def test_unix_socket_is_private_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "grpc.sock"
    one = await start_replica(3, unix_socket=path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        response = await broker_stub(channel).ServerInfo(Empty(), metadata=metadata(), timeout=60)
        assert response.server_version == 3
    await one.server.stop(0)
    assert not path.exists()


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "grpc.sock"
    first = await start_replica(1, unix_socket=path)
    second = await start_replica(2, unix_socket=path)
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        response = await broker_stub(channel).ServerInfo(Empty(), metadata=metadata(), timeout=60)
        assert response.server_version == 2
    await first.server.stop(0)
    await second.server.stop(0)


async def test_an_address_in_use_is_noticed(one: Replica, tmp_path: Path) -> None:
    clock = SystemClock()
    taken = ListenAddress("127.0.0.1", one.port)
    server = GrpcServer(lambda: (SECRET,), HealthRegistry(clock), clock)
    with pytest.raises(OSError, match=rf"127\.0\.0\.1:{one.port}.*in use"):
        await server.start(unix_socket=None, address=taken)
    path = tmp_path / "grpc.sock"
    assert await server.start(unix_socket=path, address=taken, require_address=False) == 0
    assert path.exists()
    await server.stop(0)


async def test_every_interface(one: Replica) -> None:
    other = await start_replica(9, ip="")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{other.port}") as channel:
        response = await broker_stub(channel).ServerInfo(Empty(), metadata=metadata(), timeout=60)
        assert response.server_version == 9
    await other.server.stop(0)


# -- stopping


async def test_streams_that_watch_nothing_do_not_use_up_the_grace(
    one: Replica, bare: grpc.aio.Channel
) -> None:
    call = broker_stub(bare).Sync(databroker_pb2.SyncRequest(), metadata=metadata(), timeout=60)
    await call.read()
    await one.broker.entered.wait()
    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        group.create_task(one.server.stop(30))
        code, _, reason = await failure(call.read())
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "draining")
    assert time.monotonic() - started < 10
    assert one.broker.streams == 0


async def test_unary_calls_under_way_are_finished(one: Replica, bare: grpc.aio.Channel) -> None:
    call = broker_stub(bare).Get(
        databroker_pb2.GetRequest(id="wait"), metadata=metadata(), timeout=60
    )
    async with asyncio.TaskGroup() as group:
        answer = group.create_task(_awaited(call))
        await one.broker.entered.wait()
        stopping = group.create_task(one.server.stop(30))
        await asyncio.sleep(0.05)
        assert not stopping.done()
        one.broker.gate.set()
        assert (await answer).record.version == 7


async def test_the_grace_is_the_most_a_call_gets(one: Replica, bare: grpc.aio.Channel) -> None:
    call = broker_stub(bare).Get(
        databroker_pb2.GetRequest(id="wait"), metadata=metadata(), timeout=60
    )
    async with asyncio.TaskGroup() as group:
        answer = group.create_task(failure(call))
        await one.broker.entered.wait()
        await one.server.stop(0.2)
        assert (await answer)[0] is not grpc.StatusCode.OK


async def test_a_client_that_leaves_ends_its_stream(one: Replica, bare: grpc.aio.Channel) -> None:
    call = broker_stub(bare).Sync(databroker_pb2.SyncRequest(), metadata=metadata(), timeout=60)
    await call.read()
    await one.broker.entered.wait()
    call.cancel()
    await until(lambda: not one.broker.streams)
    assert not one.server._guard._streams


def test_what_handlers_put_in_order_is_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    """The loop ended in the middle of it, and gRPC printed a traceback."""
    brokers = []

    async def serve() -> None:
        one = await start_replica(1)
        brokers.append(one.broker)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{one.port}") as channel:
            request = databroker_pb2.GetRequest(id="linger")
            call = broker_stub(channel).Get(request, metadata=metadata(), timeout=60)
            async with asyncio.TaskGroup() as group:
                group.create_task(failure(call))
                await one.broker.entered.wait()
                await one.server.stop(0)
        await let_handlers_end()

    asyncio.run(serve())
    assert brokers[0].lingered
    assert "Traceback" not in capfd.readouterr().err


async def test_handlers_that_do_not_end_are_cancelled(one: Replica, bare: grpc.aio.Channel) -> None:
    call = broker_stub(bare).Get(
        databroker_pb2.GetRequest(id="linger"), metadata=metadata(), timeout=60
    )
    await one.broker.entered.wait()
    await let_handlers_end(0.5)
    assert one.broker.lingered
    call.cancel()


async def _awaited(call: Any) -> Any:
    return await call


@pytest.mark.parametrize(
    ("error", "is_told"),
    [
        (cygrpc.ExecuteBatchError("a message could not be sent"), False),
        (asyncio.CancelledError(), False),
        (RuntimeError("anything else"), True),
    ],
)
async def test_callers_that_go_away_are_no_news(
    one: Replica, caplog: pytest.LogCaptureFixture, error: BaseException, is_told: bool
) -> None:
    """gRPC itself logs them as errors, with a traceback."""
    del one  # a server of ours has been made
    cygrpc._LOGGER.error("raised by servicer method", exc_info=error)
    assert bool(caplog.records) == is_told
