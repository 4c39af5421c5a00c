"""P8: from `gatehouse serve` (all-in-one, file store) to the first answered request.

Yardstick: bare Envoy on the same machine in the same run, from exec to its first answer, and the
interpreter importing the product, from exec to exit.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from gatehouse.proxy.edge.envoy_binary import find_envoy_binary
from tests.bench.envoys import answering_config
from tests.bench.figures import Figure
from tests.support.identity import provider_mock
from tests.support.ports import free_ports
from tests.support.stack import Stack
from tests.support.upstream import EchoUpstream

RUNS = 5
TARGET_S = 3.0


def first_answer(stack: Stack) -> float:
    began = time.monotonic()
    stack.spawn("proxy")
    while True:
        try:
            with stack.client() as client:
                if client.get(stack.url("public.localhost")).status_code == 200:
                    return time.monotonic() - began
        except httpx.HTTPError:
            pass
        time.sleep(0.01)
        assert time.monotonic() - began < 60, stack.processes["proxy"].log()[-4000:]


def bare_envoy(directory: Path) -> float:
    port = free_ports(1)[0]
    path = directory / "bare.json"
    path.write_text(json.dumps(answering_config(port)))
    began = time.monotonic()
    process = subprocess.Popen(
        [
            find_envoy_binary(),
            "-c",
            path,
            "--use-dynamic-base-id",
            "-l",
            "error",
            "--concurrency",
            "1",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 200:
                    return time.monotonic() - began
            except httpx.HTTPError:
                time.sleep(0.01)
            assert time.monotonic() - began < 30
    finally:
        process.terminate()
        process.wait(10)


def import_time() -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import gatehouse.cli.serve"], check=True)
    return time.monotonic() - began


def run() -> list[Figure]:
    times: list[float] = []
    envoy: list[float] = []
    with (
        provider_mock() as issuer,
        EchoUpstream().running() as upstream,
        tempfile.TemporaryDirectory() as name,
    ):
        routes = [
            {
                "from": "https://public.localhost",
                "to": upstream.url,
                "allow_public_unauthenticated_access": True,
            }
        ]
        for number in range(RUNS):
            directory = Path(name) / str(number)
            stack = Stack(
                directory=directory,
                issuer=issuer,
                client_id="gatehouse",
                client_secret="bench",
                routes=routes,
            )
            try:
                times.append(first_answer(stack))
            finally:
                stack.stop()
            envoy.append(bare_envoy(directory))
    imports = [import_time() for _ in range(RUNS)]
    return [
        Figure(
            "P8 all-in-one: start to first answered request",
            "s",
            tuple(times),
            TARGET_S,
            "bare Envoy",
            min(envoy),
        ),
        Figure("   of which: interpreter and imports", "s", tuple(imports)),
    ]
