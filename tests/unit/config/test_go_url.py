"""URL fields as Go parses them."""

from __future__ import annotations

import pytest

from gatehouse.common.config.go_url import GoURLError, parse_go_url


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://Host.com", {"scheme": "https", "host": "Host.com", "path": ""}),
        ("HTTPS://h:80/", {"scheme": "https", "host": "h:80", "path": "/"}),
        ("http://h/a%20b", {"path": "/a b", "raw_path": ""}),
        ("http://h/a%2Fb", {"path": "/a/b", "raw_path": "/a%2Fb"}),
        ("http://h/a%2fb", {"path": "/a/b", "raw_path": "/a%2fb"}),
        ("http://h/(x)", {"path": "/(x)", "raw_path": "/(x)"}),
        ("http://h/a;b,c@d", {"path": "/a;b,c@d", "raw_path": ""}),
        ("http://u:p%40@h", {"user": "u", "password": "p@", "host": "h"}),
        ("http://u@h", {"user": "u", "password": ""}),
        ("http://h?", {"force_query": True, "query": "", "path": ""}),
        ("http://h/?a=b?", {"force_query": False, "query": "a=b?"}),
        ("http://h#a(b)", {"fragment": "a(b)", "raw_fragment": ""}),
        ("http://h#a%5Bb", {"fragment": "a[b", "raw_fragment": ""}),
        ("http://h#a[b", {"fragment": "a[b", "raw_fragment": "a[b"}),
        ("unix:///run/x.sock", {"host": "", "path": "/run/x.sock", "omit_host": False}),
        ("unix:/run/x.sock", {"host": "", "path": "/run/x.sock", "omit_host": True}),
        ("mailto:me", {"opaque": "me", "path": ""}),
        ("http://[::1]:80/x", {"host": "[::1]:80"}),
    ],
)
def test_fields(text: str, expected: dict[str, object]) -> None:
    url = parse_go_url(text)
    assert {name: getattr(url, name) for name in expected} == expected


@pytest.mark.parametrize(
    "text", ["", "host", "//host", "1http://a", "http://a/%zz", "http://a b", "http://a/%ff"]
)
def test_what_is_not_a_url(text: str) -> None:
    with pytest.raises(GoURLError):
        parse_go_url(text)
