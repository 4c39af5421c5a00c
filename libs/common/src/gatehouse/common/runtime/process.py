"""One process: settings, one gRPC server, the services that were asked for, and their end.

The same code runs one service, several or all four. The composition root passes a builder for each
service it may host; `services` in the settings picks among them. Start order is databroker,
authorize, authenticate, proxy, each awaited until it is ready. The end: not ready, and served as
before until callers and balancers have seen that; proxy drains Envoy while the others still answer;
then the reverse order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gatehouse.common.clock import Clock, Rng, SystemClock, SystemRng
from gatehouse.common.config.hub import ConfigHub, Prepare
from gatehouse.common.config.issues import ConfigError, Issue, Severity
from gatehouse.common.config.memory import RouteMemory
from gatehouse.common.config.resolve import load_and_resolve
from gatehouse.common.config.resolved import CertificatePair, ResolvedSettings, ServiceName
from gatehouse.common.config.restart import restart_needed
from gatehouse.common.config.watch import ConfigWatcher
from gatehouse.common.databroker.errands import run_errands
from gatehouse.common.observability.logging import configure_logging, get_logger, set_level
from gatehouse.common.observability.metrics import CONFIG_RELOAD_SUCCESS, CONFIG_RELOAD_TIME
from gatehouse.common.pages.branding import branding_of, use_branding
from gatehouse.common.rpc.ending import let_handlers_end
from gatehouse.common.rpc.server import GrpcServer
from gatehouse.common.runtime import event_loop
from gatehouse.common.runtime.certificate_expiry import warn_of_ends
from gatehouse.common.runtime.context import ProcessContext, Service
from gatehouse.common.runtime.debug_server import serve_debug
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.common.runtime.metrics_server import serve_metrics
from gatehouse.common.runtime.probes import serve_probes
from gatehouse.common.runtime.process_metrics import ProcessCollector
from gatehouse.common.runtime.stored_routes import (
    RecordFollower,
    StoredRecords,
    follows_records,
)
from gatehouse.common.runtime.systemd import notify_systemd
from gatehouse.common.runtime.traces import run_tracing

ServiceBuilder = Callable[[ProcessContext], Service]

START_ORDER = (
    ServiceName.DATABROKER,
    ServiceName.AUTHORIZE,
    ServiceName.AUTHENTICATE,
    ServiceName.PROXY,
)

# Databroker streams rebalance over replicas because servers age their connections
# (authorize does not: Envoy balances each call, and ageing would cut its long streams).
DATABROKER_CONNECTION_AGE_S = 30 * 60.0

# A Unix socket path may hold 107 bytes (sockaddr_un); the longest name in a run directory is
# authenticate-http.sock.
MAX_RUN_DIR_BYTES = 80

# A reload is worked out in threads. Whoever waits for the interpreter has it after this long: each
# step of answering a check may wait once, so the default of 5 ms would add up to tens of them.
SWITCH_INTERVAL_S = 0.0005

EXIT_OK = 0
EXIT_CRASH = 1
EXIT_CONFIG = 2


class ServiceEndedError(Exception):
    """A service returned although nobody had asked it to stop."""


@dataclass(frozen=True, slots=True)
class ProcessControl:
    """What a companion sees of the process it runs beside."""

    ready: asyncio.Event  # every service is ready
    stopping: asyncio.Event  # the services have stopped; the companion should end
    request_stop: Callable[[], None]


Companion = Callable[[ProcessControl], Coroutine[None, None, None]]


@dataclass(slots=True)
class ProcessOptions:
    """How a process is started.

    `companions` run beside the services, from before the first starts until after the last ended.
    """

    config_path: Path | None
    environ: Mapping[str, str]
    builders: Mapping[ServiceName, ServiceBuilder]
    clock: Clock = field(default_factory=SystemClock)
    rng: Rng = field(default_factory=SystemRng)
    companions: Sequence[Companion] = ()


def report_issues(issues: Sequence[Issue]) -> None:
    """Print every configuration issue to standard error, errors last so that they are seen."""
    for issue in sorted(issues, key=lambda item: item.severity is Severity.ERROR):
        print(str(issue), file=sys.stderr)  # noqa: T201 - before logging exists


def run_process(options: ProcessOptions) -> int:
    """Run until a signal or a crash; return the process's exit status."""
    shared_secret = options.rng.token_bytes(32)
    memory = RouteMemory()
    stored = StoredRecords()

    def load() -> tuple[ResolvedSettings, tuple[Issue, ...]]:
        return load_and_resolve(
            options.config_path,
            options.environ,
            random_secret=lambda: shared_secret,
            records=stored.records,
            memory=memory,
        )

    try:
        settings, warnings = load()
    except ConfigError as error:
        report_issues(error.everything)
        return EXIT_CONFIG
    missing = settings.services - options.builders.keys()
    if missing:
        names = ", ".join(sorted(missing))
        print(f"this command cannot run: {names}", file=sys.stderr)  # noqa: T201
        return EXIT_CONFIG
    configure_logging(settings.settings.log_level)
    log = get_logger("gatehouse")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    for issue in warnings:
        log.warning("configuration warning", issue=str(issue))
    try:
        event_loop.run(_serve(options, settings, load, stored), settings.services)
    except Exception as failure:  # noqa: BLE001 - whatever crashed a service ends the process
        leaves = tuple(_leaves(failure))
        for leaf in leaves:
            if isinstance(leaf, ConfigError):
                report_issues(leaf.everything)
                continue
            log.critical("service crashed", error=str(leaf), error_type=type(leaf).__name__)
            traceback.print_exception(leaf, file=sys.stderr)
        configuration_only = all(isinstance(leaf, ConfigError) for leaf in leaves)
        return EXIT_CONFIG if configuration_only else EXIT_CRASH
    return EXIT_OK


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for inner in error.exceptions:
        yield from _leaves(inner)


@contextlib.contextmanager
def run_directory(environ: Mapping[str, str]) -> Iterator[Path]:
    """A fresh directory of mode 0700 for this process's sockets; removed at the end.

    It stands in `POMERIUM_SOCKET_DIRECTORY`, else `XDG_RUNTIME_DIR`, else the temporary directory:
    the first that exists, may be written to and is short enough for socket paths.
    """
    candidates = [
        environ.get("POMERIUM_SOCKET_DIRECTORY", ""),
        environ.get("XDG_RUNTIME_DIR", ""),
        tempfile.gettempdir(),
    ]
    parent = next(
        (
            name
            for name in candidates
            if name and os.access(name, os.W_OK | os.X_OK) and len(name) < MAX_RUN_DIR_BYTES - 20
        ),
        "/tmp",  # noqa: S108 - the directory made in it is private
    )
    path = Path(tempfile.mkdtemp(prefix="gatehouse-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _register_health(health: HealthRegistry, settings: ResolvedSettings) -> None:
    """Name the gRPC health services of this process (spec: databroker, health)."""
    checks: dict[ServiceName, tuple[str, ...]] = {
        ServiceName.DATABROKER: ("storage.backend",),
        ServiceName.AUTHORIZE: ("authorize.service",),
        ServiceName.AUTHENTICATE: ("authenticate.service",),
        ServiceName.PROXY: ("proxy.service", "envoy.server"),
    }
    everything: list[str] = []
    for service in START_ORDER:
        if settings.runs(service):
            for check in checks[service]:
                health.expect(check)
            health.add_service(str(service), checks[service])
            health.add_service(f"pomerium-{service}", checks[service])
            everything.extend(checks[service])
    health.add_service("", tuple(everything))


async def _serve(
    options: ProcessOptions,
    settings: ResolvedSettings,
    load: Callable[[], tuple[ResolvedSettings, tuple[Issue, ...]]],
    stored: StoredRecords,
) -> None:
    log = get_logger("gatehouse")
    health = HealthRegistry(options.clock)
    hub = ConfigHub(settings)
    _register_health(health, settings)
    stop = asyncio.Event()
    with run_directory(options.environ) as run_dir:
        context = ProcessContext(
            config=hub,
            health=health,
            clock=options.clock,
            rng=options.rng,
            run_dir=run_dir,
            grace_s=settings.settings.shutdown_grace,
            delay_s=_delay_s(settings),
        )
        context.metrics.collectors.append(
            ProcessCollector(lambda: hub.current, health, context.metrics.build)
        )
        CONFIG_RELOAD_SUCCESS.set(1)
        CONFIG_RELOAD_TIME.set(options.clock.now_s())
        services = [options.builders[name](context) for name in START_ORDER if settings.runs(name)]
        server = grpc_server(context)
        for service in services:
            service.register_grpc(server.server)
        _join_process_settings(context)

        def on_error(error: Exception) -> None:
            log.error("configuration not applied", error=str(error))
            CONFIG_RELOAD_SUCCESS.set(0)

        def on_applied(new: ResolvedSettings) -> None:
            log.info("configuration applied", generation=new.generation, routes=len(new.routes))
            CONFIG_RELOAD_SUCCESS.set(1)
            CONFIG_RELOAD_TIME.set(options.clock.now_s())
            if follower is not None:
                follower.applied(new)

        watcher = ConfigWatcher(
            hub,
            path=options.config_path,
            load=load,
            on_error=on_error,
            on_warning=lambda issue: log.warning("configuration warning", issue=str(issue)),
            on_applied=on_applied,
        )
        follower = (
            RecordFollower(context, stored, watcher.request_reload)
            if follows_records(settings)
            else None
        )
        with _signals(stop, watcher):
            async with grpc_listening(server, context):
                await _run_services(options, context, services, watcher, follower, stop)
            await let_handlers_end()


def grpc_server(context: ProcessContext) -> GrpcServer:
    """The gRPC server of a process, or of one of its workers; not yet listening."""
    settings = context.config.current
    return GrpcServer(
        lambda: context.config.current.shared_secrets,
        context.health,
        context.clock,
        max_connection_age_s=(
            DATABROKER_CONNECTION_AGE_S
            if settings.runs(ServiceName.DATABROKER) and not settings.runs(ServiceName.AUTHORIZE)
            else None
        ),
        shares_port=workers_share_address(settings),
    )


def workers_share_address(settings: ResolvedSettings) -> bool:
    """True when authorize workers listen on `grpc_address` too.

    Beside a proxy Envoy asks each over a Unix socket; a databroker must have the address alone.
    """
    return (
        settings.settings.authorize_workers > 1
        and settings.runs(ServiceName.AUTHORIZE)
        and not settings.runs(ServiceName.PROXY)
        and not settings.runs(ServiceName.DATABROKER)
    )


def _delay_s(settings: ResolvedSettings) -> float:
    """For how long a stopping process serves on; at most half of what it is given for the stop."""
    return min(settings.settings.shutdown_delay, settings.settings.shutdown_grace / 2)


def _join_process_settings(context: ProcessContext) -> None:
    """What only a restart can change is refused; log level, look of the pages and end follow."""
    hub = context.config
    first = hub.current
    use_branding(branding_of(first.settings))

    async def prepare(new: ResolvedSettings) -> Callable[[], None]:
        issues = restart_needed(first, new)
        if issues:
            raise ConfigError(issues)
        branding = branding_of(new.settings)

        def commit() -> None:
            set_level(new.settings.log_level)
            use_branding(branding)
            context.grace_s, context.delay_s = new.settings.shutdown_grace, _delay_s(new)

        return commit

    hub.join("process", prepare)


@contextlib.contextmanager
def _signals(stop: asyncio.Event, watcher: ConfigWatcher) -> Iterator[None]:
    """SIGTERM and SIGINT stop, once gracefully and then at once; SIGHUP reloads."""
    loop = asyncio.get_running_loop()

    def on_stop() -> None:
        if stop.is_set():
            os._exit(EXIT_CRASH)
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, on_stop)
    loop.add_signal_handler(signal.SIGINT, on_stop)
    loop.add_signal_handler(signal.SIGHUP, watcher.request_reload)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def grpc_listening(server: GrpcServer, context: ProcessContext) -> AsyncIterator[None]:
    """The process's gRPC server on its Unix socket and on `grpc_address`.

    Where that is `address` Envoy listens there, and passes on what is meant for this server.
    In a process with neither authorize nor databroker the address only carries health and
    reflection, so one that is taken is a warning there and an error elsewhere.
    """
    log = get_logger("gatehouse")
    settings = context.config.current
    needed = settings.runs(ServiceName.AUTHORIZE) or settings.runs(ServiceName.DATABROKER)
    is_first = context.worker == 0
    listens = not settings.shared_grpc_urls and (is_first or workers_share_address(settings))
    try:
        await server.start(
            unix_socket=context.own_grpc_socket,
            address=settings.grpc_address if listens else None,
            certificates=_grpc_certificates(settings),
            client_ca_pem=None if settings.grpc_insecure else settings.grpc_client_ca_pem,
            require_address=needed,
            joins=not is_first,
        )
    except OSError as error:
        address = f"{settings.grpc_address.host}:{settings.grpc_address.port}"
        raise ConfigError(
            (
                Issue(
                    Severity.ERROR,
                    "grpc_address",
                    f"cannot listen on {address}: {error}",
                    "choose a free host:port",
                ),
            )
        ) from error
    log.debug("grpc listening", address=str(settings.grpc_address))
    if server.has_tls:
        context.config.join("grpc certificates", _replacing_certificates(server))
    try:
        yield
    finally:
        await server.stop(min(5.0, context.grace_s))


def _grpc_certificates(settings: ResolvedSettings) -> tuple[CertificatePair, ...]:
    """What the gRPC server shows; none in plain text."""
    if settings.grpc_insecure:
        return ()
    if not settings.certificates and settings.fallback_certificate:
        return (settings.fallback_certificate,)
    return settings.certificates


def _replacing_certificates(server: GrpcServer) -> Prepare:
    """Lets new handshakes see new certificates and authorities; connections go on."""

    async def prepare(new: ResolvedSettings) -> Callable[[], None]:
        return lambda: server.replace_certificates(_grpc_certificates(new), new.grpc_client_ca_pem)

    return prepare


async def _run_services(
    options: ProcessOptions,
    context: ProcessContext,
    services: Sequence[Service],
    watcher: ConfigWatcher,
    follower: RecordFollower | None,
    stop: asyncio.Event,
) -> None:
    log = get_logger("gatehouse")
    stops = {service.name: asyncio.Event() for service in services}
    ended = {service.name: asyncio.Event() for service in services}
    background_stop = asyncio.Event()
    all_ready = asyncio.Event()
    started: list[Service] = []

    async def run_one(service: Service, ready: Callable[[], None]) -> None:
        try:
            await service.run(stops[service.name], ready)
        finally:
            ended[service.name].set()
        if not stops[service.name].is_set():
            raise ServiceEndedError(f"{service.name} ended although it was not asked to stop")

    async with asyncio.TaskGroup() as tasks:
        probes = serve_probes(
            context.config.current.settings.health_check_addr, context.health, background_stop
        )
        tasks.create_task(probes, name="probes")
        metrics = serve_metrics(
            context.config,
            context.metrics,
            background_stop,
            socket=context.metrics_socket,
            key_dir=context.run_dir,
        )
        tasks.create_task(metrics, name="metrics")
        traces = run_tracing(context.config, context.spans, background_stop)
        tasks.create_task(traces, name="tracing")
        debug = serve_debug(context.config, context.run_dir / "debug.sock", background_stop)
        tasks.create_task(debug, name="debug")
        ends = warn_of_ends(context.config, context.clock, background_stop)
        tasks.create_task(ends, name="certificates")
        if not context.config.current.settings.health_check_systemd_disabled:
            telling = notify_systemd(context.health, options.environ, background_stop)
            tasks.create_task(telling, name="service manager")

        def use_databroker() -> None:
            if follower is not None:
                tasks.create_task(follower.run(stop), name="stored routes")
            if context.config.current.has_databroker:
                tasks.create_task(run_errands(context, stop), name="errands")

        if ServiceName.DATABROKER not in stops:  # our own is called once it answers
            use_databroker()
        control = ProcessControl(all_ready, background_stop, stop.set)
        for companion in options.companions:
            tasks.create_task(companion(control), name="companion")
        for service in services:
            ready = asyncio.Event()
            tasks.create_task(run_one(service, ready.set), name=service.name)
            started.append(service)
            if not await _first(ready, stop):
                break
            log.info("service ready", part=service.name)
            if service.name == ServiceName.DATABROKER:
                use_databroker()
        else:
            tasks.create_task(watcher.run(background_stop), name="configuration")
            all_ready.set()
            log.info("ready", services=sorted(stops), generation=context.config.current.generation)
        await stop.wait()
        log.info("stopping", grace_s=context.grace_s, delay_s=context.delay_s)
        loop = asyncio.get_running_loop()
        begun_s, deadline = loop.time(), loop.time() + context.grace_s
        context.health.terminate()
        for service in started:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline - 1.0):
                    await service.drain()
        # Callers look at health now and then. Until each has seen the end coming, calls are
        # answered: an address that vanishes swallows what is sent to it.
        if all_ready.is_set():
            await asyncio.sleep(begun_s + context.delay_s - loop.time())
        for service in reversed(started):
            stops[service.name].set()
            try:
                async with asyncio.timeout_at(deadline):
                    await ended[service.name].wait()
            except TimeoutError:
                log.error("service did not stop in time", part=service.name)  # noqa: TRY400
                raise
        background_stop.set()
    log.info("stopped")


async def _first(wanted: asyncio.Event, other: asyncio.Event) -> bool:
    """Wait for either event; True when `wanted` is the one that is set."""
    async with asyncio.TaskGroup() as tasks:
        waits = [tasks.create_task(wanted.wait()), tasks.create_task(other.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
    return wanted.is_set() and not other.is_set()


def main(service_name: str, build: ServiceBuilder) -> None:
    """Entry point of `gatehouse-<service>`: that service alone, whatever `services` says."""
    arguments = sys.argv[1:]
    path: Path | None = None
    match arguments:
        case []:
            pass
        case ["--config" | "-config", name]:
            path = Path(name)
        case _:
            print(  # noqa: T201
                f"usage: gatehouse-{service_name} [--config FILE]\n\n"
                f"Runs the {service_name} service alone. Settings come from FILE (YAML, JSON or\n"
                "TOML) and the environment, which wins.",
                file=sys.stderr,
            )
            sys.exit(EXIT_OK if arguments in (["--help"], ["-h"]) else EXIT_CONFIG)
    name = ServiceName(service_name)
    environ = {**os.environ, "SERVICES": service_name}
    sys.exit(run_process(ProcessOptions(path, environ, {name: build})))
