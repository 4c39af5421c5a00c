"""A databroker as a value: the versioned log of the specification, without I/O or time.

The model against which the client side is simulated. It keeps every record it ever wrote, so
that a checker can ask whether what a replica holds was ever true.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from google.protobuf.any_pb2 import Any as ProtoAny
from google.protobuf.struct_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp

from gatehouse.common.errors import AbortedError
from gatehouse.common.ids import TypeUrl
from gatehouse.pb.databroker_pb2 import Record

TYPE = TypeUrl("example.test/Thing")
OTHER = TypeUrl("example.test/Other")
UNREADABLE = "unreadable"


def record(record_id="a", version=1, text="x", *, type_url=TYPE, deleted=False) -> Record:
    """A record as the broker would send it."""
    data = ProtoAny()
    data.Pack(Value(string_value=text))
    made = Record(type=type_url, id=record_id, version=version, data=data)
    if deleted:
        made.deleted_at.CopyFrom(Timestamp(seconds=1))
    return made


def text_of(made: Record) -> str:
    """The decoder of the tests: the text, or ValueError for the unreadable one."""
    value = Value()
    assert made.data.Unpack(value)
    if value.string_value == UNREADABLE:
        raise ValueError("this text must not show in any log")
    return value.string_value


@dataclass
class ModelBroker:
    """One store. `written` maps (server version, type, id, version) to the text put there."""

    server_version: int = 7
    latest: int = 0
    earliest: int = 0
    live: dict[tuple[str, str], Record] = field(default_factory=dict)
    log: list[Record] = field(default_factory=list)
    written: dict[tuple[int, str, str, int], str] = field(default_factory=dict)

    def put(self, record_id: str, text: str, type_url: TypeUrl = TYPE) -> Record:
        """Write a record."""
        self.latest += 1
        made = record(record_id, self.latest, text, type_url=type_url)
        self.live[type_url, record_id] = made
        self.log.append(made)
        self.written[self.server_version, type_url, record_id, self.latest] = text
        return made

    def delete(self, record_id: str, type_url: TypeUrl = TYPE) -> None:
        """Delete a record; nothing happens when it is absent."""
        if self.live.pop((type_url, record_id), None) is not None:
            self.latest += 1
            self.log.append(record(record_id, self.latest, "", type_url=type_url, deleted=True))

    def clear(self, server_version: int) -> None:
        """Begin another history; counters start anew."""
        assert server_version != self.server_version
        self.server_version = server_version
        self.live.clear()
        self.log.clear()
        self.latest = self.earliest = 0

    def compact(self, keep: int) -> None:
        """Forget all but the newest `keep` changes (at least one)."""
        self.log = self.log[-max(1, keep) :]
        self.earliest = self.log[0].version if self.log else 0

    def check_position(self, server_version: int, record_version: int) -> None:
        """Raise AbortedError as Sync does (databroker specification, section 5, rules 1 and 2)."""
        if server_version != self.server_version:
            raise AbortedError("invalid server version")
        if self.earliest > 0 and record_version < self.earliest - 1:
            raise AbortedError("invalid record version")
        if record_version > self.latest:
            raise AbortedError("invalid record version")

    def changes(self, after: int, type_url: TypeUrl, limit: int) -> list[Record]:
        """Up to `limit` changes of a type after a version, in order."""
        found = (made for made in self.log if made.version > after and made.type == type_url)
        return [made for made, _ in zip(found, range(limit), strict=False)]

    def page(self, type_url: TypeUrl, after_id: str, limit: int) -> list[Record]:
        """Up to `limit` live records with ids above `after_id`, by id."""
        ids = sorted(key for kind, key in self.live if kind == type_url and key > after_id)
        return [self.live[type_url, key] for key in ids[:limit]]

    def contents(self, type_url: TypeUrl = TYPE) -> dict[str, tuple[int, str]]:
        """What a true and complete copy holds: id to (version, text), unreadable ones left out."""
        return {
            key: (made.version, self.written[self.server_version, kind, key, made.version])
            for (kind, key), made in self.live.items()
            if kind == type_url
            and self.written[self.server_version, kind, key, made.version] != UNREADABLE
        }
