"""The authenticate service: its wiring, in one place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

import grpc.aio
import httpx

from gatehouse.authenticate.edge.http import AuthenticateEndpoints
from gatehouse.authenticate.edge.response_headers import with_global_headers
from gatehouse.authenticate.edge.session_writer import SessionWriter
from gatehouse.common.config.hub import Commit
from gatehouse.common.config.issues import ConfigError, Issue, Severity
from gatehouse.common.config.resolved import CertificatePair, ResolvedSettings, ServiceName
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.connection import DatabrokerConnection
from gatehouse.common.errors import GatehouseError
from gatehouse.common.identity.http_client import close_all, http_client
from gatehouse.common.identity.pool import ProviderPool
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.runtime.asgi_limits import App
from gatehouse.common.runtime.context import ProcessContext
from gatehouse.common.runtime.http_server import ServerTls, serve_http

HEALTH_CHECK: Final = "authenticate.service"
_GRACE_S: Final = 5.0
_ASK_AGAIN_S: Final = 2.0  # at the start, unless the databroker is back before


class AuthenticateService:
    """Serves sign-in and sign-out over HTTP; see the package docstring."""

    name = "authenticate"

    def __init__(self, context: ProcessContext) -> None:
        self._context = context
        self._log = get_logger(self.name)
        self._tls: ServerTls | None = None
        self._certificates: tuple[CertificatePair, ...] = ()  # what it shows
        self._databroker = DatabrokerConnection(context, self.name)
        http = http_client(context.config.current.ca_bundle_pem)
        self._clients = [http]
        self._providers = ProviderPool(http, context.clock, context.rng)
        context.health.expect(HEALTH_CHECK)
        context.config.join(self.name, self._prepare)

    def register_grpc(self, server: grpc.aio.Server) -> None:
        """Authenticate answers no RPCs; the process's server carries health and reflection."""

    async def drain(self) -> None:
        """Nothing to drain: requests under way are finished when `run` is told to stop."""

    async def run(self, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        """Serve until `stop`, then finish open requests."""
        context = self._context
        hub = context.config
        databroker = DatabrokerClient(self._databroker, clock=context.clock)
        endpoints = AuthenticateEndpoints(
            settings_of=lambda: hub.current,
            sessions=SessionWriter(databroker, context.clock),
            providers=self._providers,
            clock=context.clock,
            rng=context.rng,
            log=self._log,
        )
        app = cast("App", endpoints.app().asgi)
        listening, channel_stop = asyncio.Event(), asyncio.Event()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._databroker.run(channel_stop), name="databroker channel")
                starting = tasks.create_task(
                    self._start(databroker, listening, ready), name="authenticate start"
                )
                await self._serve(app, stop, listening.set)
                starting.cancel()
                channel_stop.set()
        finally:
            await close_all(self._clients)

    async def _start(
        self, databroker: DatabrokerClient, listening: asyncio.Event, ready: Callable[[], None]
    ) -> None:
        """Call `ready` once requests are taken and the databroker has answered.

        Without it no sign-in can be kept. A databroker that goes away later does not make
        authenticate unready: other replicas of it would meet the same.
        """
        health = self._context.health
        await listening.wait()
        while (problem := await _no_answer(databroker)) is not None:
            self._log.warning("not ready", error=problem)
            health.set_error(HEALTH_CHECK, problem)
            await databroker.wait_recovery(_ASK_AGAIN_S)
        health.set_running(HEALTH_CHECK)
        ready()

    async def _serve(self, app: App, stop: asyncio.Event, on_listening: Callable[[], None]) -> None:
        """Listen behind Envoy if it runs in this process, else on `address` with our own TLS."""
        context = self._context
        grace_s = min(_GRACE_S, context.grace_s)
        if context.config.current.runs(ServiceName.PROXY):
            await serve_http(
                app,
                stop=stop,
                unix_socket=context.authenticate_http_socket,
                ready=on_listening,
                grace_s=grace_s,
            )
            return
        self._certificates = _server_certificates(context.config.current)
        if self._certificates:
            self._tls = ServerTls(self._certificates, context.run_dir)
        await serve_http(
            with_global_headers(app, lambda: context.config.current),
            stop=stop,
            address=context.config.current.address,
            tls=self._tls,
            ready=on_listening,
            grace_s=grace_s,
        )

    async def _prepare(self, new: ResolvedSettings) -> Commit:
        current = self._context.config.current
        if not current.runs(ServiceName.PROXY) and new.address != current.address:
            raise ConfigError(
                (
                    Issue(
                        Severity.ERROR,
                        "address",
                        "authenticate cannot move to another address while running",
                        "restart the process",
                    ),
                )
            )
        certificates = _server_certificates(new)
        replace: Callable[[], None] | None = None
        if self._tls is not None and certificates not in ((), self._certificates):
            replace = self._tls.prepare(certificates)
        client: httpx.AsyncClient | None = None
        if new.ca_bundle_pem != current.ca_bundle_pem:
            client = http_client(new.ca_bundle_pem)
        move = await self._databroker.prepare(new)

        def commit() -> None:
            move()
            if client is not None:
                # The old client is closed at the end: requests may still be using it.
                self._clients.append(client)
                self._providers.use_client(client)
            if replace is not None:
                self._certificates = certificates
                replace()

        return commit


def build(context: ProcessContext) -> AuthenticateService:
    """The service, built and not yet running."""
    return AuthenticateService(context)


async def _no_answer(databroker: DatabrokerClient) -> str | None:
    """Why the databroker does not answer; None if it does."""
    try:
        await databroker.server_info()
    except GatehouseError as error:
        return f"the databroker has not answered yet: {error}"
    return None


def _server_certificates(settings: ResolvedSettings) -> tuple[CertificatePair, ...]:
    """What the service's own listener presents; nothing when it is to speak plain HTTP."""
    if settings.settings.insecure_server:
        return ()
    if settings.certificates:
        return settings.certificates
    return (settings.fallback_certificate,) if settings.fallback_certificate else ()
