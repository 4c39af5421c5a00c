"""Answers which databroker a service talks to, and how that follows the settings.

A process that runs the databroker itself uses its own, over the Unix socket; every other follows
`databroker_service_urls`, with the trust the settings name. When these change, calls go to the new
place at once; calls under way at the old one get a moment to end, and its streams end with
UNAVAILABLE, which makes their followers open them again at the new one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import grpc.aio

from gatehouse.common.config.hub import Commit
from gatehouse.common.config.issues import ConfigError, Issue, Severity
from gatehouse.common.config.resolved import ResolvedSettings, ServiceName
from gatehouse.common.extauthz_context import DATABROKER_SERVICE
from gatehouse.common.rpc.channel import BalancedChannel
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.common.runtime.context import ProcessContext

CLOSE_GRACE_S: Final = 5.0  # for calls under way over a connection that was replaced


@dataclass(frozen=True, slots=True)
class Target:
    """Which databroker to call, and how to trust it."""

    urls: tuple[str, ...]
    ca_pem: bytes | None
    override_name: str
    lookup_family: str  # "": both families


def databroker_target(context: ProcessContext, settings: ResolvedSettings) -> Target:
    """The target that `settings` name. Raises ConfigError when they name none."""
    urls = settings.databroker_urls
    if settings.runs(ServiceName.DATABROKER):
        urls = (f"unix://{context.grpc_socket}",)
    if not urls:
        issue = Issue(
            Severity.ERROR,
            "databroker_service_url",
            "there is no databroker to talk to",
            "set it, or run databroker in the same process",
        )
        raise ConfigError((issue,))
    # The key narrows upstreams by default; services use every address unless it is set by hand.
    chosen = "dns_lookup_family" in settings.settings.model_fields_set
    return Target(
        urls=urls,
        ca_pem=settings.ca_bundle_pem,
        override_name=settings.settings.override_certificate_name,
        lookup_family=str(settings.settings.dns_lookup_family) if chosen else "",
    )


class DatabrokerConnection:
    """The channel that a DatabrokerClient asks. Belongs to one event loop.

    `prepare` goes to `ConfigHub.join`, by itself or as a part of the service's own.
    """

    def __init__(
        self, context: ProcessContext, subject: str, *, close_grace_s: float = CLOSE_GRACE_S
    ) -> None:
        """`subject` is the calling service. Raises ConfigError without a databroker to call."""
        self._context = context
        self._close_grace_s = close_grace_s
        self._credentials = ServiceCredentials(
            subject, lambda: context.config.current.shared_secrets, context.clock
        )
        self._target = databroker_target(context, context.config.current)
        self._channel = self._open(self._target)
        self._moved = asyncio.Event()

    async def ready_channel(self, timeout_s: float) -> grpc.aio.Channel:
        """A channel for one call; UnavailableError when none is known in `timeout_s`."""
        return await self._channel.ready_channel(timeout_s)

    async def prepare(self, new: ResolvedSettings) -> Commit:
        """Open what `new` needs; its commit makes later calls use it."""
        target = databroker_target(self._context, new)
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
            audience="databroker",
            health_service=DATABROKER_SERVICE,
            credentials=self._credentials,
            ca_pem=target.ca_pem,
            override_name=target.override_name,
            lookup_family=target.lookup_family,
            clock=self._context.clock,
            rng=self._context.rng,
        )
