"""Route ids, checksums, and the forms of `from` and `to`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.common.config.model import Route
from gatehouse.common.config.resolved import FromURL
from gatehouse.common.config.routes import (
    PathMatch,
    PathMatchKind,
    RouteURLError,
    compile_regex,
    parse_from,
    parse_to,
    path_match,
    route_checksum,
    route_id,
)


def make(**keys: Any) -> Route:
    return Route.model_validate({"from": "https://example.com", **keys})


TO = "https://to.example.com"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"to": TO}, "bc16089b025e93dc"),
        ({"to": TO, "path": "/some/path"}, "62efb723582dff6f"),
        ({"to": TO, "prefix": "/some/prefix/"}, "9934ee6936a6388d"),
        ({"to": TO, "regex": "^/[a]+$"}, "0923c9f3dc9e302a"),
        ({"from": "https://*.example.com", "to": "https://www.example.com"}, "5fbd81d8f19363f4"),
    ],
)
def test_route_id_vectors(keys: dict[str, str], expected: str) -> None:
    assert route_id(make(**keys)) == expected


def test_what_an_id_covers() -> None:
    base: dict[str, Any] = {"to": "https://u:p@a/x,3"}
    variants: list[dict[str, Any]] = [
        base,
        {**base, "prefix": "/a"},
        {**base, "path": "/a"},
        {**base, "regex": "/a"},
        {**base, "from": "https://other.example.com"},
        {"to": "https://u:q@a/x,3"},
        {"to": "https://u:p@a/x,4"},
        {"to": "https://u:p@a/x"},
        {"to": "https://u:p@a/x?,3"},
        {"to": "https://u:p@a/%78,3"},
        {"to": ["https://u:p@a/x,3", "https://b,1"]},
        {"redirect": {"host_redirect": "a"}},
        {"redirect": {"scheme_redirect": "a"}},
        {"redirect": {"https_redirect": True}},
        {"redirect": {"https_redirect": False}},
        {"redirect": {"strip_query": True}},
        {"redirect": {"port_redirect": 301}},
        {"redirect": {"response_code": 301}},
        {"redirect": {"path_redirect": "a"}},
        {"redirect": {"prefix_rewrite": "a"}},
        {"response": {"status": 200}},
        {"response": {"status": 200, "body": "x"}},
    ]
    ids = [route_id(make(**keys)) for keys in variants]
    assert len(set(ids)) == len(variants)
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in ids)
    assert route_id(make(**base, timeout="5s", name="n", policy=[])) == ids[0]


def test_a_route_without_destination_has_no_id() -> None:
    with pytest.raises(RouteURLError):
        route_id(make())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://App.Example.com", FromURL("https", "app.example.com", None)),
        ("https://a.example.com:443/", FromURL("https", "a.example.com", None)),
        ("https://a.example.com:8443", FromURL("https", "a.example.com", 8443)),
        ("https://*.example.com", FromURL("https", "*.example.com", None)),
        ("https://prefix-*.example.com", FromURL("https", "prefix-*.example.com", None)),
        ("https://*", FromURL("https", "*", None)),
        ("http://a", FromURL("http", "a", None)),
        ("https://a.", FromURL("https", "a", None)),
        ("https://[::1]:8443", FromURL("https", "[::1]", 8443)),
        ("tcp+https://a:22", FromURL("tcp+https", "a", 22, ("a:22",))),
        ("tcp+https://a:443", FromURL("tcp+https", "a", 443, ("a:443",))),
        (
            "tcp+https://proxy/h1:22/H2:23/",
            FromURL("tcp+https", "proxy", None, ("h1:22", "h2:23")),
        ),
        ("udp+https://a:53", FromURL("udp+https", "a", 53, ("a:53",))),
        ("ssh://host", FromURL("ssh", "host", None)),
    ],
)
def test_from(text: str, expected: FromURL) -> None:
    assert parse_from(text) == expected
    assert expected.is_wildcard == ("*" in expected.host)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is missing"),
        ("app.example.com", "policy bad source url"),
        ("https://", "has no host"),
        ("https:///x", "has no host"),
        ("https:app", "has no host"),
        ("https://a/x", "contains a path, but it should be set using the path field instead"),
        ("https://a?x=1", "more than scheme, host and port"),
        ("https://a#x", "more than scheme, host and port"),
        ("https://me:hunter2@a", "more than scheme, host and port"),
        ("https://a:0", "bad port"),
        ("https://a:70000", "bad port"),
        ("https://a:b", "bad port"),
        ("https://a b", "blank"),
        ("https://a\\b", "not a host name"),
        ("https://a..b", "not a host name"),
        ("https://-a", "not a host name"),
        ("https://bücher.example", "not ASCII"),
        ("ftp://a", "unsupported scheme 'ftp'"),
        ("wss://a", "unsupported scheme 'wss'"),
        ("tcp+https://a", "port of the tunnel is missing"),
        ("tcp+https://a/b", "target 'b' has no port"),
        ("tcp+https://a/*:22", "not a host name"),
        ("ssh://a:22", "found by its host alone"),
    ],
)
def test_bad_from(text: str, message: str) -> None:
    with pytest.raises(RouteURLError) as caught:
        parse_from(text)
    assert message in str(caught.value)
    assert caught.value.fix
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("http://app", ("http", "app", 80, "app", "", None)),
        ("https://App:8443/x%20y", ("https", "app", 8443, "App:8443", "/x y", None)),
        ("https://app/,7", ("https", "app", 443, "app", "/", 7)),
        ("h2c://app:50051", ("h2c", "app", 50051, "app:50051", "", None)),
        ("tcp://db:5432", ("tcp", "db", 5432, "db:5432", "", None)),
        ("tcp://db", ("tcp", "db", 80, "db", "", None)),
        ("ssh://host", ("ssh", "host", 22, "host", "", None)),
        ("http://[::1]:80", ("http", "::1", 80, "[::1]:80", "", None)),
        ("unix:///run/a.sock", ("unix", "", 0, "", "/run/a.sock", None)),
        ("https+unix:///run/a.sock,2", ("https+unix", "", 0, "", "/run/a.sock", 2)),
        ("http://my_service:80", ("http", "my_service", 80, "my_service:80", "", None)),
    ],
)
def test_to(text: str, fields: tuple[object, ...]) -> None:
    upstream = parse_to(text)
    assert (
        upstream.scheme,
        upstream.host,
        upstream.port,
        upstream.hostname,
        upstream.path,
        upstream.weight,
    ) == fields


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("app:80", "unsupported scheme 'app'"),
        ("app", "url scheme must be provided"),
        ("http://", "endpoint hostname must be specified"),
        ("http:///x", "endpoint hostname must be specified"),
        ("http+unix:///x", "unsupported scheme 'http+unix'"),
        ("unix://x/y", "socket path is missing"),
        ("http://a,0", "bad weight '0'"),
        ("http://a,x", "bad weight 'x'"),
        ("http://a,", "bad weight ''"),
        ("http://a,4294967296", "bad weight"),
        ("http://a,1,2", "bad weight"),
        ("http://a:0", "bad port"),
        ("http://*.a", "not a host name"),
        ("http://a/%zz", "two hex digits"),
    ],
)
def test_bad_to(text: str, message: str) -> None:
    with pytest.raises(RouteURLError) as caught:
        parse_to(text)
    assert message in str(caught.value)


@given(st.text())
def test_urls_never_crash(text: str) -> None:
    for parse in (parse_from, parse_to):
        try:
            parse(text)
        except RouteURLError:
            continue


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, PathMatch(PathMatchKind.PREFIX, "/")),
        ({"prefix": "/a"}, PathMatch(PathMatchKind.PREFIX, "/a")),
        ({"path": "/a", "prefix": "/b"}, PathMatch(PathMatchKind.EXACT, "/a")),
        ({"regex": "/a", "path": "/b"}, PathMatch(PathMatchKind.REGEX, "/a")),
    ],
)
def test_path_rules(keys: dict[str, str], expected: PathMatch) -> None:
    assert path_match(make(**keys), FromURL("https", "a", None)) == expected
    tunnel = FromURL("tcp+https", "a", 1, ("a:1",))
    assert path_match(make(**keys), tunnel).kind is PathMatchKind.CONNECT


def test_regexes_are_re2() -> None:
    assert compile_regex("^/a(b)$").groups == 1
    with pytest.raises(RouteURLError, match="not a regular expression"):
        compile_regex("(?=a)")


def test_checksums_cover_route_policy_and_settings() -> None:
    route = make(to=TO)
    base = route_checksum(route, b"p", b"s", b"e")
    assert 0 <= base < 2**64
    assert base == route_checksum(make(to=TO), b"p", b"s", b"e")
    others = {
        route_checksum(make(to=TO, timeout="1s"), b"p", b"s", b"e"),
        route_checksum(route, b"q", b"s", b"e"),
        route_checksum(route, b"p", b"t", b"e"),
        route_checksum(route, b"p", b"s", b"f"),
        route_checksum(route, b"ps", b"", b"e"),
        base,
    }
    assert len(others) == 6


def test_checksums_do_not_depend_on_the_order_of_headers() -> None:
    one = make(to=TO, set_request_headers={"a": "1", "b": "2"})
    two = make(to=TO, set_request_headers={"b": "2", "a": "1"})
    assert route_checksum(one, b"", b"", b"") == route_checksum(two, b"", b"", b"")
