"""What is stored about a person beside the session: the user, and what the directory says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from google.protobuf.struct_pb2 import Struct, Value

from gatehouse.common.databroker.records import unpack
from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.ids import DIRECTORY_GROUP, DIRECTORY_USER, USER, TypeUrl
from gatehouse.pb.databroker_pb2 import Record
from gatehouse.pb.user_pb2 import User

MAX_GROUPS: Final = 50  # looked up by name; of further ones only their number is told


class RecordGetter(Protocol):
    """What is needed of `DatabrokerClient`."""

    async def get(self, type_url: TypeUrl, id: str) -> Record | None:  # noqa: A002
        """Return the live record, or None when there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Person:
    """The records of one user id. `groups` are pairs of id and name."""

    user: User | None = None
    in_directory: bool = False
    directory_email: str = ""
    groups: tuple[tuple[str, str], ...] = ()
    more_groups: int = 0


async def read_person(databroker: RecordGetter, user_id: str) -> Person:
    """Look a person up. Raises GatehouseError."""
    if not user_id:
        return Person()
    user, directory = await _all(databroker, ((USER, user_id), (DIRECTORY_USER, user_id)))
    known = None if user is None else unpack(user, User)
    fields = _fields(directory)
    if fields is None:
        return Person(user=known)
    ids = [
        value.string_value
        for value in _value(fields, "group_ids").list_value.values
        if value.WhichOneof("kind") == "string_value" and value.string_value
    ]
    shown = ids[:MAX_GROUPS]
    groups = await _all(databroker, [(DIRECTORY_GROUP, group_id) for group_id in shown])
    return Person(
        user=known,
        in_directory=True,
        directory_email=_value(fields, "email").string_value,
        groups=tuple(
            (group_id, _name(record) or group_id)
            for group_id, record in zip(shown, groups, strict=True)
        ),
        more_groups=len(ids) - len(shown),
    )


async def _all(
    databroker: RecordGetter, keys: Sequence[tuple[TypeUrl, str]]
) -> list[Record | None]:
    try:
        async with asyncio.TaskGroup() as tasks:
            reads = [tasks.create_task(databroker.get(*key)) for key in keys]
    except ExceptionGroup as errors:  # one trouble is one error, however many reads met it
        raise errors.exceptions[0] from errors
    return [read.result() for read in reads]


def _name(record: Record | None) -> str:
    fields = _fields(record)
    return "" if fields is None else _value(fields, "name").string_value


def _fields(record: Record | None) -> Struct | None:
    """A directory record's data; None where it cannot be read: nothing follows from it."""
    if record is None:
        return None
    try:
        return unpack(record, Struct)
    except InvalidArgumentError:
        return None


def _value(fields: Struct, name: str) -> Value:
    return fields.fields[name] if name in fields.fields else Value()
