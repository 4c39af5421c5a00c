"""Asks again about connections that stay open, and ends those that are not allowed any more.

Envoy holds a stream of ext_proc to this servicer for each such connection: the request's headers
come first, and nothing else but, maybe, the response's trailers at the end. Ending the stream with
PERMISSION_DENIED makes Envoy reset the connection. The servicer answers on a Unix socket and shares
the fate of the Envoy beside it; losing an authorize or a databroker ends nobody's connection.

When it asks: soon after the opening, to learn what the decision rests on; then when the change
table learns of a change of that, when the configuration changes, and when the decision's own time
is over, at the latest every minute. A decision that does not say what it rests on is asked about
with every change, and every ten seconds. Where no answer can be had for a minute, or none that
knows of the change, the connection ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
import grpc.aio
from envoy.service.auth.v3 import external_auth_pb2_grpc
from envoy.service.ext_proc.v3 import external_processor_pb2, external_processor_pb2_grpc

from gatehouse.common.clock import Clock
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.errors import GatehouseError
from gatehouse.common.extauthz_context import ROUTE_CHECKSUM, ROUTE_ID
from gatehouse.common.observability.logging import get_logger
from gatehouse.proxy.core.decision_table import slot_of
from gatehouse.proxy.core.open_streams import (
    ACCESS_HAS_ENDED,
    Grounds,
    grounds_of,
    is_allowed,
    is_contradicted,
    question,
)
from gatehouse.proxy.edge.grpc_socket import forget, listen

FIRST_S: Final = 0.5  # most requests on such routes have ended by then
UNCONFIRMED_S: Final = 60.0  # without a usable answer a connection ends after this
_FIRST_POLL_S: Final = 1.0  # of decisions that do not say what they rest on
_LONGEST_POLL_S: Final = 10.0
_GROUNDLESS_PER_S: Final = 100.0  # with every change, but no more of them a second than this
_FIRST_RETRY_S: Final = 0.05
_LONGEST_RETRY_S: Final = 2.0
_ANSWER_WITHIN_S: Final = 5.0
_MOST_ASKED: Final = 32  # at the same time
_STOP_GRACE_S: Final = 1.0

_log = get_logger("proxy")


class Channel(Protocol):
    """What is needed of `rpc.service_connection.ServiceConnection`."""

    async def ready_channel(self, timeout_s: float) -> grpc.aio.Channel:
        """Return a channel for one call; UnavailableError when none is known in `timeout_s`."""
        ...


class Versions(Protocol):
    """What is needed of `decision_table.ChangeTable`."""

    @property
    def server_version(self) -> int:
        """The history that the table is of; 0 when there is no table."""
        ...

    def version_of(self, key: int) -> int:
        """The newest version of anything under a key."""
        ...


@dataclass(eq=False, slots=True)
class _Open:
    """One connection."""

    asked: Any  # the CheckRequest
    grounds: Grounds | None = None
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def route(self) -> str:
        return str(self.asked.attributes.context_extensions[ROUTE_ID])


class StreamGuard(external_processor_pb2_grpc.ExternalProcessorServicer):  # type: ignore[misc]
    """Serves ext_proc to the Envoy beside it. Belongs to one event loop."""

    def __init__(self, authorize: Channel, table: Versions, clock: Clock) -> None:
        self._authorize = authorize
        self._table = table
        self._clock = clock
        self._checksums: dict[str, str] = {}  # by route id
        self._open: set[_Open] = set()
        self._by_slot: dict[int, set[_Open]] = {}
        self._groundless: set[_Open] = set()
        self._asking = asyncio.Semaphore(_MOST_ASKED)
        self.ended = 0  # connections, because access did
        self.asked = 0

    def __repr__(self) -> str:
        return f"StreamGuard({len(self._open)} open)"

    @property
    def open(self) -> int:
        """How many connections are watched."""
        return len(self._open)

    def configure(self, settings: ResolvedSettings) -> None:
        """Take a new configuration: every connection is asked about anew. Never waits."""
        self._checksums = {str(route.id): str(route.checksum) for route in settings.routes}
        self._wake(self._open)

    def changed(self, keys: Iterable[int] | None) -> None:
        """Something under these keys has changed; None: nobody knows what. Never waits."""
        if keys is None:
            self._wake(self._open)
            return
        for key in keys:
            there = self._by_slot.get(slot_of(key), ())
            self._wake(each for each in there if each.grounds and self._is_outdated(each.grounds))
        self._wake(self._groundless)

    async def run(self, socket: Path, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        """Listen on `socket` until `stop`. Raises OSError when it cannot be had."""
        server = grpc.aio.server()
        external_processor_pb2_grpc.add_ExternalProcessorServicer_to_server(self, server)
        listen(server, socket)
        await server.start()
        try:
            ready()
            await stop.wait()
        finally:
            await server.stop(_STOP_GRACE_S)
            forget(socket)

    async def Process(  # noqa: N802 - gRPC's name
        self,
        request_iterator: AsyncIterator[Any],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """One connection, until it ends or must."""
        async for message in request_iterator:
            if message.WhichOneof("request") == "request_headers":
                break
        else:
            return
        asked = question(
            message.request_headers.headers.headers, message.attributes, message.metadata_context
        )
        await context.write(external_processor_pb2.ProcessingResponse(request_headers={}))
        connection = _Open(asked)
        self._open.add(connection)
        try:
            reason = await self._until_it_ends(connection, request_iterator, context)
        finally:
            self._open.discard(connection)
            self._rest_on(connection, None)
            self._groundless.discard(connection)
        if reason:
            self.ended += 1
            _log.info("an open connection is cut", reason=reason, route_id=connection.route)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, ACCESS_HAS_ENDED)

    async def _until_it_ends(
        self, connection: _Open, messages: AsyncIterator[Any], context: Any
    ) -> str:
        """Why the connection must end; "" when it has ended by itself."""
        reading = asyncio.ensure_future(_read(messages, context))
        watching = asyncio.ensure_future(self._watch(connection))
        try:
            await asyncio.wait((reading, watching), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                return ""
            return watching.result()
        finally:
            for task in (reading, watching):
                task.cancel()
            await asyncio.gather(reading, watching, return_exceptions=True)

    async def _watch(self, connection: _Open) -> str:
        """Return why access has ended, once it has."""
        await asyncio.sleep(FIRST_S)
        retry_s, poll_s = _FIRST_RETRY_S, _FIRST_POLL_S
        doubtful_since_s: float | None = None
        while True:
            connection.woken.clear()
            asked_s = self._clock.monotonic_s()
            answer = await self._ask(connection)
            if answer is not None and not is_allowed(answer):
                return "it is not allowed any more"
            answered_s = self._clock.monotonic_s()
            grounds = None if answer is None else grounds_of(answer, answered_s)
            if answer is None or (grounds is not None and self._is_outdated(grounds)):
                # No answer, or one of an authorize that lags behind.
                doubtful_since_s = asked_s if doubtful_since_s is None else doubtful_since_s
                if answered_s - doubtful_since_s > UNCONFIRMED_S:
                    return "nobody could say whether access goes on"
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, _LONGEST_RETRY_S)
                continue
            retry_s, doubtful_since_s = _FIRST_RETRY_S, None
            self._rest_on(connection, grounds)
            if grounds is not None:
                await _wait(connection.woken, grounds.ends_s - self._clock.monotonic_s())
            else:
                await asyncio.sleep(max(_FIRST_POLL_S, len(self._groundless) / _GROUNDLESS_PER_S))
                woken = await _wait(connection.woken, poll_s)
                poll_s = _FIRST_POLL_S if woken else min(2 * poll_s, _LONGEST_POLL_S)

    def _is_outdated(self, grounds: Grounds) -> bool:
        found = [self._table.version_of(key) for key in grounds.versions]
        return is_contradicted(grounds, self._table.server_version, found)

    async def _ask(self, connection: _Open) -> Any:
        """The answer of authorize; None when there is none."""
        asked = connection.asked
        asked.attributes.context_extensions[ROUTE_CHECKSUM] = self._checksums.get(
            connection.route, ""
        )
        async with self._asking:
            try:
                async with asyncio.timeout(_ANSWER_WITHIN_S):
                    channel = await self._authorize.ready_channel(_ANSWER_WITHIN_S)
                    stub = external_auth_pb2_grpc.AuthorizationStub(channel)
                    return await stub.Check(asked, timeout=_ANSWER_WITHIN_S)
            except (grpc.aio.AioRpcError, GatehouseError, TimeoutError) as error:
                _log.debug("no answer about an open connection", error=type(error).__name__)
                return None
            finally:
                self.asked += 1

    def _rest_on(self, connection: _Open, grounds: Grounds | None) -> None:
        if connection.grounds is not None:
            for slot in map(slot_of, connection.grounds.versions):
                there = self._by_slot.get(slot)
                if there is not None:
                    there.discard(connection)
                    if not there:
                        del self._by_slot[slot]
        connection.grounds = grounds
        if grounds is None:
            self._groundless.add(connection)
            return
        self._groundless.discard(connection)
        for slot in map(slot_of, grounds.versions):
            self._by_slot.setdefault(slot, set()).add(connection)

    def _wake(self, connections: Iterable[_Open]) -> None:
        for connection in connections:
            connection.woken.set()


async def _read(messages: AsyncIterator[Any], context: Any) -> None:
    """Let trailers pass, until Envoy has nothing more to tell."""
    async for message in messages:
        kind = message.WhichOneof("request")
        if kind in {"response_trailers", "request_trailers"}:
            await context.write(external_processor_pb2.ProcessingResponse(**{kind: {}}))


async def _wait(event: asyncio.Event, timeout_s: float) -> bool:
    """Whether it was set within this time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, timeout_s)):
            await event.wait()
    return event.is_set()
