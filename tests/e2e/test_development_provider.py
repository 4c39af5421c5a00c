"""The product with the development identity provider: both topologies, and the demo itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gatehouse.cli.demo import identity_provider
from gatehouse.cli.demo.provider_grants import Client
from gatehouse.cli.demo.smoke import choice_of
from tests.e2e.conftest import ADA, GRACE, standard_routes
from tests.support.ports import free_ports
from tests.support.postgres import fresh_database
from tests.support.sign_in import follow, sign_in
from tests.support.stack import Stack, running
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e


@contextlib.contextmanager
def provider_for(stack: Stack, port: int) -> Iterator[None]:
    """The provider at `port`, in a thread, with the stack as its only client."""
    client = Client(
        stack.client_id,
        stack.client_secret,
        frozenset({f"{stack.authenticate_url}/oauth2/callback"}),
        frozenset({f"{stack.authenticate_url}/.pomerium/signed_out"}),
    )
    up = threading.Event()
    handles: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        stop = asyncio.Event()
        handles.append((asyncio.get_running_loop(), stop))
        await identity_provider.serve(
            stop, "localhost", port, [client], ready=lambda _issuer: up.set()
        )

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert up.wait(20)
        yield
    finally:
        for loop, stop in handles:
            loop.call_soon_threadsafe(stop.set)
        thread.join(20)


def press_button(client: httpx.Client, page: httpx.Response, user: str) -> httpx.Response:
    target, form = choice_of(page.text, str(page.url), user)
    return client.post(target, data=form)


@pytest.mark.parametrize("split", [False, True], ids=["all_in_one", "four_processes"])
def test_sign_in_refusal_and_sign_out(tmp_path: Path, split: bool) -> None:
    (port,) = free_ports(1)
    with contextlib.ExitStack() as stack_of:
        upstream = stack_of.enter_context(EchoUpstream().running())
        stack = Stack(
            directory=tmp_path,
            issuer=f"http://localhost:{port}",
            client_id="gatehouse",
            client_secret="a-secret-of-this-test",
            routes=standard_routes(upstream.url),
            split=split,
            postgres=stack_of.enter_context(fresh_database()) if split else "",
        )
        stack_of.enter_context(provider_for(stack, port))
        stack_of.enter_context(running(stack))
        with stack.client() as client:
            page = sign_in(client, stack.url("app.localhost"), GRACE, form=press_button)[-1]
            assert page.status_code == 200
            refused = follow(client, client.get(stack.url("admin.localhost")))[-1]
            assert refused.status_code == 403
            out = follow(client, client.get(stack.url("app.localhost", "/.pomerium/sign_out")))
            assert str(out[-1].url) == f"{stack.authenticate_url}/.pomerium/signed_out"
            assert client.get(stack.url("app.localhost")).status_code == 302
        with stack.client() as client:
            page = sign_in(client, stack.url("admin.localhost"), ADA, form=press_button)[-1]
            assert page.status_code == 200


def test_the_demo_passes_its_own_smoke_test(tmp_path: Path) -> None:
    names = ("PORT", "PROVIDER_PORT", "UPSTREAM_PORT", "GRPC_PORT", "HEALTH_PORT")
    ports = zip(names, free_ports(5), strict=True)
    done = subprocess.run(
        [sys.executable, "-m", "gatehouse.cli", "demo", "smoke", "--state", tmp_path / "state"],
        env=dict(os.environ) | {f"GATEHOUSE_DEMO_{name}": str(port) for name, port in ports},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All 11 steps passed" in done.stdout
