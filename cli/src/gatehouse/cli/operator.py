"""How a command speaks to running services as their operator: with which settings, and how."""

from __future__ import annotations

import asyncio
import datetime as dt
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.config.derive import configured_urls
from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.resolve import load_and_resolve
from gatehouse.common.config.resolved import ResolvedSettings, ServiceName
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.errors import GatehouseError, InvalidArgumentError
from gatehouse.common.extauthz_context import DATABROKER_SERVICE
from gatehouse.common.rpc.allow_list import OPERATOR
from gatehouse.common.rpc.channel import BalancedChannel
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.common.rpc.service_connection import resolution_of
from gatehouse.common.runtime.process import EXIT_CONFIG, report_issues

EXIT_FAILED: Final = 1
CALL_S: Final = 5.0
_READY_S: Final = 5.0


def operator_settings(config: Path | None, environ: Mapping[str, str]) -> ResolvedSettings | None:
    """The settings, with the shared secret that the services have; None after saying why not.

    Their `databroker_urls` are where a process beside the services finds the databroker.
    """
    made_up = SystemRng().token_bytes(32)
    try:
        settings, _ = load_and_resolve(config, environ, random_secret=lambda: made_up)
    except ConfigError as error:
        report_issues(error.issues)
        return None
    if made_up in settings.shared_secrets:
        print(
            "shared_secret is not set: the running services made one up that only they know, "
            "so that nobody else can speak to them; set shared_secret for all of them",
            file=sys.stderr,
        )
        return None
    return replace(settings, databroker_urls=_databroker_urls(settings))


def _databroker_urls(settings: ResolvedSettings) -> tuple[str, ...]:
    """The URLs that are set, else the gRPC address of the process that runs it.

    That process itself needs neither: it asks its own databroker.
    """
    keys = settings.settings
    configured = configured_urls(keys.databroker_service_url, keys.databroker_service_urls)
    if configured or not settings.runs(ServiceName.DATABROKER):
        return configured or settings.databroker_urls
    if settings.shared_grpc_urls:
        return settings.shared_grpc_urls
    address = settings.grpc_address
    host = "127.0.0.1" if address.host in {"", "0.0.0.0", "::"} else address.host  # noqa: S104
    scheme = "http" if settings.grpc_insecure else "https"
    return (f"{scheme}://{f'[{host}]' if ':' in host else host}:{address.port}",)


def with_databroker(
    config: Path | None,
    environ: Mapping[str, str],
    work: Callable[[DatabrokerClient, ResolvedSettings], Awaitable[int]],
    *,
    call_s: float = CALL_S,
) -> int:
    """Load the settings, do the work as the operator, and turn errors into exit statuses.

    Each call gets `call_s`.
    """
    settings = operator_settings(config, environ)
    if settings is None:
        return EXIT_CONFIG

    async def run() -> int:
        async with _databroker(settings, call_s) as client:
            return await work(client, settings)

    try:
        return asyncio.run(run())
    except GatehouseError as error:
        print(str(error), file=sys.stderr)
        return EXIT_CONFIG if isinstance(error, InvalidArgumentError) else EXIT_FAILED


def moment_text(at_s: float) -> str:
    """Unix seconds for people who read a table."""
    return dt.datetime.fromtimestamp(at_s, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")


@asynccontextmanager
async def _databroker(settings: ResolvedSettings, call_s: float) -> AsyncIterator[DatabrokerClient]:
    clock = SystemClock()
    channel = BalancedChannel(
        settings.databroker_urls,
        audience="databroker",
        health_service=DATABROKER_SERVICE,
        credentials=ServiceCredentials(OPERATOR, lambda: settings.shared_secrets, clock),
        ca_pem=settings.ca_bundle_pem,
        client_certificate=settings.grpc_client_certificate,
        override_name=settings.settings.override_certificate_name,
        resolution=resolution_of(settings.settings),
        clock=clock,
        rng=SystemRng(),
    )
    stop = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(channel.run(stop), name="databroker channel")
            try:
                await channel.ready_channel(_READY_S)
                yield DatabrokerClient(channel, unary_timeout_s=call_s)
            finally:
                stop.set()
    except ExceptionGroup as errors:  # one error is one error, whichever task met it
        known = errors.subgroup(GatehouseError)
        if known is None or len(known.exceptions) != len(errors.exceptions):
            raise
        raise known.exceptions[0] from errors
    finally:
        await channel.close()
