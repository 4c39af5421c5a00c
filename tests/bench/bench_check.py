"""CPU of one Check with a ten-criterion policy and identity headers.

`make bench` measures what the authorize process alone spends on a Check over gRPC: the server runs
in a process of its own, and its CPU time is read from /proc. The yardstick is the same server with
a handler that does nothing. `python -m tests.bench.bench_check` also prints each part.
"""

from __future__ import annotations

import asyncio
import io
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gatehouse.authorize.core.check_request import read_check_request
from gatehouse.authorize.core.decision import Decider
from gatehouse.authorize.core.evaluator import decide
from gatehouse.authorize.core.identity import ANONYMOUS
from gatehouse.authorize.core.records import RecordReader
from gatehouse.authorize.core.route_plan import compile_plans
from gatehouse.authorize.edge.authorize_log import AuthorizeLog, Line
from gatehouse.authorize.edge.ext_authz import ExtAuthz, build_in_force
from gatehouse.authorize.edge.replica_feed import IdentitySource
from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.databroker.replica import Replica
from gatehouse.common.databroker.sync_core import Position
from gatehouse.common.observability.logging import configure_logging
from gatehouse.common.rpc.channel import BalancedChannel
from gatehouse.common.rpc.credentials import ServiceCredentials
from tests.bench.figures import Figure
from tests.support.check import (
    SECRET,
    CheckRequest,
    check_request,
    handle_token,
    resolved_settings,
    route,
)
from tests.support.policy import (
    directory_user_record,
    policy_of,
    session_record,
    user_record,
)

NAME = "check"
TARGET_US = 350.0
IN_FLIGHT = 16
SIZES = ((1, 1), (1, 1_000), (1, 10_000), (100_000, 1), (100_000, 10_000))  # sessions, routes

POLICY = """
allow:
  and:
    - domain: example.com
    - email: {ends_with: "@example.com"}
    - user: {in: [u0, u1, u2, u3]}
    - claim/family_name: Smith
    - claim/roles: b
    - groups: g2
    - http_method: {in: [GET, POST]}
    - http_path: {starts_with: /api/}
    - source_ip: [192.168.0.0/16, 10.0.0.0/8]
deny:
  or:
    - http_path: {starts_with: /api/admin}
"""

HEADERS = {
    "user-agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/140.0 Safari/537.36",
    "accept-language": "en-GB,en;q=0.9,de;q=0.8",
    "accept-encoding": "gzip, deflate, br",
    "referer": "https://app.example.com/api/",
    "sec-fetch-mode": "navigate",
    "sec-fetch-site": "same-origin",
    "x-forwarded-proto": "https",
    "x-forwarded-for": "10.1.2.3",
}


def build(sessions: int, routes: int) -> tuple[ExtAuthz, Decider, IdentitySource]:
    """A servicer with a filled copy of the records."""
    clock = SystemClock()
    reader = RecordReader()
    replica = Replica(reader.decoders)
    for type_url in replica.types:
        replica.begin_copy(type_url)
    for number in range(sessions):
        user = f"u{number % 4}"
        records = [
            session_record(
                f"session-{number}",
                user,
                claims={"family_name": ["Smith"], "roles": ["a", "b"], "name": ["Jo Smith"]},
                expires_at_s=4_000_000_000,
            )
        ]
        if number < 4:
            records += [
                user_record(user, f"{user}@example.com", claims={"dept": ["x"]}),
                directory_user_record(user, group_ids=["g1", "g2"]),
            ]
        for version, record in enumerate(records, 1):
            record.version = version
            replica.stage(record)
    for type_url in replica.types:
        replica.swap(type_url, Position(1, 10), now_s=clock.monotonic_s())
    policy = policy_of_text()
    settings = resolved_settings(
        *(
            route(policy, route_id=f"{index:016x}", pass_identity_headers=True)
            for index in range(routes)
        ),
        jwt_claims_headers={"X-Email": "email", "X-Dept": "dept"},
        max_staleness="0s",
    )
    in_force = build_in_force(compile_plans(settings), SystemClock(), SystemRng())
    source = IdentitySource(replica, reader, _no_client, clock)
    return ExtAuthz(in_force, source, clock), in_force.decider, source


def requests_of(sessions: int, routes: int) -> list[bytes]:
    """Serialized requests of different users to different routes."""
    return [
        check_request(
            path="/api/items?page=2",
            route_id=f"{number * routes // 200 % routes:016x}",
            headers={
                **HEADERS,
                "cookie": "theme=dark; _pomerium="
                + handle_token(SECRET, f"session-{number % sessions}", idp_id="idp-1"),
            },
        ).SerializeToString()
        for number in range(200)
    ]


def policy_of_text() -> Any:
    return policy_of(POLICY)


def _no_client() -> Any:
    raise AssertionError("the copy must answer")


def timed(what: str, call: Callable[[], object], times: int = 20_000) -> float:
    for _ in range(times // 10):
        call()
    start = time.process_time_ns()
    for _ in range(times):
        call()
    spent = (time.process_time_ns() - start) / times / 1000
    print(f"{what:<44} {spent:8.1f} µs")
    return spent


def parts(servicer: ExtAuthz, decider: Decider, source: IdentitySource, requests: list[bytes]):
    """Each step alone, on one warm request."""
    raw = requests[0]
    message = CheckRequest.FromString(raw)
    facts = read_check_request(message, 0.0)
    now_s = time.time_ns() / 1e9
    prepared = decider.prepare(facts, now_s)
    assert prepared.handle is not None
    assert prepared.plan is not None
    handle, plan = prepared.handle, prepared.plan
    identity = source.held(handle, now_s, 0.0)
    assert identity is not None
    assert identity is not ANONYMOUS
    answer = decider.answer(facts, prepared, identity, now_s)
    assert answer.evaluation is not None
    line = Line(facts, identity, plan, answer.evaluation, source.versions(), now_s)
    log = AuthorizeLog(decider.plans.log_fields, SystemRng().uuid4)

    timed("parse CheckRequest (protobuf)", lambda: CheckRequest.FromString(raw))
    timed("read facts", lambda: read_check_request(message, 0.0))
    timed("prepare (route, credential, handle)", lambda: decider.prepare(facts, now_s))
    timed("identity from the copy", lambda: source.held(handle, now_s, 0.0))
    timed("policy, 10 criteria", lambda: decide(plan.policy.evaluate(facts, identity)))
    timed(
        "answer (policy, headers, response)",
        lambda: decider.answer(facts, prepared, identity, now_s),
    )
    timed("serialize CheckResponse", answer.response.SerializeToString)
    timed("log fields", lambda: log.values(line))
    configure_logging("info", stream=io.StringIO())
    timed("log line written", lambda: log.write(line), 5_000)

    def first_time() -> object:
        fresh = Decider(decider.plans, SystemRng())
        return fresh.answer(facts, prepared, identity, now_s)

    timed("answer with a fresh signature (once a minute)", first_time, 2_000)


async def whole(servicer: ExtAuthz, requests: list[bytes], what: str, times: int = 10_000) -> None:
    """Parse, decide, log and serialize, as gRPC calls it."""

    async def one(raw: bytes) -> bytes:
        response = await servicer.Check(CheckRequest.FromString(raw), None)  # type: ignore[arg-type]
        return bytes(response.SerializeToString())

    for raw in requests:
        assert b"x-pomerium-jwt-assertion" in await one(raw)
    count = len(requests)
    start = time.process_time_ns()
    for number in range(times):
        await one(requests[number % count])
    spent = (time.process_time_ns() - start) / times / 1000
    print(f"{what:<44} {spent:8.1f} µs")


class Server:
    """The server in a process of its own, and the CPU time that it has used."""

    def __init__(self, kind: str, sessions: int, routes: int) -> None:
        command = [sys.executable, "-m", "tests.bench.check_server", kind]
        self._process = subprocess.Popen(
            [*command, str(sessions), str(routes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def cpu_s(self) -> float:
        """Time on a CPU of all its threads (proc(5): schedstat, nanoseconds)."""
        tasks = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)


async def cpu_per_check(server: Server, requests: list[bytes], times: int) -> float:
    """Microseconds of the server's CPU for one Check, several at a time as from Envoy."""
    clock = SystemClock()
    channel = BalancedChannel(
        [f"http://127.0.0.1:{server.port}"],
        audience="authorize",
        health_service="",
        credentials=ServiceCredentials("proxy", lambda: (SECRET,), clock),
        ca_pem=None,
        clock=clock,
        rng=SystemRng(),
    )
    try:
        call: Any = (await channel.ready_channel(20)).unary_unary(
            "/envoy.service.auth.v3.Authorization/Check"
        )

        async def some(first: int, count: int) -> None:
            for number in range(first, first + count):
                answer = await call(requests[number % len(requests)], timeout=20)
                assert isinstance(answer, bytes)

        async def many(count: int) -> None:
            async with asyncio.TaskGroup() as group:
                for worker in range(IN_FLIGHT):
                    group.create_task(some(worker * 37, count // IN_FLIGHT))

        await many(len(requests) * 2)
        before = server.cpu_s()
        await many(times)
        return (server.cpu_s() - before) / times * 1e6
    finally:
        await channel.close()


def measured(kind: str, sessions: int, routes: int, runs: int = 3) -> tuple[float, ...]:
    requests = requests_of(sessions, routes)
    server = Server(kind, sessions, routes)
    try:
        return tuple(asyncio.run(cpu_per_check(server, requests, 3_200)) for _ in range(runs))
    finally:
        server.close()


def run() -> list[Figure]:
    """CPU of the authorize process for one Check over gRPC, log line included."""
    configure_logging("error", stream=io.StringIO())
    trivial = measured("trivial", 1, 1)
    yardstick = statistics.median(trivial)
    figures = [Figure("Check over gRPC: a handler that does nothing", "µs", trivial)]
    for sessions, routes in SIZES:
        figures.append(
            Figure(
                f"Check over gRPC: {sessions:,} sessions, {routes:,} routes",
                "µs",
                measured("product", sessions, routes),
                TARGET_US,
                "the same server doing nothing",
                yardstick,
            )
        )
    return figures


def main() -> None:
    """The parts of a Check in this process, then the whole over gRPC."""
    servicer, decider, source = build(sessions=10_000, routes=1)
    requests = requests_of(10_000, 1)
    parts(servicer, decider, source, requests)
    configure_logging("info", stream=io.StringIO())
    asyncio.run(whole(servicer, requests, "whole Check without gRPC"))
    configure_logging("error", stream=io.StringIO())
    asyncio.run(whole(servicer, requests, "the same without the log line"))
    figures = run()
    width = max(len(figure.name) for figure in figures)
    for figure in figures:
        print(figure.line(width))


if __name__ == "__main__":
    main()
