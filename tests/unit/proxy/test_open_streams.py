"""What an open connection rests on, read and held against changes."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2
from google.protobuf.struct_pb2 import Struct

from gatehouse.common.extauthz_context import DECISION_ALLOW, DECISION_FIELD, ENVELOPE_FIELD
from gatehouse.proxy.core.open_streams import (
    ROUTE_NAME,
    SOURCE_ADDRESS,
    Grounds,
    grounds_of,
    is_allowed,
    is_contradicted,
    question,
)


def answer(envelope: str | None = None, decision: str = DECISION_ALLOW) -> Any:
    response = external_auth_pb2.CheckResponse()
    response.ok_response.SetInParent()
    response.dynamic_metadata.update({DECISION_FIELD: decision})
    if envelope is not None:
        response.dynamic_metadata.update({ENVELOPE_FIELD: envelope})
    return response


def asked(headers: list[tuple[str, bytes]], **attributes: str) -> Any:
    told = Struct()
    told.update(attributes)
    lines = [base_pb2.HeaderValue(key=name, raw_value=value) for name, value in headers]
    return question(lines, {"envoy.filters.http.ext_proc": told}, base_pb2.Metadata()).attributes


def test_grounds_are_read_as_authorize_writes_them():
    found = grounds_of(answer("77 2498 10:1,2;12:2,3\n=1:a1:b"), answered_s=100.0)
    assert found == Grounds(77, 102.5, {1: 10, 2: 10, 3: 12})
    assert grounds_of(answer("77 59998 \n"), 0.0) == Grounds(77, 60.0, {})


@pytest.mark.parametrize("text", [None, "", "garbage", "77 x 1:2\n", "77 60000 1:2", "-1 5 \n"])
def test_what_says_nothing_has_no_grounds(text: str | None):
    assert grounds_of(answer(text), 0.0) is None


def test_only_what_says_that_it_is_an_allow_is_one():
    assert is_allowed(answer())
    assert not is_allowed(answer(decision="deny"))
    assert not is_allowed(external_auth_pb2.CheckResponse())
    for spoil in ("denied_response", "error_response"):
        spoilt = answer()
        getattr(spoilt, spoil).SetInParent()
        assert not is_allowed(spoilt), spoil
    spoilt = answer()
    spoilt.status.code = 7
    assert not is_allowed(spoilt)


@pytest.mark.parametrize(
    ("server_version", "slots", "expected"),
    [
        (0, [0, 0], False),  # there is no table: nothing is known
        (7, [10, 12], False),
        (7, [9, 0], False),
        (7, [11, 12], True),
        (7, [10, 13], True),
        (8, [0, 0], True),  # another history
    ],
)
def test_a_newer_change_or_another_history_contradicts(server_version, slots, expected):
    grounds = Grounds(7, 0.0, {1: 10, 2: 12})
    assert is_contradicted(grounds, server_version, slots) is expected


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("policy-0123456789abcdef", "0123456789abcdef"),
        ("policy-0123456789abcdef-websocket", "0123456789abcdef"),
        ("pomerium-control-plane-http-/ping", ""),
        ("", ""),
    ],
)
def test_the_route_is_known_by_its_name(name: str, route: str):
    context = asked([], **{ROUTE_NAME: name}).context_extensions
    assert dict(context) == {"internal": "false", "route_id": route, "route_checksum": ""}


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("192.0.2.1:1234", "192.0.2.1", 1234),
        ("[2001:db8::1]:80", "2001:db8::1", 80),
        ("@internal", "", 0),
        ("", "", 0),
    ],
)
def test_the_source_is_an_address_or_none(text: str, address: str, port: int):
    source = asked([], **{SOURCE_ADDRESS: text}).source.address.socket_address
    assert (source.address, source.port_value) == (address, port)


def test_repeated_headers_are_joined_and_odd_bytes_stand_for_themselves():
    pseudo = [(":method", b"GET"), (":path", b"/a?b"), (":authority", b"h"), (":scheme", b"https")]
    http = asked([*pseudo, ("x-a", b"1"), ("x-a", b"2"), ("x-b", b"\xff")]).request.http
    assert (http.method, http.path, http.host, http.scheme) == ("GET", "/a?b", "h", "https")
    assert http.headers["x-a"] == "1,2"
    assert http.headers["x-b"] == "\N{REPLACEMENT CHARACTER}"
