"""From a directory to the records that policies read, and what must change for that.

Records carry a mark of who made them. Only marked ones are replaced or deleted: what somebody else
has written stays theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct

from gatehouse.common.errors import FailedPreconditionError
from gatehouse.common.ids import DIRECTORY_GROUP, DIRECTORY_USER
from gatehouse.databroker.core.directory import Directory, DirectoryGroup, DirectoryUser, entries
from gatehouse.databroker.core.records import Incoming, Key, StoredRecord

MARK_FIELD: Final = "synced_by"
MARK: Final = "gatehouse"
TYPES: Final = (DIRECTORY_GROUP, DIRECTORY_USER)
FEW: Final = 10  # so many may always go, however few there are


class DirectoryShrinkError(FailedPreconditionError):
    """The document takes away more than it may."""

    default_reason = "directory-shrink"


@dataclass(frozen=True, slots=True)
class Held:
    """What is kept of a stored record to compare it with."""

    data: bytes
    is_ours: bool
    has_groups: bool


@dataclass(frozen=True, slots=True)
class Changes:
    """What to write, and what was left alone because somebody else made it."""

    writes: tuple[Incoming, ...]
    added: int
    changed: int
    removed: int
    foreign: tuple[Key, ...]


def held(record: StoredRecord) -> Held:
    """What there is to know of a stored record."""
    fields = _fields(record.data)
    if fields is None:
        return Held(record.data, is_ours=False, has_groups=False)
    mark = fields.fields[MARK_FIELD].string_value if MARK_FIELD in fields.fields else ""
    groups = fields.fields["group_ids"].list_value.values if "group_ids" in fields.fields else ()
    return Held(record.data, mark == MARK, bool(groups))


def plan_changes(directory: Directory, stored: Mapping[Key, Held], max_shrink: float) -> Changes:
    """The writes that make the store say what the directory says.

    Raises DirectoryShrinkError when users or groups that were synchronised before would vanish, or
    users lose all their groups, by more than `max_shrink` (a share of them; 1 allows everything).
    """
    wanted = {_key(entry): _data(entry) for entry in entries(directory)}
    ours = {key: one for key, one in stored.items() if one.is_ours}
    gone = [key for key in ours if key not in wanted]
    stripped = sum(
        one.has_groups
        and key[0] == DIRECTORY_USER
        and key[1] in directory.users
        and not directory.users[key[1]].groups
        for key, one in ours.items()
    )
    _check_shrink(len(ours), len(gone), stripped, len(wanted), max_shrink)
    writes: list[Incoming] = []
    foreign: list[Key] = []
    added = changed = 0
    for key, data in wanted.items():
        known = stored.get(key)
        if known is not None and not known.is_ours:
            foreign.append(key)
        elif known is None or known.data != data:
            added += known is None
            changed += known is not None
            writes.append(Incoming(*key, data))
    writes += [Incoming(*key, b"", is_deletion=True) for key in gone]
    return Changes(tuple(writes), added, changed, len(gone), tuple(foreign))


def batches(writes: Iterable[Incoming], size: int) -> Iterable[tuple[Incoming, ...]]:
    """The writes in order, `size` at a time."""
    whole = tuple(writes)
    return (whole[first : first + size] for first in range(0, len(whole), size))


def _check_shrink(ours: int, gone: int, stripped: int, wanted: int, max_shrink: float) -> None:
    if max_shrink >= 1.0 or not ours:
        return
    lost = gone + stripped
    if not wanted or (lost > FEW and lost > max_shrink * ours):
        raise DirectoryShrinkError(
            f"of {ours} users and groups, {gone} would be removed and {stripped} would lose all "
            f"groups; if that is right, set directory_max_shrink to 1 until it is done"
        )


def _key(entry: DirectoryUser | DirectoryGroup) -> Key:
    kind = DIRECTORY_USER if isinstance(entry, DirectoryUser) else DIRECTORY_GROUP
    return kind, entry.id


def _data(entry: DirectoryUser | DirectoryGroup) -> bytes:
    fields: dict[str, str | list[str]] = {"id": entry.id, MARK_FIELD: MARK}
    if isinstance(entry, DirectoryUser):
        fields |= {"display_name": entry.name, "group_ids": list(entry.groups)}
        if entry.email is not None:
            fields["email"] = entry.email
    else:
        fields["name"] = entry.name
    struct = Struct()
    for name, value in fields.items():
        struct[name] = value
    encoded = struct.SerializeToString(deterministic=True)
    packed = Any(type_url="type.googleapis.com/google.protobuf.Struct", value=encoded)
    return packed.SerializeToString(deterministic=True)


def _fields(data: bytes) -> Struct | None:
    try:
        packed, struct = Any.FromString(data), Struct()
        return struct if packed.Unpack(struct) else None
    except DecodeError:
        return None
