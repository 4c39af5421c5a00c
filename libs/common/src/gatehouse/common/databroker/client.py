"""Answers how the other services call the databroker.

Every call asks the balanced channel for the connection to use, so a call lands on whichever
databroker is healthy now. Errors leave here as GatehouseError; nothing of grpc escapes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict

from gatehouse.common.clock import Clock, SystemClock
from gatehouse.common.databroker.compressed import unpack
from gatehouse.common.databroker.records import seconds_of, timestamp_of, tombstone_of
from gatehouse.common.errors import (
    AlreadyExistsError,
    GatehouseError,
    NotFoundError,
    UnavailableError,
)
from gatehouse.common.ids import TypeUrl
from gatehouse.common.rpc.status import from_rpc_error
from gatehouse.pb.access_times_pb2 import (
    AccessTime,
    GetAccessTimesRequest,
    PutAccessTimesRequest,
)
from gatehouse.pb.access_times_pb2_grpc import AccessTimesStub
from gatehouse.pb.databroker_admin_pb2 import (
    ChangeServerVersionRequest,
    ChangeServerVersionResponse,
    StatusRequest,
    StatusResponse,
)
from gatehouse.pb.databroker_admin_pb2_grpc import AdminStub
from gatehouse.pb.databroker_pb2 import (
    FULL,
    AcquireLeaseRequest,
    ClearResponse,
    CopyPlace,
    GetRequest,
    Options,
    PatchRequest,
    PatchResponse,
    Projection,
    PutRequest,
    PutResponse,
    QueryRequest,
    QueryResponse,
    Record,
    ReleaseLeaseRequest,
    RenewLeaseRequest,
    ServerInfoResponse,
    SetOptionsRequest,
    SyncLatestRequest,
    SyncLatestResponse,
    SyncRequest,
    SyncResponse,
)
from gatehouse.pb.databroker_pb2_grpc import DataBrokerServiceStub

Q = TypeVar("Q")
T = TypeVar("T")

_STUBS_KEPT: Final = 4  # an https channel set has one channel per host name; swaps replace them


class Channel(Protocol):
    """What the client needs of `rpc.channel.BalancedChannel`."""

    async def ready_channel(self, timeout_s: float) -> grpc.aio.Channel:
        """Return a channel for one call; UnavailableError when none is known in `timeout_s`."""
        ...

    async def wait_recovery(self, most_s: float) -> None:
        """Sleep for `most_s`, or until what did not answer meanwhile answers again."""
        ...


@dataclass(frozen=True, slots=True)
class _Stubs:
    """The services of one databroker."""

    broker: DataBrokerServiceStub
    access_times: AccessTimesStub
    admin: AdminStub


class DatabrokerClient:
    """Typed access to DataBrokerService and AccessTimes.

    Safe for concurrent use within one event loop. Every unary call ends within
    `unary_timeout_s`; streams live until their iterator is closed. Raises GatehouseError:
    UnavailableError when no databroker can be reached, DeadlineExceededError when none answered
    in time, AbortedError when versions belong to another history.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        unary_timeout_s: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        self._channel = channel
        self._timeout_s = unary_timeout_s
        self._clock = clock or SystemClock()
        self._stubs: dict[grpc.aio.Channel, _Stubs] = {}

    async def get(self, type_url: TypeUrl, id: str) -> Record | None:  # noqa: A002
        """Return the live record, or None when there is none."""
        request = GetRequest(type=type_url, id=id)
        try:
            response = await self._unary(
                lambda stub, timeout_s: stub.Get(request, timeout=timeout_s)
            )
        except NotFoundError:
            return None
        return response.record

    async def put(self, records: Sequence[Record]) -> PutResponse:
        """Write all records in one transaction; a record with `deleted_at` deletes."""
        request = PutRequest(records=records)
        return await self._unary(lambda stub, timeout_s: stub.Put(request, timeout=timeout_s))

    async def patch(self, records: Sequence[Record], paths: Sequence[str]) -> PatchResponse:
        """Write only the fields named by `paths`; absent records are left out of the reply."""
        request = PatchRequest(records=records, field_mask=FieldMask(paths=paths))
        return await self._unary(lambda stub, timeout_s: stub.Patch(request, timeout=timeout_s))

    async def query(
        self,
        type_url: TypeUrl,
        filter: Mapping[str, object] | None = None,  # noqa: A002
        limit: int = 100,
        offset: int = 0,
        query: str = "",
    ) -> QueryResponse:
        """Return one page of records in (type, id) order; limit 0 returns only the count."""
        request = QueryRequest(type=type_url, query=query, offset=offset, limit=limit)
        if filter:
            ParseDict(dict(filter), request.filter)
        return await self._unary(lambda stub, timeout_s: stub.Query(request, timeout=timeout_s))

    async def delete(self, type_url: TypeUrl, id: str) -> PutResponse:  # noqa: A002
        """Delete the record; deleting what is absent is no error."""
        return await self.put([tombstone_of(type_url, id, now_s=self._clock.now_s())])

    async def acquire_lease(self, name: str, duration_s: float) -> str | None:
        """Return the new lease's id, or None while another holds it."""
        request = AcquireLeaseRequest(name=name, duration=_duration(duration_s))
        try:
            response = await self._unary(
                lambda stub, timeout_s: stub.AcquireLease(request, timeout=timeout_s)
            )
        except AlreadyExistsError:
            return None
        return response.id

    async def renew_lease(self, name: str, id: str, duration_s: float) -> None:  # noqa: A002
        """Extend a lease. Raises AlreadyExistsError when another has taken it since."""
        request = RenewLeaseRequest(name=name, id=id, duration=_duration(duration_s))
        await self._unary(lambda stub, timeout_s: stub.RenewLease(request, timeout=timeout_s))

    async def release_lease(self, name: str, id: str) -> None:  # noqa: A002
        """Give a lease up; no error when it was not ours any more."""
        request = ReleaseLeaseRequest(name=name, id=id)
        await self._unary(lambda stub, timeout_s: stub.ReleaseLease(request, timeout=timeout_s))

    async def put_access_times(self, times: Mapping[tuple[TypeUrl, str], float]) -> None:
        """Note when records were used: type and id to Unix seconds. At most 10,000 at a time.

        A later time that is held already stays; records that do not exist are passed over.
        """
        request = PutAccessTimesRequest(
            access_time=(
                AccessTime(type=type_url, id=id_, accessed_at=timestamp_of(at_s))
                for (type_url, id_), at_s in times.items()
            )
        )
        await self._access_times(
            lambda stub, timeout_s: stub.PutAccessTimes(request, timeout=timeout_s)
        )

    async def access_times(self, type_url: TypeUrl, ids: Sequence[str]) -> Mapping[str, float]:
        """Return when records were last used, in Unix seconds; those never noted are left out."""
        request = GetAccessTimesRequest(type=type_url, id=ids)
        response = await self._access_times(
            lambda stub, timeout_s: stub.GetAccessTimes(request, timeout=timeout_s)
        )
        return {item.id: seconds_of(item.accessed_at) for item in response.access_time}

    async def list_types(self) -> Sequence[str]:
        """Return the types that have a live record."""
        answer = await self._unary(
            lambda stub, timeout_s: stub.ListTypes(Empty(), timeout=timeout_s)
        )
        return tuple(answer.types)

    async def set_options(self, type_url: str, options: Options) -> None:
        """Replace the options of a type; it must not be empty."""
        request = SetOptionsRequest(type=type_url, options=options)
        await self._unary(lambda stub, timeout_s: stub.SetOptions(request, timeout=timeout_s))

    async def clear(self) -> ClearResponse:
        """Delete every record and begin a new history. For operators."""
        return await self._unary(lambda stub, timeout_s: stub.Clear(Empty(), timeout=timeout_s))

    async def status(self) -> StatusResponse:
        """Return which store the databroker has, and where it stands. For operators."""
        request = StatusRequest()
        return await self._within(
            lambda stubs, timeout_s: stubs.admin.Status(request, timeout=timeout_s)
        )

    async def change_server_version(self) -> ChangeServerVersionResponse:
        """Begin a new history with the same records. For operators."""
        request = ChangeServerVersionRequest()
        return await self._within(
            lambda stubs, timeout_s: stubs.admin.ChangeServerVersion(request, timeout=timeout_s)
        )

    async def server_info(self) -> ServerInfoResponse:
        """Return the server version and the span of the change log."""
        return await self._unary(
            lambda stub, timeout_s: stub.ServerInfo(Empty(), timeout=timeout_s)
        )

    async def sync(
        self,
        server_version: int,
        record_version: int,
        type_url: TypeUrl,
        heartbeat_s: float | None = None,
        projection: Projection.ValueType = FULL,
        *,
        stamp: int = 0,
        batches: bool = False,
        wait: bool = True,
    ) -> AsyncGenerator[SyncResponse, None]:
        """Yield changes after `record_version`, for ever; heartbeats if `heartbeat_s` is given.

        Without `wait` the end comes after the changes that there are.

        `type_url` "" means every type. `projection` says how much of each record is wanted,
        `batches` that records may come several at a time. `stamp` is that of `record_version`.

        Has no deadline. Close the iterator to end the call. Raises AbortedError when the versions
        are of another history or too old.
        """
        request = SyncRequest(
            server_version=server_version,
            record_version=record_version,
            type=type_url,
            projection=projection,
            batches=batches,
            stamp=stamp,
            wait=wait,
        )
        if heartbeat_s is not None:
            request.heartbeat_interval.CopyFrom(_duration(heartbeat_s))
        stub = (await self._connected()).broker
        async with aclosing(_messages(stub.Sync(request))) as messages:
            async for message in messages:
                yield message

    async def sync_latest(
        self,
        type_url: TypeUrl,
        projection: Projection.ValueType = FULL,
        after: CopyPlace | None = None,
    ) -> AsyncGenerator[SyncLatestResponse, None]:
        """Yield all live records, then the versions they stand for, then end.

        With `after` they come in batches, from that place on; an empty one is the beginning.
        """
        stub = (await self._connected()).broker
        request = SyncLatestRequest(
            type=type_url, projection=projection, after=after, zstd=after is not None
        )
        async with aclosing(_messages(stub.SyncLatest(request))) as messages:
            async for message in messages:
                unpack(message.batch)
                yield message

    async def wait_recovery(self, most_s: float) -> None:
        """Sleep for `most_s`, or until a databroker answers again after none did meanwhile."""
        await self._channel.wait_recovery(most_s)

    async def _unary(self, call: Callable[[DataBrokerServiceStub, float], Awaitable[T]]) -> T:
        """Make the call within the time budget, waiting for an address included.

        What can be repeated without harm is tried once more elsewhere by the channel itself
        (rpc/service_config.py); writes are not: they may have been done.
        """
        return await self._within(lambda stubs, timeout_s: call(stubs.broker, timeout_s))

    async def _access_times(self, call: Callable[[AccessTimesStub, float], Awaitable[T]]) -> T:
        return await self._within(lambda stubs, timeout_s: call(stubs.access_times, timeout_s))

    async def _within(self, call: Callable[[_Stubs, float], Awaitable[T]]) -> T:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._timeout_s
        stubs = await self._connected()
        return await _translated(call(stubs, max(0.0, deadline_s - loop.time())))

    async def _connected(self) -> _Stubs:
        channel = await self._channel.ready_channel(self._timeout_s)
        stubs = self._stubs.get(channel)
        if stubs is None:
            while len(self._stubs) >= _STUBS_KEPT:
                del self._stubs[next(iter(self._stubs))]
            stubs = _Stubs(
                DataBrokerServiceStub(channel), AccessTimesStub(channel), AdminStub(channel)
            )
            self._stubs[channel] = stubs
        return stubs


async def _translated(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    except asyncio.CancelledError as error:
        if _is_own_cancellation():
            raise
        raise _closed() from error
    except grpc.aio.UsageError as error:
        raise _closed() from error


async def _messages(call: grpc.aio.UnaryStreamCall[Q, T]) -> AsyncGenerator[T, None]:
    try:
        async for message in call:
            yield message
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    except asyncio.CancelledError as error:
        if _is_own_cancellation():
            raise
        raise _closed() from error
    except grpc.aio.UsageError as error:
        raise _closed() from error
    finally:
        call.cancel()


def _is_own_cancellation() -> bool:
    """Tell this task's cancellation from a call that died with its closed channel.

    grpc.aio raises CancelledError for both; taking the second for the first would silently end
    the task that follows a stream.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _closed() -> GatehouseError:
    return UnavailableError(
        "the databroker connection was closed during the call", reason="channel-closed"
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration
