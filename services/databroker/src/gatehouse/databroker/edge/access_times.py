"""How the AccessTimes RPCs meet the store."""

from __future__ import annotations

from gatehouse.common.clock import Clock
from gatehouse.databroker.core.access_times import accept_access_times, accept_ids
from gatehouse.databroker.core.records import timestamp
from gatehouse.databroker.edge.backends.base import Storage
from gatehouse.databroker.edge.servicer import Context, within
from gatehouse.pb import access_times_pb2 as pb
from gatehouse.pb import access_times_pb2_grpc as pb_grpc


class AccessTimesServicer(pb_grpc.AccessTimesServicer):
    """gatehouse.databroker.AccessTimes over one store."""

    def __init__(self, storage: Storage, clock: Clock) -> None:
        self._storage = storage
        self._clock = clock

    async def PutAccessTimes(  # noqa: N802
        self, request: pb.PutAccessTimesRequest, context: Context
    ) -> pb.PutAccessTimesResponse:
        """Note when records were used; the later time stays, absent records are passed over."""
        del context
        times = accept_access_times(request.access_time, int(self._clock.now_s() * 1e6))
        if times:
            await within(self._storage.put_access_times(times))
        return pb.PutAccessTimesResponse()

    async def GetAccessTimes(  # noqa: N802
        self, request: pb.GetAccessTimesRequest, context: Context
    ) -> pb.GetAccessTimesResponse:
        """Return when these records were last used; those never reported are left out."""
        del context
        ids = accept_ids(request.type, request.id)
        known = await within(self._storage.access_times(request.type, ids)) if ids else {}
        return pb.GetAccessTimesResponse(
            access_time=(
                pb.AccessTime(type=request.type, id=id_, accessed_at=timestamp(known[id_]))
                for id_ in ids
                if id_ in known
            )
        )
