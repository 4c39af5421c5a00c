"""The proxy service: its wiring, in one place."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

import grpc.aio

from gatehouse.common.config.hub import Commit
from gatehouse.common.config.model import CodecType
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.config.restart import USABLE_CPUS
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.connection import DatabrokerConnection
from gatehouse.common.extauthz_context import AUTHORIZE_CLUSTER
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.pages import envoy_error_template, security_headers
from gatehouse.common.pages.branding import branding_of
from gatehouse.common.rpc.credentials import LIFETIME_S, ServiceCredentials
from gatehouse.common.rpc.service_connection import ServiceConnection
from gatehouse.common.runtime.asgi_limits import App
from gatehouse.common.runtime.context import ProcessContext, authorize_sockets
from gatehouse.common.runtime.http_server import serve_http
from gatehouse.common.runtime.metrics_server import telemetry_name
from gatehouse.common.runtime.supervise import wait_or_stop
from gatehouse.proxy.core.xds.resource import LISTENER, ROUTE_CONFIGURATION, serialize
from gatehouse.proxy.core.xds.resources.access_log import log_level
from gatehouse.proxy.core.xds.resources.bootstrap import bootstrap
from gatehouse.proxy.core.xds.snapshot import Snapshot, SnapshotEnvironment, build_snapshot
from gatehouse.proxy.edge.ads import AdsServer
from gatehouse.proxy.edge.authorize_client import AUTHORIZE, AuthorizeClient
from gatehouse.proxy.edge.change_watch import ChangeWatch
from gatehouse.proxy.edge.decision_metrics import DecisionCollector, GuardCollector
from gatehouse.proxy.edge.decision_table import ChangeTable, DecisionCounters
from gatehouse.proxy.edge.envoy_admin import EnvoyAdmin
from gatehouse.proxy.edge.envoy_binary import envoy_version, find_envoy_binary
from gatehouse.proxy.edge.envoy_log import envoy_level
from gatehouse.proxy.edge.envoy_metrics import EnvoyCollector
from gatehouse.proxy.edge.envoy_process import EnvoyCommand, EnvoyProcess, usable_cpus
from gatehouse.proxy.edge.http_endpoints import build_app
from gatehouse.proxy.edge.machine import has_ipv6, system_ca_pem
from gatehouse.proxy.edge.memory import MemoryGauge, watch_memory, write_saturation
from gatehouse.proxy.edge.secret_files import SecretFiles
from gatehouse.proxy.edge.stream_guard import StreamGuard
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
            spans=context.spans.submit,
        )
        self._databroker = DatabrokerConnection(context, self.name)
        self._authorize = ServiceConnection(context, self.name, AUTHORIZE)
        self._files = SecretFiles(context.run_dir / "envoy-files")
        self._machine: tuple[bytes, bool] = (b"", False)  # trusted roots, IPv6
        self._jwt: tuple[bytes, float, str] | None = None  # secret, when made, token
        self._envoy: EnvoyProcess | None = None
        self._look_again = asyncio.Event()
        self._live = asyncio.Event()
        self._memory = MemoryGauge()
        self._saturation_file = context.run_dir / "memory-saturation"
        self._counted = EnvoyCollector(
            lambda: None if self._envoy is None else self._envoy.pid, self._memory.group
        )
        context.metrics.envoy = self._envoy_numbers
        context.metrics.collectors.append(self._counted)
        self._decision_table = context.run_dir / "decision-table"
        self._decision_counters = context.run_dir / "decision-counters"
        self._databroker_client = DatabrokerClient(self._databroker, clock=context.clock)
        table = ChangeTable(self._decision_table)
        self._guard_socket = context.run_dir / "stream-guard.sock"
        self._guard = StreamGuard(self._authorize, table, context.clock)
        self._changes = ChangeWatch(
            self._databroker_client, table, context.clock, self._guard.changed
        )
        context.metrics.collectors.append(GuardCollector(self._guard))
        counters = DecisionCounters(self._decision_counters)
        context.metrics.collectors.append(DecisionCollector(counters))
        context.metrics.build["envoy_version"] = envoy_version()
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
        self._remember(hub.current)
        app = build_app(
            lambda: hub.current,
            self._databroker_client,
            AuthorizeClient(self._authorize),
            context.clock,
            context.rng,
        )
        envoy_stop, rest_stop = asyncio.Event(), asyncio.Event()
        listening, pages, guarding = asyncio.Event(), asyncio.Event(), asyncio.Event()
        async with self._admin, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._databroker.run(rest_stop), name="databroker channel")
            tasks.create_task(self._authorize.run(rest_stop), name="authorize channel")
            tasks.create_task(self._changes.run(rest_stop), name="change table")
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
            tasks.create_task(
                self._guard.run(self._guard_socket, rest_stop, guarding.set), name="stream guard"
            )
            tasks.create_task(self._watch_memory(rest_stop), name="memory")
            for begun in (listening, pages, guarding):
                await begun.wait()
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

        Connections are accepted meanwhile, for the process's delay at least: balancers need a
        moment to see that it is not ready. Authorize, authenticate and the pages must still answer.
        """
        loop = asyncio.get_running_loop()
        earliest = loop.time() + self._context.delay_s
        deadline = loop.time() + max(0.0, self._context.grace_s - _DRAIN_RESERVE_S)
        if self._envoy is None or self._envoy.pid is None:
            return
        quiet = 0
        try:
            await self._admin.drain()
            while loop.time() < deadline and (quiet < _DRAIN_QUIET_POLLS or loop.time() < earliest):
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
        moves = (await self._databroker.prepare(new), await self._authorize.prepare(new))

        def commit() -> None:
            for move in moves:
                move()
            # Before Envoy is told: what was decided under the old settings ends first.
            self._remember(new)
            self._ads.publish(snapshot)
            self._look_again.set()

        return commit

    def _remember(self, settings: ResolvedSettings) -> None:
        keys = settings.settings
        # The listener of HTTP/3 has an interpreter of its own in each worker.
        interpreters = 2 if keys.codec_type is CodecType.HTTP3 else 1
        self._changes.configure(keys.decision_cache_bytes // interpreters)
        self._guard.configure(settings)

    async def _build(self, settings: ResolvedSettings) -> Snapshot:
        environment = self._environment(settings)
        published = self._ads.snapshot
        keep = frozenset(published.files) if published is not None else frozenset()

        def build() -> Snapshot:
            snapshot = build_snapshot(settings, environment, published)
            self._files.keep_only(keep | frozenset(snapshot.files))
            self._files.write(snapshot.files)
            return snapshot

        return await asyncio.to_thread(build)

    def _environment(self, settings: ResolvedSettings) -> SnapshotEnvironment:
        context = self._context
        roots, ipv6 = self._machine
        workers = authorize_sockets(context.run_dir, settings.settings.authorize_workers)
        branding = branding_of(settings.settings)
        return SnapshotEnvironment(
            grpc_socket=str(context.grpc_socket),
            worker_sockets=tuple(str(path) for path in workers[1:]),
            proxy_http_socket=str(context.proxy_http_socket),
            authenticate_http_socket=str(context.authenticate_http_socket),
            envoy_admin_socket=str(context.envoy_admin_socket),
            metrics_socket=str(context.metrics_socket),
            decision_table=str(self._decision_table),
            decision_counters=str(self._decision_counters),
            guard_socket=str(self._guard_socket),
            secrets_dir=str(self._files.directory),
            authorize_jwt=self._authorize_jwt(settings),
            error_page=envoy_error_template(branding),
            error_page_headers=security_headers(branding),
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
        write_saturation(self._saturation_file, 0.0)  # Envoy wants it there as it starts
        keys = settings.settings
        message = bootstrap(
            service_name=telemetry_name(settings),
            xds_socket=str(context.xds_socket),
            admin_socket=str(context.envoy_admin_socket),
            saturation_file=str(self._saturation_file),
            admin_access_log=keys.envoy_admin_access_log_path,
            admin_profile=keys.envoy_admin_profile_path,
            span_flush_ms=keys.otel_bsp_schedule_delay,
        )
        path.write_bytes(serialize(message))
        command = EnvoyCommand(
            binary=binary,
            bootstrap=path,
            run_dir=context.run_dir,
            log_level=envoy_level(log_level(settings.settings)),
            concurrency=usable_cpus() if keys.runtime_flags[USABLE_CPUS] else None,
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

    async def _envoy_numbers(self) -> bytes:
        self._counted.overload = await self._admin.overload_actions()
        return await self._admin.prometheus()

    async def _watch_memory(self, stop: asyncio.Event) -> None:
        """Tell Envoy how full the memory is, and note what it does about it."""
        flags = self._context.config

        def seen(saturation: float) -> None:
            self._counted.saturation = saturation

        await watch_memory(
            self._memory,
            self._saturation_file,
            stop,
            enabled=lambda: flags.current.settings.runtime_flags["envoy_resource_manager"],
            seen=seen,
        )

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
