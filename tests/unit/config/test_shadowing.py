"""Routes that can never be reached, and hosts that hide wildcards, each fed through a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gatehouse.common.config.resolved import ResolvedRoute
from gatehouse.common.config.route_model import Route
from gatehouse.common.config.routes import PathMatch, PathMatchKind, compile_regex, parse_from
from gatehouse.common.config.shadowing import _literal_stem, _plain, shadows
from gatehouse.common.ids import RouteId
from gatehouse.common.policy.ast import Policy
from tests.support.configuration import LOGIN, warnings

APP = "https://app.example.com"
WILD = "https://*.example.com"
ROUTE = {"from": APP, "allow_any_authenticated_user": True}


def told(folder: Path, *routes: dict[str, Any], top: str = "") -> list[str]:
    """The warnings about routes, for routes that differ in where they lead."""
    listed = [{**ROUTE, "to": f"http://up{index}", **keys} for index, keys in enumerate(routes)]
    found = warnings(folder, f"{LOGIN}{top}\nroutes: {json.dumps(listed)}\n")
    return [line.partition(": ")[2] for line in found if "routes[" in line]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"prefix": "/a"}),
        ({"prefix": "/"}, {"regex": "/x.*"}),
        ({"prefix": "/a"}, {"prefix": "/a/b"}),
        ({"prefix": "/a"}, {"path": "/ab"}),
        ({"prefix": "/a/"}, {"regex": "^/a/[0-9]+$"}),
        ({"prefix": "/a"}, {"regex": r"/a\.b/?"}),
        ({"regex": "/a.*"}, {"prefix": "/a/b"}),
        ({"regex": "^/a.*$"}, {"path": "/abc"}),
        ({"regex": "/[a-z]+"}, {"path": "/abc"}),
        ({"regex": ".*"}, {"prefix": "/z"}),
        ({"from": WILD}, {"from": WILD, "prefix": "/a"}),
        ({"from": "https://*"}, {"from": WILD}),
        ({"from": "https://*.com"}, {"from": WILD, "prefix": "/a"}),
        ({"from": "https://*-a.*.com"}, {"from": "https://*-a.example.com"}),
        ({"from": WILD}, {"from": "https://*.example.com:8443"}),
        ({"from": WILD}, {"from": "https://*.b.example.com"}),
    ],
)
def test_unreachable(tmp_path: Path, first: dict[str, str], second: dict[str, str]) -> None:
    found = told(tmp_path, first, second)
    assert len(found) == 1
    assert found[0].startswith("routes[1].from: can never be reached: routes[0] (")
    assert found[0].endswith("before it matches all of it (put the narrower route first)")
    assert first.get("from", APP) in found[0]
    for rule in ("path", "prefix", "regex"):
        assert rule not in first or f"{rule} {first[rule]}" in found[0]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"prefix": "/a"}, {}),
        ({"prefix": "/a"}, {"regex": "/a?.*"}),
        ({"prefix": "/a"}, {"regex": "(?i)/a.*"}),
        ({"prefix": "/a"}, {"regex": "/a|/b"}),
        ({"prefix": "/a/"}, {"path": "/a"}),
        ({"path": "/a"}, {"prefix": "/a"}),
        ({"regex": "/[a-z]+"}, {"path": "/a1"}),
        ({"regex": r"/a\d*"}, {"prefix": "/a"}),
        ({}, {"from": "https://other.example.com"}),
        ({}, {"from": "https://app.example.com:8443"}),
        ({"from": WILD}, {}),
        ({}, {"from": WILD}),
        ({"from": "https://*.example.com:8443"}, {"from": WILD}),
        ({"from": WILD}, {"from": "https://example.com"}),
        ({"from": WILD}, {"from": "https://*"}),
        ({"from": WILD}, {"from": "https://*.example.org"}),
    ],
)
def test_reachable(tmp_path: Path, first: dict[str, str], second: dict[str, str]) -> None:
    assert told(tmp_path, first, second) == []


@pytest.mark.parametrize(
    "keys", [{}, {"prefix": "/a"}, {"path": "/a"}, {"regex": "/[a-z]"}, {"from": WILD}]
)
def test_the_same_match_twice(tmp_path: Path, keys: dict[str, str]) -> None:
    (line,) = told(tmp_path, keys, keys)
    assert "before it has the same from and path (keep one)" in line


def test_the_shadow_is_named_by_line(tmp_path: Path) -> None:
    text = (
        "policy:\n- from: https://app.example.com\n  to: http://a\n  prefix: /a\n"
        "  allow_any_authenticated_user: true\n"
        "routes:\n- from: https://app.example.com\n  to: http://b\n  path: /a/b\n"
        "  allow_any_authenticated_user: true\n"
    )
    lines = len(LOGIN.splitlines())
    assert warnings(tmp_path, LOGIN + text) == [
        (
            f"{lines + 7}: routes[0].from: can never be reached: policy[0] (line {lines + 2}, "
            "https://app.example.com, prefix /a) before it matches all of it "
            "(put the narrower route first)"
        )
    ]


@pytest.mark.parametrize(
    "keys",
    [
        {"path": "/ping"},
        {"path": "/.pomerium"},
        {"prefix": "/.pomerium/x"},
        {"regex": r"/\.pomerium/x.*"},
        {"prefix": "/.well-known/pomerium/"},
        {"path": "/healthz", "from": WILD},
    ],
)
def test_paths_that_gatehouse_answers(tmp_path: Path, keys: dict[str, str]) -> None:
    (line,) = told(tmp_path, keys)
    assert "Gatehouse itself answers these paths" in line


def test_paths_next_to_those(tmp_path: Path) -> None:
    assert told(tmp_path, {"prefix": "/.pomerium"}, {"path": "/pingpong"}) == []


def test_the_sign_in_host_has_more_of_its_own(tmp_path: Path) -> None:
    sign_in = {"from": "https://authenticate.example.com", "path": "/oauth2/callback"}
    (line,) = told(tmp_path, sign_in)
    assert "Gatehouse itself answers" in line
    public = {"allow_any_authenticated_user": False, "allow_public_unauthenticated_access": True}
    through = {**sign_in, **public}
    passed = told(tmp_path, through, {**through, "path": "/ping"}, top="services: proxy\n")
    assert passed == []


def test_an_exact_host_hides_a_wildcard_for_other_paths(tmp_path: Path) -> None:
    hidden = [{"from": WILD}, {"prefix": "/x"}]
    (line,) = told(tmp_path, *hidden)
    assert line.startswith("routes[1].from: hides routes[0] (line")
    assert "on app.example.com: all other paths there answer 404 (add a route" in line
    assert len(told(tmp_path, *reversed(hidden))) == 1
    assert told(tmp_path, *hidden, {"prefix": "/"}) == []
    assert told(tmp_path, {"from": WILD, "prefix": "/x"}, {"prefix": "/x"}) == []
    assert len(told(tmp_path, {"from": WILD}, {"path": "/x"}, {"path": "/y"})) == 1


def made(index: int, **keys: str) -> ResolvedRoute:
    route = Route.model_validate({"to": "http://a", **keys})
    return ResolvedRoute(
        RouteId(str(index)), 0, route, parse_from(route.from_), (), Policy(()), None
    )


def test_tunnels(tmp_path: Path) -> None:
    tunnel = "tcp+https://app.example.com:22"
    routes = [
        made(0, **{"from": tunnel}),
        made(1, **{"from": tunnel}),
        made(2, **{"from": "tcp+https://app.example.com:23"}),
        made(3, **{"from": "tcp+https://bastion/app.example.com:22/other:1"}),
        made(4, **{"from": "tcp+https://bastion/app.example.com:22/app.example.com:23"}),
        made(5, **{"from": "https://app.example.com:22"}),
        made(6, **{"from": "ssh://app.example.com"}),
    ]
    assert [(shadow.route, shadow.by) for shadow in shadows(routes)] == [(1, 0), (4, 0)]


PATTERNS = ["/a/b.*", "^/a$", r"/a\.b", "/a+b", "/a?b", "/a{2}", ".*", "/a|b", "(?i)/a", "", r"/\d"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_read_off_an_expression_is_true(pattern: str) -> None:
    paths = ["", "/", "/a", "/A", "/b", "b", "/aa", "/ab", "/a.b", "/aab", "/a/b", "/a/bc", "/1"]
    regex = compile_regex(pattern)
    stem = _literal_stem(pattern)
    plain = _plain(PathMatch(PathMatchKind.REGEX, pattern))
    for path in paths:
        matches = bool(regex.fullmatch(path))
        assert not matches or path.startswith(stem)
        if plain is not None and plain.kind is PathMatchKind.EXACT:
            assert matches == (path == plain.value)
        elif plain is not None:
            assert matches == path.startswith(plain.value)


@pytest.mark.timeout(60)  # a second; comparing each with every other would take minutes
def test_many_routes_are_compared_with_tables() -> None:
    routes = [made(n, **{"from": APP, "prefix": f"/p{n}/"}) for n in range(10_000)]
    routes += [made(n, **{"from": f"https://*.h{n}.example.com"}) for n in range(10_000)]
    assert list(shadows(routes)) == []
