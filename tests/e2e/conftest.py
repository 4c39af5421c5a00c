"""Running products for the end-to-end tests: one per topology, shared by the whole run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.identity import provider_mock
from tests.support.postgres import fresh_database
from tests.support.stack import Stack, running
from tests.support.upstream import EchoUpstream

ADA = "ada@example.com"
GRACE = "grace@example.com"
MALLORY = "mallory@elsewhere.test"


@dataclass
class World:
    """A running product and what it stands between."""

    stack: Stack
    upstream: EchoUpstream
    issuer: str

    def client(self, **options: Any) -> httpx.Client:
        """As `Stack.client`; no refusal lets a byte through to the upstream.

        For requests that are made one after the other.
        """
        received = [0]

        def sent(_request: httpx.Request) -> None:
            received[0] = self.upstream.received

        def answered(response: httpx.Response) -> None:
            headers = [(name.lower(), value) for name, value in response.headers.items()]
            self.upstream.check_refusal(headers, received[0])

        hooks = {"request": [sent], "response": [answered]}
        return self.stack.client(event_hooks=hooks, **options)


def standard_routes(upstream: str) -> list[dict[str, Any]]:
    """One route of each kind that the tests need."""
    return [
        {
            "from": "https://app.localhost",
            "to": upstream,
            "allow_any_authenticated_user": True,
            "pass_identity_headers": True,
            "set_request_headers": {"X-Set": "by-gatehouse"},
        },
        {
            "from": "https://admin.localhost",
            "to": upstream,
            "pass_identity_headers": True,
            "policy": [{"allow": {"or": [{"email": {"is": ADA}}]}}],
        },
        {
            "from": "https://public.localhost",
            "prefix": "/private",
            "to": upstream,
            "policy": [{"allow": {"and": [{"domain": "example.com"}]}}],
        },
        {
            "from": "https://public.localhost",
            "to": upstream,
            "allow_public_unauthenticated_access": True,
        },
        {
            "from": "https://methods.localhost",
            "to": upstream,
            "policy": [
                {
                    "allow": {"and": [{"authenticated_user": True}, {"http_method": "GET"}]},
                    "deny": {"or": [{"http_path": {"starts_with": "/secret"}}]},
                }
            ],
        },
        {
            "from": "https://rewrite.localhost",
            "prefix": "/old/",
            "prefix_rewrite": "/new/",
            "to": upstream,
            "allow_public_unauthenticated_access": True,
        },
        {
            "from": "https://rewrite.localhost",
            "path": "/exact",
            "to": upstream,
            "preserve_host_header": True,
            "allow_public_unauthenticated_access": True,
        },
        {
            "from": "https://rewrite.localhost",
            "regex": "/r/[0-9]+",
            "to": upstream,
            "allow_public_unauthenticated_access": True,
        },
    ]


@pytest.fixture(scope="session")
def provider() -> Iterator[str]:
    """The issuer of a third-party identity provider."""
    with provider_mock() as issuer:
        yield issuer


@pytest.fixture
def postgres_dsn() -> Iterator[str]:
    with fresh_database() as dsn:
        yield dsn


def _world(directory: Path, provider: str, *, split: bool, postgres: str) -> Iterator[World]:
    with EchoUpstream().running() as upstream:
        stack = Stack(
            directory=directory,
            issuer=provider,
            client_id="gatehouse",
            client_secret="not-a-real-secret",
            routes=standard_routes(upstream.url),
            split=split,
            postgres=postgres,
            extra={
                "jwt_claims_headers": {"X-Pomerium-Claim-Email": "email"},
                "explain_policy": {"allow": {"or": [{"email": ADA}]}},
            },
        )
        with running(stack):
            yield World(stack, upstream, provider)


@pytest.fixture(scope="session")
def all_in_one(tmp_path_factory: pytest.TempPathFactory, provider: str) -> Iterator[World]:
    yield from _world(tmp_path_factory.mktemp("all"), provider, split=False, postgres="")


@pytest.fixture(scope="session")
def four_processes(tmp_path_factory: pytest.TempPathFactory, provider: str) -> Iterator[World]:
    with fresh_database() as dsn:
        yield from _world(tmp_path_factory.mktemp("four"), provider, split=True, postgres=dsn)


@pytest.fixture(params=["all_in_one", "four_processes"])
def world(request: pytest.FixtureRequest) -> World:
    """Each topology in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, World)
    return found


@pytest.fixture
def fresh_stack(
    tmp_path: Path, provider: str
) -> Iterator[Callable[..., tuple[Stack, EchoUpstream]]]:
    """Makes products that a test may break; all are stopped at its end."""
    started: list[Stack] = []
    with EchoUpstream().running() as upstream:

        def make(**options: Any) -> tuple[Stack, EchoUpstream]:
            options.setdefault("routes", standard_routes(upstream.url))
            stack = Stack(
                directory=tmp_path / f"stack-{len(started)}",
                issuer=provider,
                client_id="gatehouse",
                client_secret="not-a-real-secret",
                **options,
            )
            started.append(stack)
            return stack, upstream

        try:
            yield make
        finally:
            for stack in started:
                for process in stack.processes.values():
                    if process.process.poll() is None:
                        process.process.terminate()
                for process in stack.processes.values():
                    process.process.wait(30)
