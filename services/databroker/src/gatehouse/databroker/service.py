"""How the databroker is put together and lives: open the store, read the log, serve, end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

import grpc.aio

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.config.hub import Commit, Prepare
from gatehouse.common.config.issues import ConfigError, Issue, Severity
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    GatehouseError,
    UnavailableError,
)
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.runtime.backoff import Backoff
from gatehouse.common.runtime.context import ProcessContext
from gatehouse.common.runtime.supervise import wait_or_stop
from gatehouse.databroker.core.refresh import Rules
from gatehouse.databroker.edge.access_times import AccessTimesServicer
from gatehouse.databroker.edge.admin import AdminServicer
from gatehouse.databroker.edge.backends.base import Storage
from gatehouse.databroker.edge.backends.connections import parse_postgres, store_directory
from gatehouse.databroker.edge.backends.memory import MemoryStorage
from gatehouse.databroker.edge.backends.postgres import PostgresStorage
from gatehouse.databroker.edge.backends.sealed_payloads import Secrets
from gatehouse.databroker.edge.backends.sqlite import SqliteStorage
from gatehouse.databroker.edge.change_hub import ChangeHub
from gatehouse.databroker.edge.cleaner import Cleaner
from gatehouse.databroker.edge.directory_sync import DirectorySync
from gatehouse.databroker.edge.measured import measured
from gatehouse.databroker.edge.refresh_providers import RefreshProviders
from gatehouse.databroker.edge.refresh_runner import RefreshRunner, Surroundings
from gatehouse.databroker.edge.registry import RegistryServicer
from gatehouse.databroker.edge.servicer import CheckpointServicer, DataBrokerServicer
from gatehouse.databroker.edge.store_metrics import StoreCollector
from gatehouse.databroker.edge.tasks import background
from gatehouse.databroker.errors import WrongSecretError
from gatehouse.pb import access_times_pb2_grpc, databroker_admin_pb2_grpc, registry_pb2_grpc
from gatehouse.pb import databroker_pb2_grpc as pb_grpc

STORAGE_CHECK: Final = "storage.backend"
CLEANUP_CHECK: Final = "storage.backend.cleanup"
NOTIFICATIONS_CHECK: Final = "storage.backend.notifications"
IDENTITY_CHECK: Final = "databroker.identity_manager"  # attributes only; nothing rests on it
DIRECTORY_CHECK: Final = "databroker.directory"  # likewise
MOST_GRACE_S: Final = 5.0  # for calls to identity providers that are under way at the end

_log = get_logger("databroker")


def build(ctx: ProcessContext) -> DatabrokerService:
    """Build the service from the settings in force. Raises ConfigError."""
    settings = ctx.config.current
    storage = make_storage(settings, ctx.clock, ctx.rng, lambda: ctx.config.current.shared_secrets)
    storage = measured(storage, ctx.clock)
    ctx.config.join("databroker", _refuse_other_storage(settings))
    return DatabrokerService(ctx, storage)


def make_storage(settings: ResolvedSettings, clock: Clock, rng: Rng, secrets: Secrets) -> Storage:
    """Return the store that the settings name, not yet open. Raises ConfigError.

    `secrets` returns the shared secrets in force, which may change while it is open.
    """
    kind = str(settings.settings.databroker_storage_type)
    connection = settings.databroker_connection
    try:
        if kind == "memory":
            return MemoryStorage(clock, rng)
        if kind == "file":
            return SqliteStorage(store_directory(connection, os.environ), clock, rng, secrets)
        if kind == "postgres":
            return PostgresStorage(parse_postgres(connection), clock, rng, secrets)
    except GatehouseError as error:
        issue = Issue(Severity.ERROR, "databroker_storage_connection_string", error.public_message)
        raise ConfigError((issue,)) from error
    issue = Issue(
        Severity.ERROR,
        "databroker_storage_type",
        "unknown databroker storage backend type",
        "memory, file or postgres",
    )
    raise ConfigError((issue,))


def _refuse_other_storage(first: ResolvedSettings) -> Prepare:
    """Return the participant that lets every change pass but one of the store."""

    async def prepare(new: ResolvedSettings) -> Commit:
        issues = tuple(
            Issue(Severity.ERROR, key, "cannot change while running", "restart the databroker")
            for key, before, after in (
                (
                    "databroker_storage_type",
                    first.settings.databroker_storage_type,
                    new.settings.databroker_storage_type,
                ),
                (
                    "databroker_storage_connection_string",
                    first.databroker_connection,
                    new.databroker_connection,
                ),
            )
            if before != after
        )
        if issues:
            raise ConfigError(issues)
        return lambda: None

    return prepare


class DatabrokerService:
    """One databroker over one store."""

    name = "databroker"

    def __init__(self, ctx: ProcessContext, storage: Storage) -> None:
        self._ctx = ctx
        self._storage = storage
        self._hub = ChangeHub(storage, ctx.clock, ctx.rng, report=self._report(STORAGE_CHECK))
        self._cleaner = Cleaner(storage, ctx.rng, report=self._report(CLEANUP_CHECK))
        ctx.metrics.collectors.append(StoreCollector(storage))
        ctx.health.expect(STORAGE_CHECK)
        if storage.name == "postgres":  # shared with others, who are heard by notification
            ctx.health.expect(CLEANUP_CHECK)
            ctx.health.expect(NOTIFICATIONS_CHECK)
            storage.on_listening(self._report(NOTIFICATIONS_CHECK, quiet=True))
        ctx.health.set_attribute(STORAGE_CHECK, "backend", storage.name)

    def register_grpc(self, server: grpc.aio.Server) -> None:
        """Serve our services of the databroker; UNAVAILABLE until the store is open."""
        servicer = DataBrokerServicer(self._storage, self._hub, self._ctx.clock, self._ctx.rng)
        pb_grpc.add_DataBrokerServiceServicer_to_server(servicer, server)
        pb_grpc.add_CheckpointServiceServicer_to_server(CheckpointServicer(self._storage), server)
        databroker_admin_pb2_grpc.add_AdminServicer_to_server(AdminServicer(self._storage), server)
        access_times = AccessTimesServicer(self._storage, self._ctx.clock)
        access_times_pb2_grpc.add_AccessTimesServicer_to_server(access_times, server)
        registry_pb2_grpc.add_RegistryServicer_to_server(RegistryServicer(self._storage), server)

    async def run(self, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        """Serve until `stop`. A store that cannot be reached is tried again until it can.

        Raises ConfigError for one that will not work.
        """
        try:
            if not await self._open(stop):
                return
            async with (
                background(self._storage.run(), self._hub.run(), self._cleaner.run()),
                asyncio.TaskGroup() as group,
            ):
                group.create_task(self._manage_identities(stop))
                group.create_task(self._synchronise_directory(stop))
                if await self._first_read(stop):
                    ready()
                    _log.info("databroker ready", backend=self._storage.name)
                await stop.wait()
                self._hub.close()
        finally:
            self._hub.close()
            await self._storage.close()

    async def drain(self) -> None:
        """Return at once: there is no user traffic here."""

    async def _manage_identities(self, stop: asyncio.Event) -> None:
        """Keep sessions fresh on the open store until `stop`, and a moment longer for what is due.

        Without `idp_provider` it only removes expired ones.
        """
        ctx = self._ctx

        def rules() -> Rules:
            flags = ctx.config.current.settings.runtime_flags
            return Rules(at_id_token_expiry=flags["refresh_session_at_id_token_expiration"])

        async with RefreshProviders(lambda: ctx.config.current, ctx.clock, ctx.rng) as providers:
            around = Surroundings(
                self._storage,
                self._hub,
                providers,
                ctx.clock,
                ctx.rng,
                alone=self._storage.name != "postgres",
                rules_of=rules,
                show=lambda name, value: ctx.health.set_running(IDENTITY_CHECK, **{name: value}),
                grace_s=min(MOST_GRACE_S, ctx.grace_s / 2),
            )
            await RefreshRunner(around).run(stop)

    async def _synchronise_directory(self, stop: asyncio.Event) -> None:
        """Follow `directory_source` on the open store until `stop`."""
        ctx = self._ctx
        sync = DirectorySync(
            self._storage,
            lambda: ctx.config.current,
            ctx.clock,
            ctx.rng,
            show=lambda name, value: ctx.health.set_running(DIRECTORY_CHECK, **{name: value}),
        )
        await sync.run(stop)

    async def _open(self, stop: asyncio.Event) -> bool:
        report = self._report(STORAGE_CHECK)
        backoff = Backoff(0.5, 1.5, 10.0, 0.5)
        while not stop.is_set():
            try:
                await self._storage.open()
            except FailedPreconditionError as error:
                key = "databroker_storage_connection_string"
                if isinstance(error, WrongSecretError):
                    key = "shared_secret"
                raise ConfigError((Issue(Severity.ERROR, key, str(error)),)) from error
            except (UnavailableError, DeadlineExceededError) as error:
                report(error)
                if await wait_or_stop(stop, backoff.next_s(self._ctx.rng)):
                    return False
            else:
                return True
        return False

    async def _first_read(self, stop: asyncio.Event) -> bool:
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(self._hub.ready()), group.create_task(stop.wait())]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        return not stop.is_set()

    def _report(
        self, check: str, *, quiet: bool = False
    ) -> Callable[[GatehouseError | None], None]:
        """Return what turns outcomes into health: logs the first of a kind, not each one.

        `quiet`: whoever reports logs it already.
        """
        is_failing = False

        def report(error: GatehouseError | None) -> None:
            nonlocal is_failing
            if error is None:
                if is_failing and not quiet:
                    _log.info("storage works again", check=check)
                is_failing = False
                self._ctx.health.set_running(check)
                return
            if not is_failing and not quiet:
                _log.error("storage trouble", check=check, reason=error.reason, error=str(error))
            is_failing = True
            self._ctx.health.set_error(check, error.public_message)

        return report
