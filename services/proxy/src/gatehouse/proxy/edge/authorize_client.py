"""What the proxy's pages ask authorize: which routes somebody may open, and why others may not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import grpc
import grpc.aio

from gatehouse.common.config.resolved import ServiceName
from gatehouse.common.rpc.service_connection import Called
from gatehouse.common.rpc.status import from_rpc_error
from gatehouse.pb import authorize_pb2, authorize_pb2_grpc

T = TypeVar("T")

AUTHORIZE: Final = Called(
    ServiceName.AUTHORIZE,
    "authorize_service_url",
    lambda settings: settings.authorize_urls,
    "",
)
TIMEOUT_S: Final = 8.0  # ten thousand policies may be asked


class Channel(Protocol):
    """What is needed of `rpc.service_connection.ServiceConnection`."""

    async def ready_channel(self, timeout_s: float) -> grpc.aio.Channel:
        """Return a channel for one call; UnavailableError when none is known in `timeout_s`."""
        ...


@dataclass(frozen=True, slots=True)
class Openable:
    """Ids of routes, in the order they were asked for."""

    routes: tuple[str, ...]
    behind_devices: frozenset[str]


class AuthorizeClient:
    """Typed access to authorize's own services. Raises GatehouseError; nothing of grpc escapes."""

    def __init__(self, channel: Channel, *, timeout_s: float = TIMEOUT_S) -> None:
        self._channel = channel
        self._timeout_s = timeout_s

    async def open_routes(self, session_id: str, route_ids: Sequence[str], ip: str) -> Openable:
        """Which of these routes the session may open. NotFoundError: it is no live session."""
        request = authorize_pb2.OpenRoutesRequest(session_id=session_id, route_id=route_ids, ip=ip)
        answer = await self._within(
            lambda channel, timeout_s: authorize_pb2_grpc.PortalServiceStub(channel).OpenRoutes(
                request, timeout=timeout_s
            )
        )
        return Openable(tuple(answer.route_id), frozenset(answer.device_route_id))

    async def answer(self, question: authorize_pb2.Question) -> authorize_pb2.Answered:
        """Why somebody is let in or not. PermissionDeniedError: this session may not ask that.

        NotFoundError: it is no live session. FailedPreconditionError: nobody may ask.
        """
        return await self._within(
            lambda channel, timeout_s: authorize_pb2_grpc.ExplainServiceStub(channel).Answer(
                question, timeout=timeout_s
            )
        )

    async def _within(self, call: Callable[[grpc.aio.Channel, float], Awaitable[T]]) -> T:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._timeout_s
        channel = await self._channel.ready_channel(self._timeout_s)
        try:
            return await call(channel, max(0.0, deadline_s - loop.time()))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
