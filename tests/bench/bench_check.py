"""CPU of one Check: `python -m tests.bench.bench_check`.

Prints microseconds for each part of a check with a ten-criterion policy and identity headers, then
for a whole Check over gRPC on loopback (server's share included with the client's).
"""

from __future__ import annotations

import asyncio
import io
import tempfile
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


def build(sessions: int, routes: int) -> tuple[ExtAuthz, Decider, IdentitySource, list[bytes]]:
    """A servicer with a filled copy, and serialized requests of different users."""
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
            route(
                policy,
                index=index,
                route_id=f"{index:016x}",
                pass_identity_headers=True,
            )
            for index in range(routes)
        ),
        jwt_claims_headers={"X-Email": "email", "X-Dept": "dept"},
        max_staleness="0s",
    )
    in_force = build_in_force(compile_plans(settings), SystemRng())
    source = IdentitySource(replica, reader, _no_client, clock)
    requests = [
        check_request(
            path="/api/items?page=2",
            route_id=f"{number % routes:016x}",
            headers={
                **HEADERS,
                "cookie": "theme=dark; _pomerium="
                + handle_token(SECRET, f"session-{number}", idp_id="idp-1"),
            },
        ).SerializeToString()
        for number in range(min(sessions, 200))
    ]
    return ExtAuthz(in_force, source, clock), in_force.decider, source, requests


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
    log = AuthorizeLog(decider.plans.log_fields)

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


async def over_grpc(directory: Path, times: int = 3_000) -> None:
    """The server of the product in this process; client and server CPU together."""
    from tests.integration.authorize.conftest import (  # noqa: PLC0415 - needs pytest
        running_authorize,
        running_databroker,
        writer_to,
    )

    async with running_databroker(directory / "d") as broker:
        async with writer_to(broker.port) as writer:
            await writer.put(
                [
                    session_record(
                        "session-0",
                        "u0",
                        claims={"family_name": ["Smith"], "roles": ["b"]},
                        expires_at_s=4_000_000_000,
                    ),
                    user_record("u0", "u0@example.com"),
                    directory_user_record("u0", group_ids=["g2"]),
                ]
            )
        settings = resolved_settings(
            route(policy_of_text(), pass_identity_headers=True),
            databroker_urls=(f"http://127.0.0.1:{broker.port}",),
        )
        async with running_authorize(directory / "a", settings) as authorize:
            token = handle_token(SECRET, "session-0", idp_id="idp-1")
            request = check_request(
                path="/api/items", headers={**HEADERS, "cookie": f"_pomerium={token}"}
            )
            response = await authorize.check(request)
            assert response.HasField("ok_response")
            start = time.process_time_ns()
            for _ in range(times):
                await authorize.check(request)
            spent = (time.process_time_ns() - start) / times / 1000
            print(f"{'whole Check over gRPC, client and server':<44} {spent:8.1f} µs")


def main() -> None:
    servicer, decider, source, requests = build(sessions=10_000, routes=1)
    parts(servicer, decider, source, requests)
    configure_logging("info", stream=io.StringIO())
    asyncio.run(whole(servicer, requests, "whole Check without gRPC"))
    configure_logging("error", stream=io.StringIO())
    asyncio.run(whole(servicer, requests, "the same without the log line"))
    many, _, _, their_requests = build(sessions=10_000, routes=1_000)
    asyncio.run(whole(many, their_requests, "the same with 1,000 routes"))
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(over_grpc(Path(directory)))


if __name__ == "__main__":
    main()
