"""How spans leave this process: batches of OTLP, as they are, to the collector of the settings.

Ours and those of the Envoy beside us go the same way. The queue is bounded: a collector that does
not answer costs spans, never memory or requests.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import grpc
import grpc.aio
import httpx

from gatehouse.common.observability.logging import get_logger
from gatehouse.common.rpc.trust import roots_pem

if TYPE_CHECKING:
    from gatehouse.common.config.resolved import Collector

EXPORT_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
MAX_BATCH_BYTES: Final = 4 << 20
MAX_QUEUED: Final = 64  # batches
_LOG_INTERVAL_S: Final = 60.0

_log = get_logger("tracing")


class SpanForwarder:
    """Sends batches one after another. Belongs to one event loop."""

    def __init__(self) -> None:
        self.dropped = 0  # batches, for want of room or because the collector did not take them
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(MAX_QUEUED)
        self._next_log_s = 0.0

    def submit(self, batch: bytes) -> None:
        """Queue a serialized ExportTraceServiceRequest; dropped when there is no room."""
        if len(batch) > MAX_BATCH_BYTES:
            self._lost("too large")
            return
        try:
            self._queue.put_nowait(batch)
        except asyncio.QueueFull:
            self._lost("the collector is too slow")

    async def run(self, collector: Collector | None, ca_pem: bytes | None) -> None:
        """Send until cancelled; `ca_pem`: further trusted roots.

        Without a collector what is queued is thrown away.
        """
        if collector is None:
            while True:
                await self._queue.get()
                self._queue.task_done()
        if collector.is_grpc:
            async with _channel(collector, ca_pem) as channel:
                export: Any = channel.unary_unary(EXPORT_METHOD)
                metadata = tuple((name.lower(), value) for name, value in collector.headers)
                await self._send(
                    lambda batch: export(batch, metadata=metadata, timeout=collector.timeout_s)
                )
        async with httpx.AsyncClient(
            verify=_tls(ca_pem), timeout=collector.timeout_s, trust_env=False
        ) as client:
            headers = {**dict(collector.headers), "content-type": "application/x-protobuf"}

            async def post(batch: bytes) -> None:
                answer = await client.post(collector.url, content=batch, headers=headers)
                answer.raise_for_status()

            await self._send(post)

    async def drain(self, timeout_s: float) -> None:
        """Wait until everything queued was sent, at most `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._queue.join()
        except TimeoutError:
            self._lost("the process ends")

    async def _send(self, export: Callable[[bytes], Any]) -> None:
        while True:
            batch = await self._queue.get()
            try:
                await export(batch)
            except grpc.aio.AioRpcError as error:
                self._lost(error.code().name)
            except httpx.HTTPStatusError as error:
                self._lost(f"HTTP {error.response.status_code}")
            except (httpx.HTTPError, OSError) as error:
                self._lost(type(error).__name__)
            finally:
                self._queue.task_done()

    def _lost(self, why: str) -> None:
        self.dropped += 1
        now_s = time.monotonic()
        if now_s >= self._next_log_s:
            self._next_log_s = now_s + _LOG_INTERVAL_S
            _log.warning("spans are lost", reason=why, batches=self.dropped)


def _channel(collector: Collector, ca_pem: bytes | None) -> grpc.aio.Channel:
    parts = urlsplit(collector.url)
    target = parts.netloc.rpartition("@")[2]
    if parts.port is None:
        target += ":443" if parts.scheme == "https" else ":4317"
    if parts.scheme == "https":
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(roots_pem(ca_pem)))
    return grpc.aio.insecure_channel(target)


def _tls(ca_pem: bytes | None) -> ssl.SSLContext:
    roots = roots_pem(ca_pem)
    return ssl.create_default_context(cadata=roots.decode("ascii") if roots else None)
