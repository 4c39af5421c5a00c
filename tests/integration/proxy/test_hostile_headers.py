"""Header values, hosts and answers made to slip past the scripts that run inside Envoy."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from envoy.service.auth.v3 import external_auth_pb2

from tests.support.envoy import allow, proxy
from tests.support.raw_http import Answer, guarded_upstream, http1, http2, request_headers
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

HOST = "app.example.com"
LENGTH = 30_000
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def upstream() -> Iterator[EchoUpstream]:
    with guarded_upstream() as running:
        yield running


def public(upstream: EchoUpstream, host: str = HOST, **keys: Any) -> dict[str, Any]:
    return {
        "from": f"http://{host}",
        "to": upstream.url,
        "allow_public_unauthenticated_access": True,
        **keys,
    }


def arrived(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer
    seen: dict[str, Any] = json.loads(answer.body)
    return seen


def values(seen: dict[str, Any], name: str) -> list[str]:
    return [value for header, value in seen["headers"] if header == name]


# -- time


LONG = [
    "Cookie: x{0}b=1",
    "Cookie: a=x{0}b",
    "Cookie: a=x{0}b; _pomerium=s",
    "Cookie: {1}",
    "Authorization: x{0}b",
    "Authorization: bearer{0}pomeriu",
    "Authorization: x{0}b, Pomerium x",
    "Authorization: {1}",
    "Accept: text/html;{0}q={0}x",
    "Accept: {0}x;{0}{0}",
    "Accept: {1}",
    "Referer: https://x/?a{0}b&{0}=",
    "Referer: https://x/?{1}",
    "Cookie: x{0}{0}x",
    "Authorization: x{0}{0}x",
    "X-Pomerium-{2}: 1",
    "traceparent: 00-{0}",
    "X-Envoy-{2}: 1",
]


async def test_r55_no_header_costs_more_than_its_length(upstream: EchoUpstream):
    """A stop for a hang, not a measurement: what is not linear takes seconds here."""
    async with proxy({"routes": [public(upstream)]}) as running:
        slow = {}
        for line in LONG:
            took = []
            for length in (10, LENGTH):
                sent = line.format(" " * length, ";,&=" * (length // 4), ".~" * (length // 2))
                started = time.perf_counter()
                assert (await http1(running.port, lines=[sent])).status in (200, 400), line
                took.append(time.perf_counter() - started)
            if took[1] > took[0] + 1.0:
                slow[line] = took
        assert slow == {}


# -- hosts


REFUSED_HOSTS = [
    "",
    "bank.example:1.example.com",
    "x.example.com:80:90",
    "x.example.com:",
    "x.example.com:y",
    "x.example.com:123456",
    "admin.example.com@x.example.com",
    "x:y@x.example.com",
    "[::1].example.com",
    "[::1",
    "[::1]:x",
    "[name]",
    "a%2eb.example.com",
    "a'b.example.com",
    "a b.example.com",
    "a/b.example.com",
    "a\\b.example.com",
    "*.example.com",
    "\xe9.example.com",
    ".example.com",
    "a..example.com",
    "a" * 64 + ".example.com",
    "a." * 128 + "example.com",
    "app.example.com,app.example.com",
]


async def test_r08_r56_what_is_no_host_is_refused_before_anybody_is_asked(upstream: EchoUpstream):
    wildcard = public(upstream, "*.example.com")
    async with proxy({"routes": [public(upstream), wildcard]}) as running:
        found = {}
        for host in REFUSED_HOSTS:
            for path in ("/", "/.pomerium/"):
                status = (await http1(running.port, path, host=host)).status
                if status != 400:
                    found[host, path] = status
            answer = await http2(running.port, request_headers(host=host))
            if answer.status not in (0, 400):
                found[host, "http2"] = answer.status
        assert found == {}
        assert upstream.requests == []
        assert running.authorize.requests == []
        for host in (
            "a_b.example.com",
            "xn--bcher-kva.EXAMPLE.com:65535",
            "a" * 63 + ".example.com",
            "a.b-c.example.com.",
        ):
            assert (await http1(running.port, host=host)).status == 200, host
        for host in ("[::1]:8443", "[2001:db8::7.8.9.10]", "127.0.0.1:1", "example.com"):
            assert (await http1(running.port, host=host)).status == 404, host


async def test_r08_a_star_inside_a_label_stands_for_names_only(upstream: EchoUpstream):
    async with proxy({"routes": [public(upstream, "a*b.example.com")]}) as running:
        for host in ("axb.example.com", "ax.yb.example.com:1", "AXB.example.com"):
            assert (await http1(running.port, host=host)).status == 200, host
        for host in ("ab.example.com", "a.b.example.com", "ax..b.example.com"):
            assert (await http1(running.port, host=host)).status in (400, 404), host


# -- paths


async def test_r01_parameters_do_not_hide_an_empty_segment(upstream: EchoUpstream):
    for keys in ({}, {"normalize_path": False, "merge_slashes": False}):
        async with proxy({"routes": [public(upstream)], **keys}) as running:
            for path in (
                "/;/private",
                "/;x/private",
                "/%3b/private",
                "/%3Bx=1/private",
                "/a/;/private",
                "/a/;x=/",
                "/;",
            ):
                assert (await http1(running.port, path)).status == 400, (path, keys)
            assert running.authorize.requests == []
            for path in ("/a;x=1/b", "/a;", "/a?b=/;/", "/a/b;c;d/e"):
                assert arrived(await http1(running.port, path))["path"] == path


# -- headers


READ_ALIKE = (
    "X.Pomerium.Jwt.Assertion",
    "x~pomerium~jwt~assertion",
    "X-Pomerium.Authorization",
    "X'Pomerium-A",
    "X.Envoy.External.Address",
    "X.Forwarded.Proto",
    "X.Forwarded-For",
    "X~Forwarded~Host",
    "X!Real!Ip",
)


async def test_r14_no_spelling_that_cgi_reads_alike_arrives(upstream: EchoUpstream):
    async with proxy({"routes": [public(upstream)]}) as running:
        for name in READ_ALIKE:
            seen = arrived(await http1(running.port, lines=[f"{name}: forged"]))
            assert "forged" not in json.dumps(seen), name
            http = running.authorize.requests[-1].attributes.request.http
            assert "forged" not in http.headers.values(), name


FORWARDED = [
    "Forwarded: host=client",
    "X-Forwarded-Host: client",
    "X-Forwarded-Port: client",
    "X-Forwarded-Prefix: client",
    "X-Forwarded-Scheme: client",
    "X-Forwarded-Server: client",
    "X-Forwarded-Uri: client",
    "X-Original-Url: client",
    "X-Rewrite-Url: client",
    "X-Real-Ip: client",
]


async def test_r19_only_a_trusted_hop_may_speak_of_hosts_and_ports(upstream: EchoUpstream):
    routes = [public(upstream)]
    async with proxy({"routes": routes}) as running:
        for path in ("/", "/ping", "/.pomerium/"):
            answer = await http1(running.port, path, lines=[*FORWARDED, "X-Forwarded-For: 1.2.3.4"])
            assert answer.status == 200
            assert b"client" not in answer.body, path
            assert b"1.2.3.4" in answer.body, path
        seen = arrived(await http1(running.port, lines=FORWARDED))
        assert values(seen, "x-forwarded-host") == [HOST]
        await running.push({"routes": routes, "xff_num_trusted_hops": 1})
        seen = arrived(await http1(running.port, lines=FORWARDED))
        assert sum("client" in value for _, value in seen["headers"]) == len(FORWARDED)


async def test_r22_every_envoy_header_of_a_client_is_removed(upstream: EchoUpstream):
    async with proxy({"routes": [public(upstream)]}) as running:
        names = ("x-envoy-attempt-count", "x-envoy-auth-partial-body", "x-envoy-anything")
        lines = [f"{name}: forged" for name in names]
        lines.append("X-Envoy-External-Address: forged")
        seen = arrived(await http1(running.port, lines=lines))
        assert "forged" not in json.dumps(seen)
        assert values(seen, "x-envoy-external-address") != []


COOKIES = [
    ("a=1,_pomerium=s", ["a=1"]),
    ("a=1 , _pomerium=s; b=2", ["a=1; b=2"]),
    ("_pomerium=s,c=3,d; e", ["c=3,d; e"]),
    ("__Host-_pomerium_csrf=s; a=1", ["a=1"]),
    ("__host-_pomerium=s; __Secure-_pomerium_authenticate=t; a=1", ["a=1"]),
    ("__SECURE-_pomerium_login_0123456789abcdef=s", []),
    ("__Host-x=1; __Secure-_pomeriumx=2", ["__Host-x=1; __Secure-_pomeriumx=2"]),
    ("a=x, y;  b=,", None),
]


async def test_r18_no_cookie_of_ours_hides_behind_a_comma_or_a_prefix(upstream: EchoUpstream):
    async with proxy({"routes": [public(upstream)]}) as running:
        for sent, kept in COOKIES:
            seen = arrived(await http1(running.port, lines=[f"Cookie: {sent}"]))
            assert values(seen, "cookie") == ([sent] if kept is None else kept), sent


REFERERS = [
    ("https://a.example/p?pomerium_session=s&a=1", ["https://a.example/p?a=1"]),
    ("https://a.example/p?b=1&pomerium%5fsession=s", ["https://a.example/p?b=1"]),
    ("https://a.example/p?pomerium_session=s", ["https://a.example/p"]),
    ("https://a.example/p?a=1;pomerium_session=s", ["https://a.example/p"]),
    ("https://a.example/?a=1,https://b.example/?pomerium_session=s", ["https://a.example/"]),
    ("https://a.example/p?a=1&b=%zz", ["https://a.example/p?a=1&b=%zz"]),
]


async def test_r18_the_referer_names_no_credential(upstream: EchoUpstream):
    async with proxy({"routes": [public(upstream)]}) as running:
        for sent, kept in REFERERS:
            seen = arrived(await http1(running.port, lines=[f"Referer: {sent}"]))
            assert values(seen, "referer") == kept, sent


TRACES = [
    (TRACE, [TRACE]),
    (f"{TRACE.replace('00-', 'cc-', 1)}-more", [f"{TRACE.replace('00-', 'cc-', 1)}-more"]),
    (f"{TRACE}-more", []),
    (f"{TRACE}%0d%0aX-A:1", []),
    (TRACE.upper(), []),
    ("ff" + TRACE[2:], []),
    ("00-" + "0" * 32 + TRACE[35:], []),
    (TRACE[:36] + "0" * 16 + "-01", []),
    ("x%0d%0aX-A:%201", []),
    ("%00", []),
    ("%0a", []),
    ("%ff", []),
    ("x" * 10_000, []),
]


async def test_r24_a_trace_is_one_or_is_dropped(upstream: EchoUpstream):
    async with proxy({"routes": [public(upstream)]}) as running:
        for sent, kept in TRACES:
            for path in ("/", "/ping"):
                answer = await http1(running.port, f"{path}?pomerium_traceparent={sent}")
                assert answer.status == 200, sent
            seen = arrived(await http1(running.port, f"/?pomerium_traceparent={sent}"))
            assert values(seen, "traceparent") == kept, sent
            assert values(seen, "x-a") == []
        lines = ["traceparent: x", "tracestate: a=b"]
        seen = arrived(await http1(running.port, lines=lines))
        assert values(seen, "traceparent") + values(seen, "tracestate") == []
        seen = arrived(await http1(running.port, lines=[f"traceparent: {TRACE}", lines[1]]))
        assert values(seen, "tracestate") == ["a=b"]


# -- decisions


def _undecided(**fields: str) -> external_auth_pb2.CheckResponse:
    response = allow()
    response.ClearField("dynamic_metadata")
    if fields:
        response.dynamic_metadata.update(fields)
    return response


async def test_r50_only_an_explicit_allow_allows(upstream: EchoUpstream):
    routes = [
        public(upstream, prefix="/direct", response={"status": 200, "body": "direct"}),
        public(upstream, prefix="/moved", redirect={"path_redirect": "/x"}),
        public(upstream),
    ]
    for route in routes[:2]:
        del route["to"]
    async with proxy({"routes": routes}) as running:
        assert (await http1(running.port)).status == 200
        before = len(upstream.requests)
        for response in (
            external_auth_pb2.CheckResponse(),
            _undecided(),
            _undecided(user="ada"),
            _undecided(decision="deny"),
            _undecided(decision=""),
        ):
            running.authorize.decide = functools.partial(_answer, response)
            for path in ("/", "/direct", "/moved", "/.pomerium/"):
                answer = await http1(running.port, path, lines=["decision: allow"])
                assert answer.status == 503, (path, response)
                assert b"direct" not in answer.body
            # What is not decided needs no decision, and nowhere is nowhere.
            assert (await http1(running.port, "/ping")).status == 200
            assert (await http1(running.port, "/healthz")).status == 200
            assert (await http1(running.port, host="nowhere.example.com")).status == 404
        assert len(upstream.requests) == before


def _answer(response: Any, _: Any) -> Any:
    return response
