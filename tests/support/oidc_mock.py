"""oidc-provider-mock, an identity provider nobody here wrote, as a process of its own.

A process, because its libraries warn of their own deprecations and tests make warnings errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx


@contextlib.asynccontextmanager
async def running_oidc_mock(*users: dict[str, Any]) -> AsyncIterator[str]:
    """Yields the issuer. Each user is a set of claims with `sub`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [argument for user in users for argument in ("--user-claims", json.dumps(user))]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "oidc_provider_mock", "--host", "localhost", "--port", str(port),
        "--require-nonce", "true", *arguments,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    issuer = f"http://localhost:{port}"
    try:
        async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(20):
            while True:
                assert process.returncode is None
                with contextlib.suppress(httpx.TransportError):
                    await client.get(f"{issuer}/.well-known/openid-configuration")
                    break
                await asyncio.sleep(0.05)
        yield issuer
    finally:
        process.terminate()
        await process.wait()
