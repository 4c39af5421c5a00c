"""The authenticate service: its wiring, in one place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

import grpc.aio
import httpx

from gatehouse.authenticate.edge.http import AuthenticateEndpoints
from gatehouse.authenticate.edge.providers import ProviderPool
from gatehouse.authenticate.edge.response_headers import with_global_headers
from gatehouse.authenticate.edge.session_writer import SessionWriter
from gatehouse.common.config.hub import Commit
from gatehouse.common.config.issues import ConfigError, Issue, Severity
from gatehouse.common.config.resolved import CertificatePair, ResolvedSettings, ServiceName
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.connection import DatabrokerConnection
from gatehouse.common.identity.http_client import close_all, http_client
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.runtime.asgi_limits import App
from gatehouse.common.runtime.context import ProcessContext
from gatehouse.common.runtime.http_server import serve_http

HEALTH_CHECK: Final = "authenticate.service"
_GRACE_S: Final = 5.0


class AuthenticateService:
    """Serves sign-in and sign-out over HTTP; see the package docstring."""

    name = "authenticate"

    def __init__(self, context: ProcessContext) -> None:
        self._context = context
        self._log = get_logger(self.name)
        self._certificates = _server_certificates(context.config.current)
        self._relisten = asyncio.Event()
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
        endpoints = AuthenticateEndpoints(
            settings_of=lambda: hub.current,
            sessions=SessionWriter(
                DatabrokerClient(self._databroker, clock=context.clock), context.clock
            ),
            providers=self._providers,
            clock=context.clock,
            rng=context.rng,
            log=self._log,
        )
        app = cast("App", endpoints.app().asgi)

        def on_listening() -> None:
            context.health.set_running(HEALTH_CHECK)
            ready()

        channel_stop = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._databroker.run(channel_stop), name="databroker channel")
                await self._serve(app, stop, on_listening)
                channel_stop.set()
        finally:
            await close_all(self._clients)

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
        app = with_global_headers(app, lambda: context.config.current)
        while not stop.is_set():
            self._relisten.clear()
            await self._serve_address(app, stop, on_listening, grace_s)

    async def _serve_address(
        self,
        app: App,
        stop: asyncio.Event,
        on_listening: Callable[[], None],
        grace_s: float,
    ) -> None:
        """Listen until `stop` or until there are other certificates to listen with."""
        context = self._context
        end = asyncio.Event()

        async def end_on(event: asyncio.Event) -> None:
            await event.wait()
            end.set()

        async with asyncio.TaskGroup() as tasks:
            watches = [tasks.create_task(end_on(event)) for event in (stop, self._relisten)]
            await serve_http(
                app,
                stop=end,
                address=context.config.current.address,
                certificates=self._certificates,
                key_dir=context.run_dir,
                ready=on_listening,
                grace_s=grace_s,
            )
            for watch in watches:
                watch.cancel()

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
            if certificates != self._certificates:
                self._certificates = certificates
                self._relisten.set()

        return commit


def build(context: ProcessContext) -> AuthenticateService:
    """The service, built and not yet running."""
    return AuthenticateService(context)


def _server_certificates(settings: ResolvedSettings) -> tuple[CertificatePair, ...]:
    """What the service's own listener presents; nothing when it is to speak plain HTTP."""
    if settings.settings.insecure_server:
        return ()
    if settings.certificates:
        return settings.certificates
    return (settings.fallback_certificate,) if settings.fallback_certificate else ()
