"""No field of the access log shows a credential, whatever is chosen: with a real Envoy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from gatehouse.common.observability.redaction import REDACTED, redact_query
from gatehouse.proxy.core.xds.resource import LISTENER
from gatehouse.proxy.core.xds.snapshot import build_snapshot
from tests.support.envoy import allow, deny, environment, proxy
from tests.support.envoy_verdict import route as sound_route
from tests.support.envoy_verdict import settings_of
from tests.support.raw_http import exchange, guarded_upstream, http1
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

HOST = "app.example.com"
TOKEN = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl"
EVERY_FIELD = (
    *("authority", "client-certificate", "cluster-stat-name", "duration", "forwarded-for", "ip"),
    *("method", "path", "query", "referer", "request-id", "response-code", "route-id"),
    *("response-code-details", "session-id", "size", "upstream-cluster", "user", "user-agent"),
)
CREDENTIAL_HEADERS = (
    *("Cookie", "Authorization", "Proxy-Authorization", "X-Pomerium-Authorization"),
    *("X-Pomerium-Jwt-Assertion", "X-Pomerium-Jwt-Assertion-For", "X-Api-Key", "X-Csrf-Token"),
    *("X-Forwarded-Access-Token", "X-Serverless-Authorization"),
)
QUERIES = {
    "b=c&d=e": "b=c&d=e",
    "b=SECRET-free": "b=SECRET-free",
    "": "",
    "pomerium_session=SECRET": f"pomerium_session={REDACTED}",
    "a=1&pomerium_session_encrypted=SECRET;b=2": (f"a=1&pomerium_session_encrypted={REDACTED};b=2"),
    "code=SECRET&state=SECRET&iss=x": f"code={REDACTED}&state={REDACTED}&iss=x",
    "%63ode=SECRET": f"%63ode={REDACTED}",
    "Access-Token=SECRET": f"Access-Token={REDACTED}",
    "X-Amz-Signature=SECRET&X-Amz-Date=1": f"X-Amz-Signature={REDACTED}&X-Amz-Date=1",
    "api_key=SECRET": f"api_key={REDACTED}",
    "pomerium_redirect_uri=https%3A%2F%2Fa%2Fb%3Fq%3DSECRET": (f"pomerium_redirect_uri={REDACTED}"),
    "next=https%3A%2F%2Fa%2Fb": "next=https%3A%2F%2Fa%2Fb",
    "u=https://me:SECRET@a/": f"u={REDACTED}",
    f"x={TOKEN}": f"x={REDACTED}",
    f"{TOKEN}": REDACTED,
    "token=": "token=",
    "cookie_name=a&tokens_left=2&passwords=3": "cookie_name=a&tokens_left=2&passwords=3",
    "x=%22%0a%7f": "x=%22%0a%7f",
}


@pytest.fixture
def upstream() -> Iterator[EchoUpstream]:
    with guarded_upstream() as running:
        yield running


def route(url: str, **keys: Any) -> dict[str, Any]:
    return {
        "from": f"http://{HOST}",
        "to": url,
        "allow_public_unauthenticated_access": True,
        **keys,
    }


async def test_every_field_with_credentials_everywhere(upstream: EchoUpstream) -> None:
    """Refused, unroutable and forwarded requests; authorize adds an assertion and a token."""
    fields = [*EVERY_FIELD, *(f"headers.{name}" for name in CREDENTIAL_HEADERS)]
    fields += ["headers.X-Upstream", "headers.Referer", "headers.:path", "headers.a?Cookie"]
    routes = [route(upstream.url, set_request_headers={"X-Upstream": "${pomerium.id_token}"})]
    lines = [
        *(f"{name}: SECRET-{number}" for number, name in enumerate(CREDENTIAL_HEADERS)),
        f"Referer: https://{HOST}/cb?code=SECRET&state=SECRET",
        "X-Upstream: SECRET",
    ]
    path = "/a?pomerium_session=SECRET&b=2"
    async with proxy({"routes": routes}, access_log_fields=fields) as running:
        running.authorize.decide = lambda _: allow(
            {"x-pomerium-jwt-assertion": "SECRET", "x-upstream": "SECRET"}
        )
        assert (await http1(running.port, path, lines=lines)).status == 200
        running.authorize.decide = lambda _: deny()
        assert (await http1(running.port, path, lines=lines)).status == 403
        assert (await http1(running.port, path, host="no.example.com", lines=lines)).status == 404
        await exchange(running.port, b"GET /%2f?token=SECRET HTTP/1.1\r\nHost: a\r\n\r\n")
        found = await running.access_lines(4)
        assert sorted(line["response-code"] for line in found) == [200, 400, 403, 404]
        assert "SECRET" not in running.access_log.read_text()
        for line in found:
            if line["response-code"] == 400:
                assert line["query"] is None
                continue
            assert line["query"] == f"pomerium_session={REDACTED}&b=2"
            assert line["headers"]["Referer"] == f"https://{HOST}/cb"
            assert line["headers"][":path"] == "/a"
            hidden = {*CREDENTIAL_HEADERS, "X-Upstream", "a?Cookie"}
            assert {name for name, text in line["headers"].items() if text == REDACTED} == hidden


async def test_queries_are_shown_without_their_secrets(upstream: EchoUpstream) -> None:
    async with proxy({"routes": [route(upstream.url)]}, access_log_fields=["query"]) as running:
        for query in QUERIES:
            assert (await http1(running.port, f"/?{query}")).status == 200
        lines = await running.access_lines(len(QUERIES))
        assert dict(zip(QUERIES, (line["query"] for line in lines), strict=True)) == QUERIES
        # Nothing is changed on the way: the upstream receives what is its own.
        assert "b=SECRET-free" in json.dumps(upstream.requests)
        long = "&".join(f"name{number}=value" for number in range(3000))
        assert (await http1(running.port, f"/?{long}")).status == 200
        line = (await running.access_lines(len(QUERIES) + 1))[-1]
        assert line["query"].startswith("name0=value&name1=value&")
        assert line["query"].endswith("=value&…")
        assert len(line["query"]) <= 16 * 1024 + 2


def test_the_decision_log_shows_queries_alike() -> None:
    assert {query: redact_query(query) for query in QUERIES} == QUERIES


def test_without_a_query_field_no_script_is_added() -> None:
    def scripts(**keys: Any) -> int:
        settings = settings_of(sound_route(), **keys)
        snapshot = build_snapshot(settings, environment("/run", system_ca_pem=b"x"))
        (listener,) = snapshot.resources[LISTENER].values()
        return listener.body.count(b"logged-query")

    assert scripts() == 0
    assert scripts(access_log_fields=["query"]) == 1
    assert scripts(access_log_fields=["query"], log_level="error") == 0
    assert scripts(access_log_fields=["query"], log_level="error", proxy_log_level="info") == 1
