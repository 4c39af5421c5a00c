"""Which HTTP versions a cluster speaks."""

from __future__ import annotations

import enum
from typing import Final

from envoy.config.core.v3 import extension_pb2, protocol_pb2
from envoy.extensions.http.header_formatters.preserve_case.v3 import preserve_case_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2

from gatehouse.proxy.core.xds.resource import packed
from gatehouse.proxy.core.xds.resources.scalars import seconds, uint32

HTTP_PROTOCOL_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


class HTTPVersion(enum.Enum):
    """A version that is spoken whatever the server offers."""

    HTTP1 = 1
    HTTP2 = 2


def preserve_case() -> protocol_pb2.Http1ProtocolOptions:
    """HTTP/1 options that leave header names in the letters they came in."""
    return protocol_pb2.Http1ProtocolOptions(
        header_key_format=protocol_pb2.Http1ProtocolOptions.HeaderKeyFormat(
            stateful_formatter=extension_pb2.TypedExtensionConfig(
                name="envoy.http.stateful_header_formatters.preserve_case",
                typed_config=packed(preserve_case_pb2.PreserveCaseFormatterConfig()),
            )
        )
    )


def http2_options() -> protocol_pb2.Http2ProtocolOptions:
    """HTTP/2 options of upstream connections."""
    return protocol_pb2.Http2ProtocolOptions(
        allow_connect=True,
        max_concurrent_streams=uint32(100),
        initial_stream_window_size=uint32(64 << 10),
        initial_connection_window_size=uint32(1 << 20),
    )


def bounded_http2(*, allow_connect: bool = False) -> protocol_pb2.Http2ProtocolOptions:
    """HTTP/2 options towards clients: what one connection may make Envoy hold.

    The window of a stream is wider than upstream: it bounds how fast a distant client uploads.
    """
    return protocol_pb2.Http2ProtocolOptions(
        allow_connect=allow_connect,
        initial_stream_window_size=uint32(256 << 10),
        initial_connection_window_size=uint32(1 << 20),
    )


def protocol_options(version: HTTPVersion) -> http_protocol_options_pb2.HttpProtocolOptions:
    """Always this version."""
    options = http_protocol_options_pb2.HttpProtocolOptions()
    if version is HTTPVersion.HTTP1:
        options.explicit_http_config.http_protocol_options.CopyFrom(preserve_case())
    else:
        options.explicit_http_config.http2_protocol_options.CopyFrom(http2_options())
    return options


def by_alpn() -> http_protocol_options_pb2.HttpProtocolOptions:
    """HTTP/2 where the server offers it, else HTTP/1.1."""
    options = http_protocol_options_pb2.HttpProtocolOptions()
    options.auto_config.http_protocol_options.CopyFrom(preserve_case())
    options.auto_config.http2_protocol_options.CopyFrom(http2_options())
    return options


def internal_grpc() -> http_protocol_options_pb2.HttpProtocolOptions:
    """HTTP/2 to a service of ours, with pings that its server accepts (not below 5 minutes)."""
    options = http_protocol_options_pb2.HttpProtocolOptions()
    http2 = http2_options()
    http2.connection_keepalive.CopyFrom(
        protocol_pb2.KeepaliveSettings(
            interval=seconds(360.0),
            timeout=seconds(60.0),
            connection_idle_interval=seconds(300.0),
        )
    )
    http2.connection_keepalive.interval_jitter.value = 15.0
    options.explicit_http_config.http2_protocol_options.CopyFrom(http2)
    return options
