"""The sample application over HTTP and WebSocket, with keys published over real TLS."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest
import websockets

from gatehouse.cli.demo import upstream
from gatehouse.cli.demo.assertion import AssertionVerifier
from gatehouse.cli.demo.loopback import open_loopback
from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.jose.keys import derive_signing_key, jwks, sign_jwt

KEY = derive_signing_key(bytes(32))


def assertion(**changes) -> str:
    now = int(time.time())  # noqa: TID251 - the library compares with the machine's clock
    claims = {"iss": "app.localhost", "aud": "app.localhost", "iat": now, "exp": now + 300}
    return sign_jwt({**claims, "email": "grace@example.com", "name": "Grace", **changes}, KEY)


async def published():
    return jwks([KEY])


@pytest.fixture
async def application():
    stop, url = asyncio.Event(), asyncio.get_running_loop().create_future()
    verifier = AssertionVerifier(published, ["app.localhost"])
    async with asyncio.TaskGroup() as group:
        group.create_task(upstream.serve(stop, "127.0.0.1", 0, verifier, ready=url.set_result))
        async with httpx.AsyncClient(base_url=await url, trust_env=False) as http:
            yield http
        stop.set()


async def test_json_tells_what_arrived_and_who_asks(application):
    answer = await application.post(
        "/json/a%2Fb?x=1&x=2",
        content=b"12345",
        headers=[
            ("x-pomerium-jwt-assertion", assertion()),
            ("x-many", "1"),
            ("x-many", "2"),
        ],
    )
    seen = answer.json()
    assert (seen["method"], seen["path"], seen["body_bytes"]) == ("POST", "/json/a%2Fb?x=1&x=2", 5)
    assert [value for name, value in seen["headers"] if name == "x-many"] == ["1", "2"]
    assert seen["identity"]["standing"] == "verified"
    assert seen["identity"]["email"] == "grace@example.com"


async def test_json_says_when_it_believes_nobody(application):
    seen = (await application.get("/json")).json()
    assert seen["identity"]["standing"] == "absent"
    forged = {"x-pomerium-jwt-assertion": "forged", "x-pomerium-claim-email": "ada@example.com"}
    identity = (await application.get("/json", headers=forged)).json()["identity"]
    assert (identity["standing"], identity["email"]) == ("refused", "")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_the_page_shows_the_request(application, method):
    page = await application.request(
        method, "/some/path?q=<i>", headers={"x-pomerium-jwt-assertion": assertion()}
    )
    assert page.status_code == 200
    assert "Hello, Grace" in page.text
    assert f"<code>{method}</code>" in page.text
    assert "/some/path?q=%3Ci%3E" in page.text
    assert "grace@example.com" in page.text


async def test_the_page_escapes_what_it_shows(application):
    page = await application.get(
        "/", headers={"x-evil": "<script>alert(1)</script>", "x-pomerium-jwt-assertion": "<b>"}
    )
    assert "<script" not in page.text
    assert "refused" in page.text
    assert "&lt;script&gt;" in page.text


async def test_a_large_body_is_refused(application):
    answer = await application.post("/json", content=bytes(1024 * 1024 + 1))
    assert answer.status_code == 413


async def test_websocket_messages_come_back(application):
    url = f"ws://127.0.0.1:{application.base_url.port}/ws"
    async with websockets.connect(url, proxy=None) as socket:
        for message in ("text", b"\x00bytes", ""):
            await socket.send(message)
            assert await socket.recv() == message


async def test_it_listens_on_loopback_only():
    with pytest.raises(InvalidArgumentError, match="sample application is for development"):
        open_loopback("0.0.0.0", 0, what="the sample application")
