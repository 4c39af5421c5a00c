"""An HTTP/1.1 load generator in plain Python, for machines without wrk and h2load.

Reads a question as JSON on standard input and prints an answer. Slower than what it measures, so
the ratios that it gives are nearer to one than those of wrk.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from typing import Any


async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bool:
    """Send one request and read its answer; whether it was a 200."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n")[1:]:
        if line.startswith(b"content-length:"):
            await reader.readexactly(int(line.split(b":")[1]))
    return head.split(b" ", 2)[1] == b"200"


async def load(question: dict[str, Any]) -> dict[str, Any]:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    requests = [
        f"GET / HTTP/1.1\r\nhost: {host}\r\naccept: application/json\r\n"
        f"{f'cookie: {cookie}' if cookie else 'x-none: -'}\r\n\r\n".encode()
        for host, cookie in question["senders"]
    ]
    connections, rate = question["connections"], question["rate"]
    interval_s = connections / rate if rate else 0.0
    latencies: list[float] = []
    refused = 0

    async def connection(number: int) -> None:
        nonlocal refused
        reader, writer = await asyncio.open_connection("127.0.0.1", question["port"], ssl=context)
        began_s = time.monotonic()
        due_s = began_s + interval_s * number / connections
        turn = number
        while time.monotonic() < began_s + question["seconds"]:
            if interval_s:
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                due_s += interval_s
            sent_s = time.monotonic()
            is_good = await one(reader, writer, requests[turn % len(requests)])
            latencies.append((time.monotonic() - sent_s) * 1e6)
            refused += not is_good
            turn += connections
        writer.close()

    started_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(connections):
            group.create_task(connection(number))
    return {
        "latencies_us": latencies,
        "refused": refused,
        "seconds": time.monotonic() - started_s,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(load(json.load(sys.stdin)))))
