"""Finished spans as OTLP messages.

The usual exporter package cannot stand beside the messages that Envoy's types bring along, which
hold the very ones of OTLP; so they are filled in here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode

_KINDS = {
    SpanKind.INTERNAL: trace_pb2.Span.SPAN_KIND_INTERNAL,
    SpanKind.SERVER: trace_pb2.Span.SPAN_KIND_SERVER,
    SpanKind.CLIENT: trace_pb2.Span.SPAN_KIND_CLIENT,
    SpanKind.PRODUCER: trace_pb2.Span.SPAN_KIND_PRODUCER,
    SpanKind.CONSUMER: trace_pb2.Span.SPAN_KIND_CONSUMER,
}
_STATUSES = {
    StatusCode.UNSET: trace_pb2.Status.STATUS_CODE_UNSET,
    StatusCode.OK: trace_pb2.Status.STATUS_CODE_OK,
    StatusCode.ERROR: trace_pb2.Status.STATUS_CODE_ERROR,
}


class EncodingExporter(SpanExporter):
    """Hands batches on as bytes."""

    def __init__(self, hand_over: Callable[[bytes], None]) -> None:
        self._hand_over = hand_over

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Encode a batch of one process's spans."""
        self._hand_over(encode_spans(spans))
        return SpanExportResult.SUCCESS


def encode_spans(spans: Sequence[ReadableSpan]) -> bytes:
    """A serialized ExportTraceServiceRequest."""
    request = trace_service_pb2.ExportTraceServiceRequest()
    if spans:
        batch = request.resource_spans.add()
        batch.resource.attributes.extend(_attributes(spans[0].resource.attributes))
        # These messages are of OTLP 0.11: what is called scope there now had another name, and
        # the same numbers.
        scope = batch.instrumentation_library_spans.add()
        scope.instrumentation_library.name = "gatehouse"
        scope.spans.extend(_span(span) for span in spans)
    encoded: bytes = request.SerializeToString()
    return encoded


def _span(span: ReadableSpan) -> Any:
    context = span.get_span_context()
    assert context is not None
    return trace_pb2.Span(
        trace_id=context.trace_id.to_bytes(16, "big"),
        span_id=context.span_id.to_bytes(8, "big"),
        parent_span_id=span.parent.span_id.to_bytes(8, "big") if span.parent else b"",
        name=span.name,
        kind=_KINDS[span.kind],
        start_time_unix_nano=span.start_time or 0,
        end_time_unix_nano=span.end_time or 0,
        attributes=_attributes(span.attributes or {}),
        status=trace_pb2.Status(code=_STATUSES[span.status.status_code]),
    )


def _attributes(values: Mapping[str, Any]) -> list[Any]:
    return [
        common_pb2.KeyValue(key=name, value=common_pb2.AnyValue(string_value=str(value)))
        for name, value in values.items()
    ]
