"""Tokens for serverless upstreams, fetched from Google's endpoints over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from gatehouse.authorize.core.google_identity import ServiceAccount, parse_account
from gatehouse.authorize.edge.google_tokens import RETRY_AFTER_S, GoogleTokens
from tests.support.clock import FakeClock
from tests.support.google_cloud import GoogleCloud

A, B = "https://a.run.app", "https://b.run.app"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def cloud(clock: FakeClock) -> Iterator[GoogleCloud]:
    with GoogleCloud(clock.now_s).running() as running:
        yield running


@pytest.fixture
def tokens(clock: FakeClock, cloud: GoogleCloud) -> GoogleTokens:
    return GoogleTokens(
        clock,
        lambda: httpx.AsyncClient(trust_env=False),
        metadata_host=cloud.host,
        timeout_s=1.0,
    )


@pytest.fixture(params=["machine", "account"])
def account(request: pytest.FixtureRequest, cloud: GoogleCloud) -> ServiceAccount | None:
    return parse_account(cloud.account()) if request.param == "account" else None


async def test_a_token_is_for_its_audience_and_is_kept(
    tokens: GoogleTokens, cloud: GoogleCloud, account: ServiceAccount | None
) -> None:
    first = await tokens.token(account, A)
    assert cloud.claims(first)["aud"] == A
    assert await tokens.token(account, A) == first
    assert cloud.claims(await tokens.token(account, B))["aud"] == B
    assert cloud.asked == [A, B]


async def test_machine_and_account_are_kept_apart(tokens: GoogleTokens, cloud: GoogleCloud) -> None:
    one = await tokens.token(None, A)
    assert await tokens.token(parse_account(cloud.account()), A) != one
    assert cloud.asked == [A, A]


async def test_it_is_renewed_in_time_and_never_sent_after_its_end(
    tokens: GoogleTokens, cloud: GoogleCloud, clock: FakeClock, account: ServiceAccount | None
) -> None:
    first = await tokens.token(account, A)
    clock.advance(2699)
    assert await tokens.token(account, A) == first
    cloud.failing = 500
    clock.advance(1)
    assert await tokens.token(account, A) == first  # the old one still holds
    assert len(cloud.asked) == 2
    assert await tokens.token(account, A) == first  # and nobody is asked again at once
    assert len(cloud.asked) == 2
    cloud.failing = 0
    clock.advance(RETRY_AFTER_S)
    second = await tokens.token(account, A)
    assert second != first
    cloud.failing = 500
    clock.advance(3541)
    assert not await tokens.token(account, A)


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"id_token": 7}', b"x" * 2_000_000])
async def test_what_is_no_token_is_not_sent(
    tokens: GoogleTokens, cloud: GoogleCloud, account: ServiceAccount | None, body: bytes
) -> None:
    cloud.body = body
    assert not await tokens.token(account, A)


async def test_many_requests_make_one_fetch(
    tokens: GoogleTokens, cloud: GoogleCloud, account: ServiceAccount | None
) -> None:
    cloud.gate.clear()
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(tokens.token(account, A)) for _ in range(20)]
        assert await asyncio.to_thread(cloud.called.wait, 5)
        waiting.pop(0).cancel()  # the one that fetches: its client is gone
        cloud.gate.set()
    assert len({task.result() for task in waiting}) == 1
    assert len(cloud.asked) <= 2


async def test_a_silent_endpoint_costs_one_wait(
    clock: FakeClock, cloud: GoogleCloud, account: ServiceAccount | None
) -> None:
    tokens = GoogleTokens(
        clock,
        lambda: httpx.AsyncClient(trust_env=False),
        metadata_host=cloud.host,
        timeout_s=0.1,
    )
    cloud.gate.clear()
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        waiting = [group.create_task(tokens.token(account, A)) for _ in range(20)]
    assert {task.result() for task in waiting} == {""}
    assert len(cloud.asked) == 1


async def test_nobody_listens(clock: FakeClock) -> None:
    tokens = GoogleTokens(clock, httpx.AsyncClient, metadata_host="127.0.0.1:1")
    assert not await tokens.token(None, A)
