from __future__ import annotations

import re
from http.cookies import SimpleCookie

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.session.cookies import (
    clear_cookie,
    clear_elsewhere,
    cookie_values,
    parse_cookies,
    set_cookie,
)

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("made", "header"),
    [
        (set_cookie("_pomerium", "a.b-c_d"), "_pomerium=a.b-c_d; Path=/; HttpOnly; Secure"),
        (
            set_cookie("_pomerium", "v", domain="example.com", expires_at_s=NOW, same_site="lax"),
            (
                "_pomerium=v; Path=/; Domain=example.com; Expires=Tue, 14 Nov 2023 22:13:20 GMT; "
                "HttpOnly; Secure; SameSite=Lax"
            ),
        ),
        (
            set_cookie("c", "", path="/oauth2/callback", max_age_s=300, same_site="None"),
            "c=; Path=/oauth2/callback; Max-Age=300; HttpOnly; Secure; SameSite=None",
        ),
        (
            set_cookie("c", "v", http_only=False, same_site="STRICT"),
            "c=v; Path=/; Secure; SameSite=Strict",
        ),
        (set_cookie("__Host-c", "v"), "__Host-c=v; Path=/; HttpOnly; Secure"),
        (
            clear_cookie("__Host-c"),
            "__Host-c=; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; HttpOnly; Secure",
        ),
        (
            clear_cookie("c", path="/x/", domain=".example.com", http_only=False, same_site="lax"),
            (
                "c=; Path=/x/; Domain=.example.com; Expires=Thu, 01 Jan 1970 00:00:00 GMT; "
                "Max-Age=0; Secure; SameSite=Lax"
            ),
        ),
    ],
)
def test_header(made: str, header: str) -> None:
    assert made == header


@pytest.mark.parametrize(
    ("host", "domain", "scopes"),
    [
        ("app.example.com", "", ["example.com", "app.example.com"]),
        ("app.example.com", "example.com", ["", "app.example.com"]),
        ("app.example.com", ".Example.com", ["", "app.example.com"]),
        ("a.b.example.com", "example.com", ["", "b.example.com", "a.b.example.com"]),
        ("localhost", "", []),
        ("192.0.2.7", "", []),
        ("::1", "", []),
        ("app..example.com", "", []),
        ("a.b.c.d.e.f.g.h.i.j.example.com", "", 8),
    ],
)
def test_cookies_of_every_other_scope_are_cleared(
    host: str, domain: str, scopes: list[str] | int
) -> None:
    cleared = clear_elsewhere(["a=1", "c=old; c=older"], "c", host=host, domain=domain)
    if isinstance(scopes, int):
        assert len(cleared) == scopes
    else:
        assert cleared == tuple(clear_cookie("c", domain=scope) for scope in scopes)


def test_nothing_is_cleared_elsewhere_that_cannot_be_there() -> None:
    assert clear_elsewhere(["a=1; cc=2"], "c", host="app.example.com") == ()
    assert clear_elsewhere(["__Host-c=1"], "__Host-c", host="app.example.com") == ()


def test_r35_clearing_prefixed_cookies_carries_secure() -> None:
    for name in ("__Host-c", "__Secure-c", "c"):
        assert "; Secure" in clear_cookie(name)
        assert "Max-Age=0" in clear_cookie(name)


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": ""},
        {"name": "a b"},
        {"name": "a=b"},
        {"name": "a;b"},
        {"name": "a\r\nSet-Cookie: x"},
        {"name": "ü"},
        {"value": "a b"},
        {"value": "a;b"},
        {"value": "a,b"},
        {"value": 'a"b'},
        {"value": "a\\b"},
        {"value": "a\r\nSet-Cookie: evil=1"},
        {"value": "a\n"},
        {"value": "a\x00"},
        {"value": "ü"},
        {"value": "v" * 4096},
        {"path": ""},
        {"path": "x"},
        {"path": "/;domain=evil"},
        {"path": "/\r\n"},
        {"domain": "a b"},
        {"domain": "example.com; Path=/"},
        {"domain": "example.com\n"},
        {"domain": "ü.example"},
        {"same_site": "loose"},
        {"name": "__Host-c", "domain": "example.com"},
        {"name": "__host-c", "path": "/x"},
    ],
)
def test_headers_cannot_be_broken(arguments: dict[str, str]) -> None:
    complete = {"name": "c", "value": "v", **arguments}
    with pytest.raises(InvalidArgumentError) as caught:
        set_cookie(complete.pop("name"), complete.pop("value"), **complete)  # type: ignore[arg-type]
    assert "evil" not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "pairs"),
    [
        ([], []),
        ([""], []),
        ([";;; ;"], []),
        (["a=1"], [("a", "1")]),
        (["a=1; b=2", "a=3"], [("a", "1"), ("b", "2"), ("a", "3")]),
        (["a=1;b=2"], [("a", "1"), ("b", "2")]),
        (["  a \t=\t 1  "], [("a", "1")]),
        (["a==b=c"], [("a", "=b=c")]),
        (['a="1"'], [("a", '"1"')]),
        (["a"], []),
        (["=a", "=_pomerium=x"], []),
        (["a\x00=1; b=2"], [("b", "2")]),
        (["a b=1"], []),
        (["A=1; a=2"], [("A", "1"), ("a", "2")]),
        (["a=1, b=2"], [("a", "1, b=2")]),
    ],
)
def test_parsing(headers: list[str], pairs: list[tuple[str, str]]) -> None:
    assert list(parse_cookies(headers)) == pairs


def test_r18_all_values_of_all_lines_are_seen() -> None:
    headers = ["x=1; _pomerium=first", "y=2", "_pomerium=second;_pomerium=third", "_Pomerium=no"]
    assert cookie_values(headers, "_pomerium") == ("first", "second", "third")
    assert cookie_values(headers, "_pomerium_csrf") == ()


TOKEN = st.from_regex(re.compile(r"[A-Za-z0-9_!#$%&'*+.^`|~-]{1,20}"), fullmatch=True)
VALUE = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters='",;\\'), max_size=60
)


@given(TOKEN, VALUE)
def test_what_is_set_comes_back(name: str, value: str) -> None:
    header = set_cookie(name, value)
    pair = header.partition("; ")[0]
    assert cookie_values([pair], name) == (value,)
    assert header.count("\n") == header.count("\r") == 0


@given(st.lists(st.text(max_size=40), max_size=4))
def test_parsing_never_fails(headers: list[str]) -> None:
    for name, value in parse_cookies(headers):
        assert name
        assert ";" not in value


def test_the_standard_library_agrees() -> None:
    made = set_cookie("c", "v", domain="example.com", max_age_s=5, same_site="lax")
    morsel = SimpleCookie(made)["c"]
    assert (morsel.value, morsel["domain"], morsel["max-age"], morsel["samesite"]) == (
        "v", "example.com", "5", "Lax",
    )  # fmt: skip
    assert morsel["secure"] is True
    assert morsel["httponly"] is True
