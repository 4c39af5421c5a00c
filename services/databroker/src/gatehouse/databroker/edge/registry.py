"""How the Registry RPCs meet the store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Final, cast

from gatehouse.databroker.core.registry import (
    CALL_BACK_S,
    TTL_S,
    Entry,
    accept_services,
    of_kinds,
)
from gatehouse.databroker.edge.backends.base import Storage
from gatehouse.databroker.edge.servicer import Context, within
from gatehouse.pb import registry_pb2 as pb
from gatehouse.pb import registry_pb2_grpc as pb_grpc

WATCH_S: Final = 5.0  # between looks for what other databrokers were told, and what has expired


class RegistryServicer(pb_grpc.RegistryServicer):
    """registry.Registry over one store."""

    def __init__(self, storage: Storage, *, watch_s: float = WATCH_S) -> None:
        self._storage = storage
        self._watch_s = watch_s
        self._reported = asyncio.Event()

    async def Report(  # noqa: N802
        self, request: pb.RegisterRequest, context: Context
    ) -> pb.RegisterResponse:
        """Note where services are; each report holds for TTL_S."""
        del context
        entries = accept_services(request.services)
        if entries:
            await within(self._storage.register(entries, int(TTL_S * 1e6)))
            reported, self._reported = self._reported, asyncio.Event()
            reported.set()
        response = pb.RegisterResponse()
        response.call_back_after.FromMilliseconds(int(CALL_BACK_S * 1e3))
        return response

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ServiceList:  # noqa: N802
        """Return what was reported lately."""
        del context
        return _listed(of_kinds(await within(self._storage.registered()), request.kinds))

    async def Watch(  # noqa: N802
        self, request: pb.ListRequest, context: Context
    ) -> AsyncIterator[pb.ServiceList]:
        """Send the list, and again whenever it is another one."""
        del context
        sent: Sequence[Entry] | None = None
        while True:
            reported = self._reported
            found = of_kinds(await within(self._storage.registered()), request.kinds)
            if found != sent:
                sent = found
                yield _listed(found)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._watch_s):
                    await reported.wait()


def _listed(entries: Sequence[Entry]) -> pb.ServiceList:
    return pb.ServiceList(
        services=(
            pb.Service(kind=cast("pb.ServiceKind.ValueType", kind), endpoint=endpoint)
            for kind, endpoint in entries
        )
    )
