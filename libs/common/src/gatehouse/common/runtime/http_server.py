"""How a service serves HTTP: an ASGI application on Hypercorn, with limits, until told to stop.

HTTP/1.1 and, over TLS, HTTP/2. On a Unix socket (mode 0600) behind Envoy, or on an address with
our certificates. Nothing of a request is logged but method and path.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from hypercorn.asyncio.run import worker_serve
from hypercorn.config import Config, Sockets
from hypercorn.logging import Logger
from hypercorn.utils import wrap_app

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.runtime.asgi_limits import App, LimitedApp
from gatehouse.common.runtime.listening import listen_error
from gatehouse.common.runtime.measured_app import MeasuredApp

if TYPE_CHECKING:
    from gatehouse.common.config.resolved import CertificatePair, ListenAddress

MAX_BODY_BYTES: Final = 1024 * 1024
HEADER_BYTES: Final = 64 * 1024  # all headers of a request together
IDLE_TIMEOUT_S: Final = 60.0  # between requests, and for a request's headers to arrive
# Envoy beside us keeps idle connections for an hour. If we closed them, a request that it sends at
# that moment would be lost.
ENVOY_IDLE_TIMEOUT_S: Final = 2 * 3600.0
HANDSHAKE_TIMEOUT_S: Final = 10.0
REQUEST_TIMEOUT_S: Final = 60.0
STREAMS_PER_CONNECTION: Final = 100
BACKLOG: Final = 1024

_log = get_logger("http")


async def serve_http(
    app: App,
    *,
    stop: asyncio.Event,
    unix_socket: Path | None = None,
    address: ListenAddress | None = None,
    tls: ServerTls | None = None,
    ready: Callable[[], None] | None = None,
    bound: Callable[[int], None] | None = None,
    grace_s: float = 5.0,
    max_body_bytes: int = MAX_BODY_BYTES,
    request_timeout_s: float = REQUEST_TIMEOUT_S,
) -> None:
    """Serve `app` until `stop`, then finish open requests within `grace_s` seconds and return.

    Exactly one of `unix_socket` and `address` is given; `tls` is for an address. `bound` gets the
    TCP port, then `ready` is called, once connections are accepted. Raises OSError when the address
    cannot be had.
    """
    assert (unix_socket is None) != (address is None)
    with contextlib.ExitStack() as stack:
        if unix_socket is not None:
            listener = _unix_listener(unix_socket)
            stack.callback(unix_socket.unlink, missing_ok=True)
        else:
            assert address is not None
            listener = _tcp_listener(address)
        stack.callback(listener.close)
        config = server_config(listener, None if tls is None else tls.context, grace_s)
        if unix_socket is not None:
            config.keep_alive_timeout = ENVOY_IDLE_TIMEOUT_S
        limited = LimitedApp(
            app,
            max_header_bytes=HEADER_BYTES,
            max_body_bytes=max_body_bytes,
            request_timeout_s=request_timeout_s,
            unix_socket=unix_socket,
        )

        async def until_stop() -> None:
            # Called by the server once it accepts connections.
            if bound is not None:
                bound(0 if address is None else listener.getsockname()[1])
            if ready is not None:
                ready()
            await stop.wait()

        where = f"{address.host}:{address.port}" if address is not None else ""
        name = where if unix_socket is None else unix_socket.stem
        await _serve_within(grace_s, stop, MeasuredApp(limited, name), config, until_stop)


async def _serve_within(
    grace_s: float, stop: asyncio.Event, app: App, config: Config, until_stop: Any
) -> None:
    """Run the server; after `stop` it gets the grace and a second to wind up, no more."""
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(
            worker_serve(
                wrap_app(cast("Any", app), MAX_BODY_BYTES, "asgi"),
                config,
                shutdown_trigger=until_stop,
            )
        )
        stopping = group.create_task(stop.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            await asyncio.wait({serving}, timeout=grace_s + 1.0)
        serving.cancel()
        stopping.cancel()


class _Config(Config):
    """Hypercorn's settings around a socket and a TLS context of ours."""

    gatehouse_socket: socket.socket
    gatehouse_tls: ssl.SSLContext | None

    @property
    def ssl_enabled(self) -> bool:
        return self.gatehouse_tls is not None

    def create_ssl_context(self) -> ssl.SSLContext | None:
        return self.gatehouse_tls

    def create_sockets(self) -> Sockets:
        if self.gatehouse_tls is not None:
            return Sockets([self.gatehouse_socket], [], [])
        return Sockets([], [self.gatehouse_socket], [])


def server_config(listener: socket.socket, tls: ssl.SSLContext | None, grace_s: float) -> Config:
    """Hypercorn's settings for a listening socket."""
    config = _Config()
    config.gatehouse_socket = listener
    config.gatehouse_tls = tls
    config.logger_class = cast("type[Logger]", _ServerLog)
    config.accesslog = None
    config.errorlog = None
    config.backlog = BACKLOG
    config.include_server_header = False
    config.h11_max_incomplete_size = HEADER_BYTES
    config.h2_max_header_list_size = HEADER_BYTES
    config.h2_max_concurrent_streams = STREAMS_PER_CONNECTION
    config.keep_alive_timeout = IDLE_TIMEOUT_S
    config.keep_alive_max_requests = 2**31  # over HTTP/2 its end cuts the requests under way
    # After it Hypercorn stops reading and leaves the connection open: a request on it would hang.
    # Idle connections and slow requests have their own ends.
    config.read_timeout = None
    config.ssl_handshake_timeout = HANDSHAKE_TIMEOUT_S
    config.graceful_timeout = grace_s
    config.shutdown_timeout = max(grace_s, 1.0)
    config.startup_timeout = 10.0
    return config


class _ServerLog:
    """Hypercorn's own messages as structured lines. Access lines are Envoy's business."""

    def __init__(self, _config: Config) -> None:
        pass

    async def access(self, *_args: object) -> None:
        """Nothing."""

    async def critical(self, message: str, *args: object, **_kwargs: object) -> None:
        """An error that stops the server."""
        _log.critical("http server", detail=message % args if args else message)

    async def error(self, message: str, *args: object, **_kwargs: object) -> None:
        """An error of the server."""
        _log.error("http server", detail=message % args if args else message)

    async def warning(self, message: str, *args: object, **_kwargs: object) -> None:
        """Something odd."""
        _log.warning("http server", detail=message % args if args else message)

    async def info(self, message: str, *args: object, **_kwargs: object) -> None:
        """Where it listens, for instance."""
        _log.debug("http server", detail=message % args if args else message)

    async def debug(self, message: str, *args: object, **_kwargs: object) -> None:
        """Details."""

    async def exception(self, message: str, *args: object, **_kwargs: object) -> None:
        """An exception that left the application; `LimitedApp` has logged its own."""
        _log.error("http server", detail=message % args if args else message, exc_info=True)

    async def log(self, _level: int, message: str, *args: object, **_kwargs: object) -> None:
        """Anything else."""
        _log.debug("http server", detail=message % args if args else message)


# -- listening


def _unix_listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        # Before listen(): nobody can connect yet, so the wider mode never counts.
        path.chmod(0o600)
        listener.setblocking(False)  # noqa: FBT003  # positional only
    except OSError as error:
        listener.close()
        raise listen_error("HTTP", str(path), error) from error
    return listener


def _tcp_listener(address: ListenAddress) -> socket.socket:
    where = f"{address.host or '*'}:{address.port}"
    try:
        if not address.host and socket.has_dualstack_ipv6():
            return _nonblocking(
                socket.create_server(
                    ("", address.port),
                    family=socket.AF_INET6,
                    backlog=BACKLOG,
                    dualstack_ipv6=True,
                )
            )
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return _nonblocking(
            socket.create_server((address.host, address.port), family=family, backlog=BACKLOG)
        )
    except OSError as error:
        raise listen_error("HTTP", where, error) from error


def _nonblocking(listener: socket.socket) -> socket.socket:
    listener.setblocking(False)  # noqa: FBT003  # positional only
    return listener


# -- TLS


class ServerTls:
    """The certificates of a listener: chosen by server name, the first otherwise.

    Others may take their place while it serves, from the next handshake on. OpenSSL reads keys from
    files only, so they are written to `key_dir` (mode 0700) for a moment. With `client_ca_pem`
    clients must show a certificate that it signed. Raises InvalidArgumentError for certificates
    that do not load.
    """

    def __init__(
        self,
        certificates: tuple[CertificatePair, ...],
        key_dir: Path,
        *,
        client_ca_pem: bytes | None = None,
        http2: bool = True,
    ) -> None:
        assert certificates
        self._key_dir = key_dir
        self._client_ca_pem = client_ca_pem
        self._http2 = http2
        self._chosen = self._loaded(certificates)
        # What the server is given; every handshake goes on with one of those chosen from.
        self.context = self._context(certificates[0])
        self.context.sni_callback = self._choose

    def prepare(self, certificates: tuple[CertificatePair, ...]) -> Callable[[], None]:
        """Load these; what is returned puts them in the place of all others."""
        loaded = self._loaded(certificates)

        def replace() -> None:
            self._chosen = loaded

        return replace

    def _loaded(self, certificates: tuple[CertificatePair, ...]) -> dict[str, ssl.SSLContext]:
        """A context for each name, and under "" that of the first certificate."""
        by_name: dict[str, ssl.SSLContext] = {}
        for pair in certificates:
            context = self._context(pair)
            for name in ("", *certificate_names(pair)):
                by_name.setdefault(name, context)
        return by_name

    def _context(self, pair: CertificatePair) -> ssl.SSLContext:
        context = tls_context(pair, self._key_dir, http2=self._http2)
        if self._client_ca_pem is not None:
            context.load_verify_locations(cadata=self._client_ca_pem.decode("ascii"))
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _choose(
        self, connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext
    ) -> None:
        host = (name or "").lower().rstrip(".")
        wildcard = "*." + host.partition(".")[2]
        chosen = self._chosen
        connection.context = chosen.get(host) or chosen.get(wildcard) or chosen[""]


def tls_context(pair: CertificatePair, key_dir: Path, *, http2: bool = True) -> ssl.SSLContext:
    """A server context for one certificate. The key touches `key_dir` only while it is loaded."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
    path = key_dir / f"tls-{secrets.token_hex(8)}.pem"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pair.key_pem + b"\n" + pair.certificate_pem)
        context.load_cert_chain(path, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"the certificate of {pair.source} does not load with its key: "
            f"{getattr(error, 'reason', None) or type(error).__name__}; "
            "give a PEM chain, leaf first, and its unencrypted private key"
        ) from error
    finally:
        path.unlink(missing_ok=True)
    return context


def _no_password() -> bytes:
    """An encrypted key must fail instead of asking on the terminal."""
    raise ValueError("the private key is encrypted")


def certificate_names(pair: CertificatePair) -> tuple[str, ...]:
    """The DNS names a certificate is for, in lower case."""
    from cryptography import x509  # noqa: PLC0415  # slow to import, and only TLS needs it

    certificate = x509.load_pem_x509_certificates(pair.certificate_pem)[0]
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(name.lower() for name in extension.value.get_values_for_type(x509.DNSName))
