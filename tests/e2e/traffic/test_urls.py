"""URL in, upstream URL out: every row of the tables of hosts, matching and rewriting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.envoy import short_directory
from tests.support.traffic import DOMAIN, Product, https
from tests.support.traffic_upstreams import Application, Background

pytestmark = pytest.mark.e2e

ENCODED: dict[str, Any] = {"path_with_escaped_slashes_action": "keep_unchanged"}


@dataclass(frozen=True)
class Row:
    """One route (its `to` is what follows the upstream's authority) and what it makes of paths.

    None as a result: no route matches.
    """

    paths: dict[str, str | None]
    to: str = ""
    keys: dict[str, Any] = field(default_factory=dict)


SERVICE = {
    "regex_rewrite_pattern": r"^/service/([^/]+)(/.*)$",
    "regex_rewrite_substitution": r"\2/instance/\1",
}

ROWS = (
    # no rewrite; queries, escapes, letters and empty parts arrive as they were sent
    Row(
        {
            "/": "/",
            "/foo": "/foo",
            "/foo/": "/foo/",
            "/foo?a=1&a=2&b": "/foo?a=1&a=2&b",
            "/foo?": "/foo?",
            "/?x=//y": "/?x=//y",
            "/%C3%A9%20b": "/%C3%A9%20b",
            "/Foo": "/Foo",
            "/a;b=c": "/a;b=c",
            "//foo": "/foo",
            "/a///b": "/a/b",
            "/a/./b/../c": "/a/c",
        }
    ),
    # the path of `to`
    Row(
        {
            "/": "/anything",
            "/foo": "/anythingfoo",
            "//foo": "/anythingfoo",
            "/foo?x=1": "/anythingfoo?x=1",
        },
        to="/anything",
    ),
    Row(
        {"/": "/anything/", "/foo": "/anything/foo", "/?x=1": "/anything/?x=1"},
        to="/anything/",
    ),
    Row(
        {"/foo": "/sp%20ace/%C3%A9%25/foo"},
        to="/sp%20ace/%C3%A9%25/",
    ),
    Row({"/": "/", "/foo": "/foo"}, to="/"),
    Row({"/foo": "/basefoo", "/foo?a": "/basefoo?a"}, to="/base?x=1#y"),
    # prefix
    Row(
        {
            "/admin": "/admin",
            "/admin/x": "/admin/x",
            "/administrator": "/administrator",
            "/admi": None,
            "/Admin": None,
            "/x/admin": None,
            "/x/../admin/y": "/admin/y",
            "//admin": "/admin",
            "/admin/../x": None,
        },
        keys={"prefix": "/admin"},
    ),
    Row({"/admin/x": "//x", "/admin": "/"}, to="/", keys={"prefix": "/admin"}),
    Row({"/admin/x": "/base/x", "/admin": "/base"}, to="/base", keys={"prefix": "/admin"}),
    Row(
        {
            "/admin": "/",
            "/admin/x": "//x",
            "/administrator": "/istrator",
            "/admin?x=1": "/?x=1",
        },
        keys={"prefix": "/admin", "prefix_rewrite": "/"},
    ),
    Row(
        {"/admin/x": "/x", "/admin/": "/", "/admin": None, "/admin/x?y=/admin/": "/x?y=/admin/"},
        keys={"prefix": "/admin/", "prefix_rewrite": "/"},
    ),
    Row({"/admin/x": "/new/x"}, to="/base", keys={"prefix": "/admin", "prefix_rewrite": "/new"}),
    # path
    Row(
        {
            "/some/path?x=1": "/base?x=1",
            "/some/path": "/base",
            "/some/path/": None,
            "/some/pat": None,
            "/some/Path": None,
            "//some//path": "/base",
        },
        to="/base",
        keys={"path": "/some/path"},
    ),
    Row(
        {"/login": "/auth", "/login?a": "/auth?a"},
        keys={"path": "/login", "prefix_rewrite": "/auth"},
    ),
    # regex: the whole path, without the query
    Row({"/a/b/c": "/base", "/a/": "/base", "/a": None}, to="/base", keys={"regex": "^/a/.*$"}),
    Row(
        {
            "/r/12": "/r/12",
            "/r/12?z": "/r/12?z",
            "/r/12/": None,
            "/r/": None,
            "/x/r/12": None,
            "/r/1x": None,
        },
        keys={"regex": "/r/[0-9]+"},
    ),
    Row({"/one/7": "/seven"}, keys={"regex": "/one/[0-9]", "prefix_rewrite": "/seven"}),
    # regex rewriting
    Row(
        {
            "/service/foo/v1/api": "/v1/api/instance/foo",
            "/service/foo/v1/api?x=1": "/v1/api/instance/foo?x=1",
            "/other": "/other",
        },
        keys=SERVICE,
    ),
    Row({"/other": "/other", "/service/a/b": "/b/instance/a"}, to="/base", keys=SERVICE),
    Row(
        {"/xx/one/xx?xx=xx": "/yy/one/yy?xx=xx"},
        keys={"regex_rewrite_pattern": "x", "regex_rewrite_substitution": "y"},
    ),
)

# (keys, request path, extra request header) -> (Host upstream, X-Forwarded-Host); "" is the
# upstream's own authority, None is the host that was asked for.
REGEX_HOST = "host_path_regex_rewrite_pattern"
REGEX_HOST_BY = "host_path_regex_rewrite_substitution"
GREEDY = {REGEX_HOST: "^/(.+)/.+$", REGEX_HOST_BY: r"\1"}
FIRST = {REGEX_HOST: "^/([^/]+)/.*$", REGEX_HOST_BY: r"\1"}
WANT = ("X-Want", "wanted.internal:81")
HOST_ROWS: tuple[tuple[dict[str, Any], str, tuple[str, str] | None, str | None, bool], ...] = (
    ({}, "/", None, "", True),
    ({"host_rewrite": "literal.internal"}, "/", None, "literal.internal", True),
    ({"host_rewrite": "literal.internal:8443"}, "/", None, "literal.internal:8443", True),
    ({"host_rewrite_header": "X-Want"}, "/", WANT, "wanted.internal:81", True),
    ({"host_rewrite_header": "X-Want"}, "/", None, None, False),
    (GREEDY, "/example.com/x", None, "example.com", True),
    (GREEDY, "/example.com/some/path", None, "example.com/some", True),
    # Envoy replaces nothing then: the expression has to match every path of the route.
    (GREEDY, "/nothing?a/b", None, "/nothing", True),
    (FIRST, "/example.com/x", None, "example.com", True),
    (FIRST, "/example.com/some/path?a/b", None, "example.com", True),
    ({"preserve_host_header": True}, "/", None, None, False),
    (
        {"preserve_host_header": True, "host_rewrite": "beats.internal"},
        "/",
        None,
        "beats.internal",
        True,
    ),
    ({"remove_request_headers": ["X-Forwarded-Host"]}, "/", None, "", False),
    (
        {"host_rewrite": "literal.internal", "remove_request_headers": ["x-forwarded-host"]},
        "/",
        None,
        "literal.internal",
        False,
    ),
)

EXAMPLE = f"example.{DOMAIN}"


def table_routes(up: str) -> list[dict[str, Any]]:
    return [
        *(https(f"u{i}", to=up + row.to, **row.keys) for i, row in enumerate(ROWS)),
        *(https(f"h{i}", to=up, **row[0]) for i, row in enumerate(HOST_ROWS)),
    ]


def tagged(from_: str, up: str, tag: str, **keys: Any) -> dict[str, Any]:
    """A public route that can be told by the path it makes."""
    return {
        "from": from_,
        "to": f"{up}/{tag}",
        "prefix_rewrite": f"/{tag}",
        "allow_public_unauthenticated_access": True,
        **keys,
    }


def host_routes(up: str) -> list[dict[str, Any]]:
    return [
        tagged(f"https://*.{EXAMPLE}", up, "W"),
        tagged(f"https://a.{EXAMPLE}", up, "A"),
        tagged(f"https://a.{EXAMPLE}:8443", up, "B"),
        tagged(f"https://d.{EXAMPLE}:443", up, "D"),
        tagged(f"https://only.{EXAMPLE}", up, "X", prefix="/x"),
        tagged(f"https://pre-*.other.{DOMAIN}", up, "P"),
        tagged(f"https://*.port.{DOMAIN}:8443", up, "Q"),
        tagged(f"https://t.{EXAMPLE}", up, "T", tls_downstream_server_name=f"More.{EXAMPLE}"),
    ]


def catch_all_routes(up: str) -> list[dict[str, Any]]:
    """Behind all others: a star alone stands for every host that has no routes of its own."""
    return [tagged("https://*", up, "any", prefix="/any")]


def order_routes(up: str) -> list[dict[str, Any]]:
    first, second = f"https://first.{DOMAIN}", f"https://second.{DOMAIN}"
    return [
        tagged(first, up, "api", prefix="/api"),
        tagged(first, up, "digits", regex="/[0-9]+"),
        tagged(first, up, "exact", path="/42"),
        tagged(first, up, "long", prefix="/a"),
        tagged(first, up, "never", prefix="/a/b"),
        tagged(first, up, "rest"),
        tagged(second, up, "rest"),
        tagged(second, up, "never", path="/42"),
        tagged(f"https://*.w.{DOMAIN}", up, "w1", prefix="/one"),
        tagged(f"https://*.w.{DOMAIN}", up, "w2"),
        tagged(f"https://x.*.w.{DOMAIN}", up, "never"),
    ]


@pytest.fixture(scope="module")
def other(background: Background) -> Iterator[Application]:
    with Application(background).running() as running:
        yield running


@pytest.fixture(scope="module")
def pipe(background: Background) -> Iterator[Application]:
    with (
        short_directory() as directory,
        Application(background, path=str(directory / "app.sock")).running() as running,
    ):
        yield running


@pytest.fixture(scope="module")
def world(
    shared: Product, application: Application, other: Application, pipe: Application
) -> Product:
    up = application.url
    routes = [
        *table_routes(up),
        *host_routes(up),
        *order_routes(up),
        *catch_all_routes(up),
        https("two", to=[f"{up}/x", f"{other.url}/y"]),
        https("pipe", to=pipe.url),
        https("pipe-prefix", to=pipe.url, prefix="/a/", prefix_rewrite="/b/"),
        https("name", to=up.replace("127.0.0.1", "localhost") + "/base"),
    ]
    shared.reload(routes)
    return shared


def sent(world: Product, host: str, path: str) -> str | None:
    reply = world.get(host, path)
    if reply.status == 404:
        return None
    seen: str = reply.seen["path"]
    return seen


CASES = [(index, path) for index, row in enumerate(ROWS) for path in row.paths]


@pytest.mark.parametrize(("index", "path"), CASES)
def test_a_path_arrives_as_the_table_says(world: Product, index: int, path: str) -> None:
    assert sent(world, f"u{index}", path) == ROWS[index].paths[path]


def test_only_the_first_upstreams_path_counts(world: Product, other: Application) -> None:
    replies = [world.get("two", "/z") for _ in range(4)]
    assert {reply.value("x-upstream") for reply in replies} >= {other.url}
    assert len({reply.value("x-upstream") for reply in replies}) == 2
    assert {reply.seen["path"] for reply in replies} == {"/xz"}


def test_the_path_of_a_unix_socket_is_no_path_of_requests(world: Product) -> None:
    assert sent(world, "pipe", "/a?b") == "/a?b"
    assert sent(world, "pipe-prefix", "/a/c") == "/b/c"


def test_localhost_is_this_machine(world: Product, application: Application) -> None:
    reply = world.get("name", "/x")
    assert reply.seen["path"] == "/basex"
    assert reply.arrived("host") == [f"localhost:{application.port}"]


@pytest.mark.parametrize("index", range(len(HOST_ROWS)))
def test_an_upstream_sees_the_host_that_the_table_says(
    world: Product, application: Application, index: int
) -> None:
    _, path, header, expected, forwarded = HOST_ROWS[index]
    asked = f"h{index}.{DOMAIN}"
    reply = world.get(f"h{index}", path, headers=[header] if header else [])
    own = application.url.removeprefix("http://")
    assert reply.arrived("host") == [asked if expected is None else expected or own]
    assert reply.arrived("x-forwarded-host") == ([asked] if forwarded else [])


@pytest.mark.parametrize(
    ("authority", "tag"),
    [
        (f"a.{EXAMPLE}", "A"),
        (f"a.{EXAMPLE}:443", "A"),
        (f"a.{EXAMPLE}:9000", "A"),
        (f"A.{EXAMPLE.upper()}", "A"),
        (f"a.{EXAMPLE}.", "A"),
        (f"a.{EXAMPLE}:8443", "B"),
        (f"b.{EXAMPLE}", "W"),
        (f"b.{EXAMPLE}:1234", "W"),
        (f"x.y.{EXAMPLE}", "W"),
        (f"B.{EXAMPLE.upper()}", "W"),
        (f"t.{EXAMPLE}", "T"),
        (f"more.{EXAMPLE}", None),
        (EXAMPLE, None),
        (f"evil-{EXAMPLE}", None),
        (f"b.{EXAMPLE}.evil.test", None),
        (f"b.{EXAMPLE.replace('.', 'x')}", None),
        (f"d.{EXAMPLE}", "D"),
        (f"d.{EXAMPLE}:444", "D"),
        (f"pre-1.other.{DOMAIN}", "P"),
        (f"pro-1.other.{DOMAIN}", None),
        (f"a.port.{DOMAIN}:8443", "Q"),
        (f"a.port.{DOMAIN}", None),
        (f"a.port.{DOMAIN}:8444", None),
        (f"unknown.{DOMAIN}", None),
        ("10.0.0.1", None),
    ],
)
def test_a_host_finds_its_route(world: Product, authority: str, tag: str | None) -> None:
    with world.connection() as connection:
        reply = connection.request(host=authority)
    assert reply.status == (404 if tag is None else 200)
    if tag is not None:
        assert reply.seen["path"] == f"/{tag}"


def test_a_further_name_for_tls_has_our_own_pages_alone(world: Product) -> None:
    with world.connection() as connection:
        for path, status in (("/ping", 200), ("/.well-known/pomerium", 200), ("/", 404)):
            assert connection.request(path, host=f"more.{EXAMPLE}").status == status


def test_a_star_alone_is_every_host_without_routes_of_its_own(world: Product) -> None:
    with world.connection() as connection:
        for authority, status in (
            ("else.example.org", 200),
            ("single:8443", 200),
            (f"unknown.{DOMAIN}", 200),
            (f"only.{EXAMPLE}", 404),
        ):
            assert connection.request("/any", host=authority).status == status, authority


def test_a_host_of_its_own_hides_the_wildcard(world: Product) -> None:
    assert sent(world, "only.example", "/x") == "/X"
    assert sent(world, "only.example", "/y") is None


@pytest.mark.parametrize(
    ("host", "path", "tag"),
    [
        ("first", "/api/1", "api/1"),
        ("first", "/42", "digits"),
        ("first", "/42x", "rest42x"),
        ("first", "/a/b", "long/b"),
        ("first", "/b", "restb"),
        ("second", "/42", "rest42"),
        ("x.w", "/one/two", "w1/two"),
        ("x.w", "/two", "w2two"),
        ("x.y.w", "/two", "w2two"),
    ],
)
def test_the_first_route_of_the_file_that_matches_wins(
    world: Product, host: str, path: str, tag: str
) -> None:
    assert sent(world, host, path) == f"/{tag}"


@pytest.mark.parametrize("path", ["/ping", "/healthz", "/.pomerium/x", "/.well-known/pomerium"])
def test_our_own_paths_never_reach_an_upstream(
    world: Product, application: Application, path: str
) -> None:
    before = len(application.seen)
    with world.connection() as connection:
        for host in (f"u0.{DOMAIN}", f"b.{EXAMPLE}", f"unknown.{DOMAIN}"):
            connection.request(path, host=host)
    assert len(application.seen) == before


def test_slashes_and_dots_are_kept_where_the_settings_say_so(
    world: Product, application: Application
) -> None:
    routes = [*table_routes(application.url), *order_routes(application.url)]
    world.reload(routes, merge_slashes=False, **ENCODED)
    for index, path, expected in (
        (0, "//foo", "//foo"),
        (0, "/a///b", "/a///b"),
        (0, "/a%2Fb%5cc", "/a%2Fb%5cc"),
        (0, "/a/../b", "/b"),
        (1, "/foo", "/anythingfoo"),
        (1, "//foo", "/anything/foo"),
        (2, "//foo", "/anything//foo"),
    ):
        assert sent(world, f"u{index}", path) == expected, path
    for action, outcome in (
        ("unescape_and_forward", (200, "/a/b")),
        ("unescape_and_redirect", (307, "/a/b")),
        ("reject_request", (400, None)),
    ):
        world.reload(routes, path_with_escaped_slashes_action=action)
        reply = world.get("u0", "/a%2Fb")
        place = reply.seen["path"] if reply.status == 200 else reply.value("location")
        assert (reply.status, place) == outcome, action
    world.reload(routes, normalize_path=False)
    assert sent(world, "u0", "/a/./b/../c") == "/a/./b/../c"


def test_only_the_default_port_counts_where_the_settings_say_so(
    world: Product, application: Application
) -> None:
    up = application.url
    routes = [*host_routes(up), *order_routes(up)]
    world.reload(routes, runtime_flags={"match_any_incoming_port": False})
    with world.connection() as connection:
        for authority, path in (
            (f"first.{DOMAIN}", "/rest"),
            (f"first.{DOMAIN}:443", "/rest"),
            (f"first.{DOMAIN}:9000", None),
            (f"a.{EXAMPLE}:8443", "/B"),
            (f"b.{EXAMPLE}:9000", "/W"),
        ):
            reply = connection.request(host=authority)
            found = None if reply.status == 404 else reply.seen["path"]
            assert found == path, authority


def test_the_older_list_of_routes_comes_first(world: Product, application: Application) -> None:
    host, up = f"https://listed.{DOMAIN}", application.url
    policy = [tagged(host, up, "first", prefix="/a")]
    world.reload([tagged(host, up, "second")], policy=policy)
    assert sent(world, "listed", "/a") == "/first"
    assert sent(world, "listed", "/b") == "/secondb"


def test_a_forwarded_host_is_believed_behind_trusted_proxies_alone(
    world: Product, application: Application
) -> None:
    route, header = https("app", to=application.url), ("X-Forwarded-Host", "earlier.example.com")
    for hops, expected in ((0, []), (1, ["earlier.example.com"])):
        world.reload([route], xff_num_trusted_hops=hops)
        (forwarded,) = world.get("app", headers=[header]).arrived("x-forwarded-host")
        names = [each.strip() for each in forwarded.split(",")]
        assert names == [*expected, f"app.{DOMAIN}"], hops
