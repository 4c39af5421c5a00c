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

if TYPE_CHECKING:
    from gatehouse.common.config.resolved import CertificatePair, ListenAddress

MAX_BODY_BYTES: Final = 1024 * 1024
HEADER_BYTES: Final = 64 * 1024  # all headers of a request together
IDLE_TIMEOUT_S: Final = 60.0  # between requests, and for a request's headers to arrive
READ_TIMEOUT_S: Final = 60  # between two pieces of a request
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
    certificates: tuple[CertificatePair, ...] = (),
    key_dir: Path | None = None,
    ready: Callable[[], None] | None = None,
    bound: Callable[[int], None] | None = None,
    grace_s: float = 5.0,
    max_body_bytes: int = MAX_BODY_BYTES,
    request_timeout_s: float = REQUEST_TIMEOUT_S,
    http2: bool = True,
) -> None:
    """Serve `app` until `stop`, then finish open requests within `grace_s` seconds and return.

    Exactly one of `unix_socket` and `address` is given. `certificates` turn TLS on for an address
    (chosen by server name, the first otherwise); OpenSSL reads keys from files only, so they are
    written to `key_dir` (mode 0700) for a moment. `bound` gets the TCP port, then `ready` is
    called, once connections are accepted. Raises OSError when the address cannot be had,
    InvalidArgumentError for certificates that do not load.
    """
    assert (unix_socket is None) != (address is None)
    contexts: tuple[ssl.SSLContext, ...] = ()
    if certificates:
        assert key_dir is not None
        contexts = tuple(tls_context(pair, key_dir, http2=http2) for pair in certificates)
        _choose_by_name(contexts, certificates)
    with contextlib.ExitStack() as stack:
        if unix_socket is not None:
            listener = _unix_listener(unix_socket)
            stack.callback(unix_socket.unlink, missing_ok=True)
        else:
            assert address is not None
            listener = _tcp_listener(address)
        stack.callback(listener.close)
        config = _config(listener, contexts[0] if contexts else None, grace_s)
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

        await _serve_within(grace_s, stop, limited, config, until_stop)


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


def _config(listener: socket.socket, tls: ssl.SSLContext | None, grace_s: float) -> Config:
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
    config.read_timeout = READ_TIMEOUT_S
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


def _choose_by_name(
    contexts: tuple[ssl.SSLContext, ...], certificates: tuple[CertificatePair, ...]
) -> None:
    """Let the first context hand a connection over to the one whose certificate has the name."""
    if len(contexts) < 2:
        return
    by_name: dict[str, ssl.SSLContext] = {}
    for context, pair in zip(contexts, certificates, strict=True):
        for name in certificate_names(pair):
            by_name.setdefault(name, context)

    def choose(connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        if name is None:
            return
        host = name.lower().rstrip(".")
        wildcard = "*." + host.partition(".")[2]
        chosen = by_name.get(host) or by_name.get(wildcard)
        if chosen is not None:
            connection.context = chosen

    contexts[0].sni_callback = choose


def certificate_names(pair: CertificatePair) -> tuple[str, ...]:
    """The DNS names a certificate is for, in lower case."""
    from cryptography import x509  # noqa: PLC0415  # slow to import, and only TLS needs it

    certificate = x509.load_pem_x509_certificates(pair.certificate_pem)[0]
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(name.lower() for name in extension.value.get_values_for_type(x509.DNSName))
