"""Where clients connect: certificates and their rotation, redirects, PROXY protocol, codecs."""

from __future__ import annotations

import http.client
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from websockets.sync.client import connect
from websockets.sync.server import serve

from tests.support.ports import free_ports
from tests.support.traffic import (
    DOMAIN,
    Connection,
    Http2Connection,
    Product,
    eventually,
    https,
)
from tests.support.traffic_load import go_on, load
from tests.support.traffic_upstreams import Application

pytestmark = pytest.mark.e2e

APP = f"app.{DOMAIN}"


@pytest.fixture(scope="module")
def talker() -> Iterator[str]:
    def echo(websocket: Any) -> None:
        for message in websocket:
            websocket.send(message)

    with serve(echo, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join(5)


def routes(application: Application, talker: str) -> list[dict[str, Any]]:
    only = {"policy": [{"allow": {"and": [{"source_ip": "203.0.113.7"}]}}]}
    up = application.url
    return [
        https("app", to=up),
        https("ws", to=talker, allow_websockets=True),
        https("only", to=up, allow_public_unauthenticated_access=False, **only),
    ]


@pytest.fixture(scope="module")
def made(application: Application, talker: str) -> list[dict[str, Any]]:
    return routes(application, talker)


@pytest.fixture(scope="module")
def world(product: Product, made: list[dict[str, Any]]) -> Iterator[Product]:
    with product.serving(made):
        yield product


# -- certificates


def shown(world: Product, server_name: str | None, **limits: Any) -> x509.Certificate:
    """The certificate that a client gets which asks for this name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for name, value in limits.items():
        setattr(context, name, value)
    with (
        socket.create_connection(("127.0.0.1", world.port), 10) as raw,
        context.wrap_socket(raw, server_hostname=server_name) as secured,
    ):
        der = secured.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


def names(certificate: x509.Certificate) -> list[str]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return extension.value.get_values_for_type(x509.DNSName)


def pair(leaf: Any) -> dict[str, str]:
    return {"cert": str(leaf.certificate), "key": str(leaf.key)}


def test_the_name_asked_for_chooses_the_certificate(
    world: Product, made: list[dict[str, Any]]
) -> None:
    first = world.authority.leaf("first.test", stem="first")
    star = world.authority.leaf(f"*.{DOMAIN}", stem="star")
    exact = world.authority.leaf(f"exact.{DOMAIN}", f"too.{DOMAIN}", stem="exact")
    certificates = [pair(first), pair(star), pair(exact)]
    world.reload(made, certificates=certificates)
    for asked, expected in (
        (f"exact.{DOMAIN}", f"exact.{DOMAIN}"),
        (f"too.{DOMAIN}", f"exact.{DOMAIN}"),
        (f"other.{DOMAIN}", f"*.{DOMAIN}"),
        # No certificate is for this one; Envoy's filter chains let a star stand for more labels.
        (f"a.b.{DOMAIN}", f"*.{DOMAIN}"),
        (DOMAIN, "first.test"),
        ("elsewhere.test", "first.test"),
        ("app.localhost", "app.localhost"),  # `certificate_file`, which is added to the list
        (None, "first.test"),
    ):
        assert expected in names(shown(world, asked)), asked
    world.reload(made)


def test_tls_below_the_minimum_is_refused(world: Product) -> None:
    v12, v13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
    for version in (v12, v13):
        limits = {"maximum_version": version, "minimum_version": version}
        assert f"*.{DOMAIN}" in names(shown(world, APP, **limits))
    context = world.client_tls()
    context.maximum_version = v12
    context.set_ciphers("ECDHE-ECDSA-AES128-SHA")
    with pytest.raises(ssl.SSLError, match=r"(?i)handshake"):
        world.connection(tls=context)


def replace(path: Path, content: bytes) -> None:
    beside = path.with_suffix(".next")
    beside.write_bytes(content)
    beside.replace(path)


def test_a_rotated_certificate_costs_no_request_and_drains_old_connections(
    world: Product,
) -> None:
    """Connections of before go on; they are asked to leave one by one, within ten minutes."""
    served = world.certificate
    old = shown(world, APP).serial_number
    fresh = world.authority.leaf(DOMAIN, f"*.{DOMAIN}", stem="fresh")
    updates = "listener_manager.listener_in_place_updated"
    draining = "listener_manager.total_filter_chains_draining"
    updated, drained = world.stat(updates), world.stat(draining)
    raw = world.connection()
    with (
        load(world, APP) as threads,
        world.connection() as first,
        Http2Connection(world.port, world.client_tls("h2")) as second,
        raw,
        connect(f"ws://ws.{DOMAIN}/", sock=raw.socket, proxy=None) as chat,
    ):
        chat.send("before")
        assert chat.recv(20) == "before"
        assert first.request(host=APP).status == second.request(host=APP) == 200
        go_on(threads)
        # The two files cannot change at once: in between they do not match.
        replace(served.certificate, fresh.certificate.read_bytes())
        world.stack.processes["proxy"].wait_log("the key does not belong to the certificate")
        go_on(threads)
        assert shown(world, APP).serial_number == old
        replace(served.key, fresh.key.read_bytes())
        eventually(lambda: shown(world, APP).serial_number != old)
        # The chain of its names, and that of all other names, which it is the first for.
        assert world.stat(draining) == drained + 2
        assert world.stat(updates) == updated + 1
        # What is open stays open ...
        assert first.request(host=APP).status == second.request(host=APP) == 200
        chat.send("after")
        assert chat.recv(20) == "after"
        # ... and is asked to leave by and by, the more urgently the more time has gone.
        deadline = time.monotonic() + 40
        while first.request(host=f"nowhere.{DOMAIN}").value("connection") != "close":
            assert time.monotonic() < deadline
        while not second.going_away:
            second.request(host=f"nowhere.{DOMAIN}")
            assert time.monotonic() < deadline
        chat.send("still")
        assert chat.recv(20) == "still"
        go_on(threads)
    assert (
        shown(world, APP).serial_number
        == x509.load_pem_x509_certificate(fresh.certificate.read_bytes()).serial_number
    )


# -- codecs


@pytest.mark.parametrize(
    ("codec", "offered", "chosen"),
    [
        ("auto", ("h2", "http/1.1"), "h2"),
        ("auto", ("http/1.1",), "http/1.1"),
        ("http1", ("h2", "http/1.1"), "http/1.1"),
        ("http1", ("h2",), None),
        ("http2", ("h2", "http/1.1"), "h2"),
    ],
)
def test_a_codec_offers_its_protocols(
    world: Product,
    made: list[dict[str, Any]],
    codec: str,
    offered: tuple[str, ...],
    chosen: str | None,
) -> None:
    version = {"http1": "http/1.1", "http2": "h2"}.get(codec)
    if codec == "http2":
        mark = world.write(made, codec_type=codec)
        eventually(lambda: world.marked_http2(mark))
    else:
        world.reload(made, codec_type=codec)
    with world.connection(tls=world.client_tls(*offered)) as connection:
        secured = connection.socket
        assert isinstance(secured, ssl.SSLSocket)
        assert secured.selected_alpn_protocol() == chosen
        if chosen == "http/1.1":
            assert connection.request(host=APP).status == 200
    if chosen == "h2":
        with Http2Connection(world.port, world.client_tls(*offered)) as second:
            assert second.request(host=APP) == 200
    if version == "h2":  # and nothing else
        with (
            world.connection() as connection,
            pytest.raises((http.client.HTTPException, OSError)),
        ):
            connection.request(host=APP)


def test_headers_have_limits(world: Product, made: list[dict[str, Any]]) -> None:
    world.reload(made)
    with world.connection() as connection:
        long = [("X-Long", "x" * (100 << 10))]
        assert connection.request(host=APP, headers=long).status == 200
    with world.connection() as connection:
        # http.client cannot send this much in one line's worth of patience: Envoy hangs up early.
        too_long = [(f"X-Long-{n}", "x" * (10 << 10)) for n in range(13)]
        assert connection.request(host=APP, headers=too_long).status == 431
    with world.connection() as connection:
        many = [(f"X-{n}", "1") for n in range(1000)]
        assert connection.request(host=APP, headers=many).status == 431


# -- PROXY protocol


V1 = b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 443\r\n"


def v2(address: str) -> bytes:
    """PROXY protocol v2: TCP over IPv4 from `address` (the specification, section 2.2)."""
    addresses = socket.inet_aton(address) + socket.inet_aton("127.0.0.1")
    body = addresses + struct.pack("!HH", 4711, 443)
    return b"\r\n\r\n\x00\r\nQUIT\n\x21\x11" + struct.pack("!H", len(body)) + body


def test_proxy_protocol_tells_the_client_address(
    world: Product, made: list[dict[str, Any]]
) -> None:
    (redirects,) = free_ports(1)
    world.reload(
        made,
        dial={"proxy_line": V1},
        use_proxy_protocol=True,
        http_redirect_addr=f"127.0.0.1:{redirects}",
    )
    for line, address, allowed in (
        (V1, "203.0.113.7", True),
        (v2("203.0.113.7"), "203.0.113.7", True),
        (v2("198.51.100.1"), "198.51.100.1", False),
    ):
        with world.connection(proxy_line=line) as connection:
            reply = connection.request(host=APP)
            assert reply.arrived("x-forwarded-for") == [address]
            status = connection.request(host=f"only.{DOMAIN}").status
            assert (status == 200) is allowed
    with pytest.raises(OSError):
        world.connection()
    with Connection(redirects, None, proxy_line=V1) as plain:
        assert plain.request("/a?b", host=APP).value("location") == f"https://{APP}/a?b"
    with Connection(redirects, None) as plain, pytest.raises((OSError, http.client.HTTPException)):
        plain.request(host=APP)
    world.reload(made)


# -- plain HTTP


def test_plain_http_is_sent_to_https(world: Product, made: list[dict[str, Any]]) -> None:
    (port,) = free_ports(1)
    world.reload(made, http_redirect_addr=f"127.0.0.1:{port}")
    for host, method, path in (
        (APP, "GET", "/a/b?c=d"),
        (f"{APP}:{port}", "GET", "/"),
        (f"{APP}:8080", "POST", "/x"),
        ("anything.example.com", "GET", "/?"),
    ):
        with Connection(port, None) as connection:
            reply = connection.request(path, host=host, method=method)
            name = host.partition(":")[0]
            assert (reply.status, reply.value("location")) == (301, f"https://{name}{path}")
            assert reply.value("connection") == "close"
    world.reload(made)
    with pytest.raises(OSError):
        Connection(port, None).close()


def test_a_listener_without_tls(
    tmp_path: Path, provider: str, application: Application, talker: str
) -> None:
    """Behind a balancer that ends TLS."""
    insecure = Product(tmp_path / "insecure", provider)
    (redirects,) = free_ports(1)
    keys = {"insecure_server": True, "http_redirect_addr": f"127.0.0.1:{redirects}"}
    made = [
        {**route, "from": route["from"].replace("https:", "http:")}
        for route in routes(application, talker)
    ]
    with insecure.serving(made, **keys), insecure.connection(plain=True) as connection:
        reply = connection.request("/x", host=APP)
        assert reply.seen["path"] == "/x"
        assert reply.arrived("x-forwarded-proto") == ["http"]
        assert reply.value("x-frame-options") == "SAMEORIGIN"
        with pytest.raises(OSError):
            insecure.connection()
        with Connection(redirects, None) as redirected:
            assert redirected.request("/a", host=APP).value("location") == f"https://{APP}/a"
