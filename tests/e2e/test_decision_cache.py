"""Remembered decisions in the whole product: they end when what they rest on does."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from google.protobuf.struct_pb2 import Struct

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.extauthz_context import DATABROKER_SERVICE
from gatehouse.common.ids import DIRECTORY_USER, SESSION
from gatehouse.common.rpc.channel import BalancedChannel
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.pb.databroker_pb2 import Record
from tests.e2e.conftest import GRACE, World
from tests.support.sign_in import sign_in
from tests.support.stack import Stack, decision_cache_choice

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not decision_cache_choice()["decision_cache"], reason="run without remembered decisions"
    ),
]

Fresh = Callable[..., tuple[Stack, Any]]
LIMIT_S = 60.0


def with_databroker(stack: Stack, act: Callable[[DatabrokerClient], Any]) -> Any:
    """Write as an operator would."""

    async def run() -> Any:
        secret = base64.b64decode(stack.shared_secret)
        clock = SystemClock()
        name = "databroker" if stack.split else "proxy"
        channel = BalancedChannel(
            [f"http://127.0.0.1:{stack.grpc_ports[name]}"],
            audience="databroker",
            health_service=DATABROKER_SERVICE,
            credentials=ServiceCredentials("operator", lambda: (secret,), clock),
            ca_pem=None,
            clock=clock,
            rng=SystemRng(),
        )
        try:
            return await act(DatabrokerClient(channel))
        finally:
            await channel.close()

    return asyncio.run(run())


def line_of(stack: Stack, answer: httpx.Response) -> dict[str, Any]:
    """Envoy's line about a request."""
    wanted = answer.headers["x-request-id"]
    deadline = time.monotonic() + LIMIT_S
    while True:
        for line in stack.processes["proxy"].access_log().splitlines(keepends=True):
            if wanted in line and line.endswith("\n"):
                found: dict[str, Any] = json.loads(line)
                return found
        assert time.monotonic() < deadline, wanted
        time.sleep(0.02)


def is_remembered(stack: Stack, answer: httpx.Response) -> bool:
    return bool(line_of(stack, answer)["remembered"])


def until_remembered(
    stack: Stack, client: httpx.Client, url: str, **options: Any
) -> httpx.Response:
    deadline = time.monotonic() + LIMIT_S
    while True:
        answer = client.get(url, **options)
        assert answer.status_code == 200
        if is_remembered(stack, answer):
            return answer
        assert time.monotonic() < deadline


def test_a_session_that_ends_is_refused_at_once(world: World) -> None:
    stack, url = world.stack, world.stack.url("app.localhost")
    with stack.client() as client:
        sign_in(client, url, GRACE)
        answer = until_remembered(stack, client, url)
        line = line_of(stack, answer)
        assert line["user"] == GRACE
        with_databroker(stack, lambda broker: broker.delete(SESSION, line["session-id"]))
        deadline = time.monotonic() + 2.0  # the bound; moments, as a rule
        while client.get(url, follow_redirects=False).status_code == 200:
            assert time.monotonic() < deadline


def test_a_directory_group_that_goes_takes_the_decision_along(fresh_stack: Fresh) -> None:
    stack, upstream = fresh_stack(routes=[])
    stack.routes = [
        {
            "from": "https://app.localhost",
            "to": upstream.url,
            "policy": [{"allow": {"and": [{"groups": {"has": "staff"}}]}}],
        }
    ]
    stack.write_config()
    stack.start()
    url = stack.url("app.localhost")

    def directory(*groups: str) -> Record:
        fields = Struct()
        fields.update({"email": GRACE, "group_ids": list(groups)})
        record = Record(type=DIRECTORY_USER, id=GRACE)
        record.data.Pack(fields)
        return record

    with stack.client() as client:
        with_databroker(stack, lambda broker: broker.put([directory("staff")]))
        assert sign_in(client, url, GRACE)[-1].status_code == 200
        until_remembered(stack, client, url)
        with_databroker(stack, lambda broker: broker.put([directory("other")]))
        deadline = time.monotonic() + 2.0
        while client.get(url).status_code == 200:
            assert time.monotonic() < deadline


def test_a_policy_that_changes_takes_the_decision_along(fresh_stack: Fresh) -> None:
    stack, upstream = fresh_stack(routes=[])

    def routes(user: str) -> list[dict[str, Any]]:
        return [
            {
                "from": "https://app.localhost",
                "to": upstream.url,
                "policy": [{"allow": {"and": [{"email": {"is": user}}]}}],
            }
        ]

    stack.routes = routes(GRACE)
    stack.write_config()
    stack.start()
    url = stack.url("app.localhost")
    with stack.client() as client:
        assert sign_in(client, url, GRACE)[-1].status_code == 200
        until_remembered(stack, client, url)
        stack.routes = routes("nobody@example.com")
        stack.write_config()
        deadline = time.monotonic() + LIMIT_S
        while client.get(url).status_code == 200:
            assert time.monotonic() < deadline
        assert client.get(url).status_code == 403


def test_a_stopped_databroker_or_proxy_makes_everything_be_asked(
    fresh_stack: Fresh, postgres_dsn: str
) -> None:
    """Case (h): within two seconds nothing is taken from memory, and it comes back by itself."""
    stack, _ = fresh_stack(split=True, postgres=postgres_dsn)
    stack.start()
    url, public = stack.url("app.localhost"), stack.url("public.localhost")
    with stack.client() as client:
        assert sign_in(client, url, GRACE)[-1].status_code == 200
        for name in ("proxy", "databroker"):
            until_remembered(stack, client, url)
            pid = stack.processes[name].process.pid
            os.kill(pid, signal.SIGSTOP)
            try:
                time.sleep(2.6)  # the bound, and half a second for the last answer under way
                for _ in range(3):
                    answer = client.get(url)
                    assert answer.status_code == 200
                    # The log is Envoy's: it is written also while its parent is stopped.
                    assert not is_remembered(stack, answer), name
            finally:
                os.kill(pid, signal.SIGCONT)
        until_remembered(stack, client, url)

        # Without authorize only what is remembered goes on.
        assert stack.processes["authorize"].stop() == 0
        answer = client.get(url)
        assert answer.status_code == 200
        assert is_remembered(stack, answer)
        assert client.get(public).status_code == 503
        stack.spawn("authorize").wait_ready()

        # A databroker that starts anew is followed again.
        assert stack.processes["databroker"].stop() == 0
        stack.spawn("databroker").wait_ready()
        until_remembered(stack, client, url)
