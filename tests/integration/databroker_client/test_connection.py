"""A service's databroker connection follows the settings while it is used."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.config.hub import ConfigHub
from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.resolved import ServiceName
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.connection import DatabrokerConnection, databroker_target
from gatehouse.common.errors import GatehouseError
from gatehouse.common.ids import SESSION
from gatehouse.common.rpc.service_connection import Called, target_of
from gatehouse.common.runtime.context import ProcessContext
from gatehouse.common.runtime.health import HealthRegistry
from tests.support.rpc import SECRET, start_replica
from tests.support.web_settings import settings

CLOCK = SystemClock()


def made(*urls, **changes):
    plain = settings(
        services=frozenset({ServiceName.AUTHENTICATE}), databroker_urls=tuple(urls), **changes
    )
    return dataclasses.replace(plain, shared_secrets=(SECRET,))


def context_of(first, tmp_path):
    return ProcessContext(
        config=ConfigHub(first),
        health=HealthRegistry(CLOCK),
        clock=CLOCK,
        rng=SystemRng(),
        run_dir=tmp_path,
        grace_s=1.0,
    )


def test_quiet_connections_to_the_databroker_are_looked_after_unless_a_flag_says_no(tmp_path):
    here = made("http://127.0.0.1:1")
    context = context_of(here, tmp_path)
    assert databroker_target(context, here).keepalive
    flags = {**here.settings.runtime_flags, "grpc_databroker_keepalive": False}
    without = here.settings.model_copy(update={"runtime_flags": flags})
    left_alone = dataclasses.replace(here, settings=without)
    assert not databroker_target(context, left_alone).keepalive
    # Other services are none of the flag's business.
    called = Called(ServiceName.AUTHORIZE, "authorize_service_url", lambda _: ("http://z",), "z")
    assert target_of(called, context, left_alone).keepalive


async def test_calls_move_with_the_url_and_an_open_stream_is_told(tmp_path):
    old, new = await start_replica(1), await start_replica(2)
    old.serving()
    new.serving()
    first = made(f"http://127.0.0.1:{old.port}")
    context = context_of(first, tmp_path)
    connection = DatabrokerConnection(context, "authenticate", close_grace_s=0.2)
    context.config.join("test", connection.prepare)
    client = DatabrokerClient(connection)
    stop = asyncio.Event()
    ended: list[GatehouseError] = []

    async def follow() -> None:
        try:
            async for _ in client.sync(1, 1, SESSION, None):
                opened.set()
        except GatehouseError as error:
            ended.append(error)

    opened = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(connection.run(stop))
            assert (await client.server_info()).server_version == 1
            stream = tasks.create_task(follow())
            await opened.wait()
            await context.config.apply(made(f"http://127.0.0.1:{new.port}"))
            assert (await client.server_info()).server_version == 2
            async with asyncio.timeout(60):
                await stream
            assert len(ended) == 1
            await context.config.apply(made(f"http://127.0.0.1:{new.port}"))
            assert (await client.server_info()).server_version == 2
            stop.set()
    finally:
        await old.server.stop(0)
        await new.server.stop(0)


async def test_nothing_to_talk_to_is_a_configuration_error(tmp_path):
    context = context_of(made(), tmp_path)
    with pytest.raises(ConfigError, match="databroker_service_url"):
        DatabrokerConnection(context, "authenticate")


async def test_a_process_with_a_databroker_uses_its_own(tmp_path):
    own = made("http://elsewhere.example:5443")
    own = dataclasses.replace(own, services=frozenset(ServiceName))
    target = databroker_target(context_of(own, tmp_path), own)
    assert target.urls == (f"unix://{tmp_path / 'grpc.sock'}",)


async def test_every_address_family_is_used_unless_one_is_chosen(tmp_path):
    unset = made("http://a.example")
    context = context_of(unset, tmp_path)
    assert databroker_target(context, unset).resolution.lookup_family == ""
    chosen = made("http://a.example", dns_lookup_family="V6_ONLY")
    assert databroker_target(context, chosen).resolution.lookup_family == "V6_ONLY"
