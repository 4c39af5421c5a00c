"""How a service keeps a channel to another one while the settings change.

When the target changes, calls go to the new place at once; calls under way at the old one get a
moment to end, and its streams end with UNAVAILABLE, which makes their followers open them again at
the new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import grpc.aio

from gatehouse.common.config.hub import Commit
from gatehouse.common.config.issues import ConfigError, Issue, Severity
from gatehouse.common.config.model import Settings
from gatehouse.common.config.resolved import CertificatePair, ResolvedSettings, ServiceName
from gatehouse.common.config.values import parse_host_port
from gatehouse.common.rpc.channel import BalancedChannel
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.common.rpc.resolver import NameServer, Resolution
from gatehouse.common.runtime.context import ProcessContext

CLOSE_GRACE_S: Final = 5.0  # for calls under way over a connection that was replaced


@dataclass(frozen=True, slots=True)
class Target:
    """Which servers to call, and how to trust them."""

    urls: tuple[str, ...]
    ca_pem: bytes | None
    client_certificate: CertificatePair | None  # shown to servers that ask for one
    override_name: str
    resolution: Resolution
    keepalive: bool = True  # quiet connections are asked whether they still are


@dataclass(frozen=True, slots=True)
class Called:
    """The service that is called."""

    service: ServiceName
    url_key: str  # the setting that names it, for messages
    urls: Callable[[ResolvedSettings], tuple[str, ...]]
    health_service: str  # "": the server as a whole


def target_of(called: Called, context: ProcessContext, settings: ResolvedSettings) -> Target:
    """The target that `settings` name. Raises ConfigError when they name none.

    A process that runs the service itself uses its own, over the Unix socket.
    """
    urls = called.urls(settings)
    if settings.runs(called.service):
        urls = (f"unix://{context.grpc_socket}",)
    if not urls:
        issue = Issue(
            Severity.ERROR,
            called.url_key,
            f"there is no {called.service} to talk to",
            f"set it, or run {called.service} in the same process",
        )
        raise ConfigError((issue,))
    return Target(
        urls=urls,
        ca_pem=settings.ca_bundle_pem,
        client_certificate=settings.grpc_client_certificate,
        override_name=settings.settings.override_certificate_name,
        resolution=resolution_of(settings.settings),
        keepalive=(
            called.service is not ServiceName.DATABROKER
            or settings.settings.runtime_flags["grpc_databroker_keepalive"]
        ),
    )


def resolution_of(settings: Settings) -> Resolution:
    """How the names of service URLs are resolved."""
    # The key narrows upstreams by default; services use every address unless it is set by hand.
    chosen = "dns_lookup_family" in settings.model_fields_set
    return Resolution(
        lookup_family=str(settings.dns_lookup_family) if chosen else "",
        nameservers=tuple(map(_name_server, settings.dns_resolvers)),
        use_tcp=bool(settings.dns_use_tcp),
        try_s=settings.dns_query_timeout or None,
        tries=settings.dns_query_tries or None,
        refresh_s=settings.dns_refresh_rate,
        failure_refresh_s=settings.dns_failure_refresh_rate,
    )


def _name_server(text: str) -> NameServer:
    scheme, _, address = text.partition("://")
    parsed = parse_host_port(address)
    assert parsed is not None, text  # checked when the settings were
    return NameServer(*parsed, tcp=scheme == "tcp")


class ServiceConnection:
    """The channel that a client asks. Belongs to one event loop.

    `prepare` goes to `ConfigHub.join`, by itself or as a part of the service's own.
    """

    def __init__(
        self,
        context: ProcessContext,
        subject: str,
        called: Called,
        *,
        close_grace_s: float = CLOSE_GRACE_S,
    ) -> None:
        """`subject` is the calling service. Raises ConfigError without anything to call."""
        self._context = context
        self._called = called
        self._close_grace_s = close_grace_s
        self._credentials = ServiceCredentials(
            subject, lambda: context.config.current.shared_secrets, context.clock
        )
        self._target = target_of(called, context, context.config.current)
        self._channel = self._open(self._target)
        self._moved = asyncio.Event()

    async def ready_channel(self, timeout_s: float) -> grpc.aio.Channel:
        """A channel for one call; UnavailableError when none is known in `timeout_s`."""
        return await self._channel.ready_channel(timeout_s)

    async def wait_recovery(self, most_s: float) -> None:
        """Sleep for `most_s`, or until what did not answer meanwhile answers again."""
        await self._channel.wait_recovery(most_s)

    async def prepare(self, new: ResolvedSettings) -> Commit:
        """Open what `new` needs; its commit makes later calls use it."""
        target = target_of(self._called, self._context, new)
        channel = self._open(target) if target != self._target else None

        def commit() -> None:
            if channel is not None:
                self._target, self._channel = target, channel
                self._moved.set()

        return commit

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the addresses fresh and follow changes until `stop`; then close."""
        try:
            async with asyncio.TaskGroup() as tasks:
                while not stop.is_set():
                    self._moved.clear()
                    channel, ended = self._channel, asyncio.Event()
                    following = tasks.create_task(channel.run(ended))
                    waits = [
                        tasks.create_task(stop.wait()),
                        tasks.create_task(self._moved.wait()),
                    ]
                    await asyncio.wait([following, *waits], return_when=asyncio.FIRST_COMPLETED)
                    for wait in waits:
                        wait.cancel()
                    ended.set()
                    if channel is not self._channel:
                        tasks.create_task(channel.close(self._close_grace_s))
        finally:
            await self._channel.close()

    def _open(self, target: Target) -> BalancedChannel:
        return BalancedChannel(
            target.urls,
            audience=str(self._called.service),
            health_service=self._called.health_service,
            credentials=self._credentials,
            ca_pem=target.ca_pem,
            client_certificate=target.client_certificate,
            override_name=target.override_name,
            resolution=target.resolution,
            keepalive=target.keepalive,
            clock=self._context.clock,
            rng=self._context.rng,
        )
