"""The OpenRoutes RPC: who may ask, how much, and that decisions go on meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from gatehouse.common.ids import RouteId
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.pb import authorize_pb2, authorize_pb2_grpc
from tests.integration.authorize.conftest import (
    Checker,
    running_authorize,
    running_databroker,
    writer_to,
)
from tests.support.check import SECRET, check_request, resolved_settings, route
from tests.support.policy import policy_of, session_record, user_record

OWN = policy_of("allow: {and: [{email: ann@example.com}]}")
OTHERS = policy_of("allow: {and: [{email: bob@example.com}]}")
MANY = 10_000


@pytest.fixture
async def authorize(tmp_path: Path) -> AsyncIterator[Checker]:
    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as writer:
        await writer.put(
            [
                user_record("u1", "ann@example.com"),
                session_record("s1", "u1", expires_at_s=4_000_000_000),
                session_record("old", "u1", expires_at_s=1_000_000_000),
            ]
        )
        first = route(OWN, name="wiki")
        routes = [
            dataclasses.replace(
                first, id=RouteId(f"r{number}"), policy=OTHERS if number % 2 else OWN
            )
            for number in range(MANY)
        ]
        settings = resolved_settings(*routes, databroker_urls=(f"http://127.0.0.1:{broker.port}",))
        async with running_authorize(tmp_path / "a", settings) as running:
            yield running


def metadata(
    authorize: Checker, subject: str, secret: bytes = SECRET, audience: str = "authorize"
) -> Any:
    clock = authorize.node.context.clock
    return ServiceCredentials(subject, lambda: (secret,), clock).metadata(audience)


async def test_r39_only_the_proxy_asks_and_within_limits(authorize: Checker) -> None:
    proxy = metadata(authorize, "proxy")
    good = authorize_pb2.OpenRoutesRequest(session_id="s1", route_id=["r3", "r2", "none", "r0"])
    callers = {
        (): grpc.StatusCode.UNAUTHENTICATED,
        proxy[:1]: grpc.StatusCode.PERMISSION_DENIED,  # of the system, and does not say who
        metadata(authorize, "proxy", b"x" * 32): grpc.StatusCode.UNAUTHENTICATED,
        metadata(authorize, "proxy", audience="databroker"): grpc.StatusCode.UNAUTHENTICATED,
        metadata(authorize, "authenticate"): grpc.StatusCode.PERMISSION_DENIED,
        metadata(authorize, "operator"): grpc.StatusCode.PERMISSION_DENIED,
    }
    bad = {
        "gone": grpc.StatusCode.NOT_FOUND,
        "old": grpc.StatusCode.NOT_FOUND,
        "": grpc.StatusCode.INVALID_ARGUMENT,
        "s" * 600: grpc.StatusCode.INVALID_ARGUMENT,
    }
    async with grpc.aio.insecure_channel(f"127.0.0.1:{authorize.node.port}") as channel:
        stub = authorize_pb2_grpc.PortalServiceStub(channel)

        async def refused(request: Any, shown: Any) -> grpc.StatusCode:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.OpenRoutes(request, metadata=shown, timeout=60)
            return caught.value.code()

        for shown, wanted in callers.items():
            assert await refused(good, shown) is wanted
        for session_id, wanted in bad.items():
            request = authorize_pb2.OpenRoutesRequest(session_id=session_id, route_id=["r0"])
            assert await refused(request, proxy) is wanted
        flood = authorize_pb2.OpenRoutesRequest(session_id="s1", route_id=["r0"] * (MANY + 1))
        assert await refused(flood, proxy) is grpc.StatusCode.INVALID_ARGUMENT
        answer = await stub.OpenRoutes(good, metadata=proxy, timeout=60)
        assert list(answer.route_id) == ["r2", "r0"]


async def test_ten_thousand_policies_do_not_hold_up_decisions(authorize: Checker) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{authorize.node.port}") as channel:
        stub = authorize_pb2_grpc.PortalServiceStub(channel)
        request = authorize_pb2.OpenRoutesRequest(
            session_id="s1", route_id=[f"r{number}" for number in range(MANY)]
        )
        asked = asyncio.ensure_future(
            stub.OpenRoutes(request, metadata=metadata(authorize, "proxy"), timeout=30)
        )
        answered_meanwhile, started_s = 0, time.monotonic()
        while not asked.done():
            await authorize.check(check_request())
            answered_meanwhile += 1
        answer = await asked
        assert len(answer.route_id) == MANY // 2
        assert answered_meanwhile >= 5, f"in {time.monotonic() - started_s:.2f} s"
