"""Answers how a message becomes a databroker record, and a record a message again."""

from __future__ import annotations

from typing import Final, TypeVar

from google.protobuf.any_pb2 import Any as ProtoAny
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.ids import TypeUrl
from gatehouse.pb.databroker_pb2 import Record

M = TypeVar("M", bound=Message)

_PREFIX: Final = "type.googleapis.com/"
_NANOS: Final = 1_000_000_000


def type_url_of(message: Message | type[Message]) -> TypeUrl:
    """Return the type URL of a message or message class, as records of it carry."""
    return TypeUrl(f"{_PREFIX}{message.DESCRIPTOR.full_name}")


def record_of(message: Message, id: str) -> Record:  # noqa: A002 (the wire's own name)
    """Return a live record of `message`, ready for Put. The server gives it its version.

    The encoding is deterministic, so that equal messages make equal bytes.
    """
    data = ProtoAny(
        type_url=type_url_of(message), value=message.SerializeToString(deterministic=True)
    )
    return Record(type=type_url_of(message), id=id, data=data)


def tombstone_of(type_url: TypeUrl, id: str, *, now_s: float) -> Record:  # noqa: A002
    """Return a record that, when Put, deletes (type_url, id). `now_s` is Unix time."""
    return Record(type=type_url, id=id, deleted_at=timestamp_of(now_s))


def is_deleted(record: Record) -> bool:
    """Tell whether the record is a tombstone."""
    return record.HasField("deleted_at")


def unpack(record: Record, cls: type[M]) -> M:
    """Return the payload as a `cls`.

    Raises InvalidArgumentError when the payload is of another type or does not parse; the message
    names the record, never its content.
    """
    message = cls()
    try:
        matches = record.data.Unpack(message)
    except DecodeError as error:
        raise InvalidArgumentError(
            f"databroker record {record.type} {record.id!r} (version {record.version}) does not "
            f"parse as {cls.DESCRIPTOR.full_name}",
            reason="record-unreadable",
            public_message="A stored record cannot be read.",
        ) from error
    if not matches:
        raise InvalidArgumentError(
            f"databroker record {record.type} {record.id!r} (version {record.version}) holds "
            f"{record.data.type_url or 'nothing'}, expected {type_url_of(cls)}",
            reason="record-unreadable",
            public_message="A stored record cannot be read.",
        )
    return message


def timestamp_of(unix_s: float) -> Timestamp:
    """Return Unix seconds as a Timestamp, to the microsecond."""
    whole, micros = divmod(round(unix_s * 1_000_000), 1_000_000)
    return Timestamp(seconds=whole, nanos=micros * 1_000)


def seconds_of(timestamp: Timestamp) -> float:
    """Return a Timestamp as Unix seconds."""
    return timestamp.seconds + timestamp.nanos / _NANOS
