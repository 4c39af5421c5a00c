"""`gatehouse databroker` export and import: all records, from one store into another.

Payloads, options and times of last use are moved; versions and times of change are the new
store's. An export is whole or not there. An import reads the whole archive before it writes, may
be repeated after a failure, and at the end holds what is there against what was to be there.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, Final, TypeVar

from gatehouse.cli.archive import (
    ArchiveWriter,
    ContentDigest,
    Key,
    Summary,
    check,
    data_of,
    key_of,
    read_items,
)
from gatehouse.cli.databroker_inspect import CLEARING_S, Ask, counts
from gatehouse.cli.operator import EXIT_FAILED, with_databroker
from gatehouse.cli.progress import Advance, progress
from gatehouse.common.clock import SystemClock
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.records import is_deleted, seconds_of, timestamp_of
from gatehouse.common.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)
from gatehouse.common.ids import SERVICE_ACCOUNT, SESSION, TypeUrl
from gatehouse.common.runtime.process import EXIT_CONFIG, EXIT_OK
from gatehouse.pb.databroker_admin_pb2 import ArchivedRecord, ArchiveHeader, ArchiveItem
from gatehouse.pb.databroker_pb2 import FULL, CopyPlace, Record, Versions

STANDARD: Final = "-"
BATCH_RECORDS: Final = 500
BATCH_BYTES: Final = 1 << 20
TRIES: Final = 6  # of one write; the same write twice does no harm
_USED: Final = frozenset({SESSION, SERVICE_ACCOUNT})  # types whose uses are noted

T = TypeVar("T")


def export(config: Path | None, environ: Mapping[str, str], *, target: str, overwrite: bool) -> int:
    """Write all records into a new file of mode 0600, or to standard output."""
    if target == STANDARD and sys.stdout.isatty():
        print("an archive holds tokens and is no text: name a file, or send it on", file=sys.stderr)
        return EXIT_CONFIG
    if target != STANDARD and Path(target).exists() and not overwrite:
        print(f"{target} exists: choose another name, or --overwrite", file=sys.stderr)
        return EXIT_CONFIG

    async def work(client: DatabrokerClient, settings: ResolvedSettings) -> int:
        del settings
        with _new_file(target) as file:
            count = await _export(client, file)
        print(f"exported {count} records", file=sys.stderr)
        return EXIT_OK

    try:
        return with_databroker(config, environ, work, call_s=CLEARING_S)
    except OSError as error:
        print(f"{target} cannot be written: {error.strerror}", file=sys.stderr)
        return EXIT_FAILED


def import_(
    config: Path | None,
    environ: Mapping[str, str],
    *,
    source: str,
    merge: bool,
    replace: bool,
    ask: Ask | None,
) -> int:
    """Write an archive's records into the store, and check that they are there.

    A store that has records is refused unless `merge` (the archive's win, others stay) or `replace`
    (all others are deleted first). `ask` is put a question before either; None: no question.
    """
    if merge and replace:
        print("--merge or --replace, not both", file=sys.stderr)
        return EXIT_CONFIG
    try:
        with _archive(source) as file:
            summary = check(file)

            async def work(client: DatabrokerClient, settings: ResolvedSettings) -> int:
                del settings
                job = _Import(client, file, summary)
                if not await _prepare(client, summary, merge=merge, replace=replace, ask=ask):
                    print("nothing was imported", file=sys.stderr)
                    return EXIT_FAILED
                await job.write()
                return await job.verify()

            return with_databroker(config, environ, work, call_s=CLEARING_S)
    except InvalidArgumentError as error:
        print(f"{source}: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except OSError as error:
        print(f"{source} cannot be read: {error.strerror}", file=sys.stderr)
        return EXIT_CONFIG


# Export


@contextlib.contextmanager
def _new_file(target: str) -> Iterator[IO[bytes]]:
    """A file that is in its place, whole and on the disk, once the block has ended well."""
    if target == STANDARD:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


async def _export(client: DatabrokerClient, file: IO[bytes]) -> int:
    status = await client.status()
    writer = ArchiveWriter(file.write)
    header = ArchiveHeader(
        made_at=timestamp_of(SystemClock().now_s()),
        storage=status.storage,
        server_version=status.server_version,
    )
    writer.add(ArchiveItem(header=header))
    versions: Versions | None = None
    with progress("records exported", sum((await counts(client)).values())) as advance:
        async for message in client.sync_latest(TypeUrl(""), FULL, CopyPlace()):
            match message.WhichOneof("response"):
                case "batch":
                    for one in await _with_uses(client, message.batch.records):
                        writer.add(ArchiveItem(record=one))
                    advance(len(message.batch.records))
                case "versions":
                    versions = message.versions
    if versions is None:
        raise UnavailableError("the databroker ended the copy before it was whole; try again")
    # What changed while the copy was made, so that the archive is of one moment.
    async for changes in _changes(client, versions):
        for one in await _with_uses(client, changes):
            writer.add(ArchiveItem(change=one))
    for options in status.options:
        writer.add(ArchiveItem(options=options))
    return int(writer.end().records)


async def _changes(client: DatabrokerClient, since: Versions) -> AsyncIterator[Sequence[Record]]:
    stream = client.sync(
        since.server_version,
        since.latest_record_version,
        TypeUrl(""),
        stamp=since.stamp,
        batches=True,
        wait=False,
    )
    async for message in stream:
        match message.WhichOneof("response"):
            case "record":
                yield [message.record]
            case "batch":
                yield message.batch.records


async def _with_uses(
    client: DatabrokerClient, records: Sequence[Record]
) -> Sequence[ArchivedRecord]:
    used: dict[Key, float] = {}
    for type_ in _USED:
        ids = [record.id for record in records if record.type == type_]
        if ids:
            found = await client.access_times(type_, ids)
            used |= {(type_, id_): at_s for id_, at_s in found.items()}
    made = []
    for record in records:
        at_s = used.get(key_of(record))
        accessed_at = None if at_s is None else timestamp_of(at_s)
        made.append(ArchivedRecord(record=record, accessed_at=accessed_at))
    return made


# Import


@contextlib.contextmanager
def _archive(source: str) -> Iterator[BinaryIO]:
    """A file that can be read more than once; what comes by standard input is kept meanwhile."""
    if source != STANDARD:
        with Path(source).open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as kept:  # nobody else can open it
        shutil.copyfileobj(sys.stdin.buffer, kept)
        kept.seek(0)
        yield kept


async def _prepare(
    client: DatabrokerClient, summary: Summary, *, merge: bool, replace: bool, ask: Ask | None
) -> bool:
    """Make the store ready to take the records; False when the answer is no."""
    there = sum((await counts(client)).values())
    if not there:
        return True
    if replace:
        if ask is not None and not ask(
            f"Delete the {there} records that are there, and import {summary.records}?"
        ):
            return False
        await client.clear()
        return True
    if not merge:
        raise FailedPreconditionError(
            f"the store has {there} records already: --merge adds the archive's to them (an import "
            "that broke off goes on so), --replace deletes them first"
        )
    return ask is None or ask(f"Add {summary.records} records to the {there} that are there?")


@dataclass(frozen=True, slots=True)
class _Import:
    client: DatabrokerClient
    file: BinaryIO
    summary: Summary

    def _items(self, *kinds: str) -> Iterator[ArchiveItem]:
        self.file.seek(0)
        return (item for item in read_items(self.file) if item.WhichOneof("item") in kinds)

    async def write(self) -> None:
        """Put options first, so that indexes grow with the records, then records and changes."""
        for item in self._items("options"):
            chosen = item.options
            await _patiently(partial(self.client.set_options, chosen.typeURL, chosen.options))
        with progress("records imported", self.summary.steps) as advance:
            batch: list[ArchivedRecord] = []
            size = 0
            for item in self._items("record", "change"):
                one = item.record if item.HasField("record") else item.change
                added = one.ByteSize()
                if batch and (len(batch) == BATCH_RECORDS or size + added > BATCH_BYTES):
                    await self._put(batch, advance)
                    batch, size = [], 0
                batch.append(one)
                size += added
            if batch:
                await self._put(batch, advance)

    async def _put(self, batch: Sequence[ArchivedRecord], advance: Advance) -> None:
        records = [one.record for one in batch]
        await _patiently(partial(self.client.put, records))
        uses = {
            (TypeUrl(one.record.type), one.record.id): seconds_of(one.accessed_at)
            for one in batch
            if one.HasField("accessed_at")
        }
        if uses:
            await _patiently(partial(self.client.put_access_times, uses))
        advance(len(batch))

    def _expected(self) -> Iterator[Record]:
        """What must be there, in order: the records with the changes applied."""
        changed = {key_of(item.change.record): item.change.record for item in self._items("change")}
        kept = (
            item.record.record
            for item in self._items("record")
            if key_of(item.record.record) not in changed
        )
        late = [changed[key] for key in sorted(changed) if not is_deleted(changed[key])]
        return heapq.merge(kept, late, key=key_of)

    async def verify(self) -> int:
        """Hold the store against the archive; the exit status."""
        wanted, found, others = ContentDigest(), ContentDigest(), 0
        missing: list[Key] = []
        different: list[Key] = []
        expected = self._expected()
        due = next(expected, None)
        with progress("records checked", self.summary.records) as advance:
            async for record in _all(self.client):
                while due is not None and key_of(due) < key_of(record):
                    wanted.add(due)
                    missing.append(key_of(due))
                    due = next(expected, None)
                if due is None or key_of(due) != key_of(record):
                    others += 1
                    continue
                wanted.add(due)
                found.add(record)
                if data_of(due) != data_of(record):
                    different.append(key_of(due))
                due = next(expected, None)
                advance(1)
        while due is not None:
            wanted.add(due)
            missing.append(key_of(due))
            due = next(expected, None)
        print(f"there: {found.count} of {wanted.count} records, {others} others", file=sys.stderr)
        print(f"checksum of the archive {wanted.hex()}", file=sys.stderr)
        print(f"checksum of the store   {found.hex()}", file=sys.stderr)
        if not missing and not different:
            return EXIT_OK
        for what, keys in (("missing", missing), ("different", different)):
            for type_, id_ in keys[:5]:
                print(f"{what}: {type_} {id_!r}", file=sys.stderr)
        print(
            f"{len(missing)} records are missing and {len(different)} are different: services that "
            "run meanwhile may have changed them; else run this again with --merge",
            file=sys.stderr,
        )
        return EXIT_FAILED


async def _all(client: DatabrokerClient) -> AsyncIterator[Record]:
    """Every live record in the order of type and id."""
    is_whole = False
    async for message in client.sync_latest(TypeUrl(""), FULL, CopyPlace()):
        match message.WhichOneof("response"):
            case "batch":
                for record in message.batch.records:
                    yield record
            case "versions":
                is_whole = True
    if not is_whole:
        raise UnavailableError("the databroker ended the copy before it was whole; try again")


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """The same call again while the databroker cannot be reached."""
    for attempt in range(TRIES - 1):
        try:
            return await call()
        except (UnavailableError, DeadlineExceededError):
            await asyncio.sleep(0.25 * 2**attempt)
    return await call()
