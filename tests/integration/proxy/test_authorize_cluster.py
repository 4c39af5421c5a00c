"""Envoy asks remote authorize replicas: with the service token, and around those that are gone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.envoy import Authorize, allow, authorize_server, eventually, proxy
from tests.support.ports import free_ports
from tests.support.raw_http import http1
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e


@pytest.fixture
def upstream() -> Iterator[EchoUpstream]:
    with EchoUpstream().running() as running:
        yield running


def config(upstream: EchoUpstream, *ports: int) -> dict[str, Any]:
    return {
        "services": "proxy",
        "authorize_service_urls": [f"http://127.0.0.1:{port}" for port in ports],
        "routes": [
            {
                "from": "http://app.example.com",
                "to": upstream.url,
                "allow_public_unauthenticated_access": True,
            }
        ],
    }


async def test_checks_carry_the_token_the_route_and_the_client_certificate_facts(
    upstream: EchoUpstream,
):
    authorize = Authorize()
    async with (
        authorize_server(authorize, "127.0.0.1:0") as port,
        proxy(config(upstream, port)) as running,
    ):
        assert (await http1(running.port, lines=["jwt: forged"])).status == 200
        assert authorize.metadata[-1]["jwt"] == "header.claims.signature"
        attributes = authorize.requests[-1].attributes
        facts = attributes.metadata_context.filter_metadata
        assert dict(facts["com.pomerium.client-certificate-info"]) == {"presented": False}
        assert attributes.request.http.headers["jwt"] == "forged"
        assert attributes.context_extensions["internal"] == "false"
        await http1(running.port, "/.pomerium/")
        context = dict(authorize.requests[-1].attributes.context_extensions)
        assert context == {"internal": "true", "route_id": "", "route_checksum": "0"}


async def test_losing_a_replica_costs_no_request(upstream: EchoUpstream):
    first, second = Authorize(), Authorize()
    (dead,) = free_ports(1)
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(authorize_server(first, "127.0.0.1:0"))
        async with (
            authorize_server(second, "127.0.0.1:0") as two,
            proxy(config(upstream, one, two, dead)) as running,
        ):
            for _ in range(20):
                assert (await http1(running.port)).status == 200
            assert first.requests
            assert second.requests
            await stack.aclose()
            for _ in range(20):
                assert (await http1(running.port)).status == 200


async def test_a_sign_in_service_that_left_is_passed_over(upstream: EchoUpstream):
    (dead,) = free_ports(1)
    async with authorize_server(Authorize(), "127.0.0.1:0") as port:
        settings = config(upstream, port)
        settings["authenticate_service_url"] = "http://app.example.com"
        settings["routes"][0]["to"] = [upstream.url, f"http://127.0.0.1:{dead}"]
        async with proxy(settings) as running:
            assert [(await http1(running.port)).status for _ in range(10)] == [200] * 10
            retries = await running.admin.stats(r"^cluster\.route-.*\.upstream_rq_retry$")
            assert sum(retries.values()) > 0


async def test_a_replica_that_says_unavailable_is_passed_over(upstream: EchoUpstream):
    import grpc  # noqa: PLC0415

    class Refusing(Authorize):
        async def Check(self, request, context):  # noqa: N802
            self.requests.append(request)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not synced")

    refusing, good = Refusing(), Authorize()
    async with (
        authorize_server(refusing, "127.0.0.1:0") as one,
        authorize_server(good, "127.0.0.1:0") as two,
        proxy(config(upstream, one, two)) as running,
    ):
        for _ in range(20):
            assert (await http1(running.port)).status == 200
        assert refusing.requests


async def test_a_replica_that_is_not_serving_leaves_rotation(upstream: EchoUpstream):
    draining, good = Authorize(), Authorize()
    async with (
        authorize_server(draining, "127.0.0.1:0") as one,
        authorize_server(good, "127.0.0.1:0") as two,
        proxy(config(upstream, one, two)) as running,
    ):
        draining.serving = False
        name = "cluster.pomerium-authorize.membership_healthy"

        async def healthy() -> int:
            return (await running.admin.stats(f"^{name}$"))[name]

        async def one_left() -> bool:
            return await healthy() == 1

        await eventually(one_left)
        draining.requests.clear()
        for _ in range(10):
            assert (await http1(running.port)).status == 200
        assert draining.requests == []


async def test_a_slow_authorize_is_503_after_the_timeout(upstream: EchoUpstream):
    import asyncio  # noqa: PLC0415

    class Slow(Authorize):
        async def Check(self, request, context):  # noqa: N802
            await asyncio.sleep(30)
            return allow()

    async with (
        authorize_server(Slow(), "127.0.0.1:0") as port,
        proxy(config(upstream, port), grpc_client_timeout="300ms") as running,
    ):
        assert (await http1(running.port)).status == 503
        assert upstream.requests == []


async def test_a_check_may_take_its_time(upstream: EchoUpstream):
    """Envoy takes the longest back-off between retries for the timeout of each try as well."""
    import asyncio  # noqa: PLC0415

    class Thoughtful(Authorize):
        async def Check(self, request, context):  # noqa: N802
            self.requests.append(request)
            await asyncio.sleep(0.8)
            return allow()

    thoughtful = Thoughtful()
    async with (
        authorize_server(thoughtful, "127.0.0.1:0") as port,
        proxy(config(upstream, port)) as running,
    ):
        assert (await http1(running.port)).status == 200
        assert len(thoughtful.requests) == 1


async def test_a_silent_replica_is_passed_over_within_the_time_for_a_check(
    upstream: EchoUpstream,
):
    import asyncio  # noqa: PLC0415

    class Silent(Authorize):
        async def Check(self, request, context):  # noqa: N802
            self.requests.append(request)
            await asyncio.Event().wait()

    silent, good = Silent(), Authorize()
    async with (
        authorize_server(silent, "127.0.0.1:0") as one,
        authorize_server(good, "127.0.0.1:0") as two,
        proxy(config(upstream, one, two), grpc_client_timeout="3s") as running,
    ):
        for _ in range(4):
            assert (await http1(running.port)).status == 200
        assert silent.requests


async def test_r50_no_authorize_at_all_is_a_page_with_503(upstream: EchoUpstream):
    (dead,) = free_ports(1)
    async with proxy(config(upstream, dead)) as running:
        answer = await http1(running.port)
        assert answer.status == 503
        assert answer.headers["content-type"].startswith("text/html")
        assert (await http1(running.port, "/ping")).status == 200
        assert upstream.requests == []
