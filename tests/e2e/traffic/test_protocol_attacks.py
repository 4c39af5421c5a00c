"""Known attacks on HTTP/3 and HTTP/2 themselves, from clients and from upstreams."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator

import pytest

from tests.support.envoy_processes import envoy_of
from tests.support.tls import Leaf
from tests.support.traffic import DOMAIN, Connection, Product, https, together
from tests.support.traffic_http3 import http3_bridge
from tests.support.traffic_upstreams import Application

pytestmark = pytest.mark.e2e

# RFC 9113, section 4.1: length, type, flags, stream.
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
NO_STREAMS = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00" + b"\x00\x03\x00\x00\x00\x00"
GOAWAY = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + b"\x00\x00\x00\x00" + b"\x00\x00\x00\x00"


def test_r53_http3_headers_cannot_announce_a_body_that_does_not_come(
    product: Product, application: Application
) -> None:
    """Passed on, the next request on that connection would be read as the body of this one."""
    made = [https("app", to=application.url)]
    name = f"app.{DOMAIN}"
    with product.serving(made, codec_type="http3"):
        with (
            http3_bridge(product.port, product.authority.path, name) as port,
            Connection(port, None) as honest,
        ):
            assert honest.request("/honest", host=name).seen["path"] == "/honest"
        with (
            http3_bridge(
                product.port, product.authority.path, name, adds={"content-length": "5"}
            ) as port,
            Connection(port, None) as liar,
        ):
            before = application.received
            answer = liar.request("/liar", host=name)
        assert application.received == before
        assert answer.status in (400, 502, 503), (answer.status, answer.body[:200])
        with Connection(product.port, product.client_tls()) as after:
            seen = after.request("/after", host=name).seen
        assert seen["path"] == "/after"
        assert not [name for name, _ in seen["headers"] if name.lower() == "content-length"]


@contextlib.contextmanager
def leaving_at_once(leaf: Leaf) -> Iterator[tuple[int, list[bytes]]]:
    """An HTTP/2 upstream that says GOAWAY and goes on sending; its port and what it received."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf.certificate, leaf.key)
    context.set_alpn_protocols(["h2"])
    received: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
            tls.sendall(SETTINGS + GOAWAY + NO_STREAMS + SETTINGS + GOAWAY)
            tls.settimeout(5)
            while data := tls.recv(65536):
                received.append(data)
                tls.sendall(NO_STREAMS + GOAWAY)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield int(listener.getsockname()[1]), received
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def test_r56_an_upstream_that_leaves_at_once_harms_nobody_else(
    shared: Product, application: Application
) -> None:
    with leaving_at_once(shared.certificate) as (port, _received):
        made = [
            https("app", to=application.url),
            https("gone", to=f"https://127.0.0.1:{port}", tls_skip_verify=True, timeout="5s"),
        ]
        shared.reload(made)
        before = envoy_of(shared.stack)

        def ask() -> int:
            with Connection(shared.port, shared.client_tls()) as connection:
                return connection.request(host=f"gone.{DOMAIN}").status

        for _ in range(3):
            assert set(together([ask] * 10)) <= {502, 503, 504}
        with Connection(shared.port, shared.client_tls()) as connection:
            assert connection.request("/still", host=f"app.{DOMAIN}").seen["path"] == "/still"
        assert envoy_of(shared.stack) == before
