"""What this process adds to the traces of requests: a span for each call that it answers.

Off until `start`, and then for calls only that belong to a sampled trace, so that the streams and
look-ups between services begin none of their own. Spans name methods and statuses, nothing of what
the messages hold.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from gatehouse.common.config.resolved import Tracing

HEADER: Final = "traceparent"
_SAMPLED: Final = 1
_QUEUED_SPANS: Final = 2048
_NAMES: Final = {"envoy.service.auth.v3.Authorization": "authorize"}

_current: ContextVar[str] = ContextVar("traceparent", default="")  # of the span under way


class Spans:
    """The spans of a process; one for the whole of it, `SPANS`."""

    def __init__(self) -> None:
        self._provider: TracerProvider | None = None
        self._tracer: Any = None

    @property
    def is_on(self) -> bool:
        """True while spans are recorded."""
        return self._tracer is not None

    def start(self, tracing: Tracing, service: str, submit: Callable[[bytes], None]) -> None:
        """Record from now on; `submit` takes batches, in the event loop that this is called in."""
        # Only who traces pays for the import.
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased  # noqa: PLC0415

        from gatehouse.common.observability.span_encoding import (  # noqa: PLC0415
            EncodingExporter,
        )

        self.stop()
        loop = asyncio.get_running_loop()

        def hand_over(batch: bytes) -> None:
            # Called by the processor's thread; the loop may have ended meanwhile.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(submit, batch)

        provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(tracing.sampled_share)),
            resource=Resource({"service.name": service, **tracing.resource}),
            span_limits=SpanLimits(max_attribute_length=tracing.value_limit),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(
            BatchSpanProcessor(
                EncodingExporter(hand_over),
                max_queue_size=max(_QUEUED_SPANS, tracing.batch_spans),
                schedule_delay_millis=tracing.batch_delay_s * 1000.0,
                max_export_batch_size=tracing.batch_spans,
            )
        )
        self._provider = provider
        self._tracer = provider.get_tracer("gatehouse")

    def stop(self) -> None:
        """Hand over what is recorded and record no more. Blocks for a moment."""
        provider, self._provider, self._tracer = self._provider, None, None
        if provider is not None:
            provider.shutdown()

    @contextlib.contextmanager
    def answering(
        self, service: str, method: str, metadata: Iterable[tuple[str, Any]]
    ) -> Iterator[Callable[[str], None]]:
        """The span of one call, when it belongs to a sampled trace; gives what sets its status."""
        parent = _parent(metadata) if self._tracer is not None else None
        if parent is None:
            yield _nothing
            return
        from opentelemetry import trace  # noqa: PLC0415 - see above

        span = self._tracer.start_span(
            f"{_NAMES.get(service, service.partition('.')[0])}.{method}",
            context=trace.set_span_in_context(trace.NonRecordingSpan(parent)),
            kind=trace.SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )
        own = span.get_span_context()
        token = _current.set(
            f"00-{own.trace_id:032x}-{own.span_id:016x}-{int(own.trace_flags):02x}"
        )

        def status(name: str) -> None:
            span.set_attribute("rpc.grpc.status", name)
            if name != "OK":
                span.set_status(trace.StatusCode.ERROR)

        try:
            yield status
        finally:
            with contextlib.suppress(ValueError):  # a generator may be closed elsewhere
                _current.reset(token)
            span.end()


SPANS: Final = Spans()


def answering(
    service: str, method: str, metadata: Callable[[], Iterable[tuple[str, Any]] | None]
) -> contextlib.AbstractContextManager[Callable[[str], None]]:
    """`SPANS.answering`, for next to nothing while tracing is off."""
    if not SPANS.is_on:
        return _NO_SPAN
    return SPANS.answering(service, method, metadata() or ())


def outgoing() -> tuple[tuple[str, str], ...]:
    """Metadata that lets the call being made belong to the span under way."""
    current = _current.get()
    return ((HEADER, current),) if current else ()


def _nothing(_status: str) -> None:
    """No span, no status."""


_NO_SPAN: Final = contextlib.nullcontext(_nothing)


def _parent(metadata: Iterable[tuple[str, Any]]) -> Any:
    """The span context of the caller; None without one, or when it is not sampled."""
    found = [value for name, value in metadata if name == HEADER and isinstance(value, str)]
    if len(found) != 1:
        return None
    from opentelemetry import trace  # noqa: PLC0415 - see above
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    context = TraceContextTextMapPropagator().extract({HEADER: found[0]})
    parent = trace.get_current_span(context).get_span_context()
    return parent if parent.is_valid and parent.trace_flags & _SAMPLED else None
