"""What Envoy sends again when a connection to an application ends, and what it never does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.envoy import Proxy, proxy
from tests.support.ports import free_ports
from tests.support.raw_http import http1
from tests.support.upstream import EchoUpstream, headers_of

pytestmark = pytest.mark.e2e

HOST = "app.example.com"
SIGN_IN = "authenticate.example.com"
REPEATABLE = ["GET", "HEAD", "OPTIONS"]
ONCE_ONLY = ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"]
TRIES = 3


class Closing:
    """Answers so many requests on each connection, and closes it on the next one.

    Whoever sends that one cannot tell whether it was heard: as when a server closes an idle
    connection in the moment in which the request is on its way.
    """

    def __init__(self, answers: int) -> None:
        self.answers = answers
        self.port = 0
        self.heard: list[tuple[int, str, str]] = []  # number of the connection, method, path
        self._accepted = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Closing]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._accepted += 1
        number, answered = self._accepted, 0
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, path = head.decode().split(" ", 2)[:2]
                length = re.search(rb"(?im)^content-length: (\d+)", head)
                await reader.readexactly(int(length.group(1)) if length else 0)
                self.heard.append((number, method, path))
                if answered == self.answers:
                    break
                answered += 1
                body = b"" if method == "HEAD" else b"ok"
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n" + body)
        writer.close()


def route(to: Any, **keys: Any) -> dict[str, Any]:
    return {"from": f"http://{HOST}", "to": to, "allow_public_unauthenticated_access": True, **keys}


async def counted(running: Proxy) -> dict[str, int]:
    """What Envoy's metrics say of retries to applications, without what is zero."""
    stats = await running.admin.stats(r"^cluster\.route-.*\.upstream_rq_retry")
    totals: dict[str, int] = {}
    for name, value in stats.items():
        key = name.rsplit(".", 1)[1].removeprefix("upstream_rq_")
        if value and not key.startswith("retry_backoff"):
            totals[key] = totals.get(key, 0) + value
    return totals


@pytest.mark.parametrize("method", REPEATABLE)
async def test_a_connection_closed_as_it_is_taken_costs_no_request(method: str):
    async with Closing(answers=1).running() as upstream, proxy() as running:
        await running.push({"routes": [route(upstream.url)]})
        for path in ("/first", "/second"):
            assert (await http1(running.port, path, method=method)).status == 200
        assert upstream.heard == [
            (1, method, "/first"),
            (1, method, "/second"),
            (2, method, "/second"),
        ]
        assert await counted(running) == {"retry": 1, "retry_success": 1}


@pytest.mark.parametrize("method", ONCE_ONLY)
async def test_what_may_have_been_heard_is_not_sent_twice(method: str):
    async with Closing(answers=1).running() as upstream, proxy() as running:
        await running.push({"routes": [route(upstream.url)]})
        answers = [
            await http1(running.port, path, method=method, lines=["Content-Length: 3"], body=b"pay")
            for path in ("/first", "/second")
        ]
        assert [each.status for each in answers] == [200, 503]
        assert upstream.heard == [(1, method, "/first"), (1, method, "/second")]
        assert await counted(running) == {}


async def test_a_client_cannot_have_its_requests_repeated():
    lines = [
        "Content-Length: 3",
        "x-envoy-retry-on: 5xx,reset",
        "x-envoy-retry-grpc-on: internal",
        "x-envoy-max-retries: 9",
        "x-envoy-retriable-status-codes: 200",
    ]
    async with Closing(answers=0).running() as upstream, proxy() as running:
        await running.push({"routes": [route(upstream.url)]})
        assert (await http1(running.port, method="POST", lines=lines, body=b"pay")).status == 503
        assert len(upstream.heard) == 1
        # And what may be repeated not more often than otherwise.
        assert (await http1(running.port, lines=lines[1:])).status == 503
        assert len(upstream.heard) == 1 + TRIES


async def test_an_application_that_never_answers_is_asked_three_times_in_all():
    async with Closing(answers=0).running() as upstream, proxy() as running:
        await running.push({"routes": [route(upstream.url)]})
        assert (await http1(running.port, "/x")).status == 503
        assert [path for _, _, path in upstream.heard] == ["/x"] * TRIES
        assert await counted(running) == {"retry": TRIES - 1, "retry_limit_exceeded": 1}


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_an_upstream_that_refuses_connections_is_passed_over(method: str):
    (nobody,) = free_ports(1)
    with EchoUpstream().running() as upstream:
        async with proxy() as running:
            await running.push({"routes": [route([upstream.url, f"http://127.0.0.1:{nobody}"])]})
            for number in range(10):
                body = f"payment {number}".encode()
                answer = await http1(
                    running.port,
                    f"/{number}",
                    method=method,
                    lines=[f"Content-Length: {len(body)}"],
                    body=body,
                )
                assert answer.status == 200
                assert json.loads(answer.body)["body"] == body.decode()
            assert [seen["path"] for seen in upstream.requests] == [f"/{n}" for n in range(10)]
            assert (await counted(running))["retry"] >= 1


async def test_the_application_does_not_see_what_is_said_about_retries():
    with EchoUpstream().running() as upstream:
        async with proxy() as running:
            await running.push({"routes": [route(upstream.url)]})
            answer = await http1(running.port)
            names = headers_of(json.loads(answer.body))
            assert [name for name in names if "retr" in name or "attempt" in name] == []


async def test_the_handshake_of_a_websocket_is_not_repeated():
    lines = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ]
    async with Closing(answers=0).running() as upstream, proxy() as running:
        await running.push({"routes": [route(upstream.url, allow_websockets=True)]})
        assert (await http1(running.port, "/chat", lines=lines)).status == 503
        (check,) = running.authorize.requests
        assert check.attributes.request.http.headers["upgrade"] == "websocket"
        assert len(upstream.heard) == 1


async def test_a_link_of_the_sign_in_service_is_not_followed_twice():
    """Its links work once, so the second try would fail in the first one's place."""
    async with Closing(answers=0).running() as upstream, proxy() as running:
        front = {
            "from": f"https://{SIGN_IN}",
            "to": upstream.url,
            "allow_public_unauthenticated_access": True,
        }
        await running.push({"services": "proxy", "routes": [front, route(upstream.url)]})
        answer = await http1(running.port, "/oauth2/callback?code=once", host=SIGN_IN)
        assert answer.status == 503
        assert [path for _, _, path in upstream.heard] == ["/oauth2/callback?code=once"]
