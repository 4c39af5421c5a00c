"""How requests reach applications: paths, hosts, headers, balancing, WebSockets, TLS."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from tests.support.envoy import allow, proxy
from tests.support.raw_http import Answer, exchange, http1, http2, parse, request_headers, swallow
from tests.support.tls import Authority
from tests.support.upstream import EchoUpstream, headers_of

pytestmark = pytest.mark.e2e

HOST = "app.example.com"


@pytest.fixture
def upstream() -> Iterator[EchoUpstream]:
    with EchoUpstream().running() as running:
        yield running


def route(to: Any, **keys: Any) -> dict[str, Any]:
    return {"from": f"http://{HOST}", "to": to, "allow_public_unauthenticated_access": True, **keys}


def arrived(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer
    seen: dict[str, Any] = json.loads(answer.body)
    return seen


async def test_paths_are_rewritten_as_the_tables_say(upstream: EchoUpstream):
    url = upstream.url
    cases = [
        ({"prefix": "/admin"}, url, "/admin/x", "/admin/x"),
        ({"prefix": "/admin"}, f"{url}/base", "/admin/x", "/base/x"),
        ({"prefix": "/admin", "prefix_rewrite": "/"}, url, "/administrator", "/istrator"),
        ({"prefix": "/admin/", "prefix_rewrite": "/"}, url, "/admin/x?y=1", "/x?y=1"),
        ({"path": "/login", "prefix_rewrite": "/auth"}, url, "/login", "/auth"),
        ({"path": "/some/path"}, f"{url}/base", "/some/path?x=1", "/base?x=1"),
        ({"regex": "^/a/.*$"}, f"{url}/base", "/a/b/c", "/base"),
        (
            {
                "regex_rewrite_pattern": "^/service/([^/]+)(/.*)$",
                "regex_rewrite_substitution": r"\2/instance/\1",
            },
            url,
            "/service/foo/v1/api",
            "/v1/api/instance/foo",
        ),
        ({}, f"{url}/anything", "/foo", "/anythingfoo"),
        ({}, f"{url}/anything/", "/foo", "/anything/foo"),
    ]
    async with proxy({"routes": [route(url)]}) as running:
        for keys, to, path, sent in cases:
            await running.push({"routes": [route(to, **keys)]})
            assert arrived(await http1(running.port, path))["path"] == sent, (keys, to, path)
        await running.push({"routes": [route(url, prefix="/admin/", prefix_rewrite="/")]})
        assert (await http1(running.port, "/admin")).status == 404


async def test_header_names_keep_their_letters_both_ways():
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nServer: mine\r\nX-ANSWER: 1\r\nContent-Length: 0\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, proxy({"routes": [route(url)]}) as running:
        lines = f"Host: {HOST}\r\nX-CamelCase: 1\r\nx-lower: 2\r\nConnection: close\r\n\r\n"
        raw = await exchange(running.port, f"GET / HTTP/1.1\r\n{lines}".encode())
        assert b"\r\nX-ANSWER: 1\r\n" in raw
        assert b"erver: envoy\r\n" in raw
        assert b"mine" not in raw
        (request,) = seen
        assert b"\r\nX-CamelCase: 1\r\n" in request
        assert b"\r\nx-lower: 2\r\n" in request


async def test_a_large_expression_is_taken(upstream: EchoUpstream):
    """Beyond what Envoy would take by itself."""
    words = "|".join(f"word{number}" for number in range(300))
    async with proxy({"routes": [route(upstream.url, regex=f"/({words}){{1,3}}")]}) as running:
        assert arrived(await http1(running.port, "/word1word299"))["path"] == "/word1word299"
        assert (await http1(running.port, "/word1wor")).status == 404


async def test_the_host_that_an_upstream_sees(upstream: EchoUpstream):
    own = f"127.0.0.1:{upstream.port}"
    cases: list[tuple[dict[str, Any], str, str | None]] = [
        ({}, own, HOST),
        ({"preserve_host_header": True}, HOST, None),
        ({"host_rewrite": "other.internal"}, "other.internal", HOST),
        ({"host_rewrite_header": "X-Want"}, "wanted.internal", HOST),
        (
            {
                "host_path_regex_rewrite_pattern": "^/([^/]+)/.*$",
                "host_path_regex_rewrite_substitution": r"\1",
            },
            "tenant",
            HOST,
        ),
        ({"remove_request_headers": ["X-Forwarded-Host"]}, own, None),
    ]
    async with proxy({"routes": [route(upstream.url)]}) as running:
        for keys, host, forwarded in cases:
            await running.push({"routes": [route(upstream.url, **keys)]})
            seen = arrived(
                await http1(running.port, "/tenant/x", lines=["X-Want: wanted.internal"])
            )
            headers = headers_of(seen)
            assert (headers["host"], headers.get("x-forwarded-host")) == (host, forwarded), keys


async def test_headers_set_by_authorize_and_removed_by_the_route(upstream: EchoUpstream):
    keys = {"remove_request_headers": ["X-Gone"], "pass_identity_headers": True}
    async with proxy({"routes": [route(upstream.url, **keys)]}) as running:
        running.authorize.decide = lambda _: allow(
            {
                "x-set": "ours",
                "x-gone": "removal beats setting",
                "x-pomerium-jwt-assertion": "a.b.c",
            }
        )
        headers = headers_of(arrived(await http1(running.port, lines=["X-Gone: 1"])))
        assert headers["x-set"] == "ours"
        assert headers["x-pomerium-jwt-assertion"] == "a.b.c"
        assert "x-gone" not in headers
        check = running.authorize.requests[-1].attributes
        assert check.context_extensions["internal"] == "false"
        assert len(check.context_extensions["route_id"]) == 16
        assert check.context_extensions["route_checksum"].isdecimal()


async def test_response_headers_are_set_and_rewritten_value_by_value():
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n"
            b"location: http://localhost:8000/two/some\r\n"
            b"link: http://localhost:8000/two/a\r\nlink: http://elsewhere/\r\n"
            b"link: http://localhost:8000/two/b\r\nx-frame-options: DENY\r\n\r\n"
        )
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    rules = [
        {"header": name, "prefix": "http://localhost:8000/two/", "value": "http://front/one/"}
        for name in ("Location", "Link")
    ]
    keys = {"rewrite_response_headers": rules, "set_response_headers": {"X-Own": "50%"}}
    async with server, proxy({"routes": [route(f"http://127.0.0.1:{port}", **keys)]}) as running:
        data = b"GET / HTTP/1.1\r\nHost: app.example.com\r\nConnection: close\r\n\r\n"
        head = (await exchange(running.port, data)).decode()
        assert "location: http://front/one/some\r\n" in head
        links = [line for line in head.split("\r\n") if line.startswith("link: ")]
        assert links == [
            "link: http://front/one/a",
            "link: http://elsewhere/",
            "link: http://front/one/b",
        ]
        assert "x-own: 50%\r\n" in head
        assert "x-frame-options: SAMEORIGIN\r\n" in head


async def test_plain_requests_are_sent_to_https(upstream: EchoUpstream):
    def redirecting(**keys: Any) -> dict[str, Any]:
        return route([], redirect=keys)

    async with proxy({"routes": [route(upstream.url)]}) as running:
        for keys, host, location in (
            ({"https_redirect": True}, HOST, f"https://{HOST}/a?b"),
            ({"https_redirect": True}, f"{HOST}:80", f"https://{HOST}/a?b"),
            ({"https_redirect": True}, f"{HOST}:8080", f"https://{HOST}:8080/a?b"),
            ({"https_redirect": True, "port_redirect": 8443}, HOST, f"https://{HOST}:8443/a?b"),
            ({"https_redirect": False, "path_redirect": "/c"}, HOST, f"http://{HOST}/c?b"),
        ):
            await running.push({"routes": [redirecting(**keys)]})
            request = f"GET /a?b HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            head = (await exchange(running.port, request.encode())).decode()
            assert f"location: {location}\r\n" in head, (keys, host)


async def test_several_upstreams_share_the_requests(upstream: EchoUpstream):
    with EchoUpstream().running() as other:
        async with proxy({"routes": [route([upstream.url, other.url])]}) as running:
            for _ in range(10):
                assert (await http1(running.port)).status == 200
            assert len(upstream.requests) == len(other.requests) == 5
            await running.push({"routes": [route([f"{upstream.url},1", f"{other.url},4"])]})
            upstream.requests.clear()
            other.requests.clear()
            for _ in range(20):
                assert (await http1(running.port)).status == 200
            assert len(upstream.requests) == 4


# -- WebSockets


async def _echo(websocket: Any) -> None:
    async for message in websocket:
        await websocket.send(message)


def _url(server: Any) -> str:
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_websockets_pass_and_are_decided_once():
    async with serve(_echo, "127.0.0.1", 0) as server:
        keys = {"allow_websockets": True}
        async with proxy({"routes": [route(_url(server), **keys)]}) as running:
            async with connect(
                f"ws://{HOST}/chat", host="127.0.0.1", port=running.port, proxy=None
            ) as client:
                for size in (1, 70_000):
                    await client.send("x" * size)
                    assert await client.recv() == "x" * size
            checks = [each.attributes.request.http.path for each in running.authorize.requests]
            assert checks == ["/chat"]


async def test_a_websocket_outlives_the_write_timeout_and_ends_at_its_routes_own():
    async with serve(_echo, "127.0.0.1", 0) as server:
        free = route(_url(server), allow_websockets=True)
        capped = route(_url(server), allow_websockets=True, timeout="1s")
        async with proxy({"routes": [free]}, timeout_write="1s") as running:
            loop = asyncio.get_running_loop()
            uri = f"ws://{HOST}/"
            async with connect(uri, host="127.0.0.1", port=running.port, proxy=None) as client:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(client.recv(), 1.6)
                await client.send("still here")
                assert await client.recv() == "still here"
            await running.push({"routes": [capped]})
            async with connect(uri, host="127.0.0.1", port=running.port, proxy=None) as client:
                started = loop.time()
                with pytest.raises(ConnectionClosed):
                    await asyncio.wait_for(client.recv(), 20)
                assert loop.time() - started > 0.8


async def test_a_plain_request_cannot_pass_for_an_upgrade():
    """The write timeout holds for what only claims to be a WebSocket."""

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    keys = {"allow_websockets": True}
    async with (
        server,
        proxy({"routes": [route(_url(server), **keys)]}, timeout_write="1s") as running,
    ):
        answer = await asyncio.wait_for(http1(running.port, lines=["Upgrade: websocket"]), 5)
        assert answer.status in {0, 408, 504}


async def test_websockets_over_http2():
    async with serve(_echo, "127.0.0.1", 0) as server:
        routes = [route(_url(server), allow_websockets=True)]
        async with proxy({"routes": routes}) as running:
            headers = [
                *request_headers("CONNECT", "/chat"),
                (":protocol", "websocket"),
                ("sec-websocket-version", "13"),
                ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
            ]
            ordered = sorted(headers, key=lambda item: not item[0].startswith(":"))
            answer = await http2(running.port, ordered, until_headers=True)
            assert answer.status == 200


async def test_r53_an_upgrade_that_the_upstream_answers_with_200_is_no_tunnel(
    upstream: EchoUpstream,
):
    async with proxy({"routes": [route(upstream.url, allow_websockets=True)]}) as running:
        data = (
            b"GET /first HTTP/1.1\r\nHost: app.example.com\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            b"GET /smuggled HTTP/1.1\r\nHost: app.example.com\r\n\r\n"
        )
        parse(await exchange(running.port, data))
        assert (await http1(running.port, "/after")).status == 200
        assert "/smuggled" not in [seen["path"] for seen in upstream.requests]


# -- TLS


def _tls_server(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


async def test_upstream_certificates_are_verified_by_name_and_authority(tmp_path: Path):
    authority, foreign = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    made = authority.leaf("app.localhost")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi")
        writer.close()

    server = await asyncio.start_server(
        answer, "127.0.0.1", 0, ssl=_tls_server(made.certificate, made.key)
    )
    port = server.sockets[0].getsockname()[1]
    url = f"https://127.0.0.1:{port}"
    good: dict[str, Any] = {
        "tls_custom_ca_file": str(authority.path),
        "tls_upstream_server_name": "app.localhost",
    }
    cases: list[tuple[str, dict[str, Any], int]] = [
        (f"https://app.localhost:{port}", {"tls_custom_ca_file": str(authority.path)}, 200),
        (url, good, 200),
        (url, {**good, "tls_upstream_server_name": "other.localhost"}, 503),
        (url, {**good, "tls_custom_ca_file": str(foreign.path)}, 503),
        (url, {"tls_upstream_server_name": "app.localhost"}, 503),
        (url, {"tls_skip_verify": True}, 200),
    ]
    system = {"system_ca_pem": foreign.path.read_bytes()}
    async with server, proxy({"routes": [route("http://127.0.0.1:1")]}, system=system) as running:
        for to, keys, status in cases:
            await running.push({"routes": [route(to, **keys)]})
            reply = await http1(running.port, lines=["Accept: application/json"])
            assert reply.status == status, (to, keys, reply.body)


async def test_http2_upstream(upstream: EchoUpstream):
    import h2.config  # noqa: PLC0415
    import h2.connection  # noqa: PLC0415
    import h2.events  # noqa: PLC0415

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        while data := await reader.read(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    connection.send_headers(event.stream_id, [(":status", "204")], end_stream=True)
            writer.write(connection.data_to_send())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, proxy({"routes": [route(f"h2c://127.0.0.1:{port}")]}) as running:
        assert (await http1(running.port)).status == 204
