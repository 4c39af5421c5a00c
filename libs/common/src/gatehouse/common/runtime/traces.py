"""When this process traces: as long as the settings in force say so, to the collector they name."""

from __future__ import annotations

import asyncio
import logging

from gatehouse.common.config.hub import ConfigHub
from gatehouse.common.config.resolved import ResolvedSettings, ServiceName, Tracing
from gatehouse.common.observability.logging import parse_level
from gatehouse.common.observability.otlp import SpanForwarder
from gatehouse.common.observability.tracing import SPANS
from gatehouse.common.runtime.following import follow_settings

_DRAIN_S = 1.0
_PARTS = {
    ServiceName.PROXY: "Control Plane",
    ServiceName.AUTHORIZE: "Authorize",
    ServiceName.AUTHENTICATE: "Authenticate",
    ServiceName.DATABROKER: "Data Broker",
}


async def run_tracing(hub: ConfigHub, spans: SpanForwarder, stop: asyncio.Event) -> None:
    """Record and forward spans until `stop`; a change of the settings applies at once."""

    async def trace(wanted: tuple[Tracing | None, bytes | None], ended: asyncio.Event) -> None:
        tracing, ca_pem = wanted
        if tracing is not None:
            logging.getLogger("gatehouse.tracing").setLevel(parse_level(tracing.log_level))
            SPANS.start(tracing, service_name(hub.current), spans.submit)
        async with asyncio.TaskGroup() as group:
            collector = None if tracing is None else tracing.collector
            forwarding = group.create_task(spans.run(collector, ca_pem), name="spans")
            await ended.wait()
            if tracing is not None:
                await asyncio.to_thread(SPANS.stop)
                await spans.drain(_DRAIN_S)
            forwarding.cancel()

    await follow_settings(
        hub, "tracing", lambda settings: (settings.tracing, settings.ca_bundle_pem), trace, stop
    )


def service_name(settings: ResolvedSettings) -> str:
    """What this process is called in traces."""
    if len(settings.services) == 1:
        (service,) = settings.services
        return _PARTS[service]
    return "Pomerium"
