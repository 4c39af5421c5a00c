"""Paths, hosts and methods in hostile spellings, against the running product.

The two clients here send exactly what they are given, and see to it that a refusal left the
upstream untouched, to the byte; the other security tests use them too.
"""

from __future__ import annotations

import functools
import json
import re
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest

from tests.e2e.conftest import ADA, GRACE, MALLORY, World
from tests.support.sign_in import sign_in
from tests.support.stack import HOSTS

pytestmark = pytest.mark.e2e

TIMEOUT_S = 15.0
OPEN = "public.localhost"
CLOSED = (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError)


@dataclass(frozen=True)
class Reply:
    """`status` is 0 when the connection or stream was closed without an answer."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def arrived(self) -> dict[str, Any]:
        """What the upstream says it received."""
        assert self.status == 200, (self.status, self.body[:500])
        seen: dict[str, Any] = json.loads(self.body)
        return seen

    @property
    def location(self) -> str:
        return next((value for name, value in self.headers if name == "location"), "")


def http1(
    world: World,
    path: str | bytes = "/",
    *,
    host: str = OPEN,
    method: str = "GET",
    lines: Sequence[str] = (),
    body: bytes = b"",
    accept: str = "text/html",
) -> Reply:
    """One HTTP/1.1 request on a connection of its own; `path` and `lines` go out as they are."""
    target = path if isinstance(path, bytes) else path.encode("latin-1")
    head = [
        f"Host: {host}",
        "Connection: close",
        *([f"Accept: {accept}"] if accept else []),
        *lines,
    ]
    data = method.encode() + b" " + target + b" HTTP/1.1\r\n"
    data += "\r\n".join([*head, "", ""]).encode("latin-1") + body
    return parse(exchange(world, data, sni=_name(host)))


def exchange(world: World, data: bytes, *, sni: str = OPEN, timeout_s: float = TIMEOUT_S) -> bytes:
    """Send bytes over TLS and return what comes back: one whole answer, or all until the end.

    Unless it is the upstream's own answer, the upstream has not received a byte.
    """
    received = b""
    before = world.upstream.received
    with connected(world, "http/1.1", sni, timeout_s) as tls:
        try:
            tls.sendall(data)
            while not _is_whole(received) and (chunk := tls.recv(65536)):
                received += chunk
        except CLOSED:
            pass
    world.upstream.check_refusal(parse(received).headers, before)
    return received


def _is_whole(received: bytes) -> bool:
    """One answer of announced length: Envoy may keep a refused connection open for a second."""
    head, blank, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?im)^content-length: (\d+)", head)
    return bool(blank and length and len(body) >= int(length[1]))


def connected(
    world: World, protocol: str, sni: str = OPEN, timeout_s: float = TIMEOUT_S
) -> ssl.SSLSocket:
    """A TLS connection to the proxy."""
    context = ssl.create_default_context(cafile=str(world.stack.certificates.authority))
    context.set_alpn_protocols([protocol])
    plain = socket.create_connection(("127.0.0.1", world.stack.port), timeout=timeout_s)
    try:
        tls = context.wrap_socket(plain, server_hostname=sni)
    except BaseException:
        plain.close()
        raise
    assert tls.selected_alpn_protocol() == protocol
    return tls


def parse(data: bytes) -> Reply:
    """The final answer in `data`; interim ones (1xx) are passed over."""
    while True:
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        if not first:
            return Reply(0, (), b"")
        status = int(first.split(" ")[1])
        if status >= 200:
            break
        data = rest
    headers = []
    for line in lines:
        name, _, value = line.partition(":")
        headers.append((name.lower(), value.strip()))
    return Reply(status, tuple(headers), rest)


def pseudo(
    path: str = "/", *, host: str = OPEN, method: str = "GET", scheme: str = "https"
) -> list[tuple[str, str]]:
    """The pseudo-headers of an HTTP/2 request."""
    return [(":method", method), (":scheme", scheme), (":authority", host), (":path", path)]


def http2(
    world: World,
    headers: Sequence[tuple[str, str]],
    *,
    body: bytes = b"",
    trailers: Sequence[tuple[str, str]] = (),
    sni: str = OPEN,
    may_begin: bool = False,
) -> Reply:
    """One HTTP/2 request on a connection of its own, nothing checked or mended on our side.

    Unless it is the upstream's own answer, the upstream has not received a byte; `may_begin`: or
    has received a request that was cut.
    """
    before = world.upstream.received
    connection = h2.connection.H2Connection(
        h2.config.H2Configuration(
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            split_outbound_cookies=False,
            header_encoding="utf-8",
        )
    )
    connection.initiate_connection()
    connection.send_headers(1, list(headers), end_stream=not body and not trailers)
    if body:
        connection.send_data(1, body, end_stream=not trailers)
    if trailers:
        connection.send_headers(1, list(trailers), end_stream=True)
    status, data = 0, b""
    received: list[tuple[str, str]] = []
    with connected(world, "h2", sni) as tls:
        try:
            tls.sendall(connection.data_to_send())
            ended = False
            while not ended and (chunk := tls.recv(65536)):
                for event in connection.receive_data(chunk):
                    if isinstance(event, h2.events.ResponseReceived):
                        received = [(str(name), str(value)) for name, value in event.headers]
                        status = int(dict(received)[":status"])
                    elif isinstance(event, h2.events.DataReceived):
                        data += event.data
                        connection.acknowledge_received_data(event.flow_controlled_length, 1)
                    elif isinstance(
                        event,
                        h2.events.StreamEnded
                        | h2.events.StreamReset
                        | h2.events.ConnectionTerminated,
                    ):
                        ended = True
                tls.sendall(connection.data_to_send())
        except (
            ConnectionResetError,
            BrokenPipeError,
            ssl.SSLEOFError,
            h2.exceptions.ProtocolError,
        ):
            pass
    if may_begin:
        world.upstream.settle()  # or it would count against the next refusal
    else:
        world.upstream.check_refusal(received, before)
    return Reply(status, tuple(received), data)


def handle_of(world: World, user: str, host: str = "app.localhost") -> str:
    """Sign in and return the session handle that the browser then holds for `host`."""
    with world.stack.client() as client:
        sign_in(client, world.stack.url(host), user)
        handle = client.cookies.get("_pomerium", domain=host)
    assert handle
    return handle


def _name(host: str) -> str:
    """The name for TLS: the host, where it is one that the certificate knows."""
    name = host.partition(":")[0].rstrip(".").lower()
    return name if name in HOSTS else OPEN


def at_once(asks: Mapping[str, Callable[[], Reply]]) -> dict[str, Reply]:
    """Every request on a thread of its own: a refused connection may linger for a second."""
    with ThreadPoolExecutor(8) as pool:
        pending = {name: pool.submit(ask) for name, ask in asks.items()}
        return {name: future.result() for name, future in pending.items()}


# -- paths

# Each means /private/x to somebody: browsers, Envoy, or servers that decode, merge or resolve.
PRIVATE_SPELLINGS = [
    "/private/x",
    "/%70rivate/x",
    "/%70%72%69%76%61%74%65/x",
    "//private/x",
    "///private//x",
    "/./private/x",
    "/x/../private/x",
    "/x/%2e%2e/private/x",
    "/x/.%2e/private/x",
    "/x/%2E./private/x",
    "/x/..//private/x",
    "/x/..;/private/x",
    "/x/..;a=b/private/x",
    "/x/%2e%2e;/private/x",
    "/x/..%3b/private/x",
    "/.;/private/x",
    "/\\private/x",
    "/x\\..\\private/x",
    "/x/..\\private/x",
    "/private",
    "/private/",
    "/private;v=1/x",
    "/private/../private/x",
    "/%23/../private/x",
    "http://public.localhost/private/x",
    "https://public.localhost//private/x",
]
REFUSED_SPELLINGS = [
    "/x%2f..%2fprivate/x",
    "/%2fprivate/x",
    "/x%5c..%5cprivate/x",
    "/..%5cprivate",
    "/private%00",
    "/%00/../private/x",
    "/private/x#/open",
    "/#/../private/x",
    "/%2e%2e%2fprivate",
    "*",
    "private/x",
    "",
]


@pytest.mark.parametrize("path", PRIVATE_SPELLINGS)
def test_r01_r02_r04_every_spelling_of_a_guarded_path_is_guarded(world: World, path: str) -> None:
    answer = http1(world, path)
    assert answer.status in (302, 400), (answer.status, answer.body[:200])
    if answer.status == 302:
        assert answer.location.startswith(world.stack.authenticate_url)


def test_r03_r04_paths_without_one_meaning_are_refused(world: World) -> None:
    asks = {path: functools.partial(http1, world, path) for path in REFUSED_SPELLINGS}
    statuses = {path: answer.status for path, answer in at_once(asks).items()}
    assert {path: status for path, status in statuses.items() if status not in (0, 400, 404)} == {}


def test_r01_r03_http2_paths_are_guarded_alike(world: World) -> None:
    spellings = [*PRIVATE_SPELLINGS[:-2], *REFUSED_SPELLINGS]
    asks = {
        path: functools.partial(http2, world, [*pseudo(path), ("accept", "text/html")])
        for path in spellings
    }
    statuses = {path: answer.status for path, answer in at_once(asks).items()}
    assert {p: status for p, status in statuses.items() if status not in (0, 302, 400, 404)} == {}
    assert statuses["/private/x"] == 302


def test_r01_a_path_is_forwarded_in_the_spelling_that_was_decided(world: World) -> None:
    for path, expected in (
        ("/a/../b", "/b"),
        ("/a/%2e%2e/b", "/b"),
        ("//a//b", "/a/b"),
        ("/a\\b", "/a/b"),
        ("/%61", "/a"),
        ("/a/./b?x=/../c//d", "/a/b?x=/../c//d"),
    ):
        assert http1(world, path).arrived["path"] == expected


def test_r02_a_doubled_slash_is_never_an_authority(world: World) -> None:
    """`//admin.localhost/x` is a path, for policy and for the address to return to."""
    assert http1(world, "//admin.localhost/x").arrived["path"] == "/admin.localhost/x"
    answer = http1(world, "//admin.localhost/x", host="app.localhost")
    assert answer.status == 302
    assert "%2F%2Fapp.localhost%2Fadmin.localhost%2Fx" in answer.location


@pytest.mark.parametrize(
    "path",
    [
        "/secret",
        "/s%65cret",
        "/secret/",
        "/x/../secret",
        "/secret?a=/open",
        "//secret",
        "/./secret",
    ],
)
def test_r05_a_denied_path_is_denied_in_every_spelling(world: World, path: str) -> None:
    handle = handle_of(world, GRACE, "methods.localhost")
    answer = http1(world, path, host="methods.localhost", lines=[f"Cookie: _pomerium={handle}"])
    assert answer.status == 403, (answer.status, answer.body[:300])


@pytest.mark.parametrize(
    "path", ["/secret/*/x", "/secret/*", "/secret*", "/secret/%2A/x", "/secret/{id}", "/secret/**"]
)
def test_r10_a_star_in_a_segment_is_a_character(world: World, path: str) -> None:
    """Nothing that stands for a pattern elsewhere keeps a path from a rule that denies it."""
    handle = handle_of(world, GRACE, "methods.localhost")
    answer = http1(world, path, host="methods.localhost", lines=[f"Cookie: _pomerium={handle}"])
    assert answer.status in (400, 403), (answer.status, answer.body[:300])


def test_r05_the_query_is_no_part_of_the_path(world: World) -> None:
    handle = handle_of(world, GRACE, "methods.localhost")
    cookie = f"Cookie: _pomerium={handle}"
    for path in ("/open?/secret", "/open?x=/secret/y"):
        answer = http1(world, path, host="methods.localhost", lines=[cookie])
        assert answer.arrived["path"] == path
    before = len(world.upstream.requests)
    for path in ("/exact?x", "/exact/", "/exactly", "/r/1/2", "/r/a", "/r/1?/2"):
        answer = http1(world, path, host="rewrite.localhost")
        if answer.status == 200:
            assert path in ("/exact?x", "/r/1?/2")
        else:
            assert answer.status == 404
    assert len(world.upstream.requests) == before + 2


@pytest.mark.parametrize(
    "path",
    [
        "/private?pomerium_redirect_uri=/",
        "/private?a=1&a=2&route=public",
        "/private?%2e%2e/",
        "/private?;/../../",
        "/private/%3f/../../private",
    ],
)
def test_r06_odd_queries_do_not_move_a_request_to_another_routes_policy(
    world: World, path: str
) -> None:
    handle = handle_of(world, MALLORY)
    answer = http1(world, path)
    assert answer.status == 302, (answer.status, answer.body[:200])
    assert http1(world, path, lines=[f"Cookie: _pomerium={handle}"]).status == 403


@pytest.mark.parametrize(
    "path", ["/old/../secret", "/old/%2e%2e/secret", "/old/..%2fsecret", "/old/..;/secret", "/old"]
)
def test_r07_a_rewritten_path_stays_below_its_prefix(world: World, path: str) -> None:
    answer = http1(world, path, host="rewrite.localhost")
    assert answer.status in (400, 404), answer.status
    assert http1(world, "/old/%2e/x", host="rewrite.localhost").arrived["path"] == "/new/x"


# -- hosts


@pytest.mark.parametrize(
    "host",
    [
        "ADMIN.LOCALHOST",
        "Admin.localhost",
        "admin.localhost.",
        "admin.localhost.:{port}",
        "admin.localhost:{port}",
        "admin.localhost:443",
        "admin.localhost:1",
        "admin.localhost:443:443",
    ],
)
def test_r08_hosts_are_one_however_they_are_spelt(world: World, host: str) -> None:
    handle = handle_of(world, GRACE)
    spelt = host.format(port=world.stack.port)
    answer = http1(world, host=spelt)
    assert answer.status in (302, 400, 404), answer.status
    refused = http1(world, host=spelt, lines=[f"Cookie: _pomerium={handle}"])
    assert refused.status in (400, 403, 404), refused.status


@pytest.mark.parametrize(
    "host",
    [
        "public.localhost@admin.localhost",
        "admin.localhost@public.localhost",
        "admin.localhost,public.localhost",
        "admin.localhost public.localhost",
        "admin.localhost/public.localhost",
        "admin.localhost\\public.localhost",
        "admin.localhost#.public.localhost",
        "admin.localhost?.public.localhost",
        "xpublic.localhost",
        "public.localhostx",
        "x.public.localhost",
        "public_localhost",
        "public-localhost",
        "publicAlocalhost",
        "[public.localhost]",
        "%70ublic.localhost",
        "public.localhost..",
        ".public.localhost",
        "",
        "p\u00fcblic.localhost",
    ],
)
def test_r08_r12_what_is_not_a_configured_host_leads_nowhere(world: World, host: str) -> None:
    """Also: a dot in a configured host is a dot, not any character."""
    answer = http1(world, host=host)
    assert answer.status in (400, 404), (answer.status, answer.body[:200])


def test_r09_the_host_decides_and_not_the_name_in_tls(world: World) -> None:
    request = b"GET / HTTP/1.1\r\nHost: admin.localhost\r\nAccept: text/html\r\n"
    answer = parse(exchange(world, request + b"Connection: close\r\n\r\n", sni=OPEN))
    assert answer.status == 302


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("http://admin.localhost/", OPEN),
        ("https://admin.localhost/", OPEN),
        ("https://ADMIN.localhost:443/", OPEN),
    ],
)
def test_r08_an_absolute_target_outweighs_the_host_header(
    world: World, target: str, host: str
) -> None:
    """RFC 9112 section 3.2.2; what matters is that policy and route agree on which one counts."""
    answer = http1(world, target, host=host)
    assert answer.status in (302, 400, 404)
    if answer.status == 302:
        assert "admin.localhost" in answer.location


def test_r08_two_hosts_are_none(world: World) -> None:
    assert http1(world, lines=["Host: admin.localhost"]).status == 400
    assert http1(world, host="admin.localhost", lines=["Host: public.localhost"]).status == 400


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([*pseudo(), ("host", "admin.localhost")], {200, 400, 0}),
        ([*pseudo(host="admin.localhost"), ("host", OPEN)], {302, 400, 0}),
        ([(":authority", "admin.localhost"), *pseudo()], {0, 400}),
        ([*pseudo(), (":authority", "admin.localhost")], {0, 400}),
        ([*pseudo()[:2], pseudo()[3], ("host", "admin.localhost")], {302, 400, 0}),
        ([*pseudo()[:2], pseudo()[3], ("host", OPEN), ("host", "admin.localhost")], {0, 400}),
    ],
    ids=["host-differs", "host-open", "two-first", "two-last", "host-only", "two-hosts"],
)
def test_r08_http2_authority_and_host(
    world: World, headers: list[tuple[str, str]], expected: set[int]
) -> None:
    """`:authority` counts (RFC 9113 section 8.3.1), and a `host` beside it goes nowhere."""
    answer = http2(world, [*headers, ("accept", "text/html")])
    assert answer.status in expected, (answer.status, answer.body[:200])
    if answer.status == 200:
        assert "admin.localhost" not in json.dumps(answer.arrived)


# -- methods


@pytest.mark.parametrize("method", ["get", "Get", "pOST", "delete", "propfind"])
@pytest.mark.parametrize("version", ["http1", "http2"])
def test_r13_a_method_in_other_letters_is_refused(world: World, method: str, version: str) -> None:
    answer = (
        http1(world, method=method)
        if version == "http1"
        else http2(world, [*pseudo(method=method), ("accept", "text/html")])
    )
    assert answer.status == 400, (answer.status, answer.body[:200])


@pytest.mark.parametrize("method", ["POST", "DELETE", "HEAD", "OPTIONS", "FOO", "GETX", "TRACE"])
def test_r13_a_method_that_policy_does_not_name_is_refused(world: World, method: str) -> None:
    handle = handle_of(world, GRACE, "methods.localhost")
    cookie = f"_pomerium={handle}"
    answer = http1(world, host="methods.localhost", method=method, lines=[f"Cookie: {cookie}"])
    assert answer.status in (400, 403), answer.status  # Envoy knows no FOO in HTTP/1.1
    over2 = [*pseudo(host="methods.localhost", method=method), ("cookie", cookie)]
    assert http2(world, over2).status == 403


@pytest.mark.parametrize("method", ["GET\x00", "GET ", " GET", "G\tET", "GET\x0b", ""])
def test_r13_a_method_that_is_no_token_is_refused(world: World, method: str) -> None:
    assert http2(world, pseudo(method=method)).status in (0, 400)
    if method not in ("GET ", " GET"):  # RFC 9112 section 3 lets HTTP/1.1 mend blanks
        assert http1(world, method=method).status in (0, 400)


def test_r53_connect_leads_nowhere_without_a_tunnel_route(world: World) -> None:
    for host in (OPEN, "app.localhost", "127.0.0.1:22", f"127.0.0.1:{world.upstream.port}"):
        answer = http1(world, host, host=host, method="CONNECT")
        assert answer.status in (400, 403, 404), (host, answer.status)
        plain = http2(world, [(":method", "CONNECT"), (":authority", host)])
        assert plain.status in (0, 400, 403, 404), (host, plain.status)
        for protocol in ("websocket", "connect-udp", "connect-ip", "foo"):
            extended = [*pseudo(host=host, method="CONNECT"), (":protocol", protocol)]
            answer = http2(world, extended)
            assert answer.status in (0, 400, 403, 404), (host, protocol, answer.status)


def test_r49_a_policy_for_one_user_holds_in_both_versions(world: World) -> None:
    """The guards above refuse; the same clients get through where they may."""
    handle = handle_of(world, ADA, "admin.localhost")
    cookie = f"_pomerium={handle}"
    assert http1(world, host="admin.localhost", lines=[f"Cookie: {cookie}"]).status == 200
    assert http2(world, [*pseudo(host="admin.localhost"), ("cookie", cookie)]).status == 200
