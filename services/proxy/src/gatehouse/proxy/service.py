"""The proxy service: its wiring, in one place."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

import grpc.aio

from gatehouse.common.config.hub import Commit
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.connection import DatabrokerConnection
from gatehouse.common.extauthz_context import AUTHORIZE_CLUSTER
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.pages import envoy_error_template
from gatehouse.common.rpc.credentials import LIFETIME_S, ServiceCredentials
from gatehouse.common.runtime.asgi_limits import App
from gatehouse.common.runtime.context import ProcessContext
from gatehouse.common.runtime.http_server import serve_http
from gatehouse.common.runtime.supervise import wait_or_stop
from gatehouse.proxy.core.xds.resource import LISTENER, ROUTE_CONFIGURATION, serialize
from gatehouse.proxy.core.xds.resources.access_log import log_level
from gatehouse.proxy.core.xds.resources.bootstrap import bootstrap
from gatehouse.proxy.core.xds.snapshot import Snapshot, SnapshotEnvironment, build_snapshot
from gatehouse.proxy.edge.ads import AdsServer
from gatehouse.proxy.edge.envoy_admin import EnvoyAdmin
from gatehouse.proxy.edge.envoy_binary import envoy_version, find_envoy_binary
from gatehouse.proxy.edge.envoy_log import envoy_level
from gatehouse.proxy.edge.envoy_process import EnvoyCommand, EnvoyProcess, usable_cpus
from gatehouse.proxy.edge.http_endpoints import build_app
from gatehouse.proxy.edge.machine import has_ipv6, system_ca_pem
from gatehouse.proxy.edge.secret_files import SecretFiles
from gatehouse.proxy.errors import EnvoyRefusedError, EnvoyUnavailableError

PROXY_CHECK: Final = "proxy.service"
ENVOY_CHECK: Final = "envoy.server"

_HTTP_GRACE_S: Final = 5.0
_DRAIN_POLL_S: Final = 0.1
_DRAIN_QUIET_POLLS: Final = 3  # without an active request before Envoy is ended
_DRAIN_RESERVE_S: Final = 3.0  # of the grace period, left for everything after
_START_POLL_S: Final = 0.05
_LIVE_POLL_S: Final = 5.0
_RENEWAL_CHECK_S: Final = 30.0


class ProxyService:
    """Runs Envoy and what it talks to; see the package docstring."""

    name = "proxy"

    def __init__(self, context: ProcessContext) -> None:
        self._context = context
        self._log = get_logger(self.name)
        self._admin = EnvoyAdmin(context.envoy_admin_socket)
        self._ads = AdsServer(
            context.health,
            context.clock,
            context.rng,
            warming_clusters=self._admin.warming_clusters,
        )
        self._databroker = DatabrokerConnection(context, self.name)
        self._files = SecretFiles(context.run_dir / "envoy-files")
        self._machine: tuple[bytes, bool] = (b"", False)  # trusted roots, IPv6
        self._jwt: tuple[bytes, float, str] | None = None  # secret, when made, token
        self._envoy: EnvoyProcess | None = None
        self._look_again = asyncio.Event()
        self._live = asyncio.Event()
        context.health.expect(PROXY_CHECK)
        context.health.expect(ENVOY_CHECK)

    def register_grpc(self, server: grpc.aio.Server) -> None:
        """Proxy answers no RPCs of the process's server; ADS has a socket of its own."""

    async def run(self, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        """Serve until `stop`.

        Raises EnvoyBinaryError without an Envoy, SnapshotError or EnvoyRefusedError when the first
        configuration cannot be used, EnvoyGaveUpError when Envoy keeps ending.
        """
        context = self._context
        hub = context.config
        binary = find_envoy_binary()
        self._machine = await asyncio.to_thread(_machine)
        await asyncio.to_thread(self._files.prepare)
        self._ads.publish(await self._build(hub.current))
        envoy = self._envoy_process(binary, hub.current)
        self._envoy = envoy
        hub.join(self.name, self._prepare)
        databroker = DatabrokerClient(self._databroker, clock=context.clock)
        app = build_app(lambda: hub.current, databroker, context.clock, context.rng)
        envoy_stop, rest_stop = asyncio.Event(), asyncio.Event()
        listening, pages = asyncio.Event(), asyncio.Event()
        async with self._admin, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._databroker.run(rest_stop), name="databroker channel")
            tasks.create_task(
                self._ads.run(context.xds_socket, rest_stop, listening.set), name="ads"
            )
            tasks.create_task(
                serve_http(
                    cast("App", app),
                    stop=rest_stop,
                    unix_socket=context.proxy_http_socket,
                    ready=pages.set,
                    grace_s=min(_HTTP_GRACE_S, context.grace_s),
                ),
                name="pages",
            )
            await listening.wait()
            await pages.wait()
            running = tasks.create_task(envoy.run(envoy_stop), name="envoy")
            tasks.create_task(self._watch_envoy(rest_stop), name="envoy watch")
            tasks.create_task(self._renew_jwt(rest_stop), name="envoy jwt")
            starting = tasks.create_task(self._first_configuration(ready), name="envoy start")
            await stop.wait()
            starting.cancel()
            envoy_stop.set()
            await asyncio.wait((running,))
            rest_stop.set()

    async def drain(self) -> None:
        """Send clients elsewhere and wait until no request is active or the grace is nearly over.

        Authorize, authenticate and the pages must still answer meanwhile.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + max(0.0, self._context.grace_s - _DRAIN_RESERVE_S)
        if self._envoy is None or self._envoy.pid is None:
            return
        quiet = 0
        try:
            await self._admin.drain()
            while loop.time() < deadline and quiet < _DRAIN_QUIET_POLLS:
                active = await self._admin.active_requests()
                quiet = quiet + 1 if active == 0 else 0
                await asyncio.sleep(_DRAIN_POLL_S)
        except EnvoyUnavailableError as error:
            self._log.warning("envoy cannot be drained", error=str(error))
            return
        if quiet < _DRAIN_QUIET_POLLS:
            self._log.warning("requests are still active; the grace period is over")

    # -- configuration

    async def _prepare(self, new: ResolvedSettings) -> Commit:
        """Everything slow or doubtful; `commit` only hands the result to the streams."""
        snapshot = await self._build(new)
        move = await self._databroker.prepare(new)

        def commit() -> None:
            move()
            self._ads.publish(snapshot)
            self._look_again.set()

        return commit

    async def _build(self, settings: ResolvedSettings) -> Snapshot:
        environment = self._environment(settings)
        published = self._ads.snapshot
        keep = frozenset(published.files) if published is not None else frozenset()

        def build() -> Snapshot:
            snapshot = build_snapshot(settings, environment)
            self._files.keep_only(keep | frozenset(snapshot.files))
            self._files.write(snapshot.files)
            return snapshot

        return await asyncio.to_thread(build)

    def _environment(self, settings: ResolvedSettings) -> SnapshotEnvironment:
        context = self._context
        roots, ipv6 = self._machine
        return SnapshotEnvironment(
            grpc_socket=str(context.grpc_socket),
            proxy_http_socket=str(context.proxy_http_socket),
            authenticate_http_socket=str(context.authenticate_http_socket),
            envoy_admin_socket=str(context.envoy_admin_socket),
            secrets_dir=str(self._files.directory),
            authorize_jwt=self._authorize_jwt(settings),
            error_page=envoy_error_template(),
            system_ca_pem=roots,
            ipv6=ipv6,
            reuse_port=sys.platform == "linux",
        )

    def _authorize_jwt(self, settings: ResolvedSettings) -> str:
        """The token Envoy shows to authorize.

        It is kept for half its life, so that a reload alone does not change its cluster.
        """
        secret, now_s = settings.shared_secrets[0], self._context.clock.now_s()
        if self._jwt is not None:
            old_secret, made_s, token = self._jwt
            if old_secret == secret and now_s - made_s < LIFETIME_S / 2:
                return token
        secrets = settings.shared_secrets
        token = ServiceCredentials(self.name, lambda: secrets, self._context.clock).service_jwt()
        self._jwt = (secret, now_s, token)
        return token

    async def _renew_jwt(self, stop: asyncio.Event) -> None:
        """Publish a new token before the old one ends."""
        while not await wait_or_stop(stop, _RENEWAL_CHECK_S):
            if self._jwt is None or self._context.clock.now_s() - self._jwt[1] < LIFETIME_S / 2:
                continue
            settings = self._context.config.current
            snapshot = await self._build(settings)
            # A new configuration may have come meanwhile; it has the new token already.
            if settings is self._context.config.current:
                self._ads.publish(snapshot)

    # -- Envoy

    def _envoy_process(self, binary: Path, settings: ResolvedSettings) -> EnvoyProcess:
        context = self._context
        path = context.run_dir / "envoy-bootstrap.pb"
        message = bootstrap(
            service_name="pomerium" if settings.is_all_in_one else "pomerium-proxy",
            xds_socket=str(context.xds_socket),
            admin_socket=str(context.envoy_admin_socket),
        )
        path.write_bytes(serialize(message))
        command = EnvoyCommand(
            binary=binary,
            bootstrap=path,
            run_dir=context.run_dir,
            log_level=envoy_level(log_level(settings.settings)),
            concurrency=usable_cpus(),
        )

        def on_exit(how: str) -> None:
            context.health.set_error(ENVOY_CHECK, how)
            self._look_again.set()

        return EnvoyProcess(command, context.clock, on_exit=on_exit)

    async def _first_configuration(self, ready: Callable[[], None]) -> None:
        """Call `ready` once Envoy serves and has an authorize to ask.

        Raises when Envoy refuses what it cannot do without. An authorize that goes away later does
        not make the proxy unready: other replicas of it would meet the same.
        """

        def decided(ads: AdsServer) -> bool:
            return ads.serving or bool({LISTENER, ROUTE_CONFIGURATION} & ads.refusals.keys())

        await self._ads.wait_for(decided, None)
        if not self._ads.serving:
            reasons = "; ".join(sorted(self._ads.refusals.values()))
            raise EnvoyRefusedError(f"envoy refuses the configuration: {reasons}")
        await self._live.wait()
        if problem := await self._not_listening():
            raise EnvoyRefusedError(problem)
        while not await self._admin.has_healthy_host(AUTHORIZE_CLUSTER):  # noqa: ASYNC110
            await asyncio.sleep(_START_POLL_S)
        self._context.health.set_running(PROXY_CHECK)
        ready()

    async def _watch_envoy(self, stop: asyncio.Event) -> None:
        """Report whether Envoy is live, and keep its log level as the settings have it."""
        level = envoy_level(log_level(self._context.config.current.settings))
        while not stop.is_set():
            live = await self._admin.is_live()
            if live:
                self._live.set()
                if problem := await self._not_listening():
                    self._context.health.set_error(ENVOY_CHECK, problem)
                else:
                    self._context.health.set_running(ENVOY_CHECK, version=envoy_version())
                wanted = envoy_level(log_level(self._context.config.current.settings))
                if wanted != level and await self._set_log_level(wanted):
                    level = wanted
            self._look_again.clear()
            await _wait_any(stop, self._look_again, _LIVE_POLL_S if live else _START_POLL_S)

    async def _not_listening(self) -> str:
        """What is wrong when Envoy took a listener and could not have its address; else empty.

        A starting Envoy binds after it acknowledged its listeners, and drops those it cannot bind.
        """
        snapshot = self._ads.snapshot
        if snapshot is None or self._ads.in_force != snapshot.version:
            return ""
        try:
            missing = snapshot.resources[LISTENER].keys() - await self._admin.listeners()
        except EnvoyUnavailableError:
            return ""
        if not missing:
            return ""
        return (
            f"envoy cannot listen on the address of {', '.join(sorted(missing))}: in use, not of "
            "this machine, or a port below 1024 without the right to it; see its lines in the log"
        )

    async def _set_log_level(self, level: str) -> bool:
        try:
            await self._admin.set_log_level(level)
        except EnvoyUnavailableError as error:
            self._log.warning("cannot change envoy's log level", error=str(error))
            return False
        assert self._envoy is not None
        self._envoy.use_log_level(level)
        return True


def build(context: ProcessContext) -> ProxyService:
    """The service, built and not yet running."""
    return ProxyService(context)


def _machine() -> tuple[bytes, bool]:
    return system_ca_pem(), has_ipv6()


async def _wait_any(stop: asyncio.Event, other: asyncio.Event, timeout_s: float) -> None:
    """Return when either is set, or after `timeout_s`."""
    async with asyncio.TaskGroup() as tasks:
        waits = [tasks.create_task(stop.wait()), tasks.create_task(other.wait())]
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
