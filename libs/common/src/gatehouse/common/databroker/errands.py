"""What every process has to do at the databroker, beside its services' own business."""

from __future__ import annotations

import asyncio
from typing import Final

from gatehouse.common.config.resolved import ServiceName
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.connection import DatabrokerConnection
from gatehouse.common.databroker.one_store import watch_one_store
from gatehouse.common.databroker.registration import keep_registered
from gatehouse.common.runtime.context import ProcessContext

_SUBJECTS: Final = (
    ServiceName.DATABROKER,
    ServiceName.PROXY,
    ServiceName.AUTHORIZE,
    ServiceName.AUTHENTICATE,
)


async def run_errands(context: ProcessContext, stop: asyncio.Event) -> None:
    """Over one connection until `stop`. Raises ConfigError without a databroker to call."""
    settings = context.config.current
    subject = next(name for name in _SUBJECTS if settings.runs(name))
    connection = DatabrokerConnection(context, str(subject))
    context.config.join("errands", connection.prepare)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(connection.run(stop), name="errands channel")
        tasks.create_task(keep_registered(context, connection, stop), name="registration")
        if not settings.runs(ServiceName.DATABROKER):
            client = DatabrokerClient(connection, clock=context.clock)
            watching = watch_one_store(client, context.health, context.clock, stop)
            tasks.create_task(watching, name="one store")
