"""The processes of the databroker's benchmark: the databroker, and who stands around it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.errors import GatehouseError
from tests.bench.broker_peers import channel_to, resident_bytes
from tests.support.databroker_process import DatabrokerProcess

START_S = 30.0
CALL_S = 60.0  # so that a slow store shows as a slow figure, not as none
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Broker(DatabrokerProcess):
    """The databroker under measure."""

    def cpu_s(self) -> float:
        """The CPU that it has used, in seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    def resident_bytes(self) -> int:
        return resident_bytes(self.pid)


@contextlib.asynccontextmanager
async def client_of(port: int) -> AsyncIterator[DatabrokerClient]:
    """An operator's client, once the databroker answers."""
    channel = channel_to(port, "operator")
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(channel.run(stop))
        try:
            client = DatabrokerClient(channel, unary_timeout_s=CALL_S)
            await _until_served(client)
            yield client
        finally:
            stop.set()
            await channel.close()


async def _until_served(client: DatabrokerClient) -> None:
    end_s = time.monotonic() + START_S
    while True:
        try:
            await client.server_info()
        except GatehouseError:
            if time.monotonic() > end_s:
                raise
            await asyncio.sleep(0.05)
        else:
            return


class Peer:
    """A process of `broker_peers` that says what it sees, a JSON line each time."""

    def __init__(self, role: str, process: asyncio.subprocess.Process) -> None:
        self._role = role
        self._process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, role: str, *arguments: object) -> AsyncIterator[Peer]:
        """Start it; at the end of the block it is ended, whatever happened."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.bench.broker_peers", role, *map(str, arguments)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        try:
            yield cls(role, process)
        finally:
            process.stdin.close()  # which tells it to end
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
                await process.wait()

    def tell(self, text: str) -> None:
        """Send it a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n".encode())

    async def line(self, timeout_s: float) -> dict[str, Any]:
        """The next thing it says."""
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), timeout_s)
        except TimeoutError:
            raise TimeoutError(f"{self._role} said nothing for {timeout_s:g} s") from None
        if not line:
            raise RuntimeError(f"{self._role} ended with status {await self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found
