"""Keys of a route that do less than they seem to, each fed through a file."""

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
TLS = "has no effect: no upstream in to is https (https:// in to)"
SET = "set_request_headers"


def text_of(keys: dict[str, Any], top: str = "") -> str:
    return f"{LOGIN}{top}routes:\n- {json.dumps({**BASE, **keys})}\n"


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        (
            {"to": ["http://a/x", "http://b/y"]},
            "to",
            "only the path of the first URL counts: '/x' for all (URLs that differ in their hosts",
        ),
        ({"to": ["http://a", "http://b/y"]}, "to", "only the path of the first URL counts: '/' "),
        ({"to": "http://a/?x=1"}, "to", "what follows ? or # is not sent"),
        ({"to": ["http://a,4", "http://a#b,5"]}, "to[1]", "what follows ? or # is not sent"),
        ({"to": "http://u:hunter2@a"}, "to", "the user name and password are not sent"),
        ({"tls_upstream_server_name": "x"}, "tls_upstream_server_name", TLS),
        ({"tls_upstream_allow_renegotiation": True}, "tls_upstream_allow_renegotiation", TLS),
        ({"to": "h2c://a", "tls_skip_verify": True}, "tls_skip_verify", TLS),
        (
            {SET: {"X-A": "a"}, "remove_request_headers": ["X-a"]},
            SET,
            "x-a is set in vain: remove_request_headers takes it away again (one of the two)",
        ),
        (
            {SET: {"X-Pomerium-Jwt-Assertion": "${pomerium.jwt}"}},
            SET,
            "x-pomerium-jwt-assertion is set in vain: without pass_identity_headers it is taken",
        ),
        (
            {SET: {"X-Token": "${pomerium.acces_token}"}},
            SET,
            "x-token refers to something that does not exist and is left empty there (${pomerium",
        ),
        ({SET: {"X-Price": "5 $USD"}}, SET, "refers to something that does not exist"),
        ({"to": ["h2c://a", "http://b"]}, "to", "all of them are spoken to in HTTP/1.1"),
        (
            {"to": "h2c://a", "allow_websockets": True},
            "allow_websockets",
            "with WebSockets the h2c:// upstream is spoken to in HTTP/1.1",
        ),
    ],
)
def test_warnings(tmp_path: Path, keys: dict[str, Any], key: str, message: str) -> None:
    text = text_of(keys)
    line = len(text.splitlines())
    found = warnings(tmp_path, text)
    assert any(
        item.startswith(f"{line}: routes[0].{key}: ") and message in item for item in found
    ), found
    assert "hunter2" not in str(found)


def test_claims_headers_are_taken_away_too(tmp_path: Path) -> None:
    keys = {SET: {"X-Email": "a"}}
    assert warnings(tmp_path, text_of(keys)) == []
    (line,) = warnings(tmp_path, text_of(keys, "jwt_claims_headers: {X-Email: email}\n"))
    assert "x-email is set in vain: without pass_identity_headers" in line
    top = "jwt_claims_headers: {X-Email: email}\npass_identity_headers: true\n"
    assert warnings(tmp_path, text_of(keys, top)) == []


@pytest.mark.parametrize(
    "keys",
    [
        {"to": ["http://a/x", "http://b/x"]},
        {"to": ["http://a/x", "http://b/y"], "prefix_rewrite": "/z"},
        {"to": "https://a", "tls_upstream_server_name": "x"},
        {"to": ["https://a", "http://b"], "tls_upstream_server_name": "x"},
        {"to": "https+unix:///a", "tls_upstream_server_name": "x"},
        {"to": ["unix:///a", "unix:///b"]},
        {SET: {"X-A": "a", "X-B": "$$5 ${pomerium.jwt} $pomerium.id_token"}},
        {SET: {"X-Pomerium-Jwt-Assertion": "x"}, "pass_identity_headers": True},
        {"to": ["h2c://a", "h2c://b"]},
        {"to": "http://a", "allow_websockets": True},
    ],
)
def test_what_has_its_effect(tmp_path: Path, keys: dict[str, Any]) -> None:
    assert warnings(tmp_path, text_of(keys)) == []


@pytest.mark.parametrize("top", ["", "routes"])
def test_upgrade_tokens(tmp_path: Path, top: str) -> None:
    good = ["WebSocket", "", " spdy/3.1", "h2c", "connect-ip"]
    for tokens, wrong in ((good, False), ([*good, "foo bar"], True), ([*good, "a/b/c"], True)):
        text = (
            text_of({"allow_upgrades": tokens})
            if top
            else text_of({}, f"allow_upgrades: {json.dumps(tokens)}\n")
        )
        found = problems(tmp_path, text)
        where = "routes[0].allow_upgrades[5]: " if top else "allow_upgrades[5]: "
        assert bool(found) is wrong
        assert all(where in line and "is no upgrade token (websocket" in line for line in found)


def test_names_are_one_line(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, text_of({"name": "a\nb"}))
    assert r"routes[0].name: 'a\nb' holds a control character (one line of text)" in line
