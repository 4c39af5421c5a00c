"""Many callers at once, against a databroker in a process of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.records import record_of
from gatehouse.common.errors import GatehouseError
from gatehouse.common.extauthz_context import DATABROKER_SERVICE
from gatehouse.pb.user_pb2 import User
from tests.support.databroker_process import DatabrokerProcess
from tests.support.envoy import eventually
from tests.support.rpc import SECRET, following, make_channel

CALLERS = 64
CALLS = 40  # of each


async def test_no_call_of_a_burst_is_refused(tmp_path: Path) -> None:
    """Writes that share a commit are answered together, and the next ones come together."""
    broker = DatabrokerProcess("file", f"file://{tmp_path / 'store'}", tmp_path, SECRET)
    with broker.running():
        channel = make_channel(broker.url, subject="operator", health_service=DATABROKER_SERVICE)
        async with following(channel):
            client = DatabrokerClient(channel, unary_timeout_s=20.0)
            await eventually(lambda: is_up(client), timeout_s=30)

            async def write(caller: int) -> None:
                for call in range(CALLS):
                    id_ = f"{caller}-{call}"
                    await client.put([record_of(User(id=id_, name="x" * 3_000), id_)])

            async with asyncio.TaskGroup() as group:
                for caller in range(CALLERS):
                    group.create_task(write(caller))
            assert (await client.server_info()).latest_record_version == CALLERS * CALLS


async def is_up(client: DatabrokerClient) -> bool:
    try:
        await client.server_info()
    except GatehouseError:
        return False
    return True
