"""Envoy as a child: killed, restarted, given up, drained, and never left behind."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from gatehouse.common.clock import SystemClock
from gatehouse.proxy.edge.envoy_process import EnvoyCommand, EnvoyProcess, usable_cpus
from gatehouse.proxy.errors import EnvoyGaveUpError
from tests.support.envoy import eventually, proxy, short_directory
from tests.support.raw_http import http1
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e


@pytest.fixture
def upstream() -> Iterator[EchoUpstream]:
    with EchoUpstream().running() as running:
        yield running


def config(url: str, **keys: Any) -> dict[str, Any]:
    return {
        "routes": [
            {
                "from": "http://app.example.com",
                "to": url,
                "allow_public_unauthenticated_access": True,
                **keys,
            }
        ]
    }


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


async def test_a_killed_envoy_is_started_again_with_its_configuration(upstream: EchoUpstream):
    async with proxy(config(upstream.url)) as running:
        first = running.envoy.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)

        async def back() -> bool:
            return running.envoy.starts == 2 and await running.admin.is_live()

        await eventually(back)
        assert running.exits == ["envoy was ended by SIGKILL"]
        assert running.envoy.pid != first
        assert (await http1(running.port)).status == 200


async def test_envoy_is_told_who_it_is_how_long_to_drain_and_what_it_may_hold(
    upstream: EchoUpstream,
):
    async with proxy(config(upstream.url)) as running:
        pid = running.envoy.pid
        assert pid is not None
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")  # noqa: ASYNC240
        after = dict(itertools.pairwise(words))
        assert after["--drain-time-s"] == "600"
        assert Path(after["--base-id-path"]).parent == running.run_dir
        dump = (await running.admin.config_dump())["configs"]
        (bootstrap,) = (each["bootstrap"] for each in dump if "bootstrap" in each)
        assert (bootstrap["node"]["id"], bootstrap["node"]["cluster"]) == ("pomerium", "pomerium")
        (runtime,) = bootstrap["layered_runtime"]["layers"]
        assert runtime["static_layer"] == {
            "re2.max_program_size.error_level": 1048576,
            "re2.max_program_size.warn_level": 1024,
            "tracing.opentelemetry.flush_interval_ms": 5000,
            "tracing.opentelemetry.min_flush_spans": 512,
        }
        assert bootstrap["admin"]["profile_path"] == "/dev/null"
        assert bootstrap["stats_config"]["stats_tags"] == [
            {"tag_name": "service", "fixed_value": "pomerium"}
        ]
        limits = [
            monitor["typed_config"].get("max_active_downstream_connections")
            for monitor in bootstrap["overload_manager"]["resource_monitors"]
        ]
        assert "50000" in limits


async def test_two_instances_on_one_machine_do_not_meet(upstream: EchoUpstream):
    async with proxy(config(upstream.url)) as one, proxy(config(upstream.url)) as two:
        assert (await http1(one.port)).status == 200
        assert (await http1(two.port)).status == 200
        assert one.envoy.pid != two.envoy.pid


async def test_nothing_is_left_in_shared_memory(upstream: EchoUpstream):
    before = set(Path("/dev/shm").glob("envoy_shared_memory_*"))  # noqa: ASYNC240
    async with proxy(config(upstream.url)) as running:
        base_id = running.envoy.command.base_id_path.read_text()
        os.kill(running.envoy.pid or 0, signal.SIGKILL)

        async def again() -> bool:
            return running.envoy.starts == 2 and await running.admin.is_live()

        await eventually(again)
    after = set(Path("/dev/shm").glob("envoy_shared_memory_*"))  # noqa: ASYNC240
    assert not {path for path in after - before if base_id in path.name}


def script(directory: Path, text: str) -> EnvoyCommand:
    binary = directory / "not-envoy"
    binary.write_text(f"#!/bin/sh\n{text}\n")
    binary.chmod(0o700)
    return EnvoyCommand(binary, directory / "bootstrap", directory, "info", 1)


class FastClock(SystemClock):
    """A clock by which everything happens at once; delays are still waited for."""

    def monotonic_s(self) -> float:
        return 0.0


async def test_it_gives_up_after_five_exits_in_a_short_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gatehouse.proxy.core.supervision.INITIAL_DELAY_S", 0.01)
    exits: list[str] = []
    process = EnvoyProcess(script(tmp_path, "exit 3"), FastClock(), on_exit=exits.append)
    with pytest.raises(EnvoyGaveUpError, match="ended 5 times within 5 minutes"):
        await process.run(asyncio.Event())
    assert exits == ["envoy exited with status 3"] * 5


async def test_a_stop_during_the_back_off_ends_at_once(tmp_path: Path):
    stop = asyncio.Event()
    process = EnvoyProcess(script(tmp_path, "exit 1"), SystemClock(), on_exit=lambda _: stop.set())
    async with asyncio.timeout(60):
        await process.run(stop)
    assert process.starts == 1


async def test_an_envoy_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gatehouse.proxy.edge.envoy_process._TERM_GRACE_S", 0.3)
    pid_file = tmp_path / "pid"
    command = script(tmp_path, f"trap '' TERM\necho $$ > {pid_file}\nwhile :; do sleep 0.1; done")
    stop = asyncio.Event()
    process = EnvoyProcess(command, SystemClock(), on_exit=lambda _: None)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(process.run(stop))

        async def written() -> bool:
            return pid_file.exists() and bool(pid_file.read_text().strip())

        await eventually(written)
        stop.set()
    assert not alive(int(pid_file.read_text()))
    assert process.pid is None


async def test_envoy_has_no_secrets_in_its_environment_and_a_group_of_its_own(
    upstream: EchoUpstream, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SHARED_SECRET", "must not leak")
    async with proxy(config(upstream.url)) as running:
        pid = running.envoy.pid
        assert pid is not None
        assert b"SHARED_SECRET" not in Path(f"/proc/{pid}/environ").read_bytes()  # noqa: ASYNC240
        assert os.getpgid(pid) == pid != os.getpgid(0)


PARENT = """
import asyncio, sys
from pathlib import Path
from gatehouse.common.clock import SystemClock
from gatehouse.proxy.edge.envoy_process import EnvoyCommand, EnvoyProcess
directory = Path(sys.argv[1])
command = EnvoyCommand(Path("/bin/sh"), directory / "bootstrap", directory, "info", 1)
class Sleeper(EnvoyCommand):
    def arguments(self):
        return ["-c", f"echo $$ > {directory}/pid; exec sleep 300"]
command = Sleeper(Path("/bin/sh"), directory / "bootstrap", directory, "info", 1)
asyncio.run(EnvoyProcess(command, SystemClock(), on_exit=print).run(asyncio.Event()))
"""


async def test_envoy_does_not_outlive_a_killed_parent(tmp_path: Path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, tmp_path])  # noqa: ASYNC220
    pid_file = tmp_path / "pid"

    async def written() -> bool:
        return pid_file.exists() and bool(pid_file.read_text().strip())

    try:
        await eventually(written)
        child = int(pid_file.read_text())
        assert alive(child)
    finally:
        parent.kill()
        parent.wait()

    async def gone() -> bool:
        return not alive(child)

    await eventually(gone)


async def test_draining_ends_keep_alive_and_leaves_open_streams(upstream: EchoUpstream):
    async def echo(websocket: Any) -> None:
        async for message in websocket:
            await websocket.send(message)

    async with serve(echo, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        routes = config(url, allow_websockets=True)["routes"] + [
            {**config(upstream.url)["routes"][0], "from": "http://b.example.com"}
        ]
        async with proxy({"routes": routes}) as running:
            assert await running.admin.active_requests() == 0
            async with connect(
                "ws://app.example.com/", host="127.0.0.1", port=running.port, proxy=None
            ) as client:
                await client.send("before")
                assert await client.recv() == "before"
                assert await running.admin.active_requests() == 1
                reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
                await running.admin.drain()
                for _ in range(1):
                    writer.write(b"GET / HTTP/1.1\r\nHost: b.example.com\r\n\r\n")
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert b"connection: close" in head
                writer.close()
                await client.send("after")
                assert await client.recv() == "after"
                assert await running.admin.active_requests() == 1

            async def quiet() -> bool:
                return await running.admin.active_requests() == 0

            await eventually(quiet)


def test_threads_are_those_that_are_asked_for_or_envoys_own_choice(tmp_path: Path):
    told = EnvoyCommand(tmp_path, tmp_path, tmp_path, "info", 3).arguments()
    assert told[told.index("--concurrency") + 1] == "3"
    assert (
        "--concurrency" not in EnvoyCommand(tmp_path, tmp_path, tmp_path, "info", None).arguments()
    )


def test_cpus():
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)


def test_the_short_directory_leaves_room_for_sockets():
    with short_directory() as directory:
        assert len(str(directory / "authenticate-http.sock")) < 100
