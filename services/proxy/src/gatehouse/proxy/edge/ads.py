"""How resources reach Envoy: the delta ADS servicer on a Unix socket.

Only the Envoy beside us connects here (mode 0600 in a 0700 directory), so there is no token. What
each stream must be sent next is decided in `core/xds/ordering.py`; this module moves the bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf.any_pb2 import Any as AnyMessage

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.ids import TypeUrl
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.observability.otlp import EXPORT_METHOD
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.proxy.core.xds.ordering import AwaitClusters, Push, Rest, next_step
from gatehouse.proxy.core.xds.refusals import FIRST_S, Retries
from gatehouse.proxy.core.xds.resource import (
    CLUSTER,
    LISTENER,
    PUSH_ORDER,
    ROUTE_CONFIGURATION,
    SHORT_NAMES,
)
from gatehouse.proxy.core.xds.snapshot import Snapshot
from gatehouse.proxy.core.xds.subscription import Acked, Nacked, Request, Subscription
from gatehouse.proxy.edge.grpc_socket import forget, listen

WarmingClusters = Callable[[], Awaitable[frozenset[str]]]

# How long routes wait for the clusters they point at: a name server or health check that does not
# answer must not hold back everything else.
WARM_UP_LIMIT_S: Final = 10.0
_WARM_UP_POLL_S: Final = 0.05
_STOP_GRACE_S: Final = 2.0
_LARGE: Final = 1 << 20  # bytes whose packing is worth a thread

_log = get_logger("proxy")


class AdsServer(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """Serves the newest published snapshot to every stream. Belongs to one event loop."""

    def __init__(
        self,
        health: HealthRegistry,
        clock: Clock,
        rng: Rng,
        *,
        warming_clusters: WarmingClusters | None = None,
        spans: Callable[[bytes], None] | None = None,
        first_retry_s: float = FIRST_S,
    ) -> None:
        """`spans` takes what Envoy has to tell a collector of traces, undecoded.

        `first_retry_s`: what was refused for the state of the machine is sent again after it.
        """
        self.first_retry_s = first_retry_s
        self._spans = spans
        self._health = health
        self._clock = clock
        self._rng = rng
        self._warming_clusters = warming_clusters
        self._snapshot: Snapshot | None = None
        self._streams: set[_Stream] = set()
        self._stop = asyncio.Event()
        self._changed = asyncio.Condition()
        self.in_force = ""  # version of the snapshot that Envoy uses as a whole
        self.serving = False  # Envoy has listeners and routes of ours
        self.refusals: dict[TypeUrl, str] = {}

    @property
    def snapshot(self) -> Snapshot | None:
        """What is being pushed."""
        return self._snapshot

    def publish(self, snapshot: Snapshot) -> None:
        """Make `snapshot` the wanted one. What was published before and not sent is skipped."""
        self._snapshot = snapshot
        for stream in self._streams:
            stream.wake.set()

    async def wait_for(
        self, condition: Callable[[AdsServer], bool], timeout_s: float | None
    ) -> None:
        """Return once `condition` holds; it is asked after each change. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: condition(self))

    async def run(self, socket: Path, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        """Listen on `socket` until `stop`. Raises OSError when it cannot be had."""
        server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(self, server)
        if self._spans is not None:
            server.add_generic_rpc_handlers((_SpanHandler(self._spans),))
        listen(server, socket)
        await server.start()
        try:
            ready()
            await stop.wait()
        finally:
            self._stop.set()
            for stream in self._streams:
                stream.wake.set()
            await server.stop(_STOP_GRACE_S)
            forget(socket)

    async def DeltaAggregatedResources(  # noqa: N802
        self,
        request_iterator: AsyncIterator[discovery_pb2.DeltaDiscoveryRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """One stream of one Envoy, until either side ends it."""
        stream = _Stream(self)
        self._streams.add(stream)
        _log.debug("xds stream opened")
        try:
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(stream.read(request_iterator), name="xds-read")
                await stream.write(context)
                reader.cancel()
        finally:
            self._streams.discard(stream)
            _log.debug("xds stream closed")
        if self._stop.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "stopping")

    # -- told by streams

    def answered(self, type_url: TypeUrl, subscription: Subscription) -> None:
        """Report the last answer of one type: a refusal, or that all is well."""
        check = f"xds.{SHORT_NAMES[type_url]}"
        if subscription.refused:
            self.refusals[type_url] = subscription.refused
            self._health.set_error(check, subscription.refused)
        else:
            self.refusals.pop(type_url, None)
            self._health.set_running(check)

    async def settled(self, stream: _Stream) -> None:
        """Note what a stream that has nothing more to be sent holds."""
        held = stream.subscriptions
        serving = all(
            held[kind].holds_any and not held[kind].refused and not held[kind].awaiting
            for kind in (LISTENER, ROUTE_CONFIGURATION)
        )
        self.serving = self.serving or serving
        if stream.settled_version:
            self.in_force = stream.settled_version
        async with self._changed:
            self._changed.notify_all()

    @property
    def stopping(self) -> bool:
        """True once streams shall end."""
        return self._stop.is_set()

    async def still_warming(self, names: frozenset[str]) -> frozenset[str]:
        """Which of `names` Envoy does not use yet; none when it cannot be asked."""
        if self._warming_clusters is None:
            return frozenset()
        try:
            return await self._warming_clusters() & names
        except Exception as error:  # noqa: BLE001 - a question that fails must not stop the push
            _log.debug("cannot ask for warming clusters", error=str(error))
            return frozenset()

    def now_s(self) -> float:
        """Monotonic time."""
        return self._clock.monotonic_s()

    def nonce(self) -> str:
        """A fresh nonce."""
        return self._rng.uuid4()


class _SpanHandler(grpc.GenericRpcHandler):
    """OTLP's trace service; its messages pass through as bytes."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Answer Export, and nothing else."""
        if handler_call_details.method != EXPORT_METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(self._export)

    async def _export(self, batch: bytes, _context: Any) -> bytes:
        self._take(batch)
        return b""  # an empty ExportTraceServiceResponse


class _Stream:
    """The state of one stream: a reader that takes answers in, a writer that sends."""

    def __init__(self, server: AdsServer) -> None:
        self._server = server
        self.subscriptions = {type_url: Subscription(type_url) for type_url in PUSH_ORDER}
        self.wake = asyncio.Event()
        self.settled_version = ""
        self._closed = False
        self._retries = Retries(server.first_retry_s)
        self._warming: frozenset[str] = frozenset()
        self._warm_by_s = 0.0

    async def read(self, requests: AsyncIterator[discovery_pb2.DeltaDiscoveryRequest]) -> None:
        try:
            async for message in requests:
                self._take(message)
                self.wake.set()
        finally:
            self._closed = True
            self.wake.set()

    def _take(self, message: discovery_pb2.DeltaDiscoveryRequest) -> None:
        type_url = TypeUrl(message.type_url)
        subscription = self.subscriptions.get(type_url)
        if subscription is None:
            _log.debug("xds type is not served", type_url=type_url)
            return
        refused = message.HasField("error_detail")
        outcome = subscription.on_request(
            Request(
                subscribe=tuple(message.resource_names_subscribe),
                unsubscribe=tuple(message.resource_names_unsubscribe),
                initial_versions=dict(message.initial_resource_versions),
                nonce=message.response_nonce,
                error=message.error_detail.message if refused else None,
            )
        )
        if isinstance(outcome, Nacked):
            again_s = self._retries.refused(
                type_url, subscription.refused_versions, outcome.reason, self._server.now_s()
            )
            _log.error(
                "envoy refused a configuration",
                type=SHORT_NAMES[type_url],
                resources=sorted(outcome.names)[:20],
                reason=outcome.reason,
                next_try="when it changes" if again_s is None else f"in {again_s:g} s",
            )
            self._server.answered(type_url, subscription)
        elif isinstance(outcome, Acked):
            if not subscription.refused:
                self._retries.accepted(type_url)
            self._server.answered(type_url, subscription)

    async def write(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        while not (self._closed or self._server.stopping):
            self.wake.clear()
            snapshot = self._server.snapshot
            if snapshot is None:
                await self.wake.wait()
                continue
            for type_url in self._retries.take_due(self._server.now_s()):
                self.subscriptions[type_url].try_again(snapshot.resources[type_url])
            step = next_step(self.subscriptions, snapshot.resources, warming=self._warming)
            match step:
                case Push(type_url, delta):
                    nonce = self._server.nonce()
                    if type_url == CLUSTER and delta.upserts:
                        names = frozenset(resource.name for resource in delta.upserts)
                        self._warming |= names
                        self._warm_by_s = self._server.now_s() + WARM_UP_LIMIT_S
                    self.subscriptions[type_url].sent(nonce, delta)
                    make = functools.partial(_response, snapshot, type_url, delta, nonce)
                    large = sum(len(resource.body) for resource in delta.upserts) > _LARGE
                    await context.write(await asyncio.to_thread(make) if large else make())
                case AwaitClusters(names):
                    await self._wait_for_clusters(names)
                case Rest():
                    await self._rest(snapshot)

    async def _wait_for_clusters(self, names: frozenset[str]) -> None:
        self._warming = await self._server.still_warming(names)
        if not self._warming:
            return
        if self._server.now_s() >= self._warm_by_s:
            _log.warning("clusters are slow to become usable", clusters=sorted(self._warming)[:20])
            self._warming = frozenset()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WARM_UP_POLL_S):
                await self.wake.wait()

    async def _rest(self, snapshot: Snapshot) -> None:
        idle = all(
            subscription.started and not subscription.awaiting
            for subscription in self.subscriptions.values()
        )
        refused = any(
            subscription.refuses(snapshot.resources[type_url])
            for type_url, subscription in self.subscriptions.items()
        )
        if idle:
            self.settled_version = "" if refused else snapshot.version
        await self._server.settled(self)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._retries.wait_s(self._server.now_s())):
                await self.wake.wait()


def _response(
    snapshot: Snapshot, type_url: TypeUrl, delta: Any, nonce: str
) -> discovery_pb2.DeltaDiscoveryResponse:
    return discovery_pb2.DeltaDiscoveryResponse(
        system_version_info=snapshot.version,
        type_url=type_url,
        nonce=nonce,
        resources=[
            discovery_pb2.Resource(
                name=resource.name,
                version=resource.version,
                resource=AnyMessage(type_url=type_url, value=resource.body),
            )
            for resource in delta.upserts
        ],
        removed_resources=delta.removals,
    )
