"""What processes report about themselves, for as long as they go on reporting it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from gatehouse.common.databroker.registration import report
from gatehouse.databroker.core.registry import MAX_REPORTED
from gatehouse.pb.registry_pb2 import (
    AUTHORIZE,
    CONSOLE,
    PROMETHEUS_METRICS,
    ListRequest,
    RegisterRequest,
    Service,
    ServiceKind,
    ServiceList,
)
from tests.integration.databroker.test_faults import client_of
from tests.support.databroker_client import until
from tests.support.storage import Served, StorageCase, served

PATIENCE_S = 60.0


@pytest.fixture
async def broker(case: StorageCase) -> AsyncIterator[Served]:
    async with served(case.storage) as made:
        yield made


def metrics(name: str) -> Service:
    return Service(kind=PROMETHEUS_METRICS, endpoint=f"http://{name}:9090/metrics")


async def listed(broker: Served, *kinds: ServiceKind.ValueType) -> list[Service]:
    answer = await broker.registry.List(ListRequest(kinds=kinds), timeout=PATIENCE_S)
    return list(answer.services)


async def test_services_are_listed_by_kind_until_they_fall_silent(
    case: StorageCase, broker: Served
) -> None:
    console = Service(kind=CONSOLE, endpoint="https://console.example.com")
    request = RegisterRequest(services=[metrics("b"), console, metrics("a"), metrics("a")])
    answer = await broker.registry.Report(request, timeout=PATIENCE_S)
    assert answer.call_back_after.ToSeconds() == 10
    assert await listed(broker) == [console, metrics("a"), metrics("b")]
    assert await listed(broker, PROMETHEUS_METRICS) == [metrics("a"), metrics("b")]
    assert await listed(broker, AUTHORIZE) == []
    # As far from the limit, 30 s, as can be: the database has its own clock, and a machine is slow.
    await case.age(14.0)
    await broker.registry.Report(RegisterRequest(services=[metrics("a")]), timeout=PATIENCE_S)
    assert len(await listed(broker)) == 3
    await case.age(17.0)
    assert await listed(broker) == [metrics("a")]
    await case.storage.prune(1 << 50, 1 << 50)
    assert await listed(broker) == [metrics("a")]


async def test_it_is_no_part_of_the_records(case: StorageCase, broker: Served) -> None:
    before = await case.storage.position()
    await broker.registry.Report(RegisterRequest(services=[metrics("a")]), timeout=PATIENCE_S)
    assert await case.storage.position() == before
    await case.storage.clear()
    assert await listed(broker) == [metrics("a")]


async def test_watching_sends_the_list_whenever_it_is_another_one(
    case: StorageCase, broker: Served
) -> None:
    seen: list[list[Service]] = []

    def note(answer: ServiceList) -> None:
        seen.append(list(answer.services))

    async def watch() -> None:
        async for answer in broker.registry.Watch(ListRequest(kinds=[PROMETHEUS_METRICS])):
            note(answer)

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch())
        await until(lambda: seen == [[]], PATIENCE_S)
        for name in ("a", "a", "b"):
            await broker.registry.Report(
                RegisterRequest(services=[metrics(name)]), timeout=PATIENCE_S
            )
        other = Service(kind=CONSOLE, endpoint="https://console.example.com")
        await broker.registry.Report(RegisterRequest(services=[other]), timeout=PATIENCE_S)
        await until(lambda: seen[-1] == [metrics("a"), metrics("b")], PATIENCE_S)
        await case.age(60.0)
        await until(lambda: seen[-1] == [], PATIENCE_S)
        assert seen in (
            [[], [metrics("a")], [metrics("a"), metrics("b")], []],
            [[], [metrics("a"), metrics("b")], []],
        )
        watching.cancel()


@pytest.mark.parametrize(
    ("services", "code"),
    [
        ([Service(endpoint="x")], grpc.StatusCode.INVALID_ARGUMENT),
        ([Service(kind=99, endpoint="x")], grpc.StatusCode.INVALID_ARGUMENT),  # type: ignore[arg-type]
        ([Service(kind=CONSOLE)], grpc.StatusCode.INVALID_ARGUMENT),
        ([Service(kind=CONSOLE, endpoint="a\0b")], grpc.StatusCode.INVALID_ARGUMENT),
        ([Service(kind=CONSOLE, endpoint="x" * 2_049)], grpc.StatusCode.INVALID_ARGUMENT),
        (
            [Service(kind=CONSOLE, endpoint=str(n)) for n in range(MAX_REPORTED + 1)],
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        ),
    ],
    ids=["no kind", "unknown kind", "no endpoint", "nul", "long", "many"],
)
async def test_reports_that_are_not_taken(
    broker: Served, services: list[Service], code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await broker.registry.Report(RegisterRequest(services=services), timeout=PATIENCE_S)
    assert caught.value.code() is code
    assert await listed(broker) == []


async def test_a_process_reports_where_its_metrics_are(broker: Served) -> None:
    """Over a channel and with credentials as processes have them."""
    async with client_of(broker.port) as client:
        channel = client._channel
        assert await report(channel, "http://a:9090/metrics") == 10.0
    assert await listed(broker) == [metrics("a")]
