"""Which spans a running product sends for a request, over both forms of OTLP."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from gatehouse.common.observability.otlp import EXPORT_METHOD
from tests.e2e.conftest import World
from tests.e2e.test_security_failing import wait_for
from tests.e2e.test_security_paths import http1
from tests.support.stack import Stack, running
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

Make = Callable[..., tuple[Stack, EchoUpstream]]

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SIGN_IN = "/.pomerium/sign_in"
HEADERS = "x-tenant=acme,authorization=Bearer%20not-a-real-token"


class Collector:
    """Keeps every span that is sent to it, and the headers it came with."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.headers: list[dict[str, str]] = []

    def take(self, batch: bytes, headers: dict[str, str]) -> None:
        self.headers.append(headers)
        self.requests.append(trace_service_pb2.ExportTraceServiceRequest.FromString(batch))

    def spans(self, trace: str) -> dict[str, tuple[str, str, str, str]]:
        """Of one trace, by span id: service, name, parent and everything else as text."""
        found = {}
        for request in list(self.requests):
            for resource in request.resource_spans:
                attributes = {
                    each.key: each.value.string_value for each in resource.resource.attributes
                }
                for scope in resource.instrumentation_library_spans:
                    for span in scope.spans:
                        if span.trace_id.hex() == trace:
                            found[span.span_id.hex()] = (
                                attributes["service.name"],
                                span.name,
                                span.parent_span_id.hex(),
                                f"{attributes} {span}",
                            )
        return found

    @contextlib.contextmanager
    def over_http(self) -> Iterator[str]:
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/base/v1/traces"
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.take(body, {name.lower(): value for name, value in self.headers.items()})
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/base"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    @contextlib.contextmanager
    def over_grpc(self) -> Iterator[str]:
        def export(batch: bytes, context: grpc.ServicerContext) -> bytes:
            self.take(batch, {str(k): str(v) for k, v in context.invocation_metadata()})
            return b""

        class Handler(grpc.GenericRpcHandler):
            def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
                assert handler_call_details.method == EXPORT_METHOD
                return grpc.unary_unary_rpc_method_handler(export)

        server = grpc.server(futures.ThreadPoolExecutor(2))
        server.add_generic_rpc_handlers((Handler(),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.stop(0).wait()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_one_request_is_one_trace_and_names_no_secret(
    fresh_stack: Make, provider: str, protocol: str
):
    collector = Collector()
    serving = collector.over_grpc if protocol == "grpc" else collector.over_http
    with serving() as endpoint:
        stack, upstream = fresh_stack(
            extra={
                "otel_traces_exporter": "otlp",
                "otel_exporter_otlp_endpoint": endpoint,
                "otel_exporter_otlp_protocol": protocol,
                "otel_exporter_otlp_headers": HEADERS,
                "otel_traces_sampler_arg": 0.0,
                "otel_resource_attributes": ["deployment.environment=test"],
                "otel_bsp_schedule_delay": 100,
            }
        )
        with running(stack):
            world = World(stack, upstream, provider)
            sampled = f"traceparent: 00-{TRACE}-{PARENT}-01"
            path = "/a/path?code=hidden-code&pomerium_session=hidden-session"
            cookie = "Cookie: _pomerium=hidden-cookie"
            assert http1(world, path, lines=[sampled, cookie]).status == 200
            # Nothing but the parent's word makes a trace here: the share is zero.
            assert http1(world, "/unasked", lines=["x-client-trace-id: 1"]).status == 200
            unsampled = f"traceparent: 00-{TRACE[::-1]}-{PARENT}-00"
            assert http1(world, "/unsampled", lines=[unsampled]).status == 200

            refused = http1(world, host="app.localhost", lines=[sampled])
            sign_in = urlsplit(refused.location)
            follow = f"{sign_in.path}?{sign_in.query}"
            assert http1(world, follow, host=sign_in.netloc).status in (200, 302)

            def complete() -> bool:
                spans = collector.spans(TRACE).values()
                checks = [name for _, name, *_ in spans if name == "authorize.Check"]
                sent_on = [name for _, name, *_ in spans if SIGN_IN in name]
                return len(checks) == 2 and len(sent_on) == 2

            wait_for(complete)
            spans = collector.spans(TRACE)
            assert stack.stop() == {"proxy": 0}
    by_name = {name: (span, parent) for span, (_, name, parent, _) in spans.items()}
    ingress = by_name["ingress: GET public.localhost/a/path"]
    assert ingress[1] == PARENT
    assert any(name.startswith("egress: GET ") for name in by_name)
    grandparents = [
        spans[parent][2] for _, name, parent, _ in spans.values() if name == "authorize.Check"
    ]
    assert ingress[0] in grandparents
    everything = str(collector.requests)
    for hidden in ("hidden-", "not-a-real-token", "/unasked", "/unsampled", stack.shared_secret):
        assert hidden not in everything
    assert "pomerium_signature" not in everything
    assert "deployment.environment" in everything
    assert {headers["authorization"] for headers in collector.headers} == {
        "Bearer not-a-real-token"
    }
    assert {headers["x-tenant"] for headers in collector.headers} == {"acme"}
    # The upstream continues the trace below our span of the call to it.
    seen = next(
        request for request in upstream.requests if urlsplit(request["path"]).path == "/a/path"
    )
    told = dict(seen["headers"])["traceparent"].split("-")
    assert told[1] == TRACE
    assert told[2] in spans
