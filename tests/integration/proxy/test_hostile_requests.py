"""Requests made to slip past: each through a real Envoy, to an upstream that tells what arrived."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.support.envoy import allow, deny, resolved
from tests.support.open_routes import HOST, arrived, pomerium_headers, public, serving, values
from tests.support.raw_http import (
    exchange,
    guarded_upstream,
    http1,
    http2,
    parse,
    request_headers,
)
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e


@pytest.fixture
def upstream() -> Iterator[EchoUpstream]:
    with guarded_upstream() as running:
        yield running


# -- paths


async def test_r01_a_path_is_decided_and_forwarded_in_one_spelling(upstream: EchoUpstream):
    routes = [public(upstream, prefix="/public"), public(upstream, prefix="/")]
    ids = [route.id for route in resolved({"insecure_server": True, "routes": routes}).routes]
    async with serving(upstream, *routes) as running:
        running.authorize.decide = lambda request: (
            allow() if request.attributes.context_extensions["route_id"] == ids[0] else deny(403)
        )
        for path in (
            "/public/../admin",
            "/public/%2e%2e/admin",
            "/public/%2E./admin",
            "/public/./../admin",
            "/public\\..\\admin",
        ):
            assert (await http1(running.port, path)).status == 403, path
            check = running.authorize.requests[-1].attributes
            assert check.request.http.path == "/admin", path
        for path in (
            "/public/..;/admin",
            "/public/..;x=1/admin",
            "/public/%2e%2e;/admin",
            "/public/..%3b/admin",
            "/public/..;",
        ):
            # Resolved as dots, or refused; never taken for a segment below /public.
            assert (await http1(running.port, path)).status in {400, 403}, path
        assert upstream.requests == []
    async with serving(upstream, *routes, normalize_path=False) as running:
        for path in ("/public/..;/admin", "/public/%2E%2e;x/admin", "/public/..%3B/admin"):
            assert (await http1(running.port, path)).status == 400, path
        assert upstream.requests == []
        for path in ("/public/a;b=c", "/public/a..;b", "/public/x?q=/..;/"):
            assert arrived(await http1(running.port, path))["path"] == path


async def test_r02_double_slashes_are_merged_before_policy(upstream: EchoUpstream):
    async with serving(upstream) as running:
        for path, merged in (("//admin", "/admin"), ("/a//b", "/a/b"), ("//admin/x", "/admin/x")):
            seen = arrived(await http1(running.port, path))
            assert seen["path"] == merged
            request = running.authorize.requests[-1].attributes.request.http
            assert (request.path, request.host) == (merged, HOST)


async def test_r03_escaped_slashes_are_refused(upstream: EchoUpstream):
    async with serving(upstream) as running:
        for path in ("/a%2Fb", "/a%2fb", "/a%5Cb", "/a%5cb"):
            answer = await http1(running.port, path)
            assert answer.status == 400, path
            assert answer.headers["content-type"].startswith("text/html"), path
        assert upstream.requests == []


async def test_r04_fragments_never_widen_a_path(upstream: EchoUpstream):
    async with serving(upstream) as running:
        assert (await http1(running.port, "/p#x")).status == 400
        assert upstream.requests == []
        seen = arrived(await http1(running.port, "/p%23x"))
        assert seen["path"] == "/p%23x"
        assert running.authorize.requests[-1].attributes.request.http.path == "/p%23x"


async def test_r06_the_decision_is_for_the_route_that_envoy_chose(upstream: EchoUpstream):
    """Cleaning the query after the decision must not choose another route."""
    routes = [
        public(upstream, regex="/a", set_response_headers={"x-route": "first"}),
        public(upstream, prefix="/", set_response_headers={"x-route": "second"}),
    ]
    ids = [route.id for route in resolved({"insecure_server": True, "routes": routes}).routes]
    async with serving(upstream, *routes) as running:
        for path, index in (
            ("/a?pomerium_session=x&x=1", 0),
            ("/a?x=/b", 0),
            ("/a/?x=1&x=2", 1),
            ("/ab", 1),
        ):
            answer = await http1(running.port, path)
            check = running.authorize.requests[-1].attributes
            assert check.context_extensions["route_id"] == ids[index], path
            assert answer.headers["x-route"] == ("first", "second")[index]


async def test_r07_a_rewritten_path_cannot_leave_its_prefix(upstream: EchoUpstream):
    route = public(upstream, prefix="/old/", prefix_rewrite="/new/")
    async with serving(upstream, route) as running:
        for path in ("/old/../etc", "/old/%2e%2e/etc", "/old/..\\etc"):
            assert (await http1(running.port, path)).status == 404, path
        assert upstream.requests == []
        for path, sent in (
            ("/old/a", "/new/a"),
            ("/old/%2e/a", "/new/a"),
            ("/old/a/../b", "/new/b"),
        ):
            assert arrived(await http1(running.port, path))["path"] == sent


async def test_r07_a_path_rewritten_by_an_expression_is_decided_as_it_came(
    upstream: EchoUpstream,
):
    """The expression sees the path that was decided, and nothing is resolved after it."""
    rewritten = public(
        upstream,
        prefix="/old/",
        regex_rewrite_pattern="^/old/(.*)$",
        regex_rewrite_substitution="/new/\\1",
    )
    routes = [rewritten, public(upstream, prefix="/secret")]
    settings = resolved({"insecure_server": True, "routes": routes})
    inside, outside = (route.id for route in settings.routes)
    async with serving(upstream, *routes) as running:
        for path in ("/old/../etc", "/old/%2e%2e/etc", "/old/..\\etc", "/old/.%2E/etc"):
            assert (await http1(running.port, path)).status == 404, path
        for path in ("/old/..%2fsecret", "/old/%2e%2e%2fsecret", "/old/..%5csecret"):
            assert (await http1(running.port, path)).status == 400, path
        assert upstream.requests == []
        for path, route_id, sent in (
            ("/old/a", inside, "/new/a"),
            ("/old/%2e/a", inside, "/new/a"),
            ("/old/a/%2e%2e/b", inside, "/new/b"),
            ("/old/old/a", inside, "/new/old/a"),
            ("/old/../secret", outside, "/secret"),
            ("/old/%2e%2e/secret/x", outside, "/secret/x"),
        ):
            assert arrived(await http1(running.port, path))["path"] == sent
            check = running.authorize.requests[-1].attributes
            assert check.context_extensions["route_id"] == route_id, path


async def test_r08_spellings_of_a_host_lead_to_one_route(upstream: EchoUpstream):
    wildcard = public(upstream, **{"from": "http://*.wild.example.com"})
    async with serving(upstream, public(upstream), wildcard) as running:
        for host in (
            HOST,
            HOST.upper(),
            f"{HOST}.",
            f"{HOST}:80",
            f"{HOST}:443",
            f"{HOST}.:443",
            "Team.WILD.example.COM",
            "a.b.wild.example.com:8443",
            "team.wild.example.com.",
        ):
            assert (await http1(running.port, host=host)).status == 200, host
        for host in ("wild.example.com", "x.wild.example.com.evil.com", "appXexample.com"):
            assert (await http1(running.port, host=host)).status == 404, host


async def test_r12_configured_text_is_never_an_expression(upstream: EchoUpstream):
    routes = [
        public(upstream, path="/a.b"),
        public(upstream, path="/c*"),
        public(upstream, path="/d%60e"),  # how a backtick arrives, however it was sent
        public(upstream, prefix="/f.(g)/"),
        public(upstream, **{"from": "http://*.w.example.com"}, prefix="/"),
    ]
    async with serving(upstream, *routes) as running:
        for path in ("/a.b", "/c*", "/d`e", "/d%60e", "/f.(g)/x"):
            assert (await http1(running.port, path)).status == 200, path
        for path in ("/aXb", "/c", "/cc", "/c/x", "/d", "/de", "/f.g/x", "/fX(g)/x"):
            assert (await http1(running.port, path)).status == 404, path
        assert (await http1(running.port, host="x.wXexample.com")).status == 404


# -- methods


async def test_r13_a_known_method_in_other_letters_is_refused(upstream: EchoUpstream):
    async with serving(upstream) as running:
        for method in ("get", "Get", "gET", "post", "connecT", "propfind"):
            answer = await http2(running.port, request_headers(method))
            assert answer.status == 400, (method, answer)
            assert (await http1(running.port, method=method)).status == 400, method
        assert upstream.requests == []
        assert running.authorize.requests == []
        for method in ("GET ", "G ET", "GET\t", "GET\r\nX: y"):
            assert (await http2(running.port, request_headers(method))).status in {0, 400}
        assert (await http1(running.port, method="G ET")).status == 400
        # HTTP/1 allows more than one space; what is decided is what is sent.
        assert arrived(await http1(running.port, method="GET "))["method"] == "GET"
        assert running.authorize.requests[-1].attributes.request.http.method == "GET"
        assert len(upstream.requests) == 1


# -- headers that speak for us


async def test_r14_underscores_do_not_hide_a_header(upstream: EchoUpstream):
    async with serving(upstream) as running:
        for name in ("X_Pomerium_Jwt_Assertion", "x_pomerium_claim_email", "X_Forwarded_Proto"):
            assert (await http1(running.port, lines=[f"{name}: x"])).status == 400
        assert upstream.requests == []
    async with serving(upstream, headers_with_underscores_action="allow") as running:
        seen = arrived(
            await http1(
                running.port,
                lines=[
                    "X_Pomerium_Jwt_Assertion: x",
                    "x_pomerium-claim_email: x",
                    "x_pomerium_authorization: x",
                    "x_other: kept",
                ],
            )
        )
        assert pomerium_headers(seen) == []
        assert values(seen, "x_other") == ["kept"]


@pytest.mark.parametrize("passes", [True, False])
async def test_r15_no_pomerium_header_of_a_client_reaches_an_upstream(
    upstream: EchoUpstream, passes: bool
):
    route = public(upstream, pass_identity_headers=passes)
    keys = {"jwt_claims_headers": {"X-Email": "email", "X-Pomerium-Claim-Groups": "groups"}}
    async with serving(upstream, route, **keys) as running:
        ours = {"x-pomerium-jwt-assertion": "ours", "x-email": "ours@example.com"}
        running.authorize.decide = lambda _: allow(ours)
        lines = [
            "X-Pomerium-Jwt-Assertion: forged",
            "x-pomerium-jwt-assertion: forged again",
            "X-Pomerium-Jwt-Assertion-For: forged",
            "X-Pomerium-Claim-Email: forged",
            "X-POMERIUM-CLAIM-GROUPS: forged",
            "X-Pomerium-Set-Cookie: forged",
            "X-Pomerium-Routing-Key: forged",
            "X-Pomerium-Reproxy-Policy: forged",
            "X-Pomerium-Anything: forged",
            "X-Pomerium-: forged",
            "X-Pomerium-Authorization: forged",
            "X-Email: forged",
        ]
        seen = arrived(await http1(running.port, lines=lines))
        assert "forged" not in json.dumps(seen)
        assert pomerium_headers(seen) == (["x-pomerium-jwt-assertion"] if passes else [])
        assert values(seen, "x-email") == (["ours@example.com"] if passes else [])
        check = running.authorize.requests[-1].attributes
        headers = check.request.http.headers
        assert [name for name in headers if name.startswith("x-pomerium-")] == [
            "x-pomerium-authorization"
        ]
        metadata = check.metadata_context.filter_metadata
        assert metadata["com.gatehouse.client-assertion"]["assertion"] == "forged"
        for path in ("/ping", "/.pomerium/", "/.well-known/pomerium"):
            assert (await http1(running.port, path, lines=lines)).status == 200
            forged = {
                name: value
                for name, value in running.pages.requests[-1][1].items()
                if value.startswith("forged")
            }
            assert forged.pop("x-email", "forged") == "forged"
            assert forged == {"x-pomerium-authorization": "forged"}, path


async def test_r15_a_bare_assertion_is_handed_to_authorize_and_nobody_else(upstream: EchoUpstream):
    async with serving(upstream) as running:
        line = "X-Pomerium-Jwt-Assertion: a.b.c"
        assert pomerium_headers(arrived(await http1(running.port, lines=[line]))) == []
        check = running.authorize.requests[-1].attributes
        metadata = check.metadata_context.filter_metadata
        assert metadata["com.gatehouse.client-assertion"]["assertion"] == "a.b.c"
        assert "x-pomerium-jwt-assertion" not in check.request.http.headers
        long = "X-Pomerium-Jwt-Assertion: " + "x" * 20_000
        assert pomerium_headers(arrived(await http1(running.port, lines=[long]))) == []
        check = running.authorize.requests[-1].attributes
        assert "com.gatehouse.client-assertion" not in check.metadata_context.filter_metadata


async def test_only_we_impersonate_users_of_kubernetes(upstream: EchoUpstream):
    async with serving(upstream) as running:
        settings = running.settings({"routes": [public(upstream)]})
        (plain,) = settings.routes
        kubernetes = replace(plain, kubernetes_service_account_token="token")
        running.authorize.decide = lambda _: allow({"impersonate-user": "ours"})
        lines = [
            "Impersonate-User: forged",
            "impersonate-group: forged",
            "IMPERSONATE-GROUP: forged",
            "Impersonate-Uid: forged",
            "Impersonate-Extra-Scopes: forged",
            "Impersonator: kept",
        ]
        await running.push(replace(settings, routes=(kubernetes,)))
        seen = arrived(await http1(running.port, lines=lines))
        named = [item for item in seen["headers"] if item[0].startswith("impersonat")]
        assert named == [["impersonator", "kept"], ["impersonate-user", "ours"]]
        await running.push(settings)
        running.authorize.decide = lambda _: allow()
        seen = arrived(await http1(running.port, lines=lines))
        assert values(seen, "impersonate-user") == ["forged"]


async def test_r16_connection_cannot_name_our_headers_away(upstream: EchoUpstream):
    route = public(upstream, pass_identity_headers=True)
    async with serving(upstream, route) as running:
        running.authorize.decide = lambda _: allow({"x-pomerium-jwt-assertion": "ours"})
        for line in (
            "Connection: X-Pomerium-Jwt-Assertion",
            "Connection: close, x-pomerium-JWT-assertion",
            "Connection: keep-alive, X-Pomerium-Jwt-Assertion",
        ):
            seen = arrived(await http1(running.port, lines=[line]))
            assert values(seen, "x-pomerium-jwt-assertion") == ["ours"], line


async def test_r17_authorize_sees_every_value_of_a_repeated_header(upstream: EchoUpstream):
    async with serving(upstream) as running:
        await http1(running.port, lines=["internal: true", "Internal: false"])
        headers = running.authorize.requests[-1].attributes.request.http.headers
        assert headers["internal"] == "true,false"
        await http1(running.port, lines=["Cookie: a=1", "cookie: b=2; c=3"])
        headers = running.authorize.requests[-1].attributes.request.http.headers
        assert headers["cookie"] == "a=1; b=2; c=3"


async def test_r19_r20_forwarded_headers_of_a_client_are_not_believed(upstream: EchoUpstream):
    async with serving(upstream) as running:
        lines = [
            "X-Forwarded-For: 1.2.3.4, a",
            "X-Forwarded-Proto: https",
            "Forwarded: for=1.2.3.4",
        ]
        seen = arrived(await http1(running.port, lines=lines))
        attributes = running.authorize.requests[-1].attributes
        assert attributes.source.address.socket_address.address == "127.0.0.1"
        assert attributes.request.http.scheme == "http"
        assert values(seen, "x-forwarded-proto") == ["http"]


async def test_r22_envoy_headers_of_a_client_are_removed(upstream: EchoUpstream):
    async with serving(upstream) as running:
        names = (
            "x-envoy-original-path",
            "x-envoy-decorator-operation",
            "x-envoy-upstream-rq-timeout-ms",
            "x-envoy-internal",
            "x-envoy-original-url",
            "x-envoy-retry-on",
            "x-envoy-max-retries",
            "x-envoy-hedge-on-per-try-timeout",
            "x-envoy-force-trace",
            "x-envoy-ip-tags",
            "x-envoy-original-host",
        )
        seen = arrived(await http1(running.port, lines=[f"{name}: forged" for name in names]))
        assert "forged" not in json.dumps(seen)


async def test_r23_a_header_we_set_arrives_once_however_the_client_spelled_it(
    upstream: EchoUpstream,
):
    async with serving(upstream) as running:
        running.authorize.decide = lambda _: allow({"x-set": "ours"})
        for lines in (["X-SET: client"], ["x-set: client", "X-Set: client"]):
            assert values(arrived(await http1(running.port, lines=lines)), "x-set") == ["ours"]
        headers = [(":method", "GET"), (":scheme", "hTTp"), (":authority", HOST), (":path", "/")]
        assert values(arrived(await http2(running.port, headers)), "x-forwarded-proto") == ["http"]


async def test_r24_a_log_line_stays_one_record(upstream: EchoUpstream):
    async with serving(upstream) as running:
        agent = 'x" , "user": "root", "y":"\t\x7f\\'
        answer = await http1(running.port, '/a"b\\c', lines=[f"User-Agent: {agent}"])
        assert answer.status in {200, 400}
        assert (await http1(running.port)).status == 200
        lines = await running.access_lines(2)
        assert len(lines) == 2
        assert all(line["user"] is None and line["service"] == "envoy" for line in lines)


# -- when authorize does not answer


def _answer(response: Any, _: Any) -> Any:
    return response


async def test_r50_without_authorize_nothing_passes(upstream: EchoUpstream):
    redirect = {
        "from": f"http://{HOST}",
        "prefix": "/redirect",
        "redirect": {"host_redirect": "x.example.com"},
        "allow_public_unauthenticated_access": True,
    }
    direct = {
        "from": f"http://{HOST}",
        "prefix": "/direct",
        "response": {"status": 200, "body": "direct"},
        "allow_public_unauthenticated_access": True,
    }
    async with serving(
        upstream, redirect, direct, public(upstream), grpc_client_timeout="1s"
    ) as running:
        assert (await http1(running.port, "/direct")).body == b"direct"
        assert (await http1(running.port, "/redirect")).status == 301

        def fails(_: Any) -> Any:
            raise RuntimeError("authorize is broken")

        running.authorize.decide = fails
        for path in ("/", "/redirect", "/direct", "/.pomerium/"):
            answer = await http1(running.port, path)
            assert answer.status == 503, path
            assert answer.headers["content-type"].startswith("text/html")
            assert b"503" in answer.body
            assert b"direct" not in answer.body
        # A probe by a balancer does not fall with authorize.
        assert (await http1(running.port, "/ping")).status == 200
        assert (await http1(running.port, "/healthz")).status == 200
        assert upstream.requests == []


async def test_r50_an_answer_that_says_nothing_does_not_allow(upstream: EchoUpstream):
    from envoy.service.auth.v3 import external_auth_pb2  # noqa: PLC0415

    async with serving(upstream) as running:
        huge = allow({"x-huge": "x" * (2 << 20)})
        denied = external_auth_pb2.CheckResponse()
        denied.status.code = 7
        for response, statuses in ((huge, {500, 503}), (denied, {403})):
            running.authorize.decide = functools.partial(_answer, response)
            assert (await http1(running.port)).status in statuses
        assert upstream.requests == []


# -- protocol


MALFORMED = [
    "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "Content-Length: -1\r\n\r\n",
    "Content-Length: 5, 5\r\n\r\nhello",
    "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "X-A: a\x00b\r\n\r\n",
    "X-A : 1\r\n\r\n",
    "X A: 1\r\n\r\n",
    ": 1\r\n\r\n",
    "no colon\r\n\r\n",
    "Host: other.example.com\r\n\r\n",
]


async def test_r54_malformed_requests_are_refused(upstream: EchoUpstream):
    async with serving(upstream) as running:
        first = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n"
        for rest in MALFORMED:
            answer = parse(await exchange(running.port, (first + rest).encode("latin-1")))
            assert answer.status in {400, 501}, (rest, answer)
        for whole in (
            "GET / HTTP/1.1\r\n\r\n",
            f"GET / HTTP/9.9\r\nHost: {HOST}\r\n\r\n",
            f"GET http:// HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n",
            "\x16\x03\x01 nonsense\r\n\r\n",
        ):
            answer = parse(await exchange(running.port, whole.encode("latin-1")))
            assert 400 <= answer.status < 500, (whole, answer)
        assert upstream.requests == []
        assert (await http1(running.port)).status == 200


async def test_r54_folded_lines_and_bare_returns_mean_one_thing_only(upstream: EchoUpstream):
    """Envoy unfolds (RFC 9112, 5.2) and drops a bare CR; nobody behind it can read it otherwise."""
    async with serving(upstream) as running:
        for line, value in (("X-A: 1\r\n X-B: 2", "1 X-B: 2"), ("X-A: 1\rX-B: 2", "1X-B: 2")):
            seen = arrived(await http1(running.port, lines=[line]))
            assert (values(seen, "x-a"), values(seen, "x-b")) == ([value], [])
            headers = running.authorize.requests[-1].attributes.request.http.headers
            assert headers["x-a"] == value


async def test_r56_oversized_requests_are_refused_and_envoy_lives(upstream: EchoUpstream):
    async with serving(upstream) as running:
        assert 400 <= (await http1(running.port, host="a" * 300)).status < 500
        assert (await http1(running.port, lines=["X-Big: " + "x" * 200_000])).status in {0, 431}
        many = [f"X-{index}: 1" for index in range(1100)]
        assert (await http1(running.port, lines=many)).status in {0, 431}
        assert upstream.requests == []
        assert (await http1(running.port)).status == 200
        assert running.exits == []
