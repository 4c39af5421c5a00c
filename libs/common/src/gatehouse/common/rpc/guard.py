"""What stands in front of every gRPC handler: credential, allow-list, and one place for errors.

The interceptor wraps each handler: it verifies the shared-secret JWT (health alone is exempt),
applies the allow-list, turns GatehouseError into its status, and answers INTERNAL without details
for anything unexpected, after logging it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final, NoReturn, TypeAlias

import grpc
import grpc.aio

from gatehouse.common.clock import Clock
from gatehouse.common.errors import GatehouseError, UnauthenticatedError, UnavailableError
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.observability.metrics import GRPC_SERVER
from gatehouse.common.observability.tracing import answering
from gatehouse.common.rpc import allow_list
from gatehouse.common.rpc.credentials import Secrets, VerifiedTokens, verify_call
from gatehouse.common.rpc.status import to_grpc, trailing_metadata

HEALTH_SERVICE: Final = "grpc.health.v1.Health"

# What `aud` in gatehouse-jwt must say, by gRPC package. Others take either.
_AUDIENCES: Final = {
    "databroker": ("databroker",),
    "gatehouse.databroker": ("databroker",),
    "registry": ("databroker",),
    "envoy.service.auth.v3": ("authorize",),
    "gatehouse.authorize.v1": ("authorize",),
}
_ANY_AUDIENCE: Final = ("databroker", "authorize")
_STATUS_NAMES: Final[dict[object, str]] = {code.value[0]: code.name for code in grpc.StatusCode}
_REFUSAL_LOG_INTERVAL_S: Final = 10.0
WRAPPED_KEPT: Final = 512

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_log = get_logger("grpc")


class Guard(grpc.aio.ServerInterceptor):
    """The one interceptor of our servers."""

    def __init__(self, secrets: Secrets, clock: Clock) -> None:
        self._secrets = secrets
        self._clock = clock
        self._verified = VerifiedTokens()
        self._wrapped: dict[tuple[str, str | None], tuple[Handler, Handler]] = {}
        self._streams: set[asyncio.Task[Any]] = set()
        self._draining = False
        self._next_refusal_log_s = 0.0

    def end_streams(self) -> None:
        """End the streams there are with UNAVAILABLE, and refuse new ones.

        Health watches are left alone: they end by themselves.
        """
        self._draining = True
        for task in list(self._streams):
            task.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the handler that `continuation` finds."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        service = method.rpartition("/")[0].lstrip("/")
        subject: str | None = None
        if service != HEALTH_SERVICE:
            try:
                subject = self._authorize(method, service, handler_call_details)
            except GatehouseError as error:
                # Unknown methods get the same answer, so that nothing can be mapped from outside.
                if handler is not None:
                    GRPC_SERVER.observe((*_names(method), to_grpc(error)[0].name), 0.0)
                return _refusing(error, handler)
        if handler is None:
            return None
        return self._wrap(handler, method, subject)

    def _authorize(self, method: str, service: str, details: grpc.HandlerCallDetails) -> str | None:
        package = service.rpartition(".")[0]
        try:
            caller = verify_call(
                details.invocation_metadata or (),
                self._secrets(),
                _AUDIENCES.get(package, _ANY_AUDIENCE),
                self._clock.now_s(),
                self._verified,
            )
            allow_list.check_caller(caller.subject, method)
        except GatehouseError as error:
            self._log_refusal(method, error)
            raise
        return caller.subject

    def _log_refusal(self, method: str, error: GatehouseError) -> None:
        now_s = self._clock.monotonic_s()
        if now_s >= self._next_refusal_log_s:
            self._next_refusal_log_s = now_s + _REFUSAL_LOG_INTERVAL_S
            level = _log.info if error.reason == "no-credential" else _log.warning
            level("call refused", method=method[:256], reason=error.reason, error=str(error))

    def _wrap(self, handler: Handler, method: str, subject: str | None) -> Handler:
        """The same kind of handler around a guarded behaviour.

        Made once for each method and caller; subjects are few, those of the allow-list.
        """
        made = self._wrapped.get((method, subject))
        if made is not None and made[0] is handler:
            return made[1]
        wrapped = self._guarded(handler, method, subject)
        if len(self._wrapped) < WRAPPED_KEPT:
            self._wrapped[method, subject] = (handler, wrapped)
        return wrapped

    def _guarded(self, handler: Handler, method: str, subject: str | None) -> Handler:
        if handler.response_streaming:
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
            assert inner is not None
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            guarded = self._guard_stream(inner, method, subject)
        else:
            inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
            assert inner is not None
            make = (
                grpc.stream_unary_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_unary_rpc_method_handler
            )
            guarded = self._guard_unary(inner, method, subject)
        made: Handler = make(guarded, handler.request_deserializer, handler.response_serializer)
        return made

    def _guard_unary(self, inner: Any, method: str, subject: str | None) -> Any:
        names = _names(method)
        monotonic_s = self._clock.monotonic_s

        async def unary(request: Any, context: Context) -> Any:
            with answering(*names, context.invocation_metadata) as told:
                started_s, status, answer = monotonic_s(), "CANCELLED", None
                try:
                    if subject is not None:
                        allow_list.check_request(subject, request)
                    result = inner(request, context)
                    answer = await result if inspect.isawaitable(result) else result
                    status = "OK"
                except Exception as error:  # noqa: BLE001  # the last net before the wire
                    status = _status_of(error, context)
                    await _abort(context, error, method)
                finally:
                    told(status)
                    GRPC_SERVER.observe(
                        (*names, status), monotonic_s() - started_s, _size(request), _size(answer)
                    )
                return answer

        return unary

    def _guard_stream(self, inner: Any, method: str, subject: str | None) -> Any:
        async def generated(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._tracked(method, context):
                try:
                    self._check_stream(subject, request)
                    async with contextlib.aclosing(inner(request, context)) as messages:
                        async for message in messages:
                            yield message
                except asyncio.CancelledError:
                    await self._end_if_draining(context)
                    raise
                except Exception as error:  # noqa: BLE001  # the last net before the wire
                    await _abort(context, error, method)

        async def written(request: Any, context: Context) -> None:
            with self._tracked(method, context):
                try:
                    self._check_stream(subject, request)
                    await inner(request, context)
                except asyncio.CancelledError:
                    await self._end_if_draining(context)
                    raise
                except Exception as error:  # noqa: BLE001  # the last net before the wire
                    await _abort(context, error, method)

        return generated if inspect.isasyncgenfunction(inner) else written

    def _check_stream(self, subject: str | None, request: object) -> None:
        if self._draining:
            raise UnavailableError("this server is stopping", reason="draining")
        if subject is not None:
            allow_list.check_request(subject, request)

    async def _end_if_draining(self, context: Context) -> None:
        """Turn the cancellation by `end_streams` into a status; any other stays what it is."""
        task = asyncio.current_task()
        if self._draining and task is not None and not context.cancelled():
            task.uncancel()
            error = UnavailableError("this server is stopping", reason="draining")
            code, message = to_grpc(error)
            await context.abort(code, message, trailing_metadata(error))

    @contextlib.contextmanager
    def _tracked(self, method: str, context: Context) -> Iterator[None]:
        """While a stream is served, `end_streams` knows its task; then it is counted."""
        task = asyncio.current_task()
        assert task is not None
        if method.startswith(f"/{HEALTH_SERVICE}/"):
            yield
            return
        self._streams.add(task)
        started_s, status = self._clock.monotonic_s(), "CANCELLED"
        try:
            yield
            status = "OK"
        except Exception as error:
            status = _status_of(error, context)
            raise
        finally:
            self._streams.discard(task)
            duration_s = self._clock.monotonic_s() - started_s
            GRPC_SERVER.observe((*_names(method), status), duration_s)


def _names(method: str) -> tuple[str, str]:
    """Service and method of `/service/method`."""
    service, _, name = method.lstrip("/").partition("/")
    return service, name


def _size(message: Any) -> int | None:
    """Bytes on the wire; None for what is no message."""
    measure = getattr(message, "ByteSize", None)
    return None if measure is None else int(measure())


def _status_of(error: Exception, context: Context) -> str:
    """The name of the status that the caller gets."""
    if isinstance(error, grpc.aio.AbortError):
        code: object = context.code()  # a number, whatever its type says
        return code.name if isinstance(code, grpc.StatusCode) else _STATUS_NAMES[code]
    error = _first_of_group(error)
    return to_grpc(error)[0].name if isinstance(error, GatehouseError) else "INTERNAL"


def _refusing(error: GatehouseError, handler: Handler | None) -> Handler:
    """A handler of the same kind that only says why not, without reading the request."""

    async def refuse(_request: Any, context: Context) -> None:
        code, message = to_grpc(error)
        await context.abort(code, message, trailing_metadata(error))

    requests = handler is not None and handler.request_streaming
    responses = handler is not None and handler.response_streaming
    refusing: Handler
    if requests and responses:
        refusing = grpc.stream_stream_rpc_method_handler(refuse)
    elif requests:
        refusing = grpc.stream_unary_rpc_method_handler(refuse)
    elif responses:
        refusing = grpc.unary_stream_rpc_method_handler(refuse)
    else:
        refusing = grpc.unary_unary_rpc_method_handler(refuse)
    return refusing


def _first_of_group(error: Exception) -> Exception:
    """A task group's single kind of failure stands for the group."""
    while isinstance(error, ExceptionGroup):
        inner = error.exceptions
        if not all(isinstance(one, GatehouseError | ExceptionGroup) for one in inner):
            return error
        error = inner[0]
    return error


async def _abort(context: Context, error: Exception, method: str) -> NoReturn:
    """End the call with what `error` stands for."""
    if isinstance(error, grpc.aio.AbortError):
        raise error  # the handler has already ended the call
    error = _first_of_group(error)
    if isinstance(error, GatehouseError):
        if not isinstance(error, UnauthenticatedError):
            _log.debug("call failed", method=method, reason=error.reason, error=str(error))
        code, message = to_grpc(error)
        await context.abort(code, message, trailing_metadata(error))
    _log.error("handler failed", method=method, exc_info=error)
    await context.abort(
        grpc.StatusCode.INTERNAL, "internal error", (("gatehouse-reason", "internal"),)
    )
    raise AssertionError("abort always raises")
