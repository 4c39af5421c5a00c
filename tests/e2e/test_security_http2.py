"""What HTTP/2 says about a request besides its headers: framing, pseudo-headers, length, scheme."""

from __future__ import annotations

import functools

import pytest

from tests.e2e.conftest import World
from tests.e2e.test_security_paths import at_once, http2, pseudo

pytestmark = pytest.mark.e2e

MALFORMED_HTTP2 = {
    "two-paths": [*pseudo(), (":path", "/private")],
    "two-methods": [(":method", "POST"), *pseudo()],
    "two-schemes": [(":scheme", "http"), *pseudo()],
    "pseudo-after-field": [*pseudo()[:3], ("x-a", "1"), (":path", "/")],
    "unknown-pseudo": [*pseudo(), (":foo", "1")],
    "response-pseudo": [*pseudo(), (":status", "200")],
    "no-path": pseudo()[:3],
    "no-method": pseudo()[1:],
    "empty-path": pseudo(""),
    "empty-scheme": pseudo(scheme=""),
    "upper-case-name": [*pseudo(), ("X-A", "1")],
    "upper-case-of-ours": [*pseudo(), ("X-Pomerium-Jwt-Assertion", "forged")],
    "underscore": [*pseudo(), ("x_pomerium_jwt_assertion", "forged")],
    "space-in-name": [*pseudo(), ("x a", "1")],
    "colon-in-name": [*pseudo(), ("x:a", "1")],
    "newline-in-value": [*pseudo(), ("x-a", "1\r\nx-pomerium-jwt-assertion: forged")],
    "nul-in-value": [*pseudo(), ("x-a", "1\x00")],
    "newline-in-path": pseudo("/\r\nX-A: 1"),
    "newline-in-host": pseudo(host="public.localhost\r\nx-a: 1"),
    "connection": [*pseudo(), ("connection", "close")],
    "keep-alive": [*pseudo(), ("keep-alive", "1")],
    "upgrade": [*pseudo(), ("upgrade", "websocket")],
    "transfer-encoding": [*pseudo(method="POST"), ("transfer-encoding", "chunked")],
    "te": [*pseudo(), ("te", "gzip")],
    "two-lengths": [*pseudo(method="POST"), ("content-length", "3"), ("content-length", "4")],
    "no-number": [*pseudo(method="POST"), ("content-length", "3, 3")],
}


def test_r13_r54_malformed_http2_reaches_no_upstream(world: World) -> None:
    """RFC 9113 sections 8.1.1, 8.2 and 8.3: malformed requests are refused, never mended."""
    asks = {
        name: functools.partial(
            http2, world, headers, body=b"abc" if ("content-length" in dict(headers)) else b""
        )
        for name, headers in MALFORMED_HTTP2.items()
    }
    statuses = {name: answer.status for name, answer in at_once(asks).items()}
    assert {name: status for name, status in statuses.items() if status not in (0, 400)} == {}


@pytest.mark.parametrize(("announced", "body"), [("1", b"abcdef"), ("0", b"abc")])
def test_r54_an_http2_body_is_as_long_as_announced(
    world: World, announced: str, body: bytes
) -> None:
    """What comes first may have gone on when the rest shows that it was a lie."""
    before = [seen for seen in world.upstream.requests if seen["body"]]
    headers = [*pseudo(method="POST"), ("content-length", announced)]
    assert http2(world, headers, body=body, may_begin=True).status in (0, 400)
    assert [seen for seen in world.upstream.requests if seen["body"]] == before


@pytest.mark.parametrize("scheme", ["HTTPS", "HtTpS", "http", "ftp"])
def test_r23_the_scheme_a_client_names_is_not_believed(world: World, scheme: str) -> None:
    """CVE-2023-35944. The upstream and the way back are told what the connection was."""
    seen = http2(world, pseudo(scheme=scheme)).arrived
    assert dict(seen["headers"])["x-forwarded-proto"] == "https"
    away = http2(world, [*pseudo(host="app.localhost", scheme=scheme), ("accept", "text/html")])
    assert away.status == 302
    assert "pomerium_redirect_uri=https%3A%2F%2Fapp.localhost%2F&" in f"{dict(away.headers)}&"
