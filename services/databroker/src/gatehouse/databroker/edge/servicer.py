"""How the databroker's RPCs meet the store: checks, deadlines, streams.

Methods raise errors of the common tree; the server in front turns them into statuses.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, Final, TypeAlias, TypeVar

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.errors import (
    AbortedError,
    AlreadyExistsError,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
)
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.observability.metrics import (
    STORAGE_CHECKPOINT_RECORD,
    STORAGE_CHECKPOINT_SERVER,
)
from gatehouse.databroker.core.feed import GONE_BACK, Position, admit, check_stamp
from gatehouse.databroker.core.leases import MAX_NAME_BYTES, accept_duration
from gatehouse.databroker.core.options import NO_RULES, TypeRules, accept_options
from gatehouse.databroker.core.projection import accept_projection, project
from gatehouse.databroker.core.query import accept_query
from gatehouse.databroker.core.records import (
    MAX_ID_BYTES,
    MAX_TYPE_BYTES,
    Key,
    Patch,
    Put,
    accept,
    check_name,
)
from gatehouse.databroker.edge.backends.base import MAX_PAGE_BYTES, Checkpoint, Storage
from gatehouse.databroker.edge.change_hub import BATCH_LIMIT, Change, ChangeHub, Follower
from gatehouse.databroker.edge.copy_turns import CopyTurns
from gatehouse.databroker.edge.snapshot_pages import SnapshotPages
from gatehouse.pb import databroker_pb2 as pb
from gatehouse.pb import databroker_pb2_grpc as pb_grpc

UNARY_S: Final = 15.0  # the caller's deadline is 5 s; this one is for callers without
MIN_HEARTBEAT_S: Final = 0.1
MAX_HEARTBEAT_S: Final = 3600.0
MAX_MASK_PATHS: Final = 100
MOST_LOST: Final = 10_000_000  # versions, by a store that was put back

T = TypeVar("T")

_log = get_logger("databroker")
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


async def within(work: Awaitable[T]) -> T:
    """Return what the store answers. Raises DeadlineExceededError when it takes too long."""
    try:
        async with asyncio.timeout(UNARY_S):
            return await work
    except TimeoutError as error:
        raise DeadlineExceededError(f"the store took longer than {UNARY_S:g} s") from error


def _check_type(type_: str) -> str:
    if type_:
        check_name(type_, "type", MAX_TYPE_BYTES)
    return type_


def _duration_us(duration: Duration) -> int:
    return duration.seconds * 1_000_000 + duration.nanos // 1_000


class DataBrokerServicer(pb_grpc.DataBrokerServiceServicer):
    """databroker.DataBrokerService over one store."""

    def __init__(self, storage: Storage, hub: ChangeHub, clock: Clock, rng: Rng) -> None:
        self._storage = storage
        self._hub = hub
        self._clock = clock
        self._rng = rng
        self._pages = SnapshotPages(storage, clock)
        self._turns = CopyTurns(rng)

    async def Get(self, request: pb.GetRequest, context: Context) -> pb.GetResponse:  # noqa: N802
        """Return a live record."""
        del context
        check_name(request.type, "type", MAX_TYPE_BYTES)
        check_name(request.id, "id", MAX_ID_BYTES)
        record = await within(self._storage.get(request.type, request.id))
        if record is None:
            raise NotFoundError("no such record", reason="record-not-found")
        return pb.GetResponse(record=record.to_message())

    async def Put(self, request: pb.PutRequest, context: Context) -> pb.PutResponse:  # noqa: N802
        """Write records in one transaction; the answer has one record for each of them."""
        del context
        result = await within(self._storage.write(Put(accept(request.records))))
        return pb.PutResponse(
            server_version=result.server_version,
            records=(record.to_message() for record in result.records),
        )

    async def Patch(  # noqa: N802
        self, request: pb.PatchRequest, context: Context
    ) -> pb.PatchResponse:
        """Write masked fields in one transaction; absent records are left out of the answer."""
        del context
        paths = tuple(request.field_mask.paths)
        if len(paths) > MAX_MASK_PATHS:
            raise InvalidArgumentError(
                f"field_mask has {len(paths)} paths; at most {MAX_MASK_PATHS} are taken"
            )
        patch = Patch(accept(request.records, deletions=False), paths)
        result = await within(self._storage.write(patch))
        return pb.PatchResponse(
            server_version=result.server_version,
            records=(record.to_message() for record in result.records),
        )

    async def Query(  # noqa: N802
        self, request: pb.QueryRequest, context: Context
    ) -> pb.QueryResponse:
        """Answer a query. The version hint is for caches and changes nothing here."""
        del context
        query = accept_query(
            type_=_check_type(request.type),
            filter_=request.filter,
            text=request.query,
            offset=request.offset,
            limit=request.limit,
        )
        answer = await within(self._storage.query(query))
        return pb.QueryResponse(
            records=(record.to_message() for record in answer.records),
            total_count=answer.total,
            server_version=answer.position.server_version,
            record_version=answer.position.latest,
        )

    async def ListTypes(self, request: Empty, context: Context) -> pb.ListTypesResponse:  # noqa: N802
        """Return the types that have a live record."""
        del request, context
        return pb.ListTypesResponse(types=await within(self._storage.list_types()))

    async def ServerInfo(self, request: Empty, context: Context) -> pb.ServerInfoResponse:  # noqa: N802
        """Return the history and the ends of the log."""
        del request, context
        position = await within(self._storage.position())
        return pb.ServerInfoResponse(
            server_version=position.server_version,
            earliest_record_version=position.earliest,
            latest_record_version=position.latest,
        )

    async def Clear(self, request: Empty, context: Context) -> pb.ClearResponse:  # noqa: N802
        """Delete everything but leases and begin a new history."""
        del request, context
        old, new = await within(self._storage.clear())
        _show(Checkpoint())
        return pb.ClearResponse(old_server_version=old, new_server_version=new)

    async def GetOptions(  # noqa: N802
        self, request: pb.GetOptionsRequest, context: Context
    ) -> pb.GetOptionsResponse:
        """Return the options in force for a type."""
        del context
        check_name(request.type, "type", MAX_TYPE_BYTES)
        return pb.GetOptionsResponse(options=await self._options(request.type))

    async def SetOptions(  # noqa: N802
        self, request: pb.SetOptionsRequest, context: Context
    ) -> pb.SetOptionsResponse:
        """Replace the options of a type; empty ones remove them."""
        del context
        check_name(request.type, "type", MAX_TYPE_BYTES)
        rules: TypeRules | None = accept_options(request.options)
        if rules == NO_RULES:
            rules = None
        await within(self._storage.set_options(request.type, rules))
        return pb.SetOptionsResponse(options=await self._options(request.type))

    async def _options(self, type_: str) -> pb.Options:
        rules = await within(self._storage.options(type_))
        if rules is None:
            raise NotFoundError("this type has no options", reason="options-not-found")
        return rules.to_message()

    async def AcquireLease(  # noqa: N802
        self, request: pb.AcquireLeaseRequest, context: Context
    ) -> pb.AcquireLeaseResponse:
        """Take a lease under a new id."""
        del context
        check_name(request.name, "name", MAX_NAME_BYTES)
        duration_us = accept_duration(_duration_us(request.duration))
        lease_id = self._rng.uuid4()
        if not await within(self._storage.acquire_lease(request.name, lease_id, duration_us)):
            raise AlreadyExistsError("the lease is held by another", reason="lease-held")
        return pb.AcquireLeaseResponse(id=lease_id)

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: Context) -> Empty:  # noqa: N802
        """Extend a lease."""
        del context
        check_name(request.name, "name", MAX_NAME_BYTES)
        check_name(request.id, "id", MAX_NAME_BYTES)
        duration_us = accept_duration(_duration_us(request.duration))
        if not await within(self._storage.renew_lease(request.name, request.id, duration_us)):
            raise AlreadyExistsError("the lease is held by another", reason="lease-held")
        return Empty()

    async def ReleaseLease(self, request: pb.ReleaseLeaseRequest, context: Context) -> Empty:  # noqa: N802
        """Give a lease back; one that is not the caller's stays as it is."""
        del context
        check_name(request.name, "name", MAX_NAME_BYTES)
        await within(self._storage.release_lease(request.name, request.id))
        return Empty()

    async def SyncLatest(  # noqa: N802
        self, request: pb.SyncLatestRequest, context: Context
    ) -> AsyncIterator[pb.SyncLatestResponse]:
        """Send the live records, then options, then the one position to Sync from."""
        del context
        type_ = _check_type(request.type)
        projection = accept_projection(request.projection)
        after, earliest = await self._begun(request.after)
        is_in_batches = request.HasField("after")
        is_packed = is_in_batches and request.zstd
        is_last, is_first, has_turn = False, True, False
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self._pages.copy())
            while not is_last:
                self._hub.check_open()
                if not is_first and not has_turn:  # a copy of one page takes none
                    await stack.enter_async_context(self._turns.turn())
                    has_turn = True
                page = await within(self._pages.page(type_, after, projection, zstd=is_packed))
                earliest = earliest or page.position
                _check_history(page.position, earliest)
                earliest = min(earliest, page.position, key=lambda position: position.latest)
                is_last = page.is_last
                is_first = False
                if page.end is None:
                    continue
                after = page.end
                if is_in_batches:
                    batch = pb.RecordBatch(
                        records=page.records,
                        zstd=page.zstd,
                        position=_versions(page.position),
                    )
                    yield pb.SyncLatestResponse(batch=batch)
                else:
                    for record in page.records:
                        yield pb.SyncLatestResponse(record=record)
        assert earliest is not None
        for item in await self._typed_options(type_):
            yield pb.SyncLatestResponse(options=item)
        _check_history(await within(self._storage.position()), earliest)
        # What changed since the first page was read may be missing, and comes with Sync.
        yield pb.SyncLatestResponse(versions=_versions(earliest))

    async def _begun(self, place: pb.CopyPlace) -> tuple[Key | None, Position | None]:
        """Return where a copy goes on, and its earliest position. Raises AbortedError."""
        if not place.HasField("position"):
            return None, None
        check_name(place.type, "after.type", MAX_TYPE_BYTES)
        check_name(place.id, "after.id", MAX_ID_BYTES)
        position = place.position
        earliest = await self._admitted(
            position.server_version, position.latest_record_version, position.stamp
        )
        return (place.type, place.id), earliest

    async def _admitted(self, server_version: int, record_version: int, stamp: int) -> Position:
        """Return that position where a reader can go on from there. Raises AbortedError."""
        position = await within(self._storage.position())
        try:
            admit(position, server_version, record_version)
            if stamp:
                page = await within(self._storage.changes(record_version, limit=1))
                held = page.before
                if not held and record_version == page.position.latest:
                    held = page.position.stamp
                check_stamp(record_version, stamp, held)
        except AbortedError as error:
            if error.reason in GONE_BACK:
                await self._begin_anew(position, record_version, stamp, error)
            raise
        return Position(server_version, record_version, position.pruned, stamp)

    async def _begin_anew(
        self, position: Position, seen_version: int, stamp: int, error: AbortedError
    ) -> None:
        """Begin another history: somebody has seen what the store does not hold.

        It was put back while no databroker looked. Others may not have noticed: with the same
        history, what they know of records that are gone would still pass for known.
        """
        _log.warning("store has gone back", latest=position.latest, reason=str(error))
        # A client's number is believed only so far: versions must not run out.
        seen_version = min(seen_version, position.latest + MOST_LOST)
        seen = Position(position.server_version, seen_version, position.pruned, stamp)
        await within(self._storage.renew_history(seen))

    async def Sync(  # noqa: N802
        self, request: pb.SyncRequest, context: Context
    ) -> AsyncIterator[pb.SyncResponse]:
        """Send options once, then the changes after a position, and stay unless told not to."""
        self._hub.check_open()
        type_ = _check_type(request.type)
        projection = accept_projection(request.projection)
        heartbeat_s = _heartbeat_s(request)
        follower = self._hub.follow(request.server_version, request.record_version, type_)
        await self._admitted(request.server_version, request.record_version, request.stamp)
        # Tells the client that it may go on from there, also while there is nothing to send.
        await context.send_initial_metadata(())
        for item in await self._typed_options(type_):
            yield pb.SyncResponse(options=item)
        if request.HasField("wait") and not request.wait:
            async for response in self._drain(request, projection):
                yield response
            return
        async for response in self._follow(follower, request, projection, heartbeat_s):
            yield response

    async def _follow(
        self,
        follower: Follower,
        request: pb.SyncRequest,
        projection: pb.Projection.ValueType,
        heartbeat_s: float | None,
    ) -> AsyncIterator[pb.SyncResponse]:
        due_s = self._clock.monotonic_s()  # the first one as soon as the backlog is drained
        while True:
            changes = await follower.take()
            size = sum(change.size for change in changes)
            if request.batches and len(changes) > 1 and size <= MAX_PAGE_BYTES:
                yield _batch(changes, projection)
            else:
                for change in changes:
                    yield change.response(projection)
            if changes:
                continue
            if heartbeat_s is None:
                await follower.wait(None, for_tick=False)
                continue
            now_s = self._clock.monotonic_s()
            if now_s >= due_s:
                versions = follower.heartbeat()
                if versions is None:
                    await follower.wait(None, for_tick=True)
                    continue
                due_s = now_s + heartbeat_s
                yield pb.SyncResponse(heartbeat=versions)
                continue
            await follower.wait(due_s - now_s, for_tick=False)

    async def _drain(
        self, request: pb.SyncRequest, projection: pb.Projection.ValueType
    ) -> AsyncIterator[pb.SyncResponse]:
        cursor = request.record_version
        end = (await within(self._storage.position())).latest
        while cursor < end:
            self._hub.check_open()
            page = await within(
                self._storage.changes(cursor, type_=request.type, limit=BATCH_LIMIT)
            )
            admit(page.position, request.server_version, cursor)
            for record in page.changes:
                yield pb.SyncResponse(record=project(record, projection))
            cursor = page.end

    async def _typed_options(self, type_: str) -> list[pb.TypedOptions]:
        if type_:
            rules = await within(self._storage.options(type_))
            found = {} if rules is None else {type_: rules}
        else:
            found = dict(await within(self._storage.all_options()))
        return [
            pb.TypedOptions(typeURL=name, options=rules.to_message())
            for name, rules in found.items()
        ]


def _check_history(found: Position, begun: Position) -> None:
    if found.server_version != begun.server_version:
        raise AbortedError("the history changed meanwhile", reason="invalid-server-version")


def _batch(changes: Sequence[Change], projection: pb.Projection.ValueType) -> pb.SyncResponse:
    records = (change.response(projection).record for change in changes)
    return pb.SyncResponse(batch=pb.RecordBatch(records=records))


def _versions(position: Position) -> pb.Versions:
    return pb.Versions(
        server_version=position.server_version,
        latest_record_version=position.latest,
        stamp=position.stamp,
    )


def _heartbeat_s(request: pb.SyncRequest) -> float | None:
    if not request.HasField("heartbeat_interval"):
        return None
    interval_s = _duration_us(request.heartbeat_interval) / 1e6
    return min(max(interval_s, MIN_HEARTBEAT_S), MAX_HEARTBEAT_S)


class CheckpointServicer(pb_grpc.CheckpointServiceServicer):
    """databroker.CheckpointService: a follower's place in its leader's log."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def GetCheckpoint(  # noqa: N802
        self, request: pb.GetCheckpointRequest, context: Context
    ) -> pb.GetCheckpointResponse:
        """Return the stored position. Without clustering every databroker is a leader."""
        del request, context
        held = await within(self._storage.checkpoint())
        _show(held)
        checkpoint = pb.Checkpoint(
            server_version=held.server_version, record_version=held.record_version
        )
        return pb.GetCheckpointResponse(checkpoint=checkpoint, is_leader=True)

    async def SetCheckpoint(  # noqa: N802
        self, request: pb.SetCheckpointRequest, context: Context
    ) -> pb.SetCheckpointResponse:
        """Store a position."""
        del context
        given = Checkpoint(request.checkpoint.server_version, request.checkpoint.record_version)
        await within(self._storage.set_checkpoint(given))
        _show(given)
        return pb.SetCheckpointResponse()


def _show(checkpoint: Checkpoint) -> None:
    STORAGE_CHECKPOINT_SERVER.set(checkpoint.server_version)
    STORAGE_CHECKPOINT_RECORD.set(checkpoint.record_version)
