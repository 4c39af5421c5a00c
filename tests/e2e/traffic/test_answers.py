"""What is answered without an upstream: redirects, texts, preflights and robots."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.sign_in import sign_in
from tests.support.traffic import DOMAIN, Product, https
from tests.support.traffic_upstreams import Application

pytestmark = pytest.mark.e2e

JSON = ("Accept", "application/json")
MEMBERS = {"allow_public_unauthenticated_access": False, "allow_any_authenticated_user": True}

REDIRECTS: tuple[tuple[dict[str, Any], dict[str, Any], str, int, str], ...] = (
    # route keys, redirect, request path, status, Location ({host} is the host asked for)
    ({}, {"host_redirect": "new.example.com"}, "/a?x=1", 301, "https://new.example.com/a?x=1"),
    ({"prefix": "/v1"}, {"prefix_rewrite": "/v2"}, "/v1/users?q", 301, "https://{host}/v2/users?q"),
    ({}, {"path_redirect": "/home", "strip_query": True}, "/any?x=1", 301, "https://{host}/home"),
    ({}, {"path_redirect": "/home"}, "/any?x=1", 301, "https://{host}/home?x=1"),
    ({}, {"path_redirect": "/home?y=2"}, "/any?x=1", 301, "https://{host}/home?y=2"),
    ({}, {"path_redirect": "/p", "prefix_rewrite": "/q"}, "/any", 301, "https://{host}/p"),
    ({"path": "/only"}, {"prefix_rewrite": "/new"}, "/only", 301, "https://{host}/new"),
    ({}, {"scheme_redirect": "http"}, "/a", 301, "http://{host}/a"),
    ({}, {"https_redirect": True}, "/a", 301, "https://{host}/a"),
    (
        {},
        {"https_redirect": False, "scheme_redirect": "http", "path_redirect": "/b"},
        "/a",
        301,
        "https://{host}/b",
    ),
    (
        {"regex": "/old/.*"},
        {"prefix_rewrite": "/new", "strip_query": True},
        "/old/a?x",
        301,
        "https://{host}/new",
    ),
    ({}, {"port_redirect": 8443}, "/a", 301, "https://{host}:8443/a"),
    (
        {},
        {"host_redirect": "h.example.com", "port_redirect": 81, "scheme_redirect": "http"},
        "/a",
        301,
        "http://h.example.com:81/a",
    ),
    *(
        ({}, {"path_redirect": "/c", "response_code": code}, "/", code, "https://{host}/c")
        for code in (301, 302, 303, 307, 308)
    ),
)


@pytest.fixture(scope="module")
def world(shared: Product, application: Application) -> Product:
    members = {"to": application.url, "cors_allow_preflight": True, **MEMBERS}
    routes = [
        *(https(f"r{i}", redirect=row[1], **row[0]) for i, row in enumerate(REDIRECTS)),
        https("said", response={"status": 418, "body": "short & stout"}),
        https("nothing", response={"status": 204, "body": ""}),
        https("ported", redirect={"scheme_redirect": "http"}),
        https("member", path="/said", response={"status": 200, "body": "members"}, **MEMBERS),
        https("member", path="/api", **members),
        https("member", redirect={"path_redirect": "/said"}, **MEMBERS),
        https("public", to=application.url),
    ]
    shared.reload(routes)
    return shared


@pytest.mark.parametrize("index", range(len(REDIRECTS)))
def test_a_redirect_leads_where_the_table_says(world: Product, index: int) -> None:
    _, _, path, status, location = REDIRECTS[index]
    reply = world.get(f"r{index}", path)
    wanted = location.format(host=f"r{index}.{DOMAIN}")
    assert (reply.status, reply.value("location")) == (status, wanted)


def test_a_response_is_given_as_written(world: Product) -> None:
    reply = world.get("said", "/any/path?x")
    assert (reply.status, reply.body) == (418, b"short & stout")
    assert reply.value("x-frame-options") == "SAMEORIGIN"
    assert world.get("nothing").status == 204


def test_a_preflight_needs_no_sign_in_where_the_route_says_so(world: Product) -> None:
    origin = ("Origin", "https://other.example.com")
    wanted = ("Access-Control-Request-Method", "PUT")
    for method, headers, status in (
        ("OPTIONS", [origin, wanted], 200),
        ("OPTIONS", [origin], 401),
        ("OPTIONS", [wanted], 401),
        ("PUT", [origin, wanted], 401),
    ):
        reply = world.get("member", "/api", method=method, headers=[*headers, JSON])
        assert reply.status == status, (method, headers)
    elsewhere = world.get("member", "/said", method="OPTIONS", headers=[origin, wanted, JSON])
    assert elsewhere.status == 401


def test_robots_are_told_to_stay_away_where_they_may_not_go(world: Product) -> None:
    told = world.get("member", "/robots.txt")
    assert (told.status, told.body.split()) == (200, b"User-agent: * Disallow: /".split())
    assert world.get("public", "/robots.txt").seen["path"] == "/robots.txt"


@pytest.mark.parametrize(
    ("asked", "location"),
    [
        (f"ported.{DOMAIN}:443", f"http://ported.{DOMAIN}/a"),
        (f"ported.{DOMAIN}:8443", f"http://ported.{DOMAIN}:8443/a"),
    ],
)
def test_a_default_port_is_dropped_with_its_scheme(
    world: Product, asked: str, location: str
) -> None:
    with world.connection() as connection:
        assert connection.request("/a", host=asked).value("location") == location


def test_answers_of_our_own_are_for_those_who_may_have_them(world: Product) -> None:
    for path in ("/said", "/moved"):
        refused = world.get("member", path, headers=[("Accept", "text/html")])
        assert refused.status == 302
        assert (refused.value("location") or "").startswith(f"https://authenticate.{DOMAIN}")
        assert b"members" not in refused.body
    with world.browser("member") as browser:
        *_, moved, said = sign_in(browser, world.url("member", "/moved"), "ada@example.com")
    assert (moved.status_code, moved.headers["location"]) == (301, world.url("member", "/said"))
    assert (said.status_code, said.text) == (200, "members")
