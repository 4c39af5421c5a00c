"""Authorize as several processes: real ones, fed by a real databroker."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from envoy.service.auth.v3 import external_auth_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gatehouse.authorize.edge import worker_pool
from gatehouse.authorize.edge.worker_pool import WorkerEndedError
from gatehouse.authorize.service import AuthorizeService
from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.config.hub import ConfigHub, Lead
from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.resolved import ListenAddress, ResolvedSettings
from gatehouse.common.databroker.records import tombstone_of
from gatehouse.common.ids import SESSION
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.common.runtime.context import ProcessContext, authorize_sockets
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.common.runtime.process import grpc_listening, grpc_server
from tests.integration.authorize.conftest import running_databroker, writer_to
from tests.support.check import (
    SECRET,
    check_request,
    handle_token,
    is_allowed,
    resolved_settings,
    route,
    status_of,
)
from tests.support.policy import policy_of, session_record, user_record
from tests.support.ports import free_ports

WORKERS = 3
ANN = policy_of("allow: {or: [{email: ann@example.com}]}")
BOB = policy_of("allow: {or: [{email: bob@example.com}]}")
NOBODY = policy_of("allow: {or: [{reject: true}]}")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def settings_for(broker_port: int, port: int, policy: Any = ANN) -> ResolvedSettings:
    settings = resolved_settings(
        route(policy, pass_identity_headers=True),
        databroker_urls=(f"http://127.0.0.1:{broker_port}",),
        authorize_workers=WORKERS,
        log_level="warn",
    )
    return dataclasses.replace(settings, grpc_address=ListenAddress("127.0.0.1", port))


class Workers:
    """What is under test, in this process and its children."""

    def __init__(self, context: ProcessContext, service: AuthorizeService, port: int) -> None:
        self.context = context
        self.service = service
        self.port = port
        self.stop = asyncio.Event()
        self._credentials = ServiceCredentials("proxy", lambda: (SECRET,), SystemClock())

    @property
    def pids(self) -> list[int]:
        """The children."""
        pool = self.service._workers
        assert pool is not None
        return [one._process.pid for one in pool._workers if one._process is not None]

    async def has_replaced(self, pid: int) -> None:
        """Return once another process is ready in the place of this one."""
        pool = self.service._workers
        assert pool is not None
        async with asyncio.timeout(120):
            while pid in self.pids:
                await asyncio.to_thread(time.sleep, 0.02)
            for one in pool._workers:
                await one.ready.wait()

    async def check(self, number: int, request: Any) -> Any:
        """Ask one worker, at its own socket."""
        path = authorize_sockets(self.context.run_dir, WORKERS)[number]
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            stub = external_auth_pb2_grpc.AuthorizationStub(channel)
            metadata = self._credentials.metadata("authorize")
            return await stub.Check(request, timeout=60, metadata=metadata)

    async def statuses(self, number: int, request: Any) -> int:
        return status_of(await self.check(number, request))

    async def health(self, number: int) -> int:
        path = authorize_sockets(self.context.run_dir, WORKERS)[number]
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            question = health_pb2.HealthCheckRequest(service="pomerium-authorize")
            answer = await stub.Check(question, timeout=60)
            return int(answer.status)

    async def eventually(self, condition: Callable[[int], Awaitable[bool]]) -> None:
        """Each of the workers follows in its own time; ask until all do, with an end."""
        async with asyncio.timeout(20):
            for number in range(WORKERS):
                while not await condition(number):
                    pass


@asynccontextmanager
async def running_workers(
    directory: Path, broker_port: int, *, kills_first: bool = False
) -> AsyncIterator[Workers]:
    await asyncio.to_thread(directory.mkdir, mode=0o700)
    (port,) = free_ports(1)
    clock = SystemClock()
    hub, health = ConfigHub(settings_for(broker_port, port)), HealthRegistry(clock)
    health.add_service("authorize", ("authorize.service",))
    context = ProcessContext(hub, health, clock, SystemRng(), directory, 10.0)
    service = AuthorizeService(context)
    server = grpc_server(context)
    service.register_grpc(server.server)
    workers, ready = Workers(context, service, port), asyncio.Event()
    async with grpc_listening(server, context), asyncio.TaskGroup() as group:
        task = group.create_task(service.run(workers.stop, ready.set))
        if kills_first:
            while not workers.pids:
                await asyncio.to_thread(time.sleep, 0)
            os.kill(workers.pids[0], signal.SIGKILL)
        async with asyncio.timeout(120):
            await ready.wait()
        try:
            yield workers
        finally:
            workers.stop.set()
            async with asyncio.timeout(60):
                await asyncio.wait([task])


def signed_in() -> Any:
    token = handle_token(SECRET, "s1", idp_id="idp-1")
    return check_request(headers={"cookie": f"_pomerium={token}"})


def listeners(port: int) -> int:
    """How many sockets listen on a port (proc(5), net/tcp and net/tcp6)."""
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return sum(line[1].endswith(f":{port:04X}") and line[3] == "0A" for line in lines)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def test_all_decide_follow_and_end_together(tmp_path: Path) -> None:
    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as writer:
        session = session_record("s1", "u1", expires_at_s=4_000_000_000)
        await writer.put([user_record("u1", "ann@example.com"), session])
        async with running_workers(tmp_path / "a", broker.port) as workers:
            pids = workers.pids
            assert len(set(pids)) == WORKERS - 1
            assert listeners(workers.port) == WORKERS
            for number in range(WORKERS):
                assert is_allowed(await workers.check(number, signed_in()))

            async def serving(number: int) -> bool:
                return bool(await workers.health(number) == SERVING)

            await workers.eventually(serving)

            # A change of the configuration reaches all of them, or none.
            hub = workers.context.config
            refused = dataclasses.replace(
                settings_for(broker.port, workers.port, BOB), signing_keys=()
            )
            with pytest.raises(ConfigError, match="signing_key"):
                await hub.apply(refused)
            for number in range(WORKERS):
                assert is_allowed(await workers.check(number, signed_in()))
            for policy, status in ((BOB, 403), (ANN, 200)):
                await hub.apply(settings_for(broker.port, workers.port, policy))
                for number in range(WORKERS):  # none decides by the old one any more
                    assert await workers.statuses(number, signed_in()) == status

            # So does a change of the records.
            await writer.put([tombstone_of(SESSION, "s1", now_s=1_900_000_000)])

            async def asks_to_sign_in(number: int) -> bool:
                return await workers.statuses(number, signed_in()) == 302

            await workers.eventually(asks_to_sign_in)

            # A stop that has begun shows everywhere, while all still answer.
            workers.context.health.terminate()
            await workers.service.drain()

            async def not_serving(number: int) -> bool:
                return bool(await workers.health(number) == NOT_SERVING)

            await workers.eventually(not_serving)
            for number in range(WORKERS):
                assert await workers.statuses(number, signed_in()) == 302
        assert not any(is_alive(pid) for pid in pids)


async def test_one_that_ends_unasked_is_replaced(tmp_path: Path) -> None:
    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as writer:
        session = session_record("s1", "u1", expires_at_s=4_000_000_000)
        await writer.put([user_record("u1", "ann@example.com"), session])
        async with running_workers(tmp_path / "a", broker.port) as workers:
            hub = workers.context.config
            await hub.apply(settings_for(broker.port, workers.port, BOB))
            killed, other = workers.pids
            os.kill(killed, signal.SIGKILL)
            # A change in the meantime waits for nobody who is gone.
            await hub.apply(settings_for(broker.port, workers.port, NOBODY))
            await workers.has_replaced(killed)
            assert other in workers.pids
            assert listeners(workers.port) == WORKERS
            for number in range(WORKERS):
                assert await workers.health(number) == SERVING
                assert await workers.statuses(number, signed_in()) == 403
            await hub.apply(settings_for(broker.port, workers.port))
            for number in range(WORKERS):
                assert is_allowed(await workers.check(number, signed_in()))


async def test_one_that_cannot_be_told_is_heard_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that hangs with the old policy must not answer by it once it wakes up."""
    monkeypatch.setattr(worker_pool, "COMMIT_TIMEOUT_S", 0.2)
    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as writer:
        session = session_record("s1", "u1", expires_at_s=4_000_000_000)
        await writer.put([user_record("u1", "ann@example.com"), session])
        async with running_workers(tmp_path / "a", broker.port) as workers:
            hub = workers.context.config
            stuck = workers.pids[0]

            async def nothing() -> None:
                """There is nothing to switch."""

            async def stick(_new: ResolvedSettings) -> Lead:
                os.kill(stuck, signal.SIGSTOP)  # it has said that it is prepared
                return nothing

            hub.lead(stick)
            await hub.apply(settings_for(broker.port, workers.port, BOB))
            assert not is_alive(stuck)
            await workers.has_replaced(stuck)
            for number in range(WORKERS):
                assert await workers.statuses(number, signed_in()) == 403


async def test_one_that_hangs_does_not_hold_up_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs before it was told: nobody waits as long as for one that loads large settings."""
    monkeypatch.setattr(worker_pool, "SILENCE_S", 2.0)
    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as writer:
        session = session_record("s1", "u1", expires_at_s=4_000_000_000)
        await writer.put([user_record("u1", "ann@example.com"), session])
        async with running_workers(tmp_path / "a", broker.port) as workers:
            stuck = workers.pids[0]
            os.kill(stuck, signal.SIGSTOP)
            async with asyncio.timeout(worker_pool.PREPARE_TIMEOUT_S / 2):
                await workers.context.config.apply(settings_for(broker.port, workers.port, BOB))
            assert not is_alive(stuck)
            await workers.has_replaced(stuck)

            async def refuses(number: int) -> bool:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    return await workers.statuses(number, signed_in()) == 403
                return False

            await workers.eventually(refuses)


async def test_a_change_is_in_force_once_every_live_worker_has_confirmed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is killed before it could switch holds nobody up."""
    monkeypatch.setattr(worker_pool, "COMMIT_TIMEOUT_S", 60.0)
    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as writer:
        session = session_record("s1", "u1", expires_at_s=4_000_000_000)
        await writer.put([user_record("u1", "ann@example.com"), session])
        async with running_workers(tmp_path / "a", broker.port) as workers:
            hub = workers.context.config
            before = hub.current
            stuck, other = workers.pids

            async def nothing() -> None:
                """There is nothing to switch."""

            async def stick(_new: ResolvedSettings) -> Lead:
                os.kill(stuck, signal.SIGSTOP)  # prepared, and does not read what comes next
                return nothing

            hub.lead(stick)
            change = asyncio.ensure_future(
                hub.apply(settings_for(broker.port, workers.port, NOBODY))
            )
            async with asyncio.timeout(20):
                while await workers.statuses(2, signed_in()) != 403:
                    assert not change.done()
            # That one has switched, so the order was given; without all it is not in force.
            assert hub.current is before
            assert is_allowed(await workers.check(0, signed_in()))
            os.kill(stuck, signal.SIGKILL)
            async with asyncio.timeout(20):
                await change
            assert await workers.statuses(0, signed_in()) == 403
            await workers.has_replaced(stuck)
            assert other in workers.pids
            for number in range(WORKERS):
                assert await workers.statuses(number, signed_in()) == 403


async def test_one_that_cannot_begin_ends_all(tmp_path: Path) -> None:
    async with running_databroker(tmp_path / "d") as broker:
        with pytest.raises(ExceptionGroup) as caught:
            async with running_workers(tmp_path / "a", broker.port, kills_first=True):
                pass
    assert caught.value.subgroup(WorkerEndedError) is not None
