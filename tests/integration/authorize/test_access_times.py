"""Which sessions are in use reaches the databroker, beside the records."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

from gatehouse.authorize.core.access_times import Key
from gatehouse.authorize.core.identity import ANONYMOUS
from gatehouse.authorize.edge.access_recorder import AccessRecorder
from gatehouse.common.errors import UnavailableError
from gatehouse.common.ids import SERVICE_ACCOUNT, SESSION
from tests.integration.authorize.conftest import (
    running_authorize,
    running_databroker,
    writer_to,
)
from tests.support.check import (
    SECRET,
    check_request,
    handle_token,
    is_allowed,
    resolved_settings,
    route,
)
from tests.support.clock import FixedRng
from tests.support.policy import (
    example_world,
    policy_of,
    service_account_record,
    session_record,
    user_record,
)

ANN = policy_of("allow: {or: [{user: u1}]}")


async def test_uses_are_written_without_touching_the_records(tmp_path: Path) -> None:
    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as client:
        await client.put(
            [
                user_record("u1", "ann@example.com"),
                session_record("s1", "u1", expires_at_s=4_000_000_000),
                session_record("idle", "u1", expires_at_s=4_000_000_000),
                service_account_record("sa1", "u1"),
            ]
        )
        before = (await client.server_info()).latest_record_version
        started_s = int(time.time_ns() / 1e9)
        settings = resolved_settings(
            route(ANN), databroker_urls=(f"http://127.0.0.1:{broker.port}",)
        )
        async with running_authorize(tmp_path / "a", settings) as authorize:
            for name in ("s1", "sa1", "s1"):
                token = handle_token(SECRET, name, idp_id="idp-1", use="api")
                request = check_request(headers={"authorization": f"Pomerium {token}"})
                assert is_allowed(await authorize.check(request))
            request = check_request(headers={"authorization": "Pomerium nonsense"})
            assert not is_allowed(await authorize.check(request))
        # What was noted is written at the end of the process at the latest.
        sessions = await client.access_times(SESSION, ["s1", "idle"])
        accounts = await client.access_times(SERVICE_ACCOUNT, ["sa1"])
        assert sessions.keys() == {"s1"}
        assert accounts.keys() == {"sa1"}
        assert min(*sessions.values(), *accounts.values()) >= started_s
        assert (await client.server_info()).latest_record_version == before


async def test_a_failed_write_is_tried_again_with_the_next() -> None:
    world = example_world()
    written: list[Mapping[Key, float]] = []
    failures = 1
    done = asyncio.Event()

    class Broker:
        async def put_access_times(self, times: Mapping[Key, float]) -> None:
            nonlocal failures
            if failures:
                failures -= 1
                raise UnavailableError("not now")
            written.append(times)
            done.set()

    recorder = AccessRecorder(Broker, FixedRng(0.0), interval_s=0.01)
    recorder.note(ANONYMOUS, 5.0)
    recorder.note(world.identity("s1"), 7.0)
    stop = asyncio.Event()
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(recorder.run(stop))
        await done.wait()
        stop.set()
    assert written[0] == {(SESSION, "s1"): 7.0}
    assert failures == 0
