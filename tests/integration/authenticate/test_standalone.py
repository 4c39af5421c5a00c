"""Authenticate in a process of its own: its own TLS listener, and a databroker elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import ssl

import httpx
import pytest

from gatehouse.authenticate.service import HEALTH_CHECK, AuthenticateService
from gatehouse.common.clock import SystemRng
from gatehouse.common.config.hub import ConfigHub
from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.resolved import ListenAddress, ServiceName
from gatehouse.common.jose.signed_url import sign_url
from gatehouse.common.runtime.context import ProcessContext
from gatehouse.common.runtime.health import HealthRegistry
from tests.support.pki import Authority
from tests.support.ports import free_ports
from tests.support.sign_in import query_of
from tests.support.sign_in_world import Broker, ShiftedClock, running_provider, short_directory
from tests.support.web_settings import AUTHENTICATE, SHARED, provider, settings

NAME = "authenticate.example.com"
AUTHORITY = Authority()


def context_in(directory, made, clock):
    directory.mkdir()
    return ProcessContext(
        config=ConfigHub(made),
        health=HealthRegistry(clock),
        clock=clock,
        rng=SystemRng(),
        run_dir=directory,
        grace_s=2.0,
    )


@contextlib.asynccontextmanager
async def running(issuer, **changes):
    clock = ShiftedClock()
    with short_directory() as directory:
        broker_context = context_in(
            directory / "d", settings(databroker_storage_type="memory"), clock
        )
        made = settings(
            idp=provider(issuer),
            routes=(),  # this process is told of no routes
            services=frozenset({ServiceName.AUTHENTICATE}),
            address=ListenAddress("127.0.0.1", free_ports(1)[0]),
            databroker_urls=(f"unix://{broker_context.grpc_socket}",),
            **changes,
        )
        made = dataclasses.replace(made, certificates=(AUTHORITY.issue(NAME),))
        context = context_in(directory / "a", made, clock)
        service = AuthenticateService(context)
        ready, stop = asyncio.Event(), asyncio.Event()
        async with Broker(broker_context).running(), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(service.run(stop, ready.set))
            await asyncio.wait(
                [task, tasks.create_task(ready.wait())], return_when=asyncio.FIRST_COMPLETED
            )
            assert ready.is_set()
            try:
                yield context
            finally:
                stop.set()


def browser_for(context, authority=AUTHORITY):
    """A client that connects to the listener under the public name."""
    trust = ssl.create_default_context(cadata=authority.ca_pem.decode())
    port = context.config.current.address.port

    class ByName(httpx.AsyncHTTPTransport):
        async def handle_async_request(self, request):
            if request.url.host == NAME:
                request.extensions["sni_hostname"] = NAME
                request.url = request.url.copy_with(host="127.0.0.1", port=port)
            return await super().handle_async_request(request)

    return httpx.AsyncClient(transport=ByName(verify=trust), trust_env=False)


def sign_in_url(context):
    query = "pomerium_redirect_uri=https%3A%2F%2Fanywhere.example.org%2F"
    url = f"{AUTHENTICATE}/.pomerium/sign_in?{query}"
    return sign_url(url, SHARED, now_s=context.clock.now_s())


async def test_it_serves_its_own_tls_and_trusts_signed_targets():
    async with running_provider() as issuer, running(issuer) as context:
        assert context.health.snapshot().records[HEALTH_CHECK].healthy
        async with browser_for(context) as browser:
            leave = await browser.get(sign_in_url(context))
            assert leave.status_code == 302, leave.text
            assert leave.headers["location"].startswith(issuer)
            assert query_of(leave.headers["location"])["code_challenge_method"] == "S256"
            probe = await browser.get(f"https://{NAME}/ping", headers={"host": "127.0.0.1"})
            assert probe.text == "OK\n"
            assert "max-age=" in probe.headers["strict-transport-security"]
            assert leave.headers["cache-control"] == "no-store"
            custom = {"set_response_headers": {"X-Custom": "1", "Cache-Control": "private"}}
            old = context.config.current
            changed = old.settings.model_copy(update=custom)
            await context.config.apply(dataclasses.replace(old, settings=changed))
            probe = await browser.get(f"https://{NAME}/ping")
            assert probe.headers["x-custom"] == "1"
            assert probe.headers.get_list("cache-control") == ["private"]
            assert "strict-transport-security" not in probe.headers


async def test_new_certificates_are_used_without_a_restart():
    other = Authority()
    async with running_provider() as issuer, running(issuer) as context:
        new = dataclasses.replace(context.config.current, certificates=(other.issue(NAME),))
        await context.config.apply(new)
        async with browser_for(context, other) as browser, asyncio.timeout(60):
            while True:
                try:
                    answer = await browser.get(f"https://{NAME}/ping")
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.02)  # the old listener is winding up
            assert answer.text == "OK\n"


async def test_its_address_cannot_change_while_it_runs():
    async with running_provider() as issuer, running(issuer) as context:
        old = context.config.current
        moved = dataclasses.replace(old, address=ListenAddress("127.0.0.1", 1))
        with pytest.raises(ConfigError, match="restart the process"):
            await context.config.apply(moved)
        assert context.config.current is old


async def test_a_taken_address_ends_the_service_with_a_reason():
    with socket.socket() as taken, short_directory() as directory:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        made = settings(
            services=frozenset({ServiceName.AUTHENTICATE}),
            address=ListenAddress(*taken.getsockname()),
            databroker_urls=("http://127.0.0.1:9",),
            insecure_server=True,
        )
        service = AuthenticateService(context_in(directory / "a", made, ShiftedClock()))
        with pytest.raises(ExceptionGroup) as caught:
            await service.run(asyncio.Event(), lambda: None)
        assert "cannot listen" in repr(caught.value.exceptions)
