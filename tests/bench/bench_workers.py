"""Checks per second of the authorize command with one worker and with two.

The load comes from a process of its own that only moves bytes; what it takes of the machine's CPUs
is missing to the workers, so on a machine of two CPUs the gain is below two.
"""

from __future__ import annotations

import asyncio
import base64
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.config.resolve import load_and_resolve
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.extauthz_context import DATABROKER_SERVICE
from gatehouse.common.rpc.channel import BalancedChannel
from gatehouse.common.rpc.credentials import ServiceCredentials
from tests.bench.bench_check import HEADERS, POLICY
from tests.bench.figures import Figure
from tests.support.check import SECRET, CheckResponse, check_request, handle_token, is_allowed
from tests.support.policy import directory_user_record, session_record, user_record
from tests.support.ports import free_ports

NAME = "workers"
SECONDS = 3.0
CONNECTIONS = 8
IN_FLIGHT = 4  # of each connection
SERVING = health_pb2.HealthCheckResponse.SERVING
CHECK = "/envoy.service.auth.v3.Authorization/Check"


def records() -> list[Any]:
    claims = {"family_name": ["Smith"], "roles": ["a", "b"]}
    return [
        session_record("session-0", "u0", claims=claims, expires_at_s=4_000_000_000),
        user_record("u0", "u0@example.com", claims={"dept": ["x"]}),
        directory_user_record("u0", group_ids=["g1", "g2"]),
    ]


@contextmanager
def running(directory: Path, workers: int) -> Iterator[tuple[int, str]]:
    """Databroker and authorize; the port of authorize and the id of its route."""
    broker_port, port, *probes = free_ports(4)
    config = directory / "config.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "shared_secret": base64.b64encode(SECRET).decode(),
                "authenticate_service_url": "https://authenticate.example.com",
                "grpc_insecure": True,
                "databroker_service_url": f"http://127.0.0.1:{broker_port}",
                "authorize_workers": workers,
                "routes": [
                    {
                        "from": "https://app.example.com",
                        "to": "http://127.0.0.1:1",
                        "pass_identity_headers": True,
                        "policy": yaml.safe_load(POLICY),
                    }
                ],
            }
        )
    )
    settings, _ = load_and_resolve(config, {"SERVICES": "authorize"}, random_secret=lambda: SECRET)
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name, at, probe in zip(
            ("databroker", "authorize"), (broker_port, port), probes, strict=True
        ):
            command = [sys.executable, "-m", f"gatehouse.{name}", "--config", str(config)]
            environment = {
                **os.environ,
                "GRPC_ADDRESS": f"127.0.0.1:{at}",
                "HEALTH_CHECK_ADDR": f"127.0.0.1:{probe}",
            }
            started.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
        _wait_until_listening(broker_port)
        asyncio.run(_fill(broker_port))
        yield port, settings.routes[0].id
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(20)


def _wait_until_listening(port: int) -> None:
    deadline_s = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        else:
            return


async def _fill(port: int) -> None:
    channel = _channel(port, "databroker", DATABROKER_SERVICE, "operator")
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(channel.run(stop))
        await channel.ready_channel(20)
        await DatabrokerClient(channel).put(records())
        stop.set()
    await channel.close()


def _channel(port: int, audience: str, health: str, subject: str) -> BalancedChannel:
    clock = SystemClock()
    return BalancedChannel(
        [f"http://127.0.0.1:{port}"],
        audience=audience,
        health_service=health,
        credentials=ServiceCredentials(subject, lambda: (SECRET,), clock),
        ca_pem=None,
        clock=clock,
        rng=SystemRng(),
    )


async def rate(port: int, route_id: str) -> float:
    """Checks per second over several connections, as several Envoy threads have them."""
    token = handle_token(SECRET, "session-0")
    raw = check_request(
        path="/api/items?page=2",
        route_id=route_id,
        headers={**HEADERS, "cookie": f"_pomerium={token}"},
    ).SerializeToString()
    metadata = ServiceCredentials("proxy", lambda: (SECRET,), SystemClock()).metadata("authorize")
    channels = [
        grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        for _ in range(CONNECTIONS)
    ]
    count = 0

    async def ask(channel: grpc.aio.Channel, until_s: float) -> None:
        nonlocal count
        call: Any = channel.unary_unary(CHECK)
        while time.monotonic() < until_s:
            answer = await call(raw, timeout=20, metadata=metadata, wait_for_ready=True)
            assert isinstance(answer, bytes)
            count += 1

    async def load(seconds: float) -> None:
        until_s = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for channel in channels:
                for _ in range(IN_FLIGHT):
                    group.create_task(ask(channel, until_s))

    try:
        question = health_pb2.HealthCheckRequest(service="pomerium-authorize")
        health = health_pb2_grpc.HealthStub(channels[0])
        while (await health.Check(question, timeout=20, wait_for_ready=True)).status != SERVING:
            pass
        first: Any = await channels[0].unary_unary(CHECK)(raw, timeout=20, metadata=metadata)
        assert is_allowed(CheckResponse.FromString(first))
        await load(1.0)
        count, started_s = 0, time.monotonic()
        await load(SECONDS)
        return count / (time.monotonic() - started_s)
    finally:
        for channel in channels:
            await channel.close()


def _rate(port: int, route_id: str, answer: Any) -> None:
    answer.send(asyncio.run(rate(port, route_id)))


def measured(workers: int, runs: int = 3) -> tuple[float, ...]:
    found: list[float] = []
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as directory,
        running(Path(directory), workers) as (port, route_id),
    ):
        for _ in range(runs):
            ours, theirs = context.Pipe()
            process = context.Process(target=_rate, args=(port, route_id, theirs))
            process.start()
            assert ours.poll(60)
            found.append(ours.recv())
            process.join()
    return tuple(found)


def run() -> list[Figure]:
    """Checks per second, with one and two workers."""
    one = measured(1)
    return [
        Figure("Checks per second, authorize_workers: 1", "/s", one),
        Figure(
            "Checks per second, authorize_workers: 2",
            "/s",
            measured(2),
            yardstick="one worker",
            yardstick_value=statistics.median(one),
        ),
    ]
