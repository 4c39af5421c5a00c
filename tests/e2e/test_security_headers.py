"""Headers and cookies that an attacker chooses: what reaches the upstream, the logs and the pages.

Identity comes from Gatehouse alone, no credential of ours leaves it, and no header of a client
makes policy see another request than the one that is forwarded.
"""

from __future__ import annotations

import base64
import json
import re
import time
from typing import Any

import jwt
import pytest

from tests.e2e.conftest import ADA, GRACE, World
from tests.e2e.test_security_paths import (
    OPEN,
    Reply,
    exchange,
    handle_of,
    http1,
    http2,
    parse,
    pseudo,
)
from tests.support.upstream import headers_of

pytestmark = pytest.mark.e2e

ASSERTION = "x-pomerium-jwt-assertion"

FORGED = [
    "X-Pomerium-Jwt-Assertion: forged",
    "x-pomerium-jwt-assertion: forged-too",
    "X-POMERIUM-JWT-ASSERTION-FOR: forged",
    f"X-Pomerium-Claim-Email: {ADA}",
    "X-Pomerium-Claim-Groups: admin",
    "X-Pomerium-Anything: forged",
    "X-Pomerium-Set-Cookie: _pomerium=forged",
    "X-Pomerium-Routing-Key: forged",
    "X-Pomerium-Reproxy-Policy: forged",
    "X-Pomerium-Impersonate-User: forged",
]


def sent(lines: list[str]) -> list[tuple[str, str]]:
    """Header lines as HTTP/2 spells them."""
    return [(name.lower(), value) for name, value in (line.split(": ", 1) for line in lines)]


def values(seen: dict[str, Any], name: str) -> list[str]:
    return [value for key, value in seen["headers"] if key == name]


def ours(seen: dict[str, Any]) -> set[str]:
    """Names that look like ours to anybody, CGI spelling included."""
    return {name for name, _ in seen["headers"] if "pomerium" in name.replace("_", "-")}


# -- identity


@pytest.mark.parametrize("host", [OPEN, "rewrite.localhost/exact"])
def test_r15_forged_identity_never_arrives_on_public_routes(world: World, host: str) -> None:
    name, slash, path = host.partition("/")
    for answer in (
        http1(world, slash + path or "/", host=name, lines=FORGED),
        http2(world, [*pseudo(slash + path or "/", host=name), *sent(FORGED)]),
    ):
        assert ours(answer.arrived) == set()
        assert "forged" not in json.dumps(answer.arrived)


def test_r15_r23_identity_is_the_sessions_whatever_was_sent(world: World) -> None:
    handle = handle_of(world, GRACE)
    cookie = f"_pomerium={handle}"
    for answer in (
        http1(world, host="app.localhost", lines=[f"Cookie: {cookie}", *FORGED]),
        http2(world, [*pseudo(host="app.localhost"), ("cookie", cookie), *sent(FORGED)]),
    ):
        seen = answer.arrived
        assert ours(seen) == {ASSERTION, "x-pomerium-claim-email"}
        assert values(seen, "x-pomerium-claim-email") == [GRACE]
        [assertion] = values(seen, ASSERTION)
        assert jwt.decode(assertion, options={"verify_signature": False})["email"] == GRACE
        assert "forged" not in json.dumps(seen)


def test_r28_an_assertion_is_for_one_host_and_verifies_with_the_published_keys(
    world: World,
) -> None:
    handle = handle_of(world, ADA)
    client = world.client()
    with client:
        keys = client.get(world.stack.url("app.localhost", "/.well-known/pomerium/jwks.json"))
    [key] = jwt.PyJWKSet.from_dict(keys.json()).keys
    for host in ("app.localhost", "admin.localhost"):
        seen = http1(world, host=host, lines=[f"X-Pomerium-Authorization: {handle}"]).arrived
        [assertion] = values(seen, ASSERTION)
        other = "admin.localhost" if host == "app.localhost" else "app.localhost"
        claims = jwt.decode(assertion, key, algorithms=["ES256"], audience=host, issuer=host)
        assert claims["email"] == ADA
        assert claims["exp"] - claims["iat"] == 300
        with pytest.raises(jwt.InvalidAudienceError):
            jwt.decode(assertion, key, algorithms=["ES256"], audience=other)


def test_r33_one_users_answer_is_never_anothers(world: World) -> None:
    """Remembered decisions and assertions: two users in turn, at the same host."""
    handles = {user: handle_of(world, user) for user in (ADA, GRACE)}
    for _ in range(3):
        for user, handle in handles.items():
            cookie = [f"Cookie: _pomerium={handle}"]
            seen = http1(world, host="app.localhost", lines=cookie).arrived
            assert values(seen, "x-pomerium-claim-email") == [user]
            status = http1(world, host="admin.localhost", lines=cookie).status
            assert status == (200 if user == ADA else 403)
        assert ours(http1(world, lines=[f"Cookie: _pomerium={handles[ADA]}"]).arrived) == set()
        assert http1(world, host="app.localhost").status == 302


def test_r16_connection_cannot_name_our_headers_away(world: World) -> None:
    handle = handle_of(world, GRACE)
    for nominated in (
        "X-Pomerium-Jwt-Assertion",
        "x-pomerium-jwt-assertion, x-pomerium-claim-email",
        "close, X-POMERIUM-JWT-ASSERTION",
        "keep-alive, cookie, x-set, x-forwarded-for",
    ):
        lines = [f"Cookie: _pomerium={handle}", f"Connection: {nominated}"]
        answer = http1(world, host="app.localhost", lines=lines)
        if answer.status == 400:
            continue
        seen = answer.arrived
        assert ours(seen) == {ASSERTION, "x-pomerium-claim-email"}
        assert values(seen, "x-set") == ["by-gatehouse"]


def test_r14_underscore_spellings_are_refused(world: World) -> None:
    for line in (
        "X_Pomerium_Jwt_Assertion: forged",
        "x-pomerium_claim-email: forged",
        "X_Forwarded_Proto: http",
        "X_Set: forged",
    ):
        assert http1(world, lines=[line]).status == 400
        assert http2(world, [*pseudo(), *sent([line])]).status in (0, 400)


def test_r23_a_header_that_the_route_sets_arrives_once(world: World) -> None:
    handle = handle_of(world, GRACE)
    lines = [f"Cookie: _pomerium={handle}", "x-set: a", "X-SET: b", "X-Set: c"]
    seen = http1(world, host="app.localhost", lines=lines).arrived
    assert values(seen, "x-set") == ["by-gatehouse"]


def test_r15_trailers_carry_no_identity(world: World) -> None:
    answer = http2(
        world,
        [*pseudo(method="POST"), ("te", "trailers"), ("trailer", ASSERTION)],
        body=b"abc",
        trailers=[(ASSERTION, "forged"), ("x-pomerium-claim-email", ADA)],
    )
    assert "forged" not in json.dumps(answer.arrived)
    chunked = (
        b"POST / HTTP/1.1\r\nHost: public.localhost\r\nConnection: close\r\n"
        b"Trailer: X-Pomerium-Jwt-Assertion\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n0\r\nX-Pomerium-Jwt-Assertion: forged\r\n\r\n"
    )
    seen = parse(exchange(world, chunked)).arrived
    assert "forged" not in json.dumps(seen)


def test_r54_trailers_are_no_second_request(world: World) -> None:
    before = [seen for seen in world.upstream.requests if seen["path"] == "/smuggled"]
    http2(
        world,
        pseudo(method="POST"),
        body=b"abc",
        trailers=[(":path", "/smuggled"), (":method", "GET")],
        may_begin=True,  # what comes first may have gone on
    )
    http1(
        world,
        method="POST",
        lines=["Transfer-Encoding: chunked"],
        body=b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: admin.localhost\r\n\r\n",
    )
    assert [seen for seen in world.upstream.requests if seen["path"] == "/smuggled"] == before


# -- credentials


CREDENTIAL_LINES = {
    "cookie": ["Cookie: a=1; _pomerium={0}; b=2"],
    "cookie-lines": ["Cookie: a=1; _pomerium={0}", "Cookie: b=2", "cookie: _pomerium={0}"],
    "cookie-blanks": ["Cookie:   _pomerium  =  {0}  ;b=2"],
    "cookie-quoted": ['Cookie: _pomerium="{0}"'],
    "cookie-twice": ["Cookie: _pomerium={0}; _pomerium={0}"],
    "cookie-others": [
        "Cookie: _pomerium={0}; _pomerium_authenticate={0}; _pomerium_csrf={0}",
        "Cookie: _pomerium_login_0123456789abcdef={0}; _pomerium_pkce_1={0}",
    ],
    "own-header": ["X-Pomerium-Authorization: {0}"],
    "own-header-twice": ["X-Pomerium-Authorization: {0}", "x-pomerium-authorization: {0}"],
    "pomerium": ["Authorization: Pomerium {0}"],
    "bearer": ["Authorization: Bearer Pomerium-{0}"],
    "both": ["Cookie: _pomerium={0}", "Authorization: Pomerium {0}"],
    "beside-cookie": ["Cookie: _pomerium={0}", "Authorization: Basic x, Pomerium {0}"],
}


@pytest.mark.parametrize("name", sorted(CREDENTIAL_LINES))
def test_r18_no_form_of_a_credential_reaches_the_upstream(world: World, name: str) -> None:
    handle = handle_of(world, GRACE)
    lines = [line.format(handle) for line in CREDENTIAL_LINES[name]]
    for answer in (
        http1(world, host="app.localhost", lines=lines, accept="application/json"),
        http2(world, [*pseudo(host="app.localhost"), *sent(lines)]),
    ):
        assert answer.status in (200, 401), answer.status
        if answer.status == 200:
            assert handle not in json.dumps(answer.arrived)
    # A public route asks for nothing and gets nothing of it either.
    assert handle not in json.dumps(http1(world, lines=lines).arrived)


@pytest.mark.parametrize(
    ("query", "arrives"),
    [
        ("?pomerium_session={0}", "/p"),
        ("?a=1&pomerium_session={0}&b=2", "/p?a=1&b=2"),
        ("?pomerium_session={0}&pomerium_session={0}", "/p"),
        ("?%70omerium_session={0}&pomerium_session={0}", "/p"),
        ("?pomerium%5fsession={0}&pomerium_session={0}", "/p"),
        ("?a=%2f..%2f&pomerium_session={0}", "/p?a=%2f..%2f"),
    ],
)
def test_r18_no_query_credential_reaches_the_upstream(
    world: World, query: str, arrives: str
) -> None:
    handle = handle_of(world, GRACE)
    seen = http1(world, "/p" + query.format(handle), host="app.localhost").arrived
    assert seen["path"] == arrives
    assert handle not in json.dumps(seen)
    rewritten = http1(world, "/old/p" + query.format(handle), host="rewrite.localhost").arrived
    assert handle not in json.dumps(rewritten)  # x-envoy-original-path, too


def test_r18_http2_cookie_crumbs(world: World) -> None:
    """RFC 9113 section 8.2.3: a client may split its cookies over many fields."""
    handle = handle_of(world, GRACE)
    crumbs = [
        ("cookie", "a=1"),
        ("cookie", f"_pomerium={handle}"),
        ("cookie", f"b=2; _pomerium_authenticate={handle}"),
        ("cookie", f"_pomerium={handle}"),
        ("cookie", "c=3"),
    ]
    seen = http2(world, [*pseudo(host="app.localhost"), *crumbs]).arrived
    assert handle not in json.dumps(seen)
    assert "; ".join(values(seen, "cookie")) == "a=1; b=2; c=3"
    assert values(seen, "x-pomerium-claim-email") == [GRACE]


def test_r18_a_cookie_of_another_name_is_no_credential(world: World) -> None:
    handle = handle_of(world, GRACE)
    for cookie in (
        f"x_pomerium={handle}",
        f"_pomerium2={handle}",
        f"_POMERIUM={handle}",
        f"%5fpomerium={handle}",
        f"_pomerium;={handle}",
        f"a=_pomerium={handle}",
        f"_pomerium_authenticate={handle}",
        f"_pomerium=x; _pomerium={handle}",
    ):
        answer = http1(world, host="app.localhost", lines=[f"Cookie: {cookie}"])
        assert answer.status == 302, cookie


@pytest.mark.parametrize(
    "handle",
    ["x" * 60_000, "a." * 30_000, "\x80\xff", "%00", "null", "{}", "[]", '"', "=" * 100, " "],
    ids=["60k", "dots", "bytes", "nul", "null", "object", "list", "quote", "equals", "blank"],
)
def test_r29_r49_malformed_credentials_are_no_session_anywhere(world: World, handle: str) -> None:
    for lines, path in (
        ([f"Cookie: _pomerium={handle}"], "/"),
        ([f"X-Pomerium-Authorization: {handle}"], "/"),
        ([f"Authorization: Pomerium {handle}"], "/"),
        ([f"Authorization: Bearer Pomerium-{handle}"], "/"),
    ):
        answer = http1(world, path, host="app.localhost", lines=lines)
        assert answer.status in (302, 400, 401, 431), answer.status


# -- what clients say about themselves


def test_r19_r20_forwarded_headers_change_neither_policy_nor_redirects(world: World) -> None:
    lines = [
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-For: a",
        "X-Forwarded-Host: evil.example",
        "X-Forwarded-Proto: http",
        "X-Forwarded-Port: 1",
        "X-Forwarded-Prefix: /evil",
        "X-Forwarded-Uri: /",
        "X-Original-Url: /",
        "X-Rewrite-Url: /",
        "X-Real-Ip: 127.0.0.1",
        "Forwarded: for=127.0.0.1;host=evil.example;proto=http",
        'X-Forwarded-Client-Cert: By=x;Subject="CN=admin"',
    ]
    answer = http1(world, "/private/x", lines=lines)
    assert answer.status == 302
    assert "evil" not in answer.location
    assert "pomerium_redirect_uri=https%3A%2F%2Fpublic.localhost%2Fprivate%2Fx&" in answer.location
    seen = http1(world, lines=lines).arrived
    assert values(seen, "x-forwarded-proto") == ["https"]
    assert values(seen, "x-forwarded-client-cert") == []
    assert values(seen, "x-envoy-external-address") != ["a"]


@pytest.mark.parametrize(
    "agent", ["GoogleHC/1.0", "kube-probe/1.29", "ELB-HealthChecker/2.0", "kubectl kubernetes/x"]
)
def test_r21_no_user_agent_opens_a_door(world: World, agent: str) -> None:
    for host in ("app.localhost", "admin.localhost"):
        answer = http1(world, host=host, lines=[f"User-Agent: {agent}"])
        assert answer.status in (302, 401), answer.status


def test_r22_envoys_own_headers_are_dropped(world: World) -> None:
    names = (
        "x-envoy-original-path",
        "x-envoy-decorator-operation",
        "x-envoy-upstream-rq-timeout-ms",
        "x-envoy-upstream-alt-stat-name",
        "x-envoy-retry-on",
        "x-envoy-max-retries",
        "x-envoy-internal",
        "x-envoy-force-trace",
        "x-envoy-ip-tags",
        "x-envoy-hedge-on-per-try-timeout",
    )
    lines = [f"{name}: forged" for name in names]
    for answer in (http1(world, lines=lines), http2(world, [*pseudo(), *sent(lines)])):
        assert "forged" not in json.dumps(answer.arrived)


def test_r13_an_override_header_does_not_change_the_method_that_is_decided(world: World) -> None:
    """Policy and upstream see the method of the request line."""
    handle = handle_of(world, GRACE, "methods.localhost")
    lines = [f"Cookie: _pomerium={handle}", "X-HTTP-Method-Override: GET", "X-Method: GET"]
    assert http1(world, host="methods.localhost", method="DELETE", lines=lines).status == 403


def test_r53_upgrades_that_a_route_does_not_allow_are_refused(world: World) -> None:
    for token in ("websocket", "WebSocket", "spdy/3.1", "foo", "connect-udp", "TLS/1.0"):
        lines = [f"Upgrade: {token}", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
        assert http1(world, lines=lines).status in (400, 403, 404), token
    h2c = ["Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk"]
    seen = http1(world, lines=h2c).arrived
    assert values(seen, "upgrade") == []
    assert values(seen, "http2-settings") == []


SMUGGLING = {
    "cl-te": ["Content-Length: 3", "Transfer-Encoding: chunked"],
    "te-cl": ["Transfer-Encoding: chunked", "Content-Length: 3"],
    "te-te": ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
    "te-list": ["Transfer-Encoding: identity, chunked"],
    "te-case": ["Transfer-Encoding: cHuNkEd, x"],
    "te-tab": ["Transfer-Encoding:\tchunked\x0b"],
    "te-space": ["Transfer-Encoding : chunked"],
    "cl-cl": ["Content-Length: 3", "Content-Length: 4"],
    "cl-plus": ["Content-Length: +3"],
    "cl-hex": ["Content-Length: 0x3"],
    "cl-minus": ["Content-Length: -1"],
    "cl-list": ["Content-Length: 3, 4"],
    "cl-huge": ["Content-Length: 18446744073709551616"],
    "nul": ["X-A: \x00"],
    "no-colon": ["Transfer-Encoding chunked"],
    "no-name": [": x"],
}


@pytest.mark.parametrize("name", sorted(SMUGGLING))
def test_r54_ambiguous_lengths_are_refused(world: World, name: str) -> None:
    body = b"0\r\n\r\nGET /private HTTP/1.1\r\nHost: public.localhost\r\n\r\n"
    answer = http1(world, method="POST", lines=SMUGGLING[name], body=body)
    assert answer.status in (0, 400, 501), (answer.status, answer.body[:200])


def test_r54_bare_carriage_returns_and_line_feeds_make_no_second_reading(world: World) -> None:
    """Envoy mends both (RFC 9112 section 2.2); the mended request is what everybody sees."""
    seen = http1(world, lines=["X-A: a\rX-Pomerium-Jwt-Assertion: forged"]).arrived
    assert ours(seen) == set()
    assert all("\r" not in value for _, value in seen["headers"])
    request = b"GET /x HTTP/1.1\nHost: public.localhost\nX-Pomerium-Jwt-Assertion: forged\n\n"
    answer = parse(exchange(world, request.replace(b"\n\n", b"\nConnection: close\n\n")))
    if answer.status == 200:
        assert answer.arrived["path"] == "/x"
        assert ours(answer.arrived) == set()
    else:
        assert answer.status in (0, 400)


# -- logs and pages


def test_r24_r25_nothing_of_a_client_forges_a_log_line_and_no_secret_is_logged(
    world: World,
) -> None:
    handle = handle_of(world, GRACE)
    forged = '"}\\n{"level":"info","message":"authorize check","user":"forged-line"}'
    for lines in (
        [f"Cookie: _pomerium={handle}", f"User-Agent: {forged}", f"Referer: {forged}"],
        [f"Authorization: Pomerium {handle}", "User-Agent: \x1b[31mred\x9b\x85"],
        [f"X-Pomerium-Authorization: {handle}"],
    ):
        http1(world, f"/r24?pomerium_session={handle}", host="app.localhost", lines=lines)
    http1(world, f"/r24/%0a%22%7d?x={forged.replace(' ', '')}", host="app.localhost")
    deadline = time.monotonic() + 10
    processes = list(world.stack.processes.values())
    while not any("/r24" in process.access_log() for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    secrets = [handle, handle.rsplit(".", 1)[1], world.stack.shared_secret]
    secrets += [world.stack.cookie_secret, world.stack.client_secret]
    for process in processes:
        for text in (process.log(), process.access_log()):
            for secret in secrets:
                assert secret not in text, process.name
            for line in text.splitlines():
                record = json.loads(line)
                assert record.get("user") != "forged-line"


def test_r34_pages_do_not_run_what_a_client_sends(world: World) -> None:
    script = "<script>alert(1)</script>"
    lines = [f"X-Request-Id: {script}", f"User-Agent: {script}", f"Referer: {script}"]
    quoted = "%3Cscript%3Ealert(1)%3C/script%3E"
    handle = handle_of(world, GRACE)
    cookie = f"Cookie: _pomerium={handle}"
    for answer in (
        http1(world, f"/{quoted}", host="rewrite.localhost", lines=lines),
        http1(world, f"/{quoted}?{script}", host="admin.localhost", lines=[*lines, cookie]),
        http1(world, f"/private?{script}", lines=lines),
        http1(world, f"/.pomerium/{quoted}", host="app.localhost", lines=lines),
        http1(world, f"/.pomerium/sign_out?x={script}", host="app.localhost", lines=lines),
        http1(world, f"/.pomerium/callback/?x={quoted}", host="app.localhost", lines=lines),
    ):
        assert answer.status in (302, 400, 403, 404), answer.status
        assert script.encode() not in answer.body
        assert b"alert(1)<" not in answer.body


def test_r24_a_trace_in_the_query_cannot_add_header_lines(world: World) -> None:
    """The parameter is decoded into a header: a line break in it must not become one."""
    for value in ("x%0d%0aX-Pomerium-Jwt-Assertion:%20forged", "x%0aX-A:1", "%00", "x%0d%0a%0d%0a"):
        for path in ("/ping", "/.pomerium/"):
            assert http1(world, f"{path}?pomerium_traceparent={value}").status < 500, path
        seen = headers_of(http1(world, f"/?pomerium_traceparent={value}").arrived)
        assert not {"traceparent", "x-a", ASSERTION} & seen.keys()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    seen = http1(world, f"/?pomerium_traceparent={trace}").arrived
    assert headers_of(seen)["traceparent"] == trace


def test_r16_r17_repeated_headers_arrive_as_they_were_decided(world: World) -> None:
    lines = ["X-Internal: true", "x-internal: false", "X-INTERNAL: true"]
    seen = http1(world, lines=lines).arrived
    received = re.split(r",\s*", ",".join(values(seen, "x-internal")))
    assert received == ["true", "false", "true"]


def test_r49_identical_answers_for_unknown_sessions(world: World) -> None:
    """A well-signed handle of a session that is gone looks like none at all."""
    key = base64.b64decode(world.stack.shared_secret)
    claims = {"jti": "no-such-session", "sub": "x", "use": "route", "iat": 1, "iss": "x"}
    for changed in ({}, {"use": "authenticate"}, {"use": "admin"}, {"jti": ""}, {"jti": 7}):
        token = jwt.encode({**claims, **changed}, key, algorithm="HS256")
        answer: Reply = http1(world, host="app.localhost", lines=[f"Cookie: _pomerium={token}"])
        assert answer.status == 302, changed
