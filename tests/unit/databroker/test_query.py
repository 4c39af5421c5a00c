"""Filters: reading, narrowing, index terms, prefixes."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from google.protobuf.struct_pb2 import NullValue, Struct, Value
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.common.errors import (
    InvalidArgumentError,
    ResourceExhaustedError,
    UnimplementedError,
)
from gatehouse.databroker.core.query import (
    EVERYTHING,
    MAX_REPLY_BYTES,
    AllOf,
    AnyOf,
    Equals,
    Expression,
    Not,
    Query,
    QueryResults,
    Selection,
    accept_query,
    containing,
    index_terms,
    narrow,
    parse_filter,
)
from gatehouse.databroker.core.records import StoredRecord
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User
from tests.support.storage import packed


def struct(value: dict[str, Any]) -> Struct:
    made = Struct()
    made.update(value)
    return made


@pytest.mark.parametrize(
    ("given_", "expression"),
    [
        ({}, EVERYTHING),
        ({"a": "x"}, Equals("a", "x")),
        ({"a": {"b": "x"}}, Equals("a.b", "x")),
        ({"a": {"$eq": "x"}}, Equals("a", "x")),
        ({"a": {"=": 1}}, Equals("a", "1")),
        ({"a": {"==": 1.5}}, Equals("a", "1.5")),
        ({"a": {"$equals": True}}, Equals("a", "true")),
        ({"a": {"$is": False}}, Equals("a", "false")),
        ({"a": "x", "b": "y"}, AllOf((Equals("a", "x"), Equals("b", "y")))),
        ({"a": ["x", "y"]}, AnyOf((Equals("a", "x"), Equals("a", "y")))),
        ({"a": []}, AnyOf(())),
        ({"$and": [{"a": "x"}, {"b": "y"}]}, AllOf((Equals("a", "x"), Equals("b", "y")))),
        ({"$or": [{"a": "x"}]}, AnyOf((Equals("a", "x"),))),
        ({"$not": {"a": "x"}}, Not(Equals("a", "x"))),
        ({"a": {"$not": ["x", "y"]}}, Not(AnyOf((Equals("a", "x"), Equals("a", "y"))))),
        ({"a": {"$or": ["x", {"b": "y"}]}}, AnyOf((Equals("a", "x"), Equals("a.b", "y")))),
        ({"$index": "10.0.0.1"}, Equals("$index", "10.0.0.1")),
        ({"a\x00": "\x00"}, Equals("a\x00", "")),
    ],
)
def test_reading(given_: dict[str, Any], expression: Expression) -> None:
    assert parse_filter(struct(given_)) == expression


@pytest.mark.parametrize(
    "operator",
    [
        *("$after", "$before", "$contains", "$doesNotContain", "!=", "$doesNotEqual"),
        *("$endsWith", ">", ">=", "$isAnyOf", "$isEmpty", "$isNotEmpty", "<", "<="),
        *("$onOrAfter", "$onOrBefore", "$startsWith"),
    ],
)
def test_known_operators_that_are_not_offered(operator: str) -> None:
    with pytest.raises(UnimplementedError) as caught:
        parse_filter(struct({"a": {operator: "x"}}))
    assert operator in str(caught.value)


def deep(levels: int) -> dict[str, Any]:
    made: dict[str, Any] = {"a": "x"}
    for _ in range(levels):
        made = {"$not": made}
    return made


@pytest.mark.parametrize(
    "bad",
    [
        {"$nope": "x"},
        {"a": {"$nope": "x"}},
        {"$and": {"a": "x"}},
        {"$or": "x"},
        {"$not": "x"},
        {"$eq": "x"},
        {"$or": ["x"]},
        {"": "x"},
        {"a": None},
        deep(40),
        {"a": [str(number) for number in range(1001)]},
    ],
)
def test_bad_filters(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_filter(struct(bad))


def test_deep_lists_and_odd_values() -> None:
    value = Value(string_value="x")
    for _ in range(40):
        outer = Value()
        outer.list_value.values.append(value)
        value = outer
    for odd in (value, Value(), Value(null_value=NullValue.NULL_VALUE)):
        with pytest.raises(InvalidArgumentError):
            parse_filter(Struct(fields={"a": odd}))


@pytest.mark.parametrize(
    ("given_", "selection"),
    [
        ({"id": "x"}, Selection(ids=frozenset("x"))),
        ({"name": "x"}, Selection(terms=frozenset({("name", "x")}))),
        ({"other": "x"}, None),
        ({}, None),
        ({"other": "x", "id": "y"}, Selection(ids=frozenset("y"))),
        ({"name": "x", "id": "y"}, Selection(ids=frozenset("y"))),
        ({"$or": [{"id": "x"}, {"other": "y"}]}, None),
        (
            {"$or": [{"id": "x"}, {"name": "y"}]},
            Selection(frozenset("x"), frozenset({("name", "y")})),
        ),
        ({"$not": {"id": "x"}}, None),
        ({"name": []}, Selection()),
        ({"$index": "no address"}, Selection()),
        (
            {"$index": "128.0.0.0/1"},
            Selection(terms=frozenset({("$index", "128.0.0.0/1"), ("$index", "0.0.0.0/0")})),
        ),
    ],
)
def test_narrowing(given_: dict[str, Any], selection: Selection | None) -> None:
    assert narrow(parse_filter(struct(given_)), ("name",)) == selection


names = st.sampled_from(["id", "name", "email", "$index"])
values = st.sampled_from(["a", "b", "10.0.0.1", "10.0.0.0/8"])
expressions = st.recursive(
    st.builds(Equals, names, values),
    lambda inner: st.one_of(
        st.builds(AllOf, st.lists(inner, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(inner, max_size=3).map(tuple)),
        st.builds(Not, inner),
    ),
    max_leaves=8,
)
payloads = st.one_of(
    st.builds(User, name=values, email=values).map(packed),
    values.map(lambda cidr: packed(struct({"name": "a", "$index": {"cidr": cidr}}))),
)


@given(expressions, payloads, values)
def test_narrowing_never_loses_a_match(expression: Expression, data: bytes, id_: str) -> None:
    record = StoredRecord(1, "t", id_, data, 0)
    selection = narrow(expression, ("name",))
    results = QueryResults(Query("t", expression, "", 0, 10), is_narrowed=True)
    results.add(record)
    if results.total and selection is not None:
        assert id_ in selection.ids or index_terms(data, ("name",)) & selection.terms


def test_index_terms() -> None:
    session = packed(Session(user_id="u"))
    assert index_terms(session, ("user_id", "expires_at", "nope")) == {("user_id", "u")}
    network = packed(struct({"a": "b", "$index": {"cidr": "10.1.2.3/8"}}))
    assert index_terms(network, ("a",)) == {("a", "b"), ("$index", "10.0.0.0/8")}
    assert index_terms(packed(struct({"$index": {"cidr": "x"}})), ()) == frozenset()
    assert index_terms(packed(struct({"$index": "10.0.0.0/8"})), ()) == frozenset()
    assert index_terms(b"\xff", ("a",)) == frozenset()


@given(st.ip_addresses(), st.integers(0, 128))
def test_containing_prefixes_are_those_that_contain(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, length: int
) -> None:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    found = list(containing(str(address)))
    assert len(found) == address.max_prefixlen + 1
    network = ipaddress.ip_network((address, min(length, address.max_prefixlen)), strict=False)
    assert str(network) in found
    assert found[0] == str(ipaddress.ip_network(address))


def test_mapped_addresses_are_ipv4() -> None:
    assert next(containing("::ffff:10.0.0.1")) == "10.0.0.1/32"
    assert next(containing("::ffff:10.0.0.0/104")) == "10.0.0.0/8"
    assert next(containing("::/0")) == "::/0"
    assert list(containing("10.0.0.256")) == []
    assert list(containing("")) == []


@pytest.mark.parametrize(("offset", "limit"), [(-1, 1), (0, -1), (0, 1001)])
def test_windows_out_of_range(offset: int, limit: int) -> None:
    with pytest.raises(InvalidArgumentError):
        accept_query(type_="t", filter_=Struct(), text="", offset=offset, limit=limit)


def test_a_reply_is_bounded_in_bytes() -> None:
    query = accept_query(type_="t", filter_=Struct(), text="", offset=0, limit=1000)
    results = QueryResults(query, is_narrowed=True)
    megabyte = StoredRecord(1, "t", "a", bytes(1 << 20), 0)
    for _ in range(MAX_REPLY_BYTES >> 20):
        results.add(megabyte)
    with pytest.raises(ResourceExhaustedError, match="fewer records"):
        results.add(megabyte)
