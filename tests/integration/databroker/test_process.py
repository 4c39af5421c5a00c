"""A databroker process as operators see it: metrics, checks, registry, and what it says."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from gatehouse.common.errors import GatehouseError
from gatehouse.common.ids import TypeUrl
from gatehouse.pb.databroker_pb2 import Record
from gatehouse.pb.registry_pb2 import PROMETHEUS_METRICS, ListRequest
from gatehouse.pb.registry_pb2_grpc import RegistryStub
from gatehouse.pb.user_pb2 import User
from tests.integration.databroker.test_faults import client_of
from tests.support.databroker_process import DatabrokerProcess
from tests.support.ports import free_ports
from tests.support.postgres import fresh_database
from tests.support.storage import SECRET

TYPE = TypeUrl("t")
PATIENCE_S = 120.0  # a process that starts on a busy machine takes its time


@pytest.fixture
def connection(backend: str, tmp_path: Path) -> Iterator[str]:
    with ExitStack() as stack:
        match backend:
            case "postgres":
                yield stack.enter_context(fresh_database())
            case "file":
                yield str(tmp_path / "store")
            case _:
                yield ""


async def eventually(ask: Any) -> Any:
    """Return the first answer that is something, asked again and again."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                found = await ask()
            except (GatehouseError, httpx.HTTPError):
                found = None
            if found:
                return found
            await asyncio.sleep(0.05)


def samples(page: str) -> dict[str, float]:
    """Values by name, added up over all labels."""
    found: dict[str, float] = {}
    for name, value in re.findall(r"^(\w+)(?:\{.*\})? (\S+)$", page, re.MULTILINE):
        found[name] = found.get(name, 0.0) + float(value)
    return found


async def test_what_operators_can_read(backend: str, connection: str, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    process = DatabrokerProcess(
        backend,
        connection,
        tmp_path,
        SECRET,
        metrics_address=f"127.0.0.1:{port}",
        shutdown_delay="0s",
    )
    with process.running():
        async with client_of(process.port) as client, httpx.AsyncClient() as http:
            await eventually(client.server_info)
            await client.put([record("a")])

            async def read() -> dict[str, float]:
                page = await http.get(f"http://127.0.0.1:{port}/metrics")
                return samples(page.text)

            found = await eventually(read)
            assert found["pomerium_storage_operation_duration_ms_count"] >= 1
            assert found["pomerium_storage_pebble_checkpoint_record_version"] == 0
            assert ("pomerium_storage_file_size_bytes" in found) == (backend == "file")
            assert ("pomerium_pgxpool_acquires_total" in found) == (backend == "postgres")
            if backend == "file":
                assert found["pomerium_storage_file_size_bytes"] > 0
                assert found["pomerium_storage_file_wal_size_bytes"] > 0
            if backend == "postgres":
                assert found["pomerium_pgxpool_acquires_total"] > 1
                assert found["pomerium_pgxpool_new_connections_total"] >= 1
                assert found["pomerium_pgxpool_max_connections"] >= 4
                shares = ("idle", "acquired")
                assert found["pomerium_pgxpool_total_connections"] == sum(
                    found[f"pomerium_pgxpool_{share}_connections"] for share in shares
                )
                assert found["pomerium_pgxpool_acquire_duration_nanoseconds_total"] >= 0
                assert found["pomerium_pgxpool_canceled_acquires_total"] == 0
                assert found["pomerium_pgxpool_empty_acquire_total"] >= 1

            status = f"http://127.0.0.1:{process.probes}"
            expected = {"storage.backend"}
            if backend == "postgres":
                expected |= {"storage.backend.cleanup", "storage.backend.notifications"}
            assert await eventually(lambda: is_ready(http, status))
            answer = json.loads((await http.get(f"{status}/status")).text)
            assert set(answer["checks"]) == expected

            stub = RegistryStub(await client._channel.ready_channel(PATIENCE_S))

            async def listed() -> list[Any]:
                return list((await stub.List(ListRequest(), timeout=10)).services)

            (service,) = await eventually(listed)
            assert service.kind == PROMETHEUS_METRICS
            assert service.endpoint == f"http://127.0.0.1:{port}/metrics"


async def is_ready(http: httpx.AsyncClient, status: str) -> bool:
    return (await http.get(f"{status}/readyz")).status_code == 200


def record(id_: str, name: str = "") -> Record:
    made = Record(type=TYPE, id=id_)
    made.data.Pack(User(id=id_, name=name))
    return made


CLIENT = """
import asyncio, sys
from gatehouse.common.errors import GatehouseError
from gatehouse.pb.databroker_pb2 import CopyPlace
from tests.integration.databroker.test_faults import client_of

async def main():
    async with client_of(int(sys.argv[1])) as client:
        info = await client.server_info()

        async def follow(read_s):
            position = (info.server_version, 0)
            async for _ in client.sync(*position, "t", heartbeat_s=0.1, batches=True):
                await asyncio.sleep(read_s)

        async def copy():
            while True:
                async for _ in client.sync_latest("t", after=CopyPlace()):
                    pass

        async def write():
            while True:
                await client.put([])

        async def until_it_ends(work):
            try:
                await work
            except GatehouseError:
                pass

        work = [follow(0.0), follow(0.0), follow(3600.0), copy(), write(), write()]
        tasks = [asyncio.create_task(until_it_ends(one)) for one in work]
        print("busy", flush=True)
        await asyncio.gather(*tasks)

asyncio.run(main())
"""


@pytest.mark.parametrize("kills", [False, True], ids=["stays", "vanishes"])
async def test_stopping_under_its_clients_is_no_error(kills: bool, tmp_path: Path) -> None:
    """Streams that are open, read slowly or being written, calls under way: not one line of it."""
    process = DatabrokerProcess(
        "memory", "", tmp_path, SECRET, shutdown_delay="0s", shutdown_grace="5s"
    )
    with process.running():
        async with client_of(process.port) as client:
            await eventually(client.server_info)
            for start in range(0, 200, 20):
                await client.put([record(f"{start + n}", "x" * 20_000) for n in range(20)])
        peers = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", CLIENT, str(process.port)),
                cwd=Path(__file__).parents[3],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            for _ in range(2)
        ]
        try:
            for peer in peers:
                assert peer.stdout is not None
                assert await asyncio.wait_for(peer.stdout.readline(), PATIENCE_S) == b"busy\n"
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.to_thread(process.stop))
                if kills:
                    for peer in peers:
                        peer.kill()
        finally:
            for peer in peers:
                if peer.returncode is None:
                    peer.kill()
                await peer.wait()
    said = process.said()
    assert '"message": "stopped"' in said
    assert "Traceback" not in said, said[-3000:]
    assert '"level": "error"' not in said, said[-3000:]
