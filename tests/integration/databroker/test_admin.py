"""What operators may ask of a databroker, who else may not, and what it does to clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.empty_pb2 import Empty
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gatehouse.common.clock import SystemClock
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.databroker.core.options import TypeRules
from gatehouse.pb import (
    access_times_pb2,
    databroker_admin_pb2,
    databroker_pb2,
    health_pb2,
    registry_pb2,
)
from gatehouse.pb.databroker_admin_pb2 import ChangeServerVersionRequest, StatusRequest
from gatehouse.pb.user_pb2 import User
from tests.support.storage import Served, StorageCase, incoming, secrets, served

USER = "type.googleapis.com/user.User"
SERVICES: dict[str, ServiceDescriptor] = {
    service.full_name: service
    for file in (
        *(databroker_pb2, access_times_pb2, databroker_admin_pb2),
        *(health_pb2, registry_pb2),
    )
    for service in file.DESCRIPTOR.services_by_name.values()
}


@pytest.fixture
async def broker(case: StorageCase) -> AsyncIterator[Served]:
    async with served(case.storage) as made:
        yield made


async def test_status_says_where_the_store_stands(case: StorageCase, broker: Served) -> None:
    await case.put(*(incoming(USER, f"u{n}", User(id=f"u{n}")) for n in range(3)))
    await case.storage.set_options(USER, TypeRules(capacity=10))
    answer = await broker.admin.Status(StatusRequest(), timeout=60)
    position = await case.storage.position()
    assert answer.storage == case.storage.name
    assert answer.server_version == position.server_version
    assert (answer.earliest_record_version, answer.latest_record_version) == (1, 3)
    assert [(one.typeURL, one.options.capacity) for one in answer.options] == [(USER, 10)]


async def test_another_server_version_makes_clients_copy_anew(
    case: StorageCase, broker: Served
) -> None:
    await case.put(incoming(USER, "u1", User(id="u1")))
    await case.storage.put_access_times({(USER, "u1"): 1_000_000})
    before = await case.storage.position()
    stream = broker.stub.Sync(
        databroker_pb2.SyncRequest(
            server_version=before.server_version, record_version=before.latest, type=USER
        ),
        timeout=30,
    )
    await stream.initial_metadata()
    answer = await broker.admin.ChangeServerVersion(ChangeServerVersionRequest(), timeout=60)
    assert answer.old_server_version == before.server_version
    assert answer.new_server_version not in {0, before.server_version}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert caught.value.code() is grpc.StatusCode.ABORTED
    record = await case.storage.get(USER, "u1")
    assert record is not None
    assert record.version == before.latest
    assert await case.storage.access_times(USER, ["u1"])
    after = await case.storage.position()
    assert (after.server_version, after.latest) == (answer.new_server_version, before.latest)
    (put,) = await case.put(incoming(USER, "u2", User(id="u2")))
    assert put.version == before.latest + 1
    page = await case.storage.changes(before.latest, limit=10)
    assert [change.id for change in page.changes] == ["u2"]


# -- who may


def methods() -> Iterator[tuple[str, bool]]:
    """Every method of the databroker's services, and whether it answers with a stream."""
    for service in SERVICES.values():
        for method in service.methods:
            yield f"/{service.full_name}/{method.name}", method.server_streaming


async def code_of(channel: grpc.aio.Channel, path: str, streaming: bool, metadata: Any) -> Any:
    make: Any = channel.unary_stream if streaming else channel.unary_unary
    call = make(path)(b"", metadata=metadata, timeout=60)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call.read() if streaming else call)
    return caught.value.code()


async def test_r47_the_services_tried_here_are_all_that_are_served(broker: Served) -> None:
    credentials = ServiceCredentials("operator", secrets, SystemClock())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{broker.port}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        answers = stub.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="*")]),
            metadata=credentials.metadata("databroker"),
            timeout=60,
        )
        names = [
            one.name async for found in answers for one in found.list_services_response.service
        ]
    others = {name for name in names if name.startswith("grpc.")}
    assert set(names) - others == set(SERVICES)


async def test_r47_every_method_denies_anonymous(broker: Served) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{broker.port}") as channel:
        for path, streaming in methods():
            code = await code_of(channel, path, streaming, ())
            assert code is grpc.StatusCode.UNAUTHENTICATED, path


@pytest.mark.parametrize("subject", ["proxy", "authorize", "authenticate", "stranger"])
async def test_r39_no_other_service_may_do_what_operators_do(broker: Served, subject: str) -> None:
    metadata = ServiceCredentials(subject, secrets, SystemClock()).metadata("databroker")
    admin = SERVICES["gatehouse.databroker.Admin"]
    paths = [f"/{admin.full_name}/{method.name}" for method in admin.methods]
    paths += [f"/databroker.DataBrokerService/{name}" for name in ("Clear", "SetOptions")]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{broker.port}") as channel:
        for path in paths:
            code = await code_of(channel, path, False, metadata)
            assert code is grpc.StatusCode.PERMISSION_DENIED, path


async def test_r39_our_own_services_are_for_callers_with_a_name(broker: Served) -> None:
    """The plain token, which Envoy shows with every check, opens none of them."""
    credentials = ServiceCredentials("operator", secrets, SystemClock())
    metadata = (("jwt", credentials.service_jwt()),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{broker.port}") as channel:
        for path, streaming in methods():
            if path.startswith("/gatehouse."):
                code = await code_of(channel, path, streaming, metadata)
                assert code is grpc.StatusCode.PERMISSION_DENIED, path
        stub = broker.stub.__class__(channel)
        assert await stub.ServerInfo(Empty(), metadata=metadata, timeout=60)


async def test_r39_a_token_for_authorize_opens_nothing_here(broker: Served) -> None:
    metadata = ServiceCredentials("operator", secrets, SystemClock()).metadata("authorize")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{broker.port}") as channel:
        for path, streaming in methods():
            if path.startswith("/health."):
                continue  # every process has it, for holders of any of these tokens
            code = await code_of(channel, path, streaming, metadata)
            assert code is grpc.StatusCode.UNAUTHENTICATED, path
