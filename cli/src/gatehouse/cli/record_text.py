"""How a record is shown to an operator, and what of it is not shown unless asked for.

Payloads of known types become JSON. Fields that are called like secrets, bytes, and payloads whose
type is not known here are hidden: what cannot be understood might be a token.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any, Final, cast

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message

# What is imported here is known by name to the pool.
from gatehouse.pb import config_pb2, device_pb2, session_pb2, user_pb2
from gatehouse.pb.databroker_pb2 import Record

HIDDEN: Final = "[hidden]"
_SECRET: Final = re.compile(
    r"token|secret|passw|private|cookie|credential|nonce|verifier|authorization|assertion|jwt"
    r"|^raw$|(?:^|_)key(?:_|$)|headers?$|connection_string|(?:^|_)hash$|recovery|otp",
    re.IGNORECASE,
)
_KNOWN: Final = (config_pb2, device_pb2, session_pb2, user_pb2)
_POOL: Final = descriptor_pool.Default()


def document(record: Record, *, show_secrets: bool = False) -> dict[str, Any]:
    """A record as JSON can hold it."""
    return {
        "type": record.type,
        "id": record.id,
        "version": record.version,
        "modified_at": record.modified_at.ToJsonString(),
        "data": _data(record, show_secrets=show_secrets),
    }


def _data(record: Record, *, show_secrets: bool) -> Any:
    message = _payload(record)
    if message is None:
        return _unreadable(record, show_secrets=show_secrets)
    try:
        found = MessageToDict(message, preserving_proto_field_name=True)
    except (TypeError, ValueError):  # an Any of a type that is not known, a NaN
        return _unreadable(record, show_secrets=show_secrets)
    if show_secrets:
        return found
    return hide(found, cast("Descriptor", message.DESCRIPTOR))


def _payload(record: Record) -> Message | None:
    assert _KNOWN
    name = record.data.type_url.rpartition("/")[2]
    try:
        message: Message = message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))()
        message.ParseFromString(record.data.value)
    except (KeyError, DecodeError):
        return None
    return message


def _unreadable(record: Record, *, show_secrets: bool) -> dict[str, Any]:
    value = record.data.value
    found: dict[str, Any] = {"@type": record.data.type_url, "bytes": len(value)}
    if show_secrets:
        found["base64"] = base64.b64encode(value).decode()
    else:
        found["sha256"] = hashlib.sha256(value).hexdigest()
    return found


def hide(value: Any, descriptor: Descriptor | None = None) -> Any:
    """The same without what is called like a secret, and without bytes."""
    if isinstance(value, list):
        return [hide(item, descriptor) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: _hidden(name, inner, _field(descriptor, name)) for name, inner in value.items()}


def _field(descriptor: Descriptor | None, name: str) -> FieldDescriptor | None:
    # The fields of a Struct are not those of what it holds.
    if descriptor is None or descriptor.full_name.startswith("google.protobuf."):
        return None
    found: FieldDescriptor | None = descriptor.fields_by_name.get(name)
    return found


def _hidden(name: str, value: Any, field: FieldDescriptor | None) -> Any:
    inner = None if field is None else field.message_type
    if field is not None and field.type == FieldDescriptor.TYPE_BYTES:
        return HIDDEN
    # A message is not secret as a whole: an oauth_token has an end that is worth seeing.
    is_message = inner is not None and not inner.GetOptions().map_entry
    if _SECRET.search(name) and not is_message:
        return HIDDEN
    return hide(value, inner if is_message else None)


def plain(value: object) -> str:
    """Text that has no say over the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))
