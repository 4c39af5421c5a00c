"""Routes open to everybody in a real Envoy, and what of a request arrived behind it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.envoy import Proxy, proxy
from tests.support.raw_http import Answer
from tests.support.upstream import EchoUpstream

HOST = "app.example.com"


def public(upstream: EchoUpstream, **keys: Any) -> dict[str, Any]:
    return {
        "from": f"http://{HOST}",
        "to": upstream.url,
        "allow_public_unauthenticated_access": True,
        **keys,
    }


@asynccontextmanager
async def serving(upstream: EchoUpstream, *routes: Any, **keys: Any) -> AsyncIterator[Proxy]:
    async with proxy({"routes": list(routes or [public(upstream)])}, **keys) as running:
        yield running


def arrived(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer
    seen: dict[str, Any] = json.loads(answer.body)
    return seen


def values(seen: dict[str, Any], name: str) -> list[str]:
    return [value for header, value in seen["headers"] if header == name]


def pomerium_headers(seen: dict[str, Any]) -> list[str]:
    return [name for name, _ in seen["headers"] if "pomerium" in name.replace("_", "-")]
