"""The product in front of the upstreams of `traffic_upstreams.py`, and clients to send traffic.

Every host of these tests lies below `traffic.test`; clients connect to loopback and name the host
in SNI and Host, as a browser with the right DNS would.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import h2.connection
import h2.events
import httpx

from tests.support.localhost import localhost_client
from tests.support.ports import free_ports
from tests.support.stack import Stack, running
from tests.support.tls import Authority
from tests.support.traffic_upstreams import Server

DOMAIN = "traffic.test"
MARKER = f"marker.{DOMAIN}"
TIMEOUT_S = 30.0
GOAWAY = 7  # RFC 9113, section 6.8


@dataclass(frozen=True)
class Reply:
    """An answer read to its end."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for header, value in self.headers if header.lower() == name]

    def value(self, name: str) -> str | None:
        found = self.values(name)
        assert len(found) < 2, found
        return found[0] if found else None

    @property
    def seen(self) -> dict[str, Any]:
        """What the upstream says it received."""
        assert self.status == 200, (self.status, self.body[:500])
        found: dict[str, Any] = json.loads(self.body)
        return found

    def arrived(self, name: str) -> list[str]:
        """Values of a request header as the upstream received it."""
        return [value for header, value in self.seen["headers"] if header.lower() == name]


def https(host: str = "", **keys: Any) -> dict[str, Any]:
    """A public route of a host below the domain."""
    return {
        "from": f"https://{host}.{DOMAIN}",
        "allow_public_unauthenticated_access": True,
        **keys,
    }


def eventually(check: Callable[[], object], timeout_s: float = 30.0, every_s: float = 0.02) -> None:
    """Until `check` is true: for what Envoy does without telling."""
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, "did not come to pass"
        time.sleep(every_s)


def together(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """All at once, each on its own thread; their results in order."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [each.result() for each in [pool.submit(call) for call in calls]]


class Connection:
    """One HTTP/1.1 connection, kept alive; paths and headers go out as they are written."""

    def __init__(
        self,
        port: int,
        tls: ssl.SSLContext | None,
        *,
        server_name: str = f"any.{DOMAIN}",
        proxy_line: bytes = b"",
        session: ssl.SSLSession | None = None,
        timeout_s: float = TIMEOUT_S,
        source: str = "127.0.0.1",
    ) -> None:
        """`source` is the loopback address that it comes from."""
        sock = socket.create_connection(("127.0.0.1", port), timeout_s, (source, 0))
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if proxy_line:
                sock.sendall(proxy_line)
            if tls is not None:
                sock = tls.wrap_socket(sock, server_hostname=server_name, session=session)
        except BaseException:
            sock.close()
            raise
        self.socket = sock
        self._http = http.client.HTTPConnection("127.0.0.1")
        self._http.sock = sock
        self._http.auto_open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_details: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()
        self.socket.close()

    def send(
        self,
        path: str = "/",
        *,
        host: str,
        method: str = "GET",
        headers: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
    ) -> None:
        self._http.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        self._http.putheader("Host", host)
        for name, value in headers:
            self._http.putheader(name, value)
        if body is not None:
            self._http.putheader("Content-Length", str(len(body)))
        self._http.endheaders(body)

    def answer(self) -> http.client.HTTPResponse:
        return self._http.getresponse()

    def request(self, path: str = "/", **options: Any) -> Reply:
        self.send(path, **options)
        response = self.answer()
        return Reply(response.status, tuple(response.getheaders()), response.read())


class Http2Connection:
    """One HTTP/2 connection, one request at a time; it notes when it is asked to go away."""

    def __init__(self, port: int, tls: ssl.SSLContext) -> None:
        sock = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock = tls.wrap_socket(sock, server_hostname=f"any.{DOMAIN}")
            chosen = sock.selected_alpn_protocol()
            assert chosen == "h2", chosen
        except BaseException:
            sock.close()
            raise
        self.socket = sock
        self.going_away = False
        self._pending = b""
        self.body = b""
        self._http = h2.connection.H2Connection()
        self._http.initiate_connection()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_details: object) -> None:
        self.socket.close()

    def _frames(self, data: bytes) -> bytes:
        """Whole frames without GOAWAY: it asks for no new requests, h2 would refuse answers too."""
        self._pending += data
        frames = b""
        while len(self._pending) >= 9:
            size = 9 + int.from_bytes(self._pending[:3], "big")
            if len(self._pending) < size:
                break
            frame, self._pending = self._pending[:size], self._pending[size:]
            if frame[3] == GOAWAY:
                self.going_away = True
            else:
                frames += frame
        return frames

    def request(self, path: str = "/", *, host: str) -> int:
        """The status of a GET; `body` is then what it brought."""
        stream = self._http.get_next_available_stream_id()
        headers = [(":method", "GET"), (":scheme", "https"), (":authority", host), (":path", path)]
        self._http.send_headers(stream, headers, end_stream=True)
        self.body = b""
        status, ended = 0, False
        while not ended:
            self.socket.sendall(self._http.data_to_send())
            data = self.socket.recv(65536)
            assert data, "the connection ended before the answer"
            for event in self._http.receive_data(self._frames(data)):
                if isinstance(event, h2.events.ResponseReceived):
                    status = int(dict(event.headers)[b":status"])
                elif isinstance(event, h2.events.DataReceived):
                    self.body += event.data
                    self._http.acknowledge_received_data(event.flow_controlled_length, stream)
                elif isinstance(event, h2.events.StreamEnded):
                    ended = True
                assert not isinstance(event, h2.events.StreamReset), event
        return status


class Product:
    """A running product whose routes and settings a test changes."""

    def __init__(self, directory: Path, issuer: str) -> None:
        self.authority = Authority(directory / "authority")
        self.certificate = self.authority.leaf(DOMAIN, f"*.{DOMAIN}", stem="traffic")
        self.stack = Stack(
            directory=directory,
            issuer=issuer,
            client_id="gatehouse",
            client_secret="not-a-real-secret",
            routes=[],
        )
        (self.admin_port,) = free_ports(1)
        self.port = self.stack.port
        self.guarded: Server | None = None  # for tests of who gets through to it
        self.base: dict[str, Any] = {
            "authenticate_service_url": f"https://authenticate.{DOMAIN}:{self.port}",
            "certificates": [
                {"cert": str(self.certificate.certificate), "key": str(self.certificate.key)}
            ],
            "envoy_admin_address": f"127.0.0.1:{self.admin_port}",
            "databroker_storage_type": "memory",
            "databroker_storage_connection_string": "",
        }
        self.tls = self.client_tls()

    def client_tls(self, *alpn: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.path))
        context.set_alpn_protocols(list(alpn or ("http/1.1",)))
        return context

    def write(self, routes: Sequence[Mapping[str, Any]], **extra: Any) -> str:
        """Replace routes and settings; the mark by which they are told once they are in force."""
        mark = secrets.token_hex(8)
        insecure = bool(extra.get("insecure_server"))
        marker = {
            "from": f"{'http' if insecure else 'https'}://{MARKER}",
            "response": {"status": 200, "body": mark},
            "allow_public_unauthenticated_access": True,
        }
        self.stack.routes = [marker, *map(dict, routes)]
        self.stack.extra = {**self.base, **extra}
        self.stack.write_config()
        return mark

    def _marked(self, mark: str, dial: Mapping[str, Any]) -> bool:
        try:
            with self.connection(**dial) as connection:
                return connection.request(host=MARKER).body.decode() == mark
        except (OSError, http.client.HTTPException):
            return False

    def marked_http2(self, mark: str) -> bool:
        """True when a client that speaks HTTP/2 alone is served by these settings."""
        try:
            with Http2Connection(self.port, self.client_tls("h2")) as connection:
                connection.request(host=MARKER)
                return connection.body.decode() == mark
        except (OSError, AssertionError):
            return False

    @contextlib.contextmanager
    def serving(self, routes: Sequence[Mapping[str, Any]], **extra: Any) -> Iterator[Self]:
        """Start with these routes and settings; stop at the end."""
        self.write(routes, **extra)
        with running(self.stack):
            yield self

    def reload(
        self,
        routes: Sequence[Mapping[str, Any]],
        *,
        dial: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> None:
        """Replace routes and settings and wait until requests meet them.

        `dial` says how a connection is opened under the new settings.
        """
        mark = self.write(routes, **extra)
        deadline = time.monotonic() + 20
        while not self._marked(mark, dial or {}):
            assert time.monotonic() < deadline, self.stack.processes["proxy"].log()[-4000:]
            time.sleep(0.02)

    def connection(self, *, plain: bool = False, **options: Any) -> Connection:
        options.setdefault("tls", None if plain else self.tls)
        return Connection(self.port, **options)

    def get(self, host: str, path: str = "/", **options: Any) -> Reply:
        """One request on a connection of its own, to a host below the domain."""
        with self.connection() as connection:
            return connection.request(path, host=f"{host}.{DOMAIN}", **options)

    def upgraded(self, host: str, token: str, headers: Sequence[tuple[str, str]] = ()) -> int:
        """The status that an upgrade ends with; after 101 what is sent has come back."""
        asking = [("Connection", "Upgrade"), ("Upgrade", token), *headers]
        with self.connection() as connection:
            connection.send(host=f"{host}.{DOMAIN}", headers=asking)
            response = connection.answer()
            if response.status != http.HTTPStatus.SWITCHING_PROTOCOLS:
                return response.status
            connection.socket.sendall(b"hello")
            echo = b""
            while len(echo) < len(b"hello"):
                piece = connection.socket.recv(16)
                assert piece, "the upgraded connection ended"
                echo += piece
            assert echo == b"hello"
            return response.status

    def browser(self, *hosts: str, **options: Any) -> httpx.Client:
        """A client with cookies that can sign in."""
        ports = {f"{host}.{DOMAIN}": self.port for host in ("authenticate", *hosts)}
        return localhost_client(self.authority.path, hosts=ports, **options)

    def url(self, host: str, path: str = "/") -> str:
        return f"https://{host}.{DOMAIN}:{self.port}{path}"

    def stats(self, pattern: str) -> dict[str, int]:
        """Envoy's counters and gauges whose whole name matches."""
        answer = httpx.get(f"http://127.0.0.1:{self.admin_port}/stats", trust_env=False)
        found = dict(line.split(": ", 1) for line in answer.text.splitlines() if ": " in line)
        return {
            name: int(value)
            for name, value in found.items()
            if re.fullmatch(pattern, name) and value.isdecimal()
        }

    def stat(self, name: str) -> int:
        return self.stats(re.escape(name))[name]

    def logged(self, host: str, count: int = 1) -> list[dict[str, Any]]:
        """Lines of the access log about a host below the domain, once there are so many."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            text = self.stack.processes["proxy"].access_log()
            lines = [json.loads(line) for line in text.splitlines(keepends=True) if "\n" in line]
            found[:] = [line for line in lines if line["authority"] == f"{host}.{DOMAIN}"]
            return len(found) >= count

        eventually(there)
        return found

    def envoy_pid(self) -> int:
        """Envoy's process: the child of ours that is called so."""
        product = self.stack.processes["proxy"].process.pid
        children = Path(f"/proc/{product}/task/{product}/children").read_text().split()
        named = [int(pid) for pid in children if "envoy" in Path(f"/proc/{pid}/comm").read_text()]
        (pid,) = named
        return pid
