"""health.HealthNotifier: the checks of this process as a stream (spec: databroker §12)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc.aio

from gatehouse.common.runtime.health import HealthRegistry, HealthSnapshot, Status
from gatehouse.pb import health_pb2 as pb
from gatehouse.pb import health_pb2_grpc as pb_grpc

BATCH_S: Final = 15.0  # what changes within so long is told together
RESEND_S: Final = 90.0

_STATUS: Final = {
    Status.UNKNOWN: pb.HEALTH_STATUS_UNKNOWN,
    Status.RUNNING: pb.HEALTH_STATUS_RUNNING,
    Status.TERMINATING: pb.HEALTH_STATUS_TERMINATING,
}


class HealthNotifierServicer(pb_grpc.HealthNotifierServicer):
    """Reads a HealthRegistry. Needs a credential, unlike grpc.health.v1: it says what is wrong."""

    def __init__(
        self, health: HealthRegistry, *, batch_s: float = BATCH_S, resend_s: float = RESEND_S
    ) -> None:
        self._health = health
        self._batch_s = batch_s
        self._resend_s = resend_s

    async def SyncHealth(  # noqa: N802  # the protocol's name
        self,
        _request: pb.HealthStreamRequest,
        _context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[pb.HealthMessage]:
        """All checks at once, after changes, and every so often."""
        changed = asyncio.Event()
        unsubscribe = self._health.subscribe(changed.set)
        try:
            while True:
                changed.clear()
                yield message_of(self._health.snapshot())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._resend_s):
                        await changed.wait()
                        if not self._health.snapshot().terminating:  # that cannot wait
                            await asyncio.sleep(self._batch_s)
        finally:
            unsubscribe()


def message_of(snapshot: HealthSnapshot) -> pb.HealthMessage:
    """Return the wire form."""
    overall = pb.OVERALL_STATUS_RUNNING if snapshot.started else pb.OVERALL_STATUS_STARTING
    if snapshot.terminating:
        overall = pb.OVERALL_STATUS_TERMINATING
    message = pb.HealthMessage(overall_status=overall, required=snapshot.expected)
    errors = []
    for check, record in sorted(snapshot.records.items()):
        status = message.statuses[check]
        status.status = _STATUS[record.status]
        status.attributes.update(record.attributes)
        if record.error:
            status.err = record.error
            errors.append(f"{check}: {record.error}")
    if errors:
        message.overall_err = "; ".join(errors)
    return message
