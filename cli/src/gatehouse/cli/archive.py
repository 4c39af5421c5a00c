"""In which form records leave one store for another: written once, read only when it is whole.

`proto/gatehouse/pb/databroker_admin.proto` says what an archive holds and in which order. Payloads
are bytes as the store has them, so nothing that is unknown here is lost. Pure: streams come from
the caller.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from google.protobuf.message import DecodeError

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.pb.databroker_admin_pb2 import ArchiveItem, ArchiveTrailer
from gatehouse.pb.databroker_pb2 import Record

FIRST_LINE: Final = b"Gatehouse records, form 1\n"
MAX_ITEM_BYTES: Final = 4 << 20  # a record has 1 MiB at the most
_VARINT_BYTES: Final = 5
_PHASES: Final = ("header", "record", "change", "options", "trailer")

Key = tuple[str, str]  # type, id


class ArchiveError(InvalidArgumentError):
    """A file that is no whole archive."""

    default_reason = "archive"


@dataclass(frozen=True, slots=True)
class Summary:
    """What a whole archive holds."""

    storage: str
    made_at_s: int
    records: int
    changes: int
    options: int

    @property
    def steps(self) -> int:
        """How many records are to be written."""
        return self.records + self.changes


def key_of(record: Record) -> Key:
    """Type and id."""
    return record.type, record.id


class ArchiveWriter:
    """Writes items in their order; `end` makes it whole."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._digest = hashlib.sha256()
        self._counts = dict.fromkeys(_PHASES, 0)
        self._put(FIRST_LINE)

    def add(self, item: ArchiveItem) -> None:
        """Append one item."""
        self._counts[str(item.WhichOneof("item"))] += 1
        self._put(_framed(item))

    def end(self) -> ArchiveTrailer:
        """Append the trailer; nothing may follow."""
        trailer = ArchiveTrailer(
            records=self._counts["record"],
            changes=self._counts["change"],
            options=self._counts["options"],
            sha256=self._digest.digest(),
        )
        self._put(_framed(ArchiveItem(trailer=trailer)))
        return trailer

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        self._write(data)


def read_items(stream: BinaryIO) -> Iterator[ArchiveItem]:
    """Every item, checked as it comes; the trailer last.

    Raises ArchiveError for a file that is cut short, altered, or something else. What came before
    the error must not be used: read it all once (`check`) before anything is done with it.
    """
    digest = hashlib.sha256()
    first = stream.read(len(FIRST_LINE))
    if first != FIRST_LINE:
        raise ArchiveError("this is no archive of records: gatehouse databroker export makes them")
    digest.update(first)
    counts = dict.fromkeys(_PHASES, 0)
    phase, last = -1, ("", "")
    while True:
        size, frame = _size(stream)
        item = ArchiveItem()
        body = _read(stream, size)
        try:
            item.ParseFromString(body)
        except DecodeError:
            raise ArchiveError("an item cannot be read: the file was altered") from None
        kind = str(item.WhichOneof("item"))
        if kind not in _PHASES or _PHASES.index(kind) < phase or (phase < 0) != (kind == "header"):
            raise ArchiveError("items are not in their order: the file was altered")
        phase = _PHASES.index(kind)
        if kind == "trailer":
            _check_trailer(item.trailer, counts, digest.digest())
            if stream.read(1):
                raise ArchiveError("there is something behind the end: the file was altered")
            yield item
            return
        if kind == "record":
            key = key_of(item.record.record)
            if key <= last:
                raise ArchiveError("records are not in their order: the file was altered")
            last = key
        counts[kind] += 1
        digest.update(frame)
        digest.update(body)
        yield item


def check(stream: BinaryIO) -> Summary:
    """Read all of it and say what it holds. Raises ArchiveError unless it is whole."""
    storage, made_at_s, trailer = "", 0, ArchiveTrailer()
    for item in read_items(stream):
        match item.WhichOneof("item"):
            case "header":
                storage, made_at_s = item.header.storage, item.header.made_at.seconds
            case "trailer":
                trailer = item.trailer
    return Summary(storage, made_at_s, trailer.records, trailer.changes, trailer.options)


class ContentDigest:
    """A checksum over what records say, whatever their versions and times."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.count = 0

    def add(self, record: Record) -> None:
        """Take in the next record; the order counts."""
        for part in (record.type.encode(), record.id.encode(), data_of(record)):
            self._digest.update(len(part).to_bytes(8))
            self._digest.update(part)
        self.count += 1

    def hex(self) -> str:
        """The checksum so far."""
        return self._digest.hexdigest()


def data_of(record: Record) -> bytes:
    """The payload with its type, as bytes."""
    return record.data.type_url.encode() + b"\x00" + record.data.value


def _framed(item: ArchiveItem) -> bytes:
    body = item.SerializeToString(deterministic=True)
    return _varint(len(body)) + body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _size(stream: BinaryIO) -> tuple[int, bytes]:
    size, frame = 0, b""
    for place in range(_VARINT_BYTES):
        byte = _read(stream, 1)
        frame += byte
        size |= (byte[0] & 0x7F) << (7 * place)
        if byte[0] < 0x80:
            break
    if size > MAX_ITEM_BYTES:
        raise ArchiveError(f"an item has over {MAX_ITEM_BYTES} bytes: the file was altered")
    return size, frame


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise ArchiveError("the file is cut short; export again, or copy it again")
    return data


def _check_trailer(trailer: ArchiveTrailer, counts: dict[str, int], digest: bytes) -> None:
    found = counts["record"], counts["change"], counts["options"]
    if found != (trailer.records, trailer.changes, trailer.options) or digest != trailer.sha256:
        raise ArchiveError("counts or checksum do not fit: the file was altered")
