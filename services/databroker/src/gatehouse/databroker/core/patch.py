"""What a payload becomes when masked fields of another are copied into it.

Mask paths are proto field names (spec: databroker, Patch; google.protobuf.FieldMask).
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.databroker.core.payload import Field, unpack


def apply_mask(held: bytes, source: bytes, paths: Sequence[str]) -> bytes:
    """Return `held` with the fields at `paths` taken from `source`; both are serialized `Any`.

    A field that is absent in the source is cleared; fields that the mask does not name, unknown
    ones too, stay. Without a difference the result is `held` itself, byte for byte.
    Raises InvalidArgumentError for a path that does not fit the type.
    """
    if not paths:
        return held
    held_any = Any.FromString(held)
    source_any = Any.FromString(source)
    if source_any.type_url != held_any.type_url:
        raise InvalidArgumentError(
            f"the patch holds a {source_any.type_url or 'payload without a type'}, "
            f"the record a {held_any.type_url or 'payload without a type'}; they must agree"
        )
    before = _known(held_any)
    after = _known(held_any)
    origin = _known(source_any)
    for path in paths:
        _copy(after, origin, path)
    if after == before:
        return held
    value = after.SerializeToString(deterministic=True)
    return Any(type_url=held_any.type_url, value=value).SerializeToString()


def _known(payload: Any) -> Message:
    message = unpack(payload)
    if message is None:
        raise InvalidArgumentError(
            f"a payload of type {payload.type_url or '(none)'} cannot be patched: its fields are "
            "not known here; Put the whole record"
        )
    return message


def _copy(target: Message, source: Message, path: str) -> None:
    *parents, leaf = path.split(".")
    for name in parents:
        field = _field(target, name, path)
        if field.message_type is None or field.is_repeated:
            raise InvalidArgumentError(f"field_mask path {path!r}: {name!r} has no sub-fields")
        # Reading an absent message gives an empty one and does not make it present.
        target = getattr(target, name)
        source = getattr(source, name)
    field = _field(target, leaf, path)
    if not _is_set(source, field):
        if _is_set(target, field):
            target.ClearField(leaf)
        return
    target.ClearField(leaf)
    if field.is_repeated:
        getattr(target, leaf).MergeFrom(getattr(source, leaf))
    elif field.message_type is not None:
        getattr(target, leaf).CopyFrom(getattr(source, leaf))
    else:
        setattr(target, leaf, getattr(source, leaf))


def _field(message: Message, name: str, path: str) -> Field:
    field = message.DESCRIPTOR.fields_by_name.get(name)
    if field is None:
        raise InvalidArgumentError(
            f"field_mask path {path!r}: {message.DESCRIPTOR.full_name} has no field {name!r}"
        )
    return field


def _is_set(message: Message, field: Field) -> bool:
    if field.is_repeated:
        return len(getattr(message, field.name)) > 0
    if field.has_presence:
        return message.HasField(field.name)
    return bool(getattr(message, field.name) != field.default_value)
