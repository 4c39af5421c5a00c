"""The life of a process: order of start and stop, crashes, signals, refused settings."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import grpc
import httpx
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gatehouse.common.runtime.process import run_directory
from tests.support.ports import free_ports

PROGRAM = """
import asyncio, os, sys
from pathlib import Path
from gatehouse.common.config.resolved import ServiceName
from gatehouse.common.runtime.process import ProcessOptions, run_process


class Part:
    def __init__(self, name, behaviour):
        self.name, self.behaviour = name, behaviour

    def register_grpc(self, server):
        print("registered", self.name, flush=True)

    async def run(self, stop, ready):
        if self.behaviour == "fails-to-start":
            raise RuntimeError("cannot start")
        print("running", self.name, flush=True)
        context.health.set_running({check!r}[self.name])
        ready()
        if self.behaviour == "crashes":
            await asyncio.sleep(0.05)
            raise RuntimeError("broken promise")
        if self.behaviour == "returns":
            return
        await stop.wait()
        if self.behaviour == "hangs":
            await asyncio.sleep(3600)
        print("stopped", self.name, flush=True)

    async def drain(self):
        print("drained", self.name, flush=True)


def builder(name):
    def build(made):
        global context
        context = made
        return Part(name, behaviours.get(name, ""))
    return build


behaviours = {behaviours!r}
builders = {{name: builder(str(name)) for name in ServiceName}}
sys.exit(run_process(ProcessOptions(Path(sys.argv[1]), os.environ, builders)))
"""

CHECKS = {
    "databroker": "storage.backend",
    "authorize": "authorize.service",
    "authenticate": "authenticate.service",
    "proxy": "proxy.service",
}


def start(tmp_path: Path, behaviours: dict[str, str], **environ: str) -> subprocess.Popen[str]:
    grpc_port, health_port = free_ports(2)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"grpc_address: 127.0.0.1:{grpc_port}\nhealth_check_addr: 127.0.0.1:{health_port}\n"
        "shutdown_grace: 3s\nshutdown_delay: 0s\n"
    )
    program = textwrap.dedent(PROGRAM).format(behaviours=behaviours, check=CHECKS)
    return subprocess.Popen(
        [sys.executable, "-c", program, str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ) | environ,
    )


def lines_until(process: subprocess.Popen[str], last: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if lines[-1] == last:
            return lines
    raise AssertionError(f"{last!r} did not come: {lines} {process.communicate(timeout=10)[1]}")


def wait_status(url: str, wanted: int) -> None:
    """Until the probe, which starts beside the services, answers so."""
    deadline = time.monotonic() + 10
    while True:
        with contextlib.suppress(httpx.ConnectError):
            if httpx.get(url, trust_env=False).status_code == wanted:
                return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finish(process: subprocess.Popen[str]) -> tuple[int, list[str], str]:
    output, errors = process.communicate(timeout=20)
    return process.returncode, output.split("\n")[:-1], errors


def test_order_of_start_and_stop(tmp_path: Path) -> None:
    process = start(tmp_path, {})
    begun = lines_until(process, "running proxy")
    order = ["databroker", "authorize", "authenticate", "proxy"]
    assert begun == [f"registered {name}" for name in order] + [f"running {n}" for n in order]
    process.send_signal(signal.SIGTERM)
    status, ended, errors = finish(process)
    assert status == 0, errors
    assert ended == [f"drained {name}" for name in order] + [f"stopped {n}" for n in order[::-1]]


@pytest.mark.parametrize("service", ["databroker", "proxy"])
def test_a_crashed_service_ends_the_process_with_its_traceback(
    tmp_path: Path, service: str
) -> None:
    status, _, errors = finish(start(tmp_path, {service: "crashes"}))
    assert status == 1
    assert "RuntimeError: broken promise" in errors
    assert "Traceback" in errors
    assert "service crashed" in errors


def test_a_service_that_cannot_start_ends_the_process(tmp_path: Path) -> None:
    status, output, errors = finish(start(tmp_path, {"authorize": "fails-to-start"}))
    assert status == 1
    assert "cannot start" in errors
    assert "running authenticate" not in output


def test_a_service_that_returns_by_itself_is_a_crash(tmp_path: Path) -> None:
    status, _, errors = finish(start(tmp_path, {"authenticate": "returns"}))
    assert status == 1
    assert "authenticate ended although it was not asked to stop" in errors


def test_a_service_that_hangs_is_given_up_within_the_grace(tmp_path: Path) -> None:
    process = start(tmp_path, {"authorize": "hangs"})
    lines_until(process, "running proxy")
    process.send_signal(signal.SIGTERM)
    status, _, errors = finish(process)
    assert status == 1
    assert "did not stop in time" in errors


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, {"databroker": "hangs"})
    lines_until(process, "running proxy")
    process.send_signal(signal.SIGINT)
    lines_until(process, "stopped authorize")
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 1


def test_a_stopping_process_is_not_ready_and_serves_until_callers_have_seen_it(
    tmp_path: Path,
) -> None:
    process = start(tmp_path, {}, SHUTDOWN_GRACE="60s", SHUTDOWN_DELAY="30s")
    lines_until(process, "running proxy")
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    wait_status(f"http://{settings['health_check_addr']}/healthz", 200)
    process.send_signal(signal.SIGTERM)
    lines_until(process, "drained proxy")
    wait_status(f"http://{settings['health_check_addr']}/readyz", 503)
    with grpc.insecure_channel(settings["grpc_address"]) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="pomerium-authorize"), timeout=10
        )
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    process.send_signal(signal.SIGTERM)
    status, ended, _ = finish(process)
    assert (status, ended) == (1, [])  # nothing had been stopped yet


def test_services_are_picked_by_the_settings(tmp_path: Path) -> None:
    process = start(
        tmp_path,
        {},
        SERVICES="databroker",
        SHARED_SECRET="MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    )
    assert lines_until(process, "running databroker") == [
        "registered databroker",
        "running databroker",
    ]
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 0


@pytest.mark.parametrize(
    "change", ["insecure_server: true", "grpc_insecure: false", "authorize_workers: 2"]
)
def test_what_only_a_restart_can_change_is_refused_and_named(tmp_path: Path, change: str) -> None:
    process = start(tmp_path, {})
    lines_until(process, "running proxy")
    config = tmp_path / "config.yaml"
    config.write_text(f"{config.read_text()}{change}\n")
    assert process.stderr is not None
    for line in process.stderr:
        if "cannot change while running" in line:
            assert change.partition(":")[0] in line
            break
    else:
        raise AssertionError("the change was not refused")
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 0


def test_the_time_for_the_end_follows_the_settings(tmp_path: Path) -> None:
    process = start(tmp_path, {})
    lines_until(process, "running proxy")
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("3s", "50s"))
    assert process.stderr is not None
    assert any("configuration applied" in line for line in iter(process.stderr.readline, ""))
    process.send_signal(signal.SIGTERM)
    (stopping,) = (line for line in finish(process)[2].splitlines() if "stopping" in line)
    assert json.loads(stopping)["grace_s"] == 50


def test_a_hang_up_reloads_where_files_are_not_watched(tmp_path: Path) -> None:
    process = start(tmp_path, {}, RUNTIME_FLAGS='{"config_hot_reload": false}')
    lines_until(process, "running proxy")
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("3s", "50s"))
    process.send_signal(signal.SIGHUP)
    assert process.stderr is not None
    assert any("configuration applied" in line for line in iter(process.stderr.readline, ""))
    process.send_signal(signal.SIGTERM)
    (stopping,) = (line for line in finish(process)[2].splitlines() if "stopping" in line)
    assert json.loads(stopping)["grace_s"] == 50


def test_a_taken_grpc_address_is_named(tmp_path: Path) -> None:
    first = start(tmp_path, {})
    lines_until(first, "running proxy")
    second = subprocess.run(first.args, capture_output=True, text=True, check=False, timeout=30)
    assert second.returncode == 2
    assert "grpc_address" in second.stderr
    first.send_signal(signal.SIGTERM)
    assert finish(first)[0] == 0


def test_run_directory_is_private_short_and_removed(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        with run_directory({"POMERIUM_SOCKET_DIRECTORY": short}) as path:
            assert path.parent == Path(short)
            assert path.stat().st_mode & 0o777 == 0o700
        assert not path.exists()
    long = tmp_path / ("x" * 90)
    long.mkdir()
    with run_directory({"POMERIUM_SOCKET_DIRECTORY": str(long)}) as path:
        assert len(str(path / "authenticate-http.sock")) < 108
