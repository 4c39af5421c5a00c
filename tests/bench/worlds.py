"""The product under load: running stacks whose Envoy has one CPU, and people who are signed in.

Sessions are written into the databroker and their cookies signed with the shared secret, as sign-in
does it; nothing about checking them is changed.
"""

from __future__ import annotations

import array
import asyncio
import base64
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.config.resolve import load_and_resolve
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.rpc.channel import BalancedChannel
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.proxy.core.decision_table import BLOCK_BYTES, COUNTERS
from tests.bench.envoys import envoy_below, pin, run_directory_of
from tests.support.check import handle_token
from tests.support.policy import session_record, user_record
from tests.support.stack import Stack

USERS = 1_000
BATCH = 500
POLICY = {"allow": {"and": [{"domain": {"is": "example.com"}}]}}
_EXPIRES_S = 4_000_000_000


@dataclass(frozen=True)
class Cpus:
    """Envoy, which is measured, has one for itself where there are two or more."""

    measured: tuple[int, ...]
    others: tuple[int, ...]

    @classmethod
    def of_this_machine(cls) -> Cpus:
        usable = sorted(os.sched_getaffinity(0))
        return cls(tuple(usable[:1]), tuple(usable[1:] or usable))


@dataclass(frozen=True)
class Product:
    """A running all-in-one product and its Envoy."""

    stack: Stack
    envoy: int

    def counters(self) -> Mapping[str, float]:
        return counters_of(self.envoy)


def counters_of(envoy: int) -> Mapping[str, float]:
    """What the decision cache of this Envoy has counted; empty where there is none."""
    data = (run_directory_of(envoy) / "decision-counters").read_bytes()
    numbers = array.array("d")
    numbers.frombytes(data[: len(data) - len(data) % BLOCK_BYTES])
    stride = BLOCK_BYTES // 8
    return {name: sum(numbers[place::stride]) for place, name in enumerate(COUNTERS)}


def host(number: int) -> str:
    """The first one is in the stack's certificate, the others are only routed."""
    return f"h{number}.localhost" if number else "app.localhost"


def protected_routes(count: int, upstream: int) -> list[dict[str, Any]]:
    return [
        {
            "from": f"https://{host(number)}",
            "to": f"http://127.0.0.1:{upstream}",
            "policy": POLICY,
            "pass_identity_headers": True,
        }
        for number in range(count)
    ]


@contextmanager
def product(
    directory: Path, *, routes: int, upstream: int, remember: bool, cpus: Cpus
) -> Iterator[Product]:
    """All four services in one process; its Envoy runs one worker on `cpus.measured`."""
    stack = Stack(
        directory=directory,
        issuer="http://127.0.0.1:1",
        client_id="gatehouse",
        client_secret="bench",
        routes=protected_routes(routes, upstream),
        extra={"decision_cache": remember, "grpc_insecure": True},
    )
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus.measured)  # so that it starts its Envoy with one worker
    try:
        process = stack.spawn("proxy")
    finally:
        os.sched_setaffinity(0, before)
    with running_already(stack):
        process.wait_ready(120)
        envoy = envoy_below(process.process.pid)
        pin(process.process.pid, cpus.others)
        yield Product(stack, envoy)


@contextmanager
def running_already(stack: Stack) -> Iterator[None]:
    try:
        yield
    finally:
        for started in list(stack.processes.values()):
            started.stop()
        stack.processes.clear()


def sign_in_all(stack: Stack, count: int) -> list[str]:
    """Write `count` sessions; gives the Cookie header of each."""
    settings, _ = load_and_resolve(stack.config_path, {}, random_secret=lambda: bytes(32))
    provider = settings.routes[0].identity_provider
    assert provider is not None
    key = base64.b64decode(stack.shared_secret)
    users = [
        user_record(f"u{number}", f"u{number}@example.com") for number in range(min(count, USERS))
    ]
    sessions = [
        session_record(
            f"s{number}", f"u{number % USERS}", expires_at_s=_EXPIRES_S, idp_id=provider.id
        )
        for number in range(count)
    ]
    with_client(stack, _put([*users, *sessions]))
    return [
        "_pomerium="
        + handle_token(
            key,
            f"s{number}",
            idp_id=provider.id,
            issuer="authenticate.localhost",
            issued_at=int(time.time()) - 60,  # noqa: TID251 - a test's credential
        )
        for number in range(count)
    ]


def _put(records: Sequence[Any]) -> Any:
    async def put(client: DatabrokerClient) -> None:
        for first in range(0, len(records), BATCH):
            await client.put(records[first : first + BATCH])

    return put


def with_client(stack: Stack, use: Any) -> Any:
    """Run `use(client)` with a client of the stack's databroker."""

    async def run() -> Any:
        clock = SystemClock()
        key = base64.b64decode(stack.shared_secret)
        port = stack.grpc_ports["databroker" if stack.split else "proxy"]
        channel = BalancedChannel(
            [f"http://127.0.0.1:{port}"],
            audience="databroker",
            health_service="",
            credentials=ServiceCredentials("operator", lambda: (key,), clock),
            ca_pem=None,
            clock=clock,
            rng=SystemRng(),
        )
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(channel.run(stop))
            try:
                await channel.ready_channel(20)
                return await use(DatabrokerClient(channel, unary_timeout_s=60))
            finally:
                stop.set()
                await channel.close()

    return asyncio.run(run())
