"""Sign-ins per second of one authenticate process, with the databroker in a process of its own.

1,000 browsers sign in for the first time, all at the same time: `sign_in`, the page of the
development provider, the callback; nobody arrives before everybody has left. Counted is
authenticate's own CPU, because everybody shares the machine here. At the end there must be one
session for each.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import httpx

from gatehouse.cli.demo import identity_provider
from gatehouse.cli.demo.provider_grants import Client
from gatehouse.cli.demo.smoke import choice_of
from gatehouse.cli.operator import with_databroker
from gatehouse.cli.sessions import all_sessions
from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.jose.signed_url import sign_url
from gatehouse.common.session.login_binding import new_login_binding
from tests.bench.figures import Figure
from tests.support.ports import free_ports
from tests.support.stack import Stack

NAME = "signin"
PEOPLE = int(os.environ.get("GATEHOUSE_BENCH_PEOPLE", "1000"))
AT_ONCE = 32  # requests; of the people each has a sign-in under way
ONCE = {"connection": "close"}  # a person comes to the provider on a connection of their own
ACCOUNTS = ("ada@example.com", "grace@example.com")
TARGET_MS = 25.0  # of CPU for one: forty sign-ins a second on one core


Step = Callable[[httpx.Client, Stack, "Person"], None]


def cpu_s(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


@dataclass
class Person:
    """Somebody who signs in, and how far they are."""

    user: str
    cookies: httpx.Cookies = field(default_factory=httpx.Cookies)
    at: str = ""  # where they go next


def leave(client: httpx.Client, stack: Stack, person: Person) -> None:
    """From Gatehouse to the provider."""
    query = {
        "pomerium_redirect_uri": stack.url("app.localhost"),
        "gatehouse_login": new_login_binding(SystemRng()).digest,
    }
    url = f"{stack.authenticate_url}/.pomerium/sign_in?{urlencode(query)}"
    key = base64.b64decode(stack.shared_secret)
    left = client.get(sign_url(url, key, now_s=SystemClock().now_s()))
    assert left.status_code == 302, left.text
    person.at = left.headers["location"]


def choose(client: httpx.Client, _stack: Stack, person: Person) -> None:
    """At the provider."""
    page = client.get(person.at, headers=ONCE)
    target, form = choice_of(page.text, str(page.url), person.user)
    back = client.post(target, data=form, headers=ONCE)
    assert back.status_code in {302, 303}, back.text
    person.at = back.headers["location"]


def arrive(client: httpx.Client, _stack: Stack, person: Person) -> None:
    """Back at Gatehouse, which asks the provider and makes the session."""
    arrived = client.get(person.at)
    assert arrived.status_code == 302, arrived.text
    assert urlsplit(arrived.headers["location"]).path == "/.pomerium/callback/"


def crowd(stack: Stack) -> None:
    """All sign-ins are under way at the same time: nobody arrives before everybody has left."""
    people = [Person(ACCOUNTS[number % 2]) for number in range(PEOPLE)]
    with contextlib.ExitStack() as opened, ThreadPoolExecutor(AT_ONCE) as threads:
        clients = [opened.enter_context(stack.client()) for _ in range(AT_ONCE)]
        for step in (leave, choose, arrive):

            def share(first: int, step: Step = step) -> None:
                client = clients[first]
                client.timeout = httpx.Timeout(60.0)
                for person in people[first::AT_ONCE]:
                    client.cookies = person.cookies  # another browser
                    step(client, stack, person)
                    person.cookies = httpx.Cookies(client.cookies)

            list(threads.map(share, range(AT_ONCE)))


def stored_sessions(stack: Stack) -> int:
    found: list[str] = []

    async def work(client: DatabrokerClient, settings: ResolvedSettings) -> int:
        del settings
        found.extend([session.id async for session in all_sessions(client)])
        return 0

    environment = {
        "SERVICES": "authorize",
        "GRPC_INSECURE": "true",
        "DATABROKER_SERVICE_URL": f"http://127.0.0.1:{stack.grpc_ports['databroker']}",
    }
    assert with_databroker(stack.config_path, environment, work) == 0
    assert len(found) == len(set(found))
    return len(found)


@contextlib.contextmanager
def provider(port: int, stack: Stack) -> Iterator[None]:
    """The development provider, in a thread of this process."""
    loop, up, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    client = Client(
        stack.client_id,
        stack.client_secret,
        frozenset({f"{stack.authenticate_url}/oauth2/callback"}),
        frozenset(),
    )
    serving = identity_provider.serve(
        stop, "127.0.0.1", port, [client], ready=lambda _issuer: up.set()
    )
    thread = threading.Thread(target=lambda: loop.run_until_complete(serving))
    thread.start()
    try:
        assert up.wait(20)
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def run() -> list[Figure]:
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as directory:
        stack = Stack(
            directory=Path(directory),
            issuer=f"http://localhost:{port}",
            client_id="gatehouse",
            client_secret="not-a-real-secret",
            routes=[
                {
                    "from": "https://app.localhost",
                    "to": "http://127.0.0.1:9",
                    "allow_any_authenticated_user": True,
                }
            ],
            split=True,
            extra={"databroker_storage_type": "memory"},
        )
        names = ("databroker", "authenticate")
        try:
            for name in names:  # one after another: it is not the start that is measured
                stack.spawn(name).wait_ready()
            pid = stack.processes["authenticate"].process.pid
            before_s, began_s = cpu_s(pid), time.monotonic()
            with provider(port, stack):
                crowd(stack)
            took_s, spent_s = time.monotonic() - began_s, cpu_s(pid) - before_s
            count = stored_sessions(stack)
            assert count == PEOPLE, f"{count} sessions of {PEOPLE} people"
        finally:
            stack.stop()
    cost_ms = spent_s / PEOPLE * 1e3
    return [
        Figure(f"authenticate: CPU of a sign-in ({PEOPLE} people)", "ms", (cost_ms,), TARGET_MS),
        Figure("authenticate: sign-ins one core can do", "1/s", (1e3 / cost_ms,)),
        Figure("authenticate: sign-ins done, provider included", "1/s", (PEOPLE / took_s,)),
    ]
