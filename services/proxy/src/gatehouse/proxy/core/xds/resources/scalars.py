"""How plain values are written in protobuf's wrapper types."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import BoolValue, DoubleValue, UInt32Value, UInt64Value

_NANOS = 1_000_000_000


def seconds(value_s: float) -> Duration:
    """A duration; fractions down to a nanosecond."""
    nanos = round(value_s * _NANOS)
    return Duration(seconds=nanos // _NANOS, nanos=nanos % _NANOS)


def uint32(value: int) -> UInt32Value:
    """A number that may be absent."""
    return UInt32Value(value=value)


def uint64(value: int) -> UInt64Value:
    """A large number that may be absent."""
    return UInt64Value(value=value)


def boolean(value: bool) -> BoolValue:
    """A truth value that may be absent."""
    return BoolValue(value=value)


def double(value: float) -> DoubleValue:
    """A floating-point number that may be absent."""
    return DoubleValue(value=value)


def literal(text: str) -> str:
    """`text` where Envoy expects a format string: percent signs stand for themselves."""
    return text.replace("%", "%%")
