"""Where a browser that has to sign in is sent, and what travels along."""

from __future__ import annotations

import html
from urllib.parse import parse_qs, urlsplit

from gatehouse.common.jose.signed_url import verify_url
from gatehouse.common.session.login_binding import matches
from tests.support.check import (
    AUTHENTICATE_URL,
    SECRET,
    Desk,
    resolved_settings,
    route,
    set_headers,
    status_of,
)
from tests.support.policy import NOW_S, policy_of

U1 = policy_of("allow: {or: [{user: u1}]}")


def desk(policy=U1, **keys) -> Desk:
    return Desk(resolved_settings(route(policy, **keys)))


def test_a_browser_is_sent_to_sign_in() -> None:
    one = desk()
    response = one.check(path="/a b?x=1&pomerium_redirect_uri=https://evil.example/")
    headers = set_headers(response)
    assert status_of(response) == 302
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-pomerium-intercepted-response"] == "true"
    url = urlsplit(headers["location"])
    assert f"{url.scheme}://{url.netloc}{url.path}" == f"{AUTHENTICATE_URL}/.pomerium/sign_in"
    verify_url(headers["location"], [SECRET], now_s=NOW_S)
    query = parse_qs(url.query, strict_parsing=True)
    assert query["pomerium_idp_id"] == ["idp-1"]
    assert query["pomerium_redirect_uri"] == [
        "https://app.example.com/a%20b?x=1&pomerium_redirect_uri=https://evil.example/"
    ]
    assert html.escape(headers["location"]) in response.denied_response.body


def test_the_sign_in_is_tied_to_the_browser() -> None:
    one = desk()
    headers = set_headers(one.check())
    digest = parse_qs(urlsplit(headers["location"]).query)["gatehouse_login"][0]
    pair, *attributes = headers["set-cookie"].split("; ")
    name, _, nonce = pair.partition("=")
    assert name == "__Host-_pomerium_login_binding"
    assert matches(nonce, digest)
    assert set(attributes) == {"Path=/", "Max-Age=3600", "HttpOnly", "Secure", "SameSite=Lax"}
    assert nonce not in headers["location"]
    assert set_headers(one.check())["location"] != headers["location"]


def test_r33_sign_ins_side_by_side_share_the_browsers_cookie_and_nothing_else() -> None:
    one = desk()
    pair = set_headers(one.check())["set-cookie"].partition(";")[0]
    digests = set()
    for _ in range(3):
        headers = set_headers(one.check(headers={"cookie": pair}))
        assert headers["set-cookie"].partition(";")[0] == pair
        digest = parse_qs(urlsplit(headers["location"]).query)["gatehouse_login"][0]
        assert matches(pair.partition("=")[2], digest)
        digests.add(digest)
    assert len(digests) == 3


def test_other_hosts_and_traces_travel_along() -> None:
    one = desk(depends_on=["b.example.com", "https://c.example.com:8443/x"])
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    query = parse_qs(
        urlsplit(set_headers(one.check(headers={"traceparent": trace}))["location"]).query
    )
    assert query["pomerium_additional_hosts"] == ["b.example.com,c.example.com:8443"]
    assert query["pomerium_traceparent"] == [trace]
    assert "pomerium_tracestate" not in query
    both = {"traceparent": trace, "tracestate": "vendor=1,other=a&b"}
    query = parse_qs(urlsplit(set_headers(one.check(headers=both))["location"]).query)
    assert query["pomerium_tracestate"] == ["vendor=1,other=a&b"]
    forged = {"traceparent": "x&evil=1", "tracestate": "vendor=1"}
    location = set_headers(one.check(headers=forged))["location"]
    assert "traceparent" not in location
    assert "tracestate" not in location


def test_a_url_too_long_to_return_to_loses_its_query() -> None:
    location = set_headers(desk().check(path="/p?" + "x" * 20_000))["location"]
    assert parse_qs(urlsplit(location).query)["pomerium_redirect_uri"] == [
        "https://app.example.com/p"
    ]
    location = set_headers(desk().check(path="/" + "p" * 20_000))["location"]
    assert parse_qs(urlsplit(location).query)["pomerium_redirect_uri"] == [
        "https://app.example.com/"
    ]


def test_connect_without_a_path_returns_to_the_root() -> None:
    location = set_headers(desk().check(method="CONNECT", host="db.example.com:5432", path=""))[
        "location"
    ]
    assert parse_qs(urlsplit(location).query)["pomerium_redirect_uri"] == [
        "https://db.example.com:5432/"
    ]
