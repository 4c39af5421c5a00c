"""What a payload says, seen as text at field paths.

A payload is a serialized `Any`. Those of types that this process knows can be looked into; others
are kept as they are and simply match nothing. Values compare as text, the way JSON would show them
(spec: databroker, filters and indexes).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any as Dynamic
from typing import Final, TypeAlias, cast

from google.protobuf import descriptor_pool, message_factory, struct_pb2, wrappers_pb2
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

# Imported for their effect: a type is known once its module has registered it.
from gatehouse.pb import databroker_pb2, identity_pb2, session_pb2, user_pb2

KNOWN_MODULES: Final = (
    databroker_pb2,
    identity_pb2,
    session_pb2,
    struct_pb2,
    user_pb2,
    wrappers_pb2,
)
MAX_DEPTH: Final = 100

Field: TypeAlias = Dynamic  # a FieldDescriptor, pure Python's or upb's

_WRAPPERS: Final = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)


def decode(data: bytes) -> Message | None:
    """Return the message in a serialized `Any`; None for an unknown type or broken bytes."""
    try:
        return unpack(Any.FromString(data))
    except DecodeError:
        return None


def unpack(payload: Any) -> Message | None:
    """Return the message in an `Any`; None for an unknown type or broken bytes."""
    name = payload.type_url.rpartition("/")[2]
    try:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(name)
    except KeyError:
        return None
    try:
        return message_factory.GetMessageClass(descriptor).FromString(payload.value)
    except DecodeError:
        return None


def text_at(message: Message, path: str) -> str | None:
    """Return the text of the scalar at a dotted path; None when there is none.

    Path elements are field names (as in the .proto or as in JSON) or map keys. Lists have no text.
    """
    value: Dynamic = message
    for element in path.split("."):
        value = _child(value, element)
        if value is None:
            return None
    return _text(value)


def strings(message: Message) -> Iterator[str]:
    """Yield every string in a payload, at any depth; values only, no names or keys."""
    pending: list[tuple[Dynamic, int]] = [(message, 0)]
    while pending:
        value, depth = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Any):
            inner = unpack(value)
            if inner is not None and depth < MAX_DEPTH:
                pending.append((inner, depth + 1))
        elif isinstance(value, Message) and depth < MAX_DEPTH:
            pending += ((child, depth + 1) for child in _children(value))


def number_text(value: float) -> str:
    """Return a number as Go's %v prints a float64."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if value == 0:
        return "-0" if math.copysign(1.0, value) < 0 else "0"
    exact = Decimal(repr(value)).normalize()
    exponent = exact.adjusted()
    if -4 <= exponent < 21:
        return format(exact, "f")
    sign, digits, _ = exact.as_tuple()
    mantissa = str(digits[0]) + ("." + "".join(map(str, digits[1:])) if len(digits) > 1 else "")
    return f"{'-' if sign else ''}{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"


def _children(message: Message) -> Iterator[Dynamic]:
    for field, value in message.ListFields():
        if not _is_repeated(field):
            yield value
        elif _is_map(field):
            yield from value.values()
        else:
            yield from value


def _child(value: Dynamic, element: str) -> Dynamic:
    if isinstance(value, Any):
        value = unpack(value)
    if isinstance(value, struct_pb2.Value):
        value = value.struct_value if value.WhichOneof("kind") == "struct_value" else None
    if isinstance(value, struct_pb2.Struct):
        return value.fields.get(element, None)
    if not isinstance(value, Message):
        return _entry(value, element) if hasattr(value, "items") else None
    fields = value.DESCRIPTOR.fields_by_name
    field = fields.get(element) or value.DESCRIPTOR.fields_by_camelcase_name.get(element)
    if field is None:
        return None
    if _is_repeated(field):
        return getattr(value, field.name) if _is_map(field) else None
    if field.has_presence:
        if not value.HasField(field.name):
            return None
    elif getattr(value, field.name) == field.default_value:
        return None  # JSON leaves it out
    return _scalar(field, getattr(value, field.name))


def _entry(mapping: Dynamic, key: str) -> Dynamic:
    for held, value in mapping.items():
        if (held if isinstance(held, str) else _text(held)) == key:
            return value
    return None


def _scalar(field: Field, value: Dynamic) -> Dynamic:
    if field.enum_type is not None:
        named = field.enum_type.values_by_number.get(value)
        return named.name if named is not None else value
    return value


def _text(value: Dynamic) -> str | None:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return value.replace("\x00", "")
        case bytes():
            return base64.b64encode(value).decode()
        case int():
            return str(value)
        case float():
            return number_text(value)
        case Timestamp() | Duration():
            try:
                return value.ToJsonString()
            except ValueError:
                return None  # out of the range that JSON can show
        case struct_pb2.Value():
            kind = value.WhichOneof("kind")
            if kind in {"string_value", "number_value", "bool_value"}:
                return _text(getattr(value, cast("str", kind)))
            return None
        case Message() if value.DESCRIPTOR.full_name in _WRAPPERS:
            return _text(getattr(value, "value"))  # noqa: B009 - every wrapper has it
        case _:
            return None


def _is_repeated(field: Field) -> bool:
    return bool(field.is_repeated)


def _is_map(field: Field) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def struct_text(payload: Message, path: Sequence[str]) -> str | None:
    """Return the string at a path of a Struct payload; None when there is none."""
    value: Dynamic = payload if isinstance(payload, struct_pb2.Struct) else None
    for element in path:
        value = _child(value, element) if value is not None else None
    return _text(value)
