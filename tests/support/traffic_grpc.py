"""A gRPC service of raw bytes, with every kind of call, metadata and trailers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from tests.support.tls import Leaf
from tests.support.traffic import DOMAIN

SERVICE = "traffic.Echo"
TRAILERS = (("x-trailer", "the end"), ("x-bytes-bin", b"\x00\xff"))


def _unary(request: bytes, context: grpc.ServicerContext) -> bytes:
    context.send_initial_metadata((("x-initial", "first"),))
    context.set_trailing_metadata(TRAILERS)
    return request[::-1]


def _refuse(request: bytes, context: grpc.ServicerContext) -> bytes:
    context.set_trailing_metadata(TRAILERS)
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, request.decode())


def _sleep(_request: bytes, context: grpc.ServicerContext) -> bytes:
    """Until the caller has gone."""
    gone = threading.Event()
    if context.add_callback(gone.set):
        gone.wait(20)
    return b""


def _metadata(request: bytes, context: grpc.ServicerContext) -> bytes:
    lines = [f"{name}={value!r}" for name, value in context.invocation_metadata()]
    return "\n".join(lines).encode()


def _count(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    for index in range(int(request)):
        yield str(index).encode()
    context.set_trailing_metadata(TRAILERS)


def _break(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    yield b"one"
    context.set_trailing_metadata(TRAILERS)
    context.abort(grpc.StatusCode.DATA_LOSS, "broken")


def _sum(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
    context.set_trailing_metadata(TRAILERS)
    return str(sum(len(each) for each in requests)).encode()


def _chat(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    for request in requests:
        yield request.upper()
    context.set_trailing_metadata(TRAILERS)


_METHODS: dict[str, Any] = {
    "Unary": grpc.unary_unary_rpc_method_handler(_unary),
    "Refuse": grpc.unary_unary_rpc_method_handler(_refuse),
    "Sleep": grpc.unary_unary_rpc_method_handler(_sleep),
    "Metadata": grpc.unary_unary_rpc_method_handler(_metadata),
    "Count": grpc.unary_stream_rpc_method_handler(_count),
    "Break": grpc.unary_stream_rpc_method_handler(_break),
    "Sum": grpc.stream_unary_rpc_method_handler(_sum),
    "Chat": grpc.stream_stream_rpc_method_handler(_chat),
}


def method(name: str) -> str:
    return f"/{SERVICE}/{name}"


@contextlib.contextmanager
def grpc_upstream(
    leaf: Leaf | None = None, *, health: HealthServicer | None = None, name: str = ""
) -> Iterator[int]:
    """Serve on a port of its own, with TLS when there is a leaf. `Name` answers `name`."""
    named: Any = grpc.unary_unary_rpc_method_handler(lambda _request, _context: name.encode())
    server = grpc.server(ThreadPoolExecutor(8))
    methods = {**_METHODS, "Name": named}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    if health is not None:
        add_HealthServicer_to_server(health, server)
    if leaf is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        pair = (leaf.key.read_bytes(), leaf.certificate.read_bytes())
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait(5)


@contextlib.contextmanager
def grpc_client(port: int, authority: Path, host: str) -> Iterator[Any]:
    """A channel to a host below the domain, through TLS."""
    name = f"{host}.{DOMAIN}"
    options = (("grpc.ssl_target_name_override", name), ("grpc.enable_http_proxy", 0))
    credentials = grpc.ssl_channel_credentials(authority.read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        yield channel
