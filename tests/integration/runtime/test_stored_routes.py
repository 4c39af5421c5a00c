"""A real databroker's routes reach the configuration in force, bounded, and outlive an outage."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from structlog.testing import capture_logs

from gatehouse.common.config.hub import Commit, ConfigHub
from gatehouse.common.config.resolve import load_and_resolve
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.config.route_records import ROUTE
from gatehouse.common.config.watch import ConfigWatcher
from gatehouse.common.databroker.records import record_of
from gatehouse.common.observability.metrics import CONFIG_DB_ERRORS
from gatehouse.common.runtime.context import ProcessContext
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.common.runtime.stored_routes import CHECK, RecordFollower, StoredRecords
from gatehouse.pb import config_pb2
from gatehouse.pb.databroker_pb2 import Record
from tests.support.configuration import CERTIFICATE, KEY, LOGIN
from tests.support.databroker_client import (
    CLOCK,
    SECRET,
    QuickRng,
    client_of,
    databroker,
    until,
)


@dataclass
class Site:
    """A process's configuration, as its parts see it."""

    context: ProcessContext
    follower: RecordFollower
    path: Path
    applied: list[ResolvedSettings] = field(default_factory=list)

    def hosts(self) -> set[str]:
        return {str(route.from_url.host) for route in self.context.config.current.routes}

    def shown(self) -> dict[str, str]:
        return dict(self.context.health.snapshot().records[CHECK].attributes)


@contextlib.asynccontextmanager
async def site(folder: Path, **bounds: int) -> AsyncIterator[Site]:
    """All services' settings, and a databroker at the process's own socket if there is one."""
    path = folder / "config.yaml"
    (folder / "cert.pem").write_bytes(CERTIFICATE)
    (folder / "key.pem").write_bytes(KEY)
    path.write_text(LOGIN.replace("/tls/", f"{folder}/"))
    stored = StoredRecords()

    environ = {"SHARED_SECRET": base64.b64encode(SECRET).decode()}

    def load() -> Any:
        return load_and_resolve(path, environ, random_secret=lambda: SECRET, records=stored.records)

    hub = ConfigHub(load()[0])
    context = ProcessContext(hub, HealthRegistry(CLOCK), CLOCK, QuickRng(), folder, 5.0)
    made: list[Site] = []

    def on_applied(new: ResolvedSettings) -> None:
        made[0].applied.append(new)
        made[0].follower.applied(new)

    problems: list[Exception] = []
    watcher = ConfigWatcher(
        hub, path=path, load=load, on_error=problems.append, on_applied=on_applied, poll_s=0.05
    )
    made.append(
        Site(context, RecordFollower(context, stored, watcher.request_reload, **bounds), path)
    )
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watcher.run(stop))
        tasks.create_task(made[0].follower.run(stop))
        try:
            yield made[0]
        finally:
            stop.set()
    assert problems == []


def route(name: str, **keys: Any) -> Record:
    given = {"from": f"https://{name}.example.com", "to": ["http://up"], **keys}
    message = json_format.ParseDict(
        {"allowAnyAuthenticatedUser": True, **given}, config_pb2.Route()
    )
    return record_of(message, name)


async def test_routes_come_go_and_outlive_the_databroker(tmp_path: Path) -> None:
    socket = tmp_path / "grpc.sock"
    async with site(tmp_path) as here:
        own = here.hosts()
        async with databroker(socket), client_of(socket) as client:
            await client.put([route("one"), route("two")])
            both = own | {"one.example.com", "two.example.com"}
            await until(lambda: here.hosts() == both)
            await client.delete(ROUTE, "one")
            await until(lambda: here.hosts() == own | {"two.example.com"})
        # Nobody answers now; the file still counts.
        here.path.write_text(here.path.read_text() + "log_level: error\n")
        await until(lambda: here.context.config.current.settings.log_level == "error")
        assert here.hosts() == own | {"two.example.com"}


async def test_routes_written_together_make_one_reload(tmp_path: Path) -> None:
    socket = tmp_path / "grpc.sock"
    async with databroker(socket), client_of(socket) as client, site(tmp_path) as here:
        await client.put([route(f"n{number}") for number in range(200)])
        await until(lambda: len(here.hosts()) >= 200)
        assert len(here.applied) <= 2


async def test_what_is_wrong_is_told_once_and_on_the_status_page(tmp_path: Path) -> None:
    socket = tmp_path / "grpc.sock"
    with capture_logs() as logs:
        async with databroker(socket), client_of(socket) as client, site(tmp_path) as here:
            await client.put([route("bad", to=["nonsense"]), route("good")])
            await until(lambda: "good.example.com" in here.hosts())
            await client.put([route("later")])
            await until(lambda: "later.example.com" in here.hosts())
            assert here.shown()["left_out"] == "1"
            assert "Route bad.to" in here.shown()["reasons"]
            assert CONFIG_DB_ERRORS.labels("databroker")._value.get() == 1
            assert here.context.health.snapshot().records[CHECK].healthy
            await client.delete(ROUTE, "bad")
            await until(lambda: here.shown()["left_out"] == "0")
    told = [line for line in logs if line["event"] == "stored route"]
    assert [line["log_level"] for line in told] == ["error"]
    assert "Route bad.to" in told[0]["issue"]


@pytest.mark.parametrize("bounds", [{"max_records": 2}, {"max_bytes": 100}])
async def test_too_many_records_change_nothing(tmp_path: Path, bounds: dict[str, int]) -> None:
    socket = tmp_path / "grpc.sock"
    with capture_logs() as logs:
        async with (
            databroker(socket),
            client_of(socket) as client,
            site(tmp_path, **bounds) as here,
        ):
            await client.put([route("one"), route("two")])
            await until(lambda: "two.example.com" in here.hosts())
            before = here.context.config.current
            await client.put([route("three"), route("four")])
            await until(lambda: here.shown()["refused"])
            assert here.context.config.current is before
            assert CONFIG_DB_ERRORS.labels("databroker")._value.get() == -1
            await client.delete(ROUTE, "three")
            await client.delete(ROUTE, "one")
            await until(lambda: "four.example.com" in here.hosts())
            assert here.shown()["refused"] == ""
    assert sum("too many" in line["event"] for line in logs) == 1


async def test_a_route_that_a_service_refuses_blocks_no_reload(tmp_path: Path) -> None:
    socket = tmp_path / "grpc.sock"
    async with databroker(socket), client_of(socket) as client, site(tmp_path) as here:

        async def prepare(new: ResolvedSettings) -> Commit:
            for each in new.routes:
                if each.upstreams and each.from_url.host == "poison.example.com":
                    raise ValueError("cannot be built")
            return lambda: None

        here.context.config.join("a service", prepare)
        await client.put([route("poison"), route("good")])
        await until(lambda: "good.example.com" in here.hosts())
        here.path.write_text(here.path.read_text() + "log_level: error\n")
        await until(lambda: here.context.config.current.settings.log_level == "error")
        assert here.hosts() >= {"poison.example.com", "good.example.com"}
        (refused,) = (
            each
            for each in here.context.config.current.routes
            if each.from_url.host == "poison.example.com"
        )
        assert refused.settings.response is not None
        assert refused.settings.response.status == 503
        assert here.shown()["left_out"] == "1"
        assert "cannot be built" in here.shown()["reasons"]
        await client.delete(ROUTE, "poison")
        await until(lambda: here.shown()["left_out"] == "0")
        assert "poison.example.com" not in here.hosts()


async def test_r60_a_record_changes_no_setting_and_reads_no_file(tmp_path: Path) -> None:
    socket = tmp_path / "grpc.sock"
    async with databroker(socket), client_of(socket) as client, site(tmp_path) as here:
        secret = tmp_path / "secret.pem"
        secret.write_bytes(CERTIFICATE)
        before = here.context.config.current
        # Field 3 of Config is for global settings; its field 2 is the log level.
        config = config_pb2.Config()
        config.MergeFromString(b"\x1a\x07\x12\x05debug")
        reader = route("reader", tlsCustomCaFile=str(secret))
        await client.put([record_of(config, "x"), reader, route("last")])
        await until(lambda: "last.example.com" in here.hosts())
        now = here.context.config.current
        assert now.settings.without_routes() == before.settings.without_routes()
        assert secret not in now.watched_files
        (stand_in,) = (one for one in now.routes if one.from_url.host == "reader.example.com")
        assert stand_in.is_stored
        assert {issue.key for issue in now.left_out} == {
            "Config x settings",
            "Route reader.tls_custom_ca_file",
        }
