"""What a process gives each service it hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc.aio

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.config.hub import ConfigHub
from gatehouse.common.runtime.health import HealthRegistry


@dataclass(frozen=True, slots=True)
class ProcessContext:
    """Shared by the services of one process. Sockets live in `run_dir` (mode 0700)."""

    config: ConfigHub
    health: HealthRegistry
    clock: Clock
    rng: Rng
    run_dir: Path
    grace_s: float  # from the stop signal to the end, at the latest

    @property
    def grpc_socket(self) -> Path:
        """The process's own gRPC server, for its own services and for Envoy beside it."""
        return self.run_dir / "grpc.sock"

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
    def envoy_admin_socket(self) -> Path:
        """Envoy's admin interface."""
        return self.run_dir / "envoy-admin.sock"


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

        Only proxy has something to drain (Envoy); the others return at once.
        """
        ...
