"""What clients read: Envoy's own replies in each form, and what must be left as it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.envoy import deny, proxy
from tests.support.raw_http import exchange, http1, http2, parse, request_headers, swallow
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

HOST = "app.example.com"


@pytest.fixture
def upstream() -> Iterator[EchoUpstream]:
    with EchoUpstream().running() as running:
        yield running


def route(url: str, **keys: Any) -> dict[str, Any]:
    return {
        "from": f"http://{HOST}",
        "to": url,
        "allow_public_unauthenticated_access": True,
        **keys,
    }


ACCEPTS = [
    ("", "text/html"),
    ("Accept: text/html,application/xhtml+xml,*/*;q=0.8", "text/html"),
    ("Accept: application/json", "application/json"),
    ("Accept: application/*", "application/json"),
    ("Accept: text/plain", "text/plain"),
    ("Accept: text/html;q=0.5, application/json", "application/json"),
    ("Accept: application/json;q=0.1, text/*;q=0.2", "text/html"),
    ("Accept: application/json, text/html", "application/json"),
    ("Accept: image/png", "text/html"),
    ("Accept: application/json;q=0", "text/html"),
    ("ACCEPT: APPLICATION/JSON", "application/json"),
    ("Accept: ;;;q=x,,,", "text/html"),
]


async def test_a_reply_takes_the_form_that_the_client_accepts():
    async with proxy({"routes": [route("http://127.0.0.1:1")]}) as running:
        for line, content_type in ACCEPTS:
            answer = await http1(running.port, host="nobody.example.com", lines=[line] * bool(line))
            assert answer.status == 404
            assert answer.headers["content-type"].startswith(content_type), line
            request_id = answer.headers["x-request-id"]
            if content_type == "text/html":
                assert request_id.encode() in answer.body
                assert b"404" in answer.body
            else:
                assert json.loads(answer.body) == {
                    "requestId": request_id,
                    "status": 404,
                    "statusText": "route_not_found",
                }
            assert answer.headers["x-frame-options"] == "SAMEORIGIN"


async def test_an_upstream_that_is_away_is_a_page():
    async with proxy({"routes": [route("http://127.0.0.1:1")]}) as running:
        answer = await http1(running.port)
        assert answer.status == 503
        assert answer.headers["content-type"].startswith("text/html")
        assert b"127.0.0.1" not in answer.body


async def test_grpc_clients_get_a_grpc_status():
    grpc = [("content-type", "application/grpc"), ("te", "trailers")]
    async with proxy({"routes": [route("http://127.0.0.1:1")]}) as running:
        for host, status, message in (
            ("nobody.example.com", "5", "route_not_found"),
            (HOST, "14", "upstream_reset_before_response_started"),
        ):
            headers = [*request_headers("POST", "/pkg.Service/Method", host), *grpc]
            answer = await http2(running.port, headers, b"\0\0\0\0\0")
            assert answer.status == 200
            assert answer.headers["content-type"] == "application/grpc"
            assert answer.headers["grpc-status"] == status
            assert answer.headers["grpc-message"].startswith(message)


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server's handler that reads a request and leaves."""
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server's handler that answers with what is no HTTP."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"what?\r\n\r\n")
    await reader.read()
    writer.close()


async def test_grpc_clients_are_told_what_an_upstream_did():
    """Left early: cancelled; no HTTP: internal; too slow: deadline exceeded."""
    grpc = [("content-type", "application/grpc"), ("te", "trailers")]
    async with contextlib.AsyncExitStack() as stack:
        routes, expected = [], {"leaves": "1", "babbles": "13", "sleeps": "4"}
        for name, handler in zip(expected, (hang_up, babble, swallow), strict=True):
            server = await stack.enter_async_context(
                await asyncio.start_server(handler, "127.0.0.1", 0)
            )
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            limit = {"timeout": "1s"} if name == "sleeps" else {}
            routes.append({**route(url, **limit), "from": f"http://{name}.example.com"})
        running = await stack.enter_async_context(proxy({"routes": routes}))
        for name, status in expected.items():
            headers = [*request_headers("POST", "/pkg.Service/Method", f"{name}.example.com")]
            answer = await http2(running.port, [*headers, *grpc], b"\0\0\0\0\0")
            assert (answer.status, answer.headers["grpc-status"]) == (200, status), name


async def test_without_a_decision_nothing_is_answered_not_even_what_has_no_upstream(
    upstream: EchoUpstream,
):
    async def fail(_request: object) -> None:
        raise RuntimeError

    moved = route(upstream.url, prefix="/moved", redirect={"path_redirect": "/x"})
    fixed = route(upstream.url, prefix="/fixed", response={"status": 200, "body": "mine"})
    del moved["to"], fixed["to"]
    async with proxy({"routes": [moved, fixed, route(upstream.url)]}) as running:
        running.authorize.decide = fail
        for path in ("/moved", "/fixed", "/"):
            answer = await http1(running.port, path)
            assert answer.status == 503
            assert "location" not in answer.headers
            assert b"mine" not in answer.body
        assert upstream.requests == []


async def test_answers_of_authorize_and_configured_ones_are_left_as_they_are(
    upstream: EchoUpstream,
):
    fixed = route(upstream.url, prefix="/fixed", response={"status": 404, "body": "100% mine"})
    del fixed["to"]
    moved = route(upstream.url, prefix="/moved", redirect={"path_redirect": "/x"})
    del moved["to"]
    async with proxy({"routes": [fixed, moved, route(upstream.url)]}) as running:
        answer = await http1(running.port, "/fixed", lines=["Accept: application/json"])
        assert (answer.status, answer.body) == (404, b"100% mine")
        answer = await http1(running.port, "/moved?a=1")
        assert answer.status == 301
        assert answer.headers["location"] == f"http://{HOST}/x?a=1"
        assert answer.body == b""
        running.authorize.decide = lambda _: deny(403, "authorize's own page")
        answer = await http1(running.port, lines=["Accept: application/json"])
        assert (answer.status, answer.body) == (403, b"authorize's own page")
        running.authorize.decide = lambda _: deny(503, "authorize's own 503")
        assert (await http1(running.port)).body == b"authorize's own 503"


async def test_requests_that_envoy_cannot_read_get_a_page(upstream: EchoUpstream):
    async with proxy({"routes": [route(upstream.url)]}) as running:
        for data in (b"GET /%2f HTTP/1.1\r\nHost: app.example.com\r\n\r\n", b"nonsense\r\n\r\n"):
            answer = parse(await exchange(running.port, data))
            assert answer.status == 400
            assert b"<html" in answer.body.lower()
        assert upstream.requests == []


async def test_an_upgrade_that_is_not_allowed_is_refused(upstream: EchoUpstream):
    async with proxy({"routes": [route(upstream.url)]}) as running:
        lines = ["Connection: Upgrade", "Upgrade: websocket"]
        head = "GET / HTTP/1.1\r\nHost: app.example.com\r\n" + "\r\n".join([*lines, "", ""])
        assert parse(await exchange(running.port, head.encode())).status == 403
        assert upstream.requests == []


async def test_the_access_log_tells_who_and_where(upstream: EchoUpstream):
    from tests.support.envoy import allow  # noqa: PLC0415

    fields = ["authority", "method", "path", "query", "headers.X-Team", "cluster-stat-name", "size"]
    named = route(upstream.url, name="my app")
    async with proxy({"routes": [named]}, access_log_fields=fields) as running:
        facts = {"session-id": "s1", "user": "u1"}
        running.authorize.decide = lambda _: allow(metadata=facts)
        await http1(running.port, "/ping")
        await http1(
            running.port, "/a?b=secret", lines=["X-Team: blue", "Referer: http://x/?token=1"]
        )
        (line,) = await running.access_lines(1)
        assert line.pop("size") > 0
        assert line.pop("time").endswith("Z")
        assert line == {
            "level": "info",
            "message": "http-request",
            "service": "envoy",
            "authority": HOST,
            "method": "GET",
            "path": "/a",
            "query": "b=secret",
            "headers": {"X-Team": "blue"},
            "cluster-stat-name": "my app",
            **facts,
            "route-id": str(running.settings({"routes": [named]}).routes[0].id),
            "remembered": None,
        }


async def test_the_default_access_log_holds_no_query_and_no_credential(upstream: EchoUpstream):
    async with proxy({"routes": [route(upstream.url)]}) as running:
        await http1(
            running.port,
            "/a?pomerium_session=SECRET",
            lines=[
                "Referer: http://x/y?token=SECRET",
                "Cookie: _pomerium=SECRET",
                "Authorization: Pomerium SECRET",
            ],
        )
        (line,) = await running.access_lines(1)
        assert "SECRET" not in json.dumps(line)
        assert line["referer"] == "http://x/y"
        assert isinstance(line["duration"], int)
        assert line["response-code"] == 200


async def test_no_access_log_below_info_and_probes_at_debug(upstream: EchoUpstream):
    async with proxy({"routes": [route(upstream.url)]}, proxy_log_level="error") as running:
        await http1(running.port)
        await running.push({"routes": [route(upstream.url)], "proxy_log_level": "debug"})
        await http1(running.port, "/healthz")
        lines = await running.access_lines(1)
        assert [(line["level"], line["path"]) for line in lines] == [("debug", "/healthz")]
