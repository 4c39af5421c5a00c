"""grpc.health.v1 with the process's real status (spec: databroker §12).

`Check` answers NOT_FOUND for a name this process does not serve; `Watch` answers SERVICE_UNKNOWN
and goes on watching, as the protocol's definition asks. Both need no credential.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gatehouse.common.errors import NotFoundError, ResourceExhaustedError
from gatehouse.common.runtime.health import HealthRegistry, ServiceStatus

WATCHERS_LIMIT: Final = 2_000  # anyone may watch, so the number of watches is bounded

_Status = health_pb2.HealthCheckResponse.ServingStatus
_STATUS: Final = {
    ServiceStatus.SERVING: _Status.SERVING,
    ServiceStatus.NOT_SERVING: _Status.NOT_SERVING,
    ServiceStatus.UNKNOWN: _Status.SERVICE_UNKNOWN,
}


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # generated, untyped
    """Reads a HealthRegistry; `stop` ends every watch."""

    def __init__(self, health: HealthRegistry) -> None:
        self._health = health
        self._stopped = False
        self._watchers: set[asyncio.Event] = set()

    def stop(self) -> None:
        """Tell every watcher NOT_SERVING once more and end its stream."""
        self._stopped = True
        for changed in self._watchers:
            changed.set()

    async def Check(  # noqa: N802  # the protocol's name
        self,
        request: health_pb2.HealthCheckRequest,
        _context: grpc.aio.ServicerContext[object, object],
    ) -> health_pb2.HealthCheckResponse:
        """The status now."""
        status = self._status(request.service)
        if status is ServiceStatus.UNKNOWN:
            raise NotFoundError(
                f"this process does not run {request.service[:128]!r}", reason="unknown-service"
            )
        return health_pb2.HealthCheckResponse(status=_STATUS[status])

    async def Watch(  # noqa: N802  # the protocol's name
        self,
        request: health_pb2.HealthCheckRequest,
        _context: grpc.aio.ServicerContext[object, object],
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now and after each change, until the server stops."""
        if len(self._watchers) >= WATCHERS_LIMIT:
            raise ResourceExhaustedError(
                f"{WATCHERS_LIMIT} health watches are open already", reason="too-many-watches"
            )
        changed = asyncio.Event()
        unsubscribe = self._health.subscribe(changed.set)
        self._watchers.add(changed)
        last: ServiceStatus | None = None
        try:
            while True:
                changed.clear()
                stopped = self._stopped  # before the yield: what is told last must be the end
                status = self._status(request.service)
                if status is not last:
                    last = status
                    yield health_pb2.HealthCheckResponse(status=_STATUS[status])
                if stopped:
                    return
                await changed.wait()
        finally:
            self._watchers.discard(changed)
            unsubscribe()

    def _status(self, name: str) -> ServiceStatus:
        status = self._health.service_status(name)
        if self._stopped and status is ServiceStatus.SERVING:
            return ServiceStatus.NOT_SERVING
        return status
