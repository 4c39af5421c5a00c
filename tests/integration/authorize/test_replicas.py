"""Several authorize replicas: what is changed through one databroker is decided by everywhere."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from gatehouse.common.config.resolved import ServiceName
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.records import tombstone_of
from gatehouse.common.ids import SERVICE_ACCOUNT, SESSION, USER
from gatehouse.databroker.service import build as build_databroker
from gatehouse.pb.databroker_pb2 import Record
from tests.integration.authorize.conftest import (
    Checker,
    Node,
    running_authorize,
    writer_to,
)
from tests.support.check import (
    SECRET,
    check_request,
    handle_token,
    resolved_settings,
    route,
    status_of,
)
from tests.support.policy import (
    policy_of,
    service_account_record,
    session_record,
    user_record,
)
from tests.support.postgres import fresh_database

STAFF = policy_of("allow: {or: [{domain: example.com}]}")
LATEST_S = 60.0  # on a busy machine; the measured figures are the bench's


@contextmanager
def storage(kind: str) -> Iterator[str]:
    """The connection string of a store of this kind; "" for memory."""
    if kind == "memory":
        yield ""
    else:
        with fresh_database() as dsn:
            yield dsn


@asynccontextmanager
async def databroker(directory: Path, dsn: str) -> AsyncIterator[Node]:
    settings = resolved_settings(
        services=frozenset({ServiceName.DATABROKER}),
        databroker_storage_type="postgres" if dsn else "memory",
    )
    node = Node(dataclasses.replace(settings, databroker_connection=dsn), directory)
    async with node.running(build_databroker):
        yield node


@pytest.fixture(params=["memory", "postgres"])
async def site(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[DatabrokerClient, list[Checker]]]:
    """Two replicas of authorize; with PostgreSQL each at a databroker of its own."""
    with storage(request.param) as dsn:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(databroker(tmp_path / "d1", dsn))
            second = first
            if dsn:
                second = await stack.enter_async_context(databroker(tmp_path / "d2", dsn))
            client = await stack.enter_async_context(writer_to(first.port))
            await client.put(
                [
                    user_record("u1", "ann@example.com"),
                    session_record("s1", "u1", expires_at_s=4_000_000_000),
                    service_account_record("robot", "u1"),
                ]
            )
            replicas = [
                await stack.enter_async_context(
                    running_authorize(
                        tmp_path / f"a{number}",
                        resolved_settings(
                            route(STAFF), databroker_urls=(f"http://127.0.0.1:{broker.port}",)
                        ),
                    )
                )
                for number, broker in enumerate((first, second))
            ]
            yield client, replicas


async def decided(replica: Checker, name: str) -> int:
    token = handle_token(SECRET, name, idp_id="idp-1", use="api")
    request = check_request(headers={"authorization": f"Pomerium {token}"})
    return status_of(await replica.check(request))


async def everywhere(replicas: list[Checker], name: str, status: int) -> None:
    """Until every replica decides so."""
    async with asyncio.timeout(LATEST_S):
        for replica in replicas:
            while await decided(replica, name) != status:
                pass


async def change(client: DatabrokerClient, *records: Record) -> None:
    await client.put(list(records))


async def test_r44_what_is_deleted_is_refused_by_all_replicas(
    site: tuple[DatabrokerClient, list[Checker]],
) -> None:
    client, replicas = site
    for name, type_url in (("s1", SESSION), ("robot", SERVICE_ACCOUNT)):
        await everywhere(replicas, name, 200)
        await change(client, tombstone_of(type_url, name, now_s=1_900_000_000))
        await everywhere(replicas, name, 401)


async def test_r43_r44_a_changed_or_removed_user_is_decided_anew_by_all_replicas(
    site: tuple[DatabrokerClient, list[Checker]],
) -> None:
    client, replicas = site
    await everywhere(replicas, "s1", 200)
    await change(client, user_record("u1", "ann@elsewhere.example"))
    await everywhere(replicas, "s1", 403)
    await change(client, user_record("u1", "ann@example.com"))
    await everywhere(replicas, "s1", 200)
    await change(client, tombstone_of(USER, "u1", now_s=1_900_000_000))
    await everywhere(replicas, "s1", 403)
