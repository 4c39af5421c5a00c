"""How a process serves gRPC: one server for all its services, on TCP, a Unix socket, or both.

Every call needs the shared-secret JWT (`guard.py`), health excepted. Reflection needs it too.
Limits and keepalive: spec, databroker §9.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
from grpc._cython import cygrpc  # type: ignore[attr-defined]
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from gatehouse.common.clock import Clock
from gatehouse.common.errors import FailedPreconditionError
from gatehouse.common.jose.hs256 import MIN_KEY_BYTES
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.rpc.credentials import Secrets
from gatehouse.common.rpc.guard import Guard
from gatehouse.common.rpc.health_notifier import HealthNotifierServicer
from gatehouse.common.rpc.health_servicer import HealthServicer
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.common.runtime.listening import listen_error
from gatehouse.pb.health_pb2_grpc import add_HealthNotifierServicer_to_server

if TYPE_CHECKING:
    from gatehouse.common.config.resolved import CertificatePair, ListenAddress

RECEIVE_LIMIT: Final = 4 * 1024 * 1024  # bytes of one request message
SEND_LIMIT: Final = 16 * 1024 * 1024  # bytes of one response message (SyncLatest chunks)
# gRPC refuses streams once so many have been begun and not yet let go, and in Python they are let
# go late: with 100, as is customary, 64 callers that are answered together (a group commit) have
# their next calls refused (seen with 1.85).
STREAMS_PER_CONNECTION: Final = 1_000
# On a port that several processes share the kernel deals out connections, not calls: few calls on
# each and a short life keep the processes evenly busy.
STREAMS_PER_SHARED_CONNECTION: Final = 16
SHARED_CONNECTION_AGE_S: Final = 60.0
CALLS_LIMIT: Final = 10_000  # calls under way in the whole server
AGE_GRACE_S: Final = 60.0  # what a connection's calls get once its age is up
STREAM_COURTESY_S: Final = 1.0  # what streams get to end by themselves on a stop

_log = get_logger("grpc")


def _is_news(record: logging.LogRecord) -> bool:
    """False for what gRPC says, with a traceback, of a caller that went away during its call.

    Whether it notices the end before it fails to write is a race, mostly while servers stop.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, cygrpc.ExecuteBatchError | asyncio.CancelledError)


def _options(
    max_connection_age_s: float | None, age_grace_s: float, *, shares_port: bool
) -> list[tuple[str, int]]:
    if shares_port:
        max_connection_age_s = SHARED_CONNECTION_AGE_S
    options = [
        ("grpc.max_receive_message_length", RECEIVE_LIMIT),
        ("grpc.max_send_message_length", SEND_LIMIT),
        (
            "grpc.max_concurrent_streams",
            STREAMS_PER_SHARED_CONNECTION if shares_port else STREAMS_PER_CONNECTION,
        ),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Enforcement: clients may ping every 30 s at most.
        ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
        ("grpc.http2.max_pings_without_data", 0),
        # Two servers on one port would share it silently; an address in use must be noticed.
        ("grpc.so_reuseport", int(shares_port)),
        ("grpc.max_metadata_size", 64 * 1024),
    ]
    if max_connection_age_s is not None:
        options += [  # gRPC itself spreads the age by 10 % to either side
            ("grpc.max_connection_age_ms", int(max_connection_age_s * 1000)),
            ("grpc.max_connection_age_grace_ms", int(age_grace_s * 1000)),
        ]
    return options


class GrpcServer:
    """Register services on `.server`, then `start`; `stop` drains.

    `secrets` is asked at every call, so a changed shared secret applies at once. Must be made
    inside a running event loop.
    """

    def __init__(
        self,
        secrets: Secrets,
        health: HealthRegistry,
        clock: Clock,
        *,
        max_connection_age_s: float | None = None,
        age_grace_s: float = AGE_GRACE_S,
        shares_port: bool = False,
    ) -> None:
        """`age_grace_s`: what calls get on a connection that has reached its age.

        `shares_port`: processes that this one starts listen on the same address.
        """
        logging.getLogger(cygrpc.__name__).addFilter(_is_news)
        self._secrets = secrets
        self._guard = Guard(secrets, clock)
        self._health_servicer = HealthServicer(health)
        self._real = grpc.aio.server(
            interceptors=[self._guard],
            options=_options(max_connection_age_s, age_grace_s, shares_port=shares_port),
            maximum_concurrent_rpcs=CALLS_LIMIT,
        )
        self._registrar = _Registrar(self._real)
        health_pb2_grpc.add_HealthServicer_to_server(self._health_servicer, self._registrar)
        add_HealthNotifierServicer_to_server(HealthNotifierServicer(health), self._registrar)
        self._certificates: tuple[CertificatePair, ...] = ()
        self._client_ca_pem: bytes | None = None
        self._socket: Path | None = None
        self._started = False

    @property
    def server(self) -> grpc.aio.Server:
        """Where services add their handlers, before `start`."""
        return self._registrar

    @property
    def has_tls(self) -> bool:
        """True once it listens on TCP with certificates."""
        return bool(self._certificates)

    async def start(
        self,
        *,
        unix_socket: Path | None,
        address: ListenAddress | None,
        certificates: tuple[CertificatePair, ...] = (),
        client_ca_pem: bytes | None = None,
        require_address: bool = True,
        joins: bool = False,
    ) -> int:
        """Listen, and return the TCP port bound (0 without one).

        Certificates are for TCP; none means plaintext there. With `client_ca_pem` whoever connects
        over TCP must show a certificate of these authorities that is made for clients. Raises
        FailedPreconditionError without a shared secret, and OSError when an address cannot be had;
        without `require_address` that is a warning as long as there is a Unix socket. `joins`: the
        process that started this one listens on the address already.
        """
        if client_ca_pem is not None and address is not None and not certificates:
            raise FailedPreconditionError(
                "the gRPC server cannot ask for client certificates without TLS; "
                "set grpc_insecure: false",
                reason="client-certificates-without-tls",
            )
        secrets = self._secrets()
        if not secrets or any(len(secret) < MIN_KEY_BYTES for secret in secrets):
            raise FailedPreconditionError(
                "the gRPC server does not start without a shared secret of at least "
                f"{MIN_KEY_BYTES} bytes; set shared_secret",
                reason="no-shared-secret",
            )
        assert not self._started
        assert unix_socket is not None or address is not None
        port = 0
        if address is not None:
            try:
                if not joins:
                    _probe(address)
                port = self._listen(address, certificates, client_ca_pem)
            except OSError as error:
                if require_address or unix_socket is None:
                    raise
                _log.warning("not listening for gRPC", key="grpc_address", error=str(error))
        if unix_socket is not None:
            self._listen_unix(unix_socket)
        self._add_reflection()
        await self._real.start()
        self._started = True
        return port

    def replace_certificates(
        self, certificates: tuple[CertificatePair, ...], client_ca_pem: bytes | None = None
    ) -> None:
        """Use other certificates and client authorities from the next handshake on.

        Only where TLS was on at `start`, and clients are asked for certificates if they were then.
        Connections there are go on.
        """
        assert bool(certificates) == bool(self._certificates)
        assert (client_ca_pem is None) == (self._client_ca_pem is None)
        self._certificates, self._client_ca_pem = certificates, client_ca_pem

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, end the streams, and wait at most `grace_s` for calls under way.

        Streams whose handlers do not watch a stop event of their own are ended with UNAVAILABLE
        after a moment, so that they do not use up the grace.
        """
        self._health_servicer.stop()
        if not self._started:
            await self._real.stop(None)
            return
        async with asyncio.TaskGroup() as group:
            stopping = group.create_task(self._real.stop(grace_s))
            await asyncio.wait({stopping}, timeout=min(STREAM_COURTESY_S, grace_s / 4))
            self._guard.end_streams()
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)

    def _listen(
        self,
        address: ListenAddress,
        certificates: tuple[CertificatePair, ...],
        client_ca_pem: bytes | None,
    ) -> int:
        where = f"[{address.host or '::'}]" if ":" in (address.host or "::") else address.host
        target = f"{where}:{address.port}"
        try:
            if certificates:
                self._certificates, self._client_ca_pem = certificates, client_ca_pem
                return self._real.add_secure_port(target, self._tls())
            return self._real.add_insecure_port(target)
        except RuntimeError as error:
            raise listen_error("gRPC", target, str(error)) from error

    def _listen_unix(self, path: Path) -> None:
        try:
            self._real.add_insecure_port(f"unix:{path}")
            path.chmod(0o600)
        except RuntimeError as error:
            raise listen_error("gRPC", str(path), str(error)) from error
        self._socket = path

    def _tls(self) -> grpc.ServerCredentials:
        """Credentials that follow `replace_certificates`; gRPC picks the pair by server name."""
        in_use: tuple[tuple[CertificatePair, ...], bytes | None] | None = None

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal in_use
            wanted = self._certificates, self._client_ca_pem
            if in_use == wanted:
                return None
            in_use = wanted
            return _configuration(*wanted)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._certificates, self._client_ca_pem),
            fetch,  # type: ignore[arg-type]  # grpc takes None for "as before"
            require_client_authentication=self._client_ca_pem is not None,
        )

    def _add_reflection(self) -> None:
        names = sorted({*self._registrar.services, reflection.SERVICE_NAME})
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            ReflectionServicer(names), self._real
        )


class _Registrar(grpc.aio.Server):
    """Passes handlers on to the real server and remembers the services' names for reflection."""

    def __init__(self, real: grpc.aio.Server) -> None:
        self._real = real
        self.services: set[str] = set()

    def add_generic_rpc_handlers(
        self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]
    ) -> None:
        handlers = tuple(generic_rpc_handlers)
        for handler in handlers:
            if isinstance(handler, grpc.ServiceRpcHandler):
                self.services.add(handler.service_name())
        self._real.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, Any]
    ) -> None:
        """Only for its name: the handlers came with `add_generic_rpc_handlers` as well.

        For each method registered here the server would keep a call waiting, and look at all of
        these again at every call that comes in.
        """
        del method_handlers
        self.services.add(service_name)

    def add_insecure_port(self, address: str) -> int:
        return self._real.add_insecure_port(address)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        return self._real.add_secure_port(address, server_credentials)

    async def start(self) -> None:
        await self._real.start()

    async def stop(self, grace: float | None) -> None:
        await self._real.stop(grace)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        return await self._real.wait_for_termination(timeout)


def _configuration(
    certificates: tuple[CertificatePair, ...], client_ca_pem: bytes | None
) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(pair.key_pem, pair.certificate_pem) for pair in certificates],
        root_certificates=client_ca_pem,
    )


def _probe(address: ListenAddress) -> None:
    """Find out by a plain bind why an address cannot be had; gRPC itself does not say."""
    if address.port == 0:
        return
    try:
        found = socket.getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _kind, _protocol, _name, target = found[0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(target)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return
        where = f"{address.host or '*'}:{address.port}"
        raise listen_error("gRPC", where, error) from error
