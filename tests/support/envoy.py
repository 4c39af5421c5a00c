"""A real Envoy under our control: settings, the ADS server, and small stand-ins behind it.

What stands behind Envoy in these tests is what the proxy service does not own: an authorize
servicer that answers as told, and an HTTP server for the control plane's pages.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import yaml
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.credential_injector.v3 import credential_injector_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)
from envoy.extensions.http.injected_credentials.generic.v3 import generic_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from envoy.type.v3 import http_status_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.config.resolve import load_and_resolve
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.extauthz_context import DECISION_ALLOW, DECISION_FIELD
from gatehouse.common.pages import envoy_error_template, security_headers
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.proxy.core.xds.refusals import FIRST_S
from gatehouse.proxy.core.xds.resource import (
    CLUSTER,
    LISTENER,
    ROUTE_CONFIGURATION,
    SECRET,
    packed,
    serialize,
)
from gatehouse.proxy.core.xds.resources.bootstrap import bootstrap
from gatehouse.proxy.core.xds.snapshot import Snapshot, SnapshotEnvironment, build_snapshot
from gatehouse.proxy.edge.ads import AdsServer
from gatehouse.proxy.edge.decision_table import ChangeTable
from gatehouse.proxy.edge.envoy_admin import EnvoyAdmin
from gatehouse.proxy.edge.envoy_binary import find_envoy_binary
from gatehouse.proxy.edge.envoy_process import EnvoyCommand, EnvoyProcess
from gatehouse.proxy.edge.memory import write_saturation
from gatehouse.proxy.edge.secret_files import SecretFiles
from gatehouse.proxy.edge.stream_guard import StreamGuard
from tests.support.ports import free_ports

SHARED_SECRET = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
START_TIMEOUT_S = 60.0

BASE: Mapping[str, Any] = {
    "shared_secret": SHARED_SECRET,
    "cookie_secret": SHARED_SECRET,
    "authenticate_service_url": "https://authenticate.example.com",
    "idp_provider": "oidc",
    "idp_provider_url": "https://idp.example.com",
    "idp_client_id": "gatehouse",
    "idp_client_secret": "not-a-secret",
}


def resolved(config: Mapping[str, Any]) -> ResolvedSettings:
    """`config` as a file would be read, over keys that every configuration needs."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config.yaml"
        path.write_text(yaml.safe_dump({**BASE, **config}, sort_keys=False))
        settings, _ = load_and_resolve(path, {}, random_secret=lambda: bytes(32))
    return settings


def environment(run_dir: str, **changes: Any) -> SnapshotEnvironment:
    values: dict[str, Any] = {
        "grpc_socket": f"{run_dir}/grpc.sock",
        "proxy_http_socket": f"{run_dir}/proxy-http.sock",
        "authenticate_http_socket": f"{run_dir}/authenticate-http.sock",
        "envoy_admin_socket": f"{run_dir}/envoy-admin.sock",
        "decision_table": f"{run_dir}/decision-table",
        "decision_counters": f"{run_dir}/decision-counters",
        "guard_socket": f"{run_dir}/stream-guard.sock",
        "metrics_socket": f"{run_dir}/metrics.sock",
        "secrets_dir": f"{run_dir}/envoy-files",
        "authorize_jwt": "header.claims.signature",
        "error_page": envoy_error_template(),
        "error_page_headers": security_headers(),
    }
    return SnapshotEnvironment(**(values | changes))


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A private directory whose path leaves room for socket names."""
    directory = Path(tempfile.mkdtemp(prefix="gh-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def messages(snapshot: Snapshot) -> dict[str, list[Any]]:
    """The resources of a snapshot as messages again."""
    kinds = {
        CLUSTER: cluster_pb2.Cluster,
        LISTENER: listener_pb2.Listener,
        ROUTE_CONFIGURATION: route_pb2.RouteConfiguration,
        SECRET: secret_pb2.Secret,
    }
    found: dict[str, list[Any]] = {}
    for type_url, resources in snapshot.resources.items():
        found[type_url] = []
        for resource in resources.values():
            message = kinds[type_url]()
            message.ParseFromString(resource.body)
            found[type_url].append(message)
    return found


def static_bootstrap(snapshot: Snapshot) -> bootstrap_pb2.Bootstrap:
    """The snapshot in the real bootstrap, all of it static: what `--mode validate` can check."""
    found = messages(snapshot)
    result = bootstrap(service_name="golden", xds_socket="xds.sock", admin_socket="admin.sock")
    result.ClearField("dynamic_resources")
    routes = found[ROUTE_CONFIGURATION][0]
    for listener in found[LISTENER]:
        for chain in listener.filter_chains:
            for network_filter in chain.filters:
                manager = http_connection_manager_pb2.HttpConnectionManager()
                if not network_filter.typed_config.Unpack(manager):
                    continue
                if manager.HasField("rds"):
                    manager.ClearField("rds")
                    manager.route_config.CopyFrom(routes)
                network_filter.typed_config.CopyFrom(packed(manager))
        result.static_resources.listeners.append(listener)
    for cluster in found[CLUSTER]:
        for options in cluster.typed_extension_protocol_options.values():
            _use_static_secret(options)
        result.static_resources.clusters.append(cluster)
    result.static_resources.secrets.extend(found[SECRET])
    return result


def _use_static_secret(packed_options: AnyMessage) -> None:
    """Validation has no ADS to ask for secrets."""
    options = http_protocol_options_pb2.HttpProtocolOptions()
    assert packed_options.Unpack(options)
    for http_filter in options.http_filters:
        injector = credential_injector_pb2.CredentialInjector()
        if http_filter.typed_config.Unpack(injector):
            token = generic_pb2.Generic()
            assert injector.credential.typed_config.Unpack(token)
            token.credential.ClearField("sds_config")
            injector.credential.typed_config.CopyFrom(packed(token))
            http_filter.typed_config.CopyFrom(packed(injector))
    packed_options.CopyFrom(packed(options))


def validate(message: bootstrap_pb2.Bootstrap, directory: Path) -> str:
    """What a real Envoy has against this bootstrap; empty when it accepts it."""
    path = directory / "bootstrap.pb"
    path.write_bytes(serialize(message))
    done = subprocess.run(
        [find_envoy_binary(), "--mode", "validate", "-c", path, "--disable-hot-restart"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return "" if done.returncode == 0 else done.stderr


Decide = Callable[[external_auth_pb2.CheckRequest], Any]  # the answer, or what can be awaited


def allow(
    headers: Mapping[str, str] | None = None, metadata: Mapping[str, str] | None = None
) -> external_auth_pb2.CheckResponse:
    response = external_auth_pb2.CheckResponse(status=status_pb2.Status(code=code_pb2.OK))
    for name, value in (headers or {}).items():
        response.ok_response.headers.append(
            base_pb2.HeaderValueOption(
                header=base_pb2.HeaderValue(key=name, value=value),
                append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
            )
        )
    response.ok_response.SetInParent()
    response.dynamic_metadata.update({DECISION_FIELD: DECISION_ALLOW, **(metadata or {})})
    return response


def deny(status: int = 403, body: str = "denied by authorize") -> external_auth_pb2.CheckResponse:
    return external_auth_pb2.CheckResponse(
        status=status_pb2.Status(code=code_pb2.PERMISSION_DENIED),
        denied_response=external_auth_pb2.DeniedHttpResponse(
            status=http_status_pb2.HttpStatus(code=status), body=body
        ),
    )


class Authorize(external_auth_pb2_grpc.AuthorizationServicer):  # type: ignore[misc]
    """Answers checks as `decide` says, and remembers them with their metadata."""

    def __init__(self) -> None:
        self.decide: Decide = lambda _request: allow()
        self.requests: list[external_auth_pb2.CheckRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.serving = True

    async def Check(self, request, context):  # noqa: N802
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        answer = self.decide(request)
        return await answer if inspect.isawaitable(answer) else answer


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    def __init__(self, authorize: Authorize) -> None:
        self._authorize = authorize

    async def Check(self, request, context):  # noqa: N802
        kinds = health_pb2.HealthCheckResponse
        status = kinds.SERVING if self._authorize.serving else kinds.NOT_SERVING
        return kinds(status=status)


@contextlib.asynccontextmanager
async def authorize_server(authorize: Authorize, address: str) -> AsyncIterator[int]:
    """Serve `authorize` on a gRPC target (`unix:...` or `host:port`); gives the port."""
    server = grpc.aio.server()
    external_auth_pb2_grpc.add_AuthorizationServicer_to_server(authorize, server)
    health_pb2_grpc.add_HealthServicer_to_server(_Health(authorize), server)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


class Pages:
    """The control plane's HTTP server: says what it was asked, over HTTP/1.1 on a Unix socket."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *rest = head.decode().split("\r\n")
                headers = dict(item.lower().split(": ", 1) for item in rest if item)
                path = line.split(" ")[1]
                self.requests.append((path, headers))
                body = json.dumps({"page": path, "headers": headers}).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                    + f"content-length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def eventually(
    condition: Callable[[], Awaitable[bool]], timeout_s: float = START_TIMEOUT_S
) -> None:
    """Until `condition` holds: for what Envoy does without telling."""
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - nothing to be told by
            await asyncio.sleep(0.02)


class Followed:
    """What the guard of open connections knows of changes: nothing, until a test keeps a table."""

    def __init__(self) -> None:
        self.table: ChangeTable | None = None

    @property
    def server_version(self) -> int:
        return 0 if self.table is None else self.table.server_version

    def version_of(self, key: int) -> int:
        return 0 if self.table is None else self.table.version_of(key)


class _ToAuthorize:
    """A channel that is always there."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.aio.insecure_channel(target)

    async def ready_channel(self, _timeout_s: float) -> grpc.aio.Channel:
        return self._channel


@dataclass
class Proxy:
    """A running Envoy that gets its configuration from the real ADS server."""

    run_dir: Path
    port: int
    ads: AdsServer
    admin: EnvoyAdmin
    envoy: EnvoyProcess
    health: HealthRegistry
    files: SecretFiles
    authorize: Authorize
    pages: Pages
    changes: dict[str, Any]
    system: dict[str, Any]
    followed: Followed
    guard: StreamGuard
    exits: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def access_log(self) -> Path:
        return self.run_dir / "access.log"

    def settings(self, config: Mapping[str, Any]) -> ResolvedSettings:
        return resolved({"address": f"127.0.0.1:{self.port}", **self.changes, **config})

    def snapshot(self, config: Mapping[str, Any] | ResolvedSettings) -> Snapshot:
        settings = config if isinstance(config, ResolvedSettings) else self.settings(config)
        return build_snapshot(settings, environment(str(self.run_dir), **self.system))

    async def push(
        self, config: Mapping[str, Any] | ResolvedSettings, timeout_s: float = START_TIMEOUT_S
    ) -> Snapshot:
        """Publish a configuration and wait until Envoy uses all of it."""
        settings = config if isinstance(config, ResolvedSettings) else self.settings(config)
        snapshot = self.snapshot(settings)
        self.files.write(snapshot.files)
        self.guard.configure(settings)
        self.ads.publish(snapshot)
        await self.ads.wait_for(lambda ads: ads.in_force == snapshot.version, timeout_s)
        return snapshot

    async def push_refused(self, config: Mapping[str, Any] | Snapshot) -> str:
        """Publish a configuration that Envoy refuses; give its reason."""
        snapshot = config if isinstance(config, Snapshot) else self.snapshot(config)
        before = dict(self.ads.refusals)
        self.ads.publish(snapshot)
        await self.ads.wait_for(
            lambda ads: bool(ads.refusals) and ads.refusals != before, START_TIMEOUT_S
        )
        return "; ".join(self.ads.refusals.values())

    async def access_lines(self, count: int) -> list[dict[str, Any]]:
        """The access log once it has `count` lines."""

        async def there() -> bool:
            return len(self.access_log.read_text().splitlines()) >= count

        await eventually(there)
        return [json.loads(line) for line in self.access_log.read_text().splitlines()]


@contextlib.asynccontextmanager
async def proxy(
    config: Mapping[str, Any] | None = None,
    *,
    authorize_address: str | None = None,
    insecure: bool = True,
    system: Mapping[str, Any] | None = None,
    first_retry_s: float = FIRST_S,
    **changes: Any,
) -> AsyncIterator[Proxy]:
    """Run Envoy with `config`. Routes answer on plain HTTP unless `insecure` is false.

    `first_retry_s` is the ADS server's. `system` changes the environment that snapshots are made
    for, `changes` every configuration.
    """
    with short_directory() as run_dir:
        (port,) = free_ports(1)
        health = HealthRegistry(SystemClock())
        admin = EnvoyAdmin(run_dir / "envoy-admin.sock")
        ads = AdsServer(
            health,
            SystemClock(),
            SystemRng(),
            warming_clusters=admin.warming_clusters,
            first_retry_s=first_retry_s,
        )
        files = SecretFiles(run_dir / "envoy-files")
        files.prepare()
        write_saturation(run_dir / "memory-saturation", 0.0)
        bootstrap_path = run_dir / "bootstrap.pb"
        bootstrap_path.write_bytes(
            serialize(
                bootstrap(
                    service_name="pomerium",
                    xds_socket=str(run_dir / "xds.sock"),
                    admin_socket=str(run_dir / "envoy-admin.sock"),
                    saturation_file=str(run_dir / "memory-saturation"),
                )
            )
        )
        command = EnvoyCommand(find_envoy_binary(), bootstrap_path, run_dir, "warning", 1)
        exits: list[str] = []
        if insecure:
            changes["insecure_server"] = True
        authorize, pages = Authorize(), Pages()
        ads_ready, ads_stop, envoy_stop = asyncio.Event(), asyncio.Event(), asyncio.Event()
        guarding = asyncio.Event()
        address = authorize_address or f"unix:{run_dir / 'grpc.sock'}"
        followed = Followed()
        guard = StreamGuard(_ToAuthorize(address), followed, SystemClock())
        with (run_dir / "access.log").open("wb") as access_log:
            envoy = EnvoyProcess(command, SystemClock(), on_exit=exits.append, stdout=access_log)
            running = Proxy(
                run_dir,
                port,
                ads,
                admin,
                envoy,
                health,
                files,
                authorize,
                pages,
                changes,
                dict(system or {}),
                followed,
                guard,
                exits,
            )
            http = await asyncio.start_unix_server(pages.handle, run_dir / "proxy-http.sock")
            sign_in = await asyncio.start_unix_server(
                pages.handle, run_dir / "authenticate-http.sock"
            )
            try:
                async with (
                    admin,
                    authorize_server(authorize, address),
                    asyncio.TaskGroup() as tasks,
                ):
                    tasks.create_task(ads.run(run_dir / "xds.sock", ads_stop, ads_ready.set))
                    tasks.create_task(
                        guard.run(run_dir / "stream-guard.sock", ads_stop, guarding.set)
                    )
                    await ads_ready.wait()
                    await guarding.wait()
                    ended = tasks.create_task(envoy.run(envoy_stop))
                    try:
                        if config is not None:
                            await running.push(config)
                            await eventually(admin.is_live)
                        yield running
                    finally:
                        envoy_stop.set()
                        await asyncio.wait((ended,))
                        ads_stop.set()
            finally:
                http.close()
                sign_in.close()
