"""Paths, hosts and header values of a route that could not be sent, each fed through a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.configuration import LOGIN, problems, warnings

BASE: dict[str, Any] = {
    "from": "https://app.example.com",
    "to": "http://app",
    "allowed_users": ["u"],
}
GROUPS = {"regex_rewrite_pattern": "(a)", "host_path_regex_rewrite_pattern": "(a)"}
LINE = len(LOGIN.splitlines()) + 2


def text_of(keys: dict[str, Any]) -> str:
    answers = {"to": None} if "redirect" in keys else {}
    route = {name: value for name, value in {**BASE, **answers, **keys}.items() if value}
    return f"{LOGIN}routes:\n- {json.dumps(route)}\n"


PATHS = [
    ("/a b", "'/a b' holds a blank, which goes out as it is and cannot be read", "/a%20b"),
    ("/ä", "'/ä' holds ä, which goes out as it is", "/%C3%A4"),
    ("/\u00a0", "holds \u00a0, which", "/%C2%A0"),
    ("/a\r\nb", r"'/a\r\nb' holds a control character", "one line of text"),
    ("/a\tb", r"'/a\tb' holds a control character", "one line of text"),
    ("/a\x00", r"'/a\x00' holds a control character", "one line of text"),
    ("/a#b", "'/a#b' holds a #, which ends a path and is never sent", "%23"),
    ("new", "'new' does not start with /, so the path sent will not", "a path such as /new"),
    ("n ü", "'n ü' does not start with /", "a path such as /n%20%C3%BC"),
]
HOSTS = [
    ("a b", "host 'a b' is not a host name", "a host such as app.example.com, or host:port"),
    ("a\nb", r"'a\nb' holds a control character", "a host such as"),
    ("ä.example.com", "is not ASCII", "a host such as"),
    ("*.example.com", "is not a host name", "a host such as"),
    ("app:0", "host 'app:0' has a bad port", "host:port"),
    ("app/x", "host 'app/x' is not a host name", "a host such as"),
    (
        "https://app.example.com/x",
        "'https://app.example.com/x' is a URL",
        "the host alone: app.example.com",
    ),
    ("https://[x", "'https://[x' is a URL", "a host such as"),
]
ERRORS: list[tuple[dict[str, Any], str, str, str]] = [
    *(({"prefix_rewrite": text}, "prefix_rewrite", said, fix) for text, said, fix in PATHS),
    *(
        ({"redirect": {key: text}}, f"redirect.{key}", said, fix)
        for key in ("path_redirect", "prefix_rewrite")
        for text, said, fix in PATHS
    ),
    *(({"host_rewrite": text}, "host_rewrite", said, fix) for text, said, fix in HOSTS),
    *(
        ({"redirect": {"host_redirect": text}}, "redirect.host_redirect", said, fix)
        for text, said, fix in HOSTS
    ),
    *(
        ({"redirect": {"scheme_redirect": text}}, "redirect.scheme_redirect", said, "https or http")
        for text, said in (
            ("https://", "'https://' is not the scheme of a URL"),
            ("ht tp", "'ht tp' is not the scheme"),
            ("h\n", r"'h\n' is not the scheme"),
        )
    ),
    (
        {"host_rewrite_header": "X Host"},
        "host_rewrite_header",
        "'X Host' is not a header name",
        "the name of a request header",
    ),
    (
        {"host_rewrite_header": ":authority"},
        "host_rewrite_header",
        "':authority' is not a header name",
        "the name of a request header",
    ),
    *(
        ({**GROUPS, "regex_rewrite_substitution": text}, "regex_rewrite_substitution", said, fix)
        for text, said, fix in (
            (r"/x \1", "holds a blank", r"write it escaped: /x%20\1"),
            ("/\n", r"'/\n' holds a control character", "one line of text"),
            ("/ß", "holds ß", "/%C3%9F"),
        )
    ),
    *(
        (
            {**GROUPS, "host_path_regex_rewrite_substitution": text},
            "host_path_regex_rewrite_substitution",
            said,
            fix,
        )
        for text, said, fix in (
            (r"a b\1", r"'a b\\1' holds ' ', which no host may", r"a host, with \1 for groups"),
            (r"https://\1", "holds '/'", "a host, with"),
            ("a\r", r"'a\r' holds a control character", "one line of text"),
        )
    ),
    (
        {"rewrite_response_headers": [{"header": "location", "prefix": "a", "value": "b\nc"}]},
        "rewrite_response_headers[0].value",
        r"'b\nc' holds a control character",
        "one line of text",
    ),
    (
        {"rewrite_response_headers": [{"header": "location", "prefix": "a\r", "value": "b"}]},
        "rewrite_response_headers[0].prefix",
        r"'a\r' holds a control character",
        "one line of text",
    ),
]


@pytest.mark.parametrize(("keys", "key", "message", "fix"), ERRORS)
def test_what_cannot_be_sent(
    tmp_path: Path, keys: dict[str, Any], key: str, message: str, fix: str
) -> None:
    (found,) = problems(tmp_path, text_of(keys))
    where, said, right = found.partition(message)
    assert said, found
    assert where.startswith(f"{LINE}: routes[0].{key}: ")
    assert fix in right


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        (
            {"prefix_rewrite": "/a?x=1"},
            "prefix_rewrite",
            "'/a?x=1' holds a ?, after which the rest of the path would follow (the path alone;",
        ),
        (
            {"redirect": {"prefix_rewrite": "/a?x=1"}},
            "redirect.prefix_rewrite",
            "'/a?x=1' holds a ?",
        ),
        (
            {"prefix": "/a b"},
            "prefix",
            (
                "'/a b' can never match: a request has these characters escaped "
                "(write it escaped: /a%20b)"
            ),
        ),
        ({"path": "/ä"}, "path", "'/ä' can never match"),
    ],
)
def test_what_is_probably_not_meant(
    tmp_path: Path, keys: dict[str, Any], key: str, message: str
) -> None:
    (found,) = warnings(tmp_path, text_of(keys))
    assert found.startswith(f"{LINE}: routes[0].{key}: ")
    assert message in found


@pytest.mark.parametrize(
    "keys",
    [
        {"prefix_rewrite": "/new/%20{}|~"},
        {"prefix_rewrite": "/"},
        {"host_rewrite": "app_1.example.com:8080"},
        {"host_rewrite": "[::1]:8080"},
        {"host_rewrite": "10.0.0.1"},
        {"host_rewrite_header": "X-Host"},
        {"regex_rewrite_pattern": "(a) b", "regex_rewrite_substitution": r"x\1"},
        {
            "host_path_regex_rewrite_pattern": "(a)",
            "host_path_regex_rewrite_substitution": r"\1.example.com:80",
        },
        {"redirect": {"path_redirect": "/a?b=c", "host_redirect": "b:1"}},
        {"redirect": {"scheme_redirect": "com.example.app"}},
        {
            "rewrite_response_headers": [
                {"header": "location", "prefix": "http://a b", "value": "https://ä"}
            ]
        },
    ],
)
def test_what_can_be_sent(tmp_path: Path, keys: dict[str, Any]) -> None:
    assert warnings(tmp_path, text_of(keys)) == []
