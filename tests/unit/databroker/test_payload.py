"""Payloads as text: what filters compare and searches look at."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import ListValue, Struct
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import BytesValue, StringValue, UInt64Value
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.databroker.core.payload import decode, number_text, strings, text_at
from gatehouse.pb.databroker_pb2 import Options, Record
from gatehouse.pb.session_pb2 import (
    OAuthToken,
    Session,
    SessionBindingRequest,
    SessionBindingRequestState,
)


def struct(**values: object) -> Struct:
    made = Struct()
    made.update(values)  # type: ignore[arg-type]
    return made


def wrapped(message: Message) -> Record:
    record = Record()
    record.data.Pack(message)
    return record


@pytest.mark.parametrize(
    ("message", "path", "text"),
    [
        (Session(user_id="u"), "user_id", "u"),
        (Session(user_id="u"), "userId", "u"),
        (Session(user_id="a\x00b"), "user_id", "ab"),
        (Session(), "user_id", None),
        (Session(impersonate_session_id=""), "impersonate_session_id", ""),
        (Session(), "impersonate_session_id", None),
        (Session(refresh_disabled=True), "refresh_disabled", "true"),
        (Session(oauth_token=OAuthToken(token_type="t")), "oauth_token.token_type", "t"),
        (Session(oauth_token=OAuthToken(token_type="t")), "oauth_token", None),
        (Session(audience=["x"]), "audience", None),
        (Session(audience=["x"]), "audience.0", None),
        (Session(claims={"a": ListValue()}), "claims.a", None),
        (Session(expires_at=Timestamp(seconds=0)), "expires_at", "1970-01-01T00:00:00Z"),
        (
            Session(expires_at=Timestamp(nanos=5_000_000)),
            "expires_at",
            "1970-01-01T00:00:00.005Z",
        ),
        (Session(expires_at=Timestamp(seconds=1 << 60)), "expires_at", None),
        (Options(ttl=Duration(seconds=3)), "ttl", "3s"),
        (Options(capacity=(1 << 64) - 1), "capacity", "18446744073709551615"),
        (SessionBindingRequest(details={"k.x": "v", "k": "w"}), "details.k", "w"),
        (
            SessionBindingRequest(state=SessionBindingRequestState.Accepted),
            "state",
            "Accepted",
        ),
        (SessionBindingRequest(state=77), "state", "77"),  # type: ignore[arg-type]
        (struct(a={"b": "c"}), "a.b", "c"),
        (struct(a=1.0), "a", "1"),
        (struct(a=1.5), "a", "1.5"),
        (struct(a=False), "a", "false"),
        (struct(a=None), "a", None),
        (struct(a=["x"]), "a", None),
        (struct(a="x"), "a.b", None),
        (struct(), "a", None),
        (wrapped(Session(user_id="u")), "data.user_id", "u"),
        (wrapped(StringValue(value="u")), "data", None),
        (wrapped(BytesValue(value=b"\xff")), "data.value", "/w=="),
        (Session(), "no.such.path", None),
        (Session(), "", None),
    ],
)
def test_text_at(message: Message, path: str, text: str | None) -> None:
    assert text_at(message, path) == text


def test_wrappers_show_their_value() -> None:
    made = Struct()
    made.update({"n": "x"})
    assert text_at(wrapped(UInt64Value(value=5)), "data.value") == "5"
    assert list(strings(StringValue(value="x"))) == ["x"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"),
        (-0.0, "-0"),
        (1.0, "1"),
        (-17.25, "-17.25"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (1.5e300, "1.5e+300"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (1.25e-7, "1.25e-07"),
        (float("inf"), "+Inf"),
        (float("-inf"), "-Inf"),
        (float("nan"), "NaN"),
        (1700000000.0, "1700000000"),
    ],
)
def test_numbers_read_as_in_go(number: float, text: str) -> None:
    assert number_text(number) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_number_text_reads_back(number: float) -> None:
    assert float(number_text(number)) == number


def test_strings_are_values_at_any_depth() -> None:
    message = Session(
        id="1",
        audience=["2", "3"],
        oauth_token=OAuthToken(access_token="4"),
        claims={"name": ListValue()},
    )
    message.claims["name"].extend(["5", struct(key="6"), 7, None, True])
    assert sorted(strings(message)) == ["1", "2", "3", "4", "5", "6"]
    assert sorted(strings(SessionBindingRequest(details={"key": "value"}))) == ["value"]


def test_strings_look_into_nested_payloads_and_pass_over_unknown_ones() -> None:
    inner = Any()
    inner.Pack(StringValue(value="deep"))
    outer = Any()
    outer.Pack(inner)
    assert list(strings(outer)) == ["deep"]
    assert list(strings(Any(type_url="no/such", value=b"needle"))) == []


def test_deep_nesting_ends() -> None:
    message: Message = StringValue(value="x")
    for _ in range(90):
        outer = Any()
        outer.Pack(message)
        message = outer
    assert list(strings(message)) == ["x"]
    for _ in range(90):
        outer = Any()
        outer.Pack(message)
        message = outer
    assert list(strings(message)) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        Any(type_url="no slash").SerializeToString(),
        Any(type_url="type.googleapis.com/no.Such", value=b"x").SerializeToString(),
        Any(type_url="type.googleapis.com/session.Session", value=b"\xff").SerializeToString(),
        Any(type_url="type.googleapis.com/", value=b"").SerializeToString(),
    ],
)
def test_what_cannot_be_decoded(data: bytes) -> None:
    assert decode(data) is None


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_raise(data: bytes) -> None:
    for name in ("session.Session", "google.protobuf.Struct", "google.protobuf.Any"):
        any_ = Any(type_url=f"type.googleapis.com/{name}", value=data)
        message = decode(any_.SerializeToString())
        if message is not None:
            list(strings(message))
            text_at(message, "claims.a.b")
            text_at(message, "id_token.expires_at")
