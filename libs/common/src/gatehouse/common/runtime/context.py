"""What a process gives each service it hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import grpc.aio

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.config.hub import ConfigHub
from gatehouse.common.observability.metrics_page import MetricsSources
from gatehouse.common.observability.otlp import SpanForwarder
from gatehouse.common.runtime.health import HealthRegistry


@dataclass(slots=True)
class ProcessContext:
    """Shared by the services of one process. Sockets live in `run_dir` (mode 0700).

    `grace_s` and `delay_s` follow the settings: ask for them when the stop comes.
    """

    config: ConfigHub
    health: HealthRegistry
    clock: Clock
    rng: Rng
    run_dir: Path
    grace_s: float  # from the stop signal to the end, at the latest
    delay_s: float = 0.0  # from the stop signal on, everything is served as before
    metrics: MetricsSources = field(default_factory=MetricsSources)
    spans: SpanForwarder = field(default_factory=SpanForwarder)
    worker: int = 0  # 0: the process itself; else one of the authorize workers that it started

    @property
    def grpc_socket(self) -> Path:
        """The process's own gRPC server, for its own services and for Envoy beside it."""
        return self.run_dir / "grpc.sock"

    @property
    def own_grpc_socket(self) -> Path:
        """Where this process or worker serves gRPC itself."""
        return authorize_sockets(self.run_dir, self.worker + 1)[-1]

    @property
    def xds_socket(self) -> Path:
        """Delta ADS, for Envoy beside it."""
        return self.run_dir / "xds.sock"

    @property
    def proxy_http_socket(self) -> Path:
        """The proxy's own pages (/.pomerium, /.well-known/pomerium, /ping), behind Envoy."""
        return self.run_dir / "proxy-http.sock"

    @property
    def authenticate_http_socket(self) -> Path:
        """Authenticate behind Envoy, when proxy runs in the same process."""
        return self.run_dir / "authenticate-http.sock"

    @property
    def metrics_socket(self) -> Path:
        """This process's metrics, behind Envoy's metrics listener."""
        return self.run_dir / "metrics.sock"

    @property
    def envoy_admin_socket(self) -> Path:
        """Envoy's admin interface."""
        return self.run_dir / "envoy-admin.sock"


def authorize_sockets(run_dir: Path, workers: int) -> tuple[Path, ...]:
    """Where `workers` authorize workers answer, the first of them being the process itself."""
    more = (run_dir / f"grpc-worker-{number}.sock" for number in range(1, workers))
    return (run_dir / "grpc.sock", *more)


class Service(Protocol):
    """One of the four services, built and not yet running."""

    name: str

    def register_grpc(self, server: grpc.aio.Server) -> None:
        """Add this service's gRPC handlers; called once, before the server starts."""
        ...

    async def run(self, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        """Serve until `stop` is set, then finish what is under way and return.

        Calls `ready` once the service can do its work. Raising ends the whole process.
        """
        ...

    async def drain(self) -> None:
        """Finish user traffic before `stop` is set; the other services still answer meanwhile.

        Only proxy has something to drain (Envoy), for at least the context's `delay_s`; the others
        return at once.
        """
        ...
