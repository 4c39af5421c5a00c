"""One authorize worker: started by the process that `authorize_workers` is set for, never by hand.

`python -m gatehouse.authorize.worker FD`: orders come over the socket FD, settings included. The
end of that socket is the end of the worker, whatever became of its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from gatehouse.common.observability.logging import (
    configure_logging,
    get_logger,
    set_level,
    share_output,
)

# isort: split
from gatehouse.authorize.edge.worker_wire import (
    Commit,
    Order,
    Prepare,
    Report,
    Serve,
    Start,
    Stop,
    Terminate,
    encode_report,
    read_order,
)
from gatehouse.authorize.service import SERVICE_CHECK, AuthorizeService
from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.config.hub import Commit as PutInForce
from gatehouse.common.config.hub import ConfigHub
from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.resolved import ResolvedSettings, ServiceName
from gatehouse.common.config.wire import decode_settings
from gatehouse.common.pages.branding import branding_of, use_branding
from gatehouse.common.rpc.ending import let_handlers_end
from gatehouse.common.rpc.server import GrpcServer
from gatehouse.common.runtime import event_loop
from gatehouse.common.runtime.context import ProcessContext
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.common.runtime.metrics_server import serve_worker_metrics
from gatehouse.common.runtime.process import EXIT_CRASH, EXIT_OK, grpc_listening, grpc_server
from gatehouse.common.runtime.traces import run_tracing

WORKERS_CHECK: Final = "authorize.workers"  # all of them, not only this one
_AT_WORK_S: Final = 0.5  # between two reports of that; well below worker_pool.SILENCE_S


def main() -> int:
    """Run until told to stop; the exit status."""
    # A terminal's Ctrl-C and a service manager's stop reach the parent as well, who decides.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        event_loop.run(
            _run(socket.socket(fileno=int(sys.argv[1]))), frozenset({ServiceName.AUTHORIZE})
        )
    except Exception as failure:  # noqa: BLE001 - the parent ends with us
        get_logger("authorize").critical("worker crashed", error_type=type(failure).__name__)
        traceback.print_exception(failure, file=sys.stderr)
        return EXIT_CRASH
    return EXIT_OK


async def _run(channel: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=channel)
    try:
        first = await read_order(reader)
        if isinstance(first, Start):
            await _Worker(first, reader, writer).run()
    finally:
        writer.close()


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Settings that may come into force."""

    serial: int
    settings: ResolvedSettings
    commit: PutInForce


class _Worker:
    def __init__(
        self, start: Start, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        settings = decode_settings(start.settings)
        configure_logging(settings.settings.log_level)
        share_output(start.log_lock)
        self._reader = reader
        self._writer = writer
        clock = SystemClock()
        self._health = HealthRegistry(clock)
        for name in ("authorize", ""):
            self._health.add_service(name, (SERVICE_CHECK, WORKERS_CHECK))
        self._hub = ConfigHub(settings)
        self._context = ProcessContext(
            config=self._hub,
            health=self._health,
            clock=clock,
            rng=SystemRng(),
            run_dir=Path(start.run_dir),
            grace_s=start.grace_s,
            worker=start.number,
        )
        self._prepared: _Prepared | None = None

    async def run(self) -> None:
        """Serve until Stop. Raises what authorize raises."""
        service = AuthorizeService(self._context)
        use_branding(branding_of(self._hub.current.settings))
        self._hub.join("log level", _prepare_level)
        server = grpc_server(self._context)
        service.register_grpc(server.server)
        stop, ready = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(service.run(stop, ready.set))
            tasks.create_task(run_tracing(self._hub, self._context.spans, stop))
            tasks.create_task(serve_worker_metrics(self._context, stop))
            async with contextlib.AsyncExitStack() as listening:
                await self._obey(ready, lambda: self._listen(server, listening))
                self._health.terminate()
            stop.set()
        await let_handlers_end()

    async def _obey(self, ready: asyncio.Event, listen: Callable[[], Awaitable[None]]) -> None:
        """One order after the other until Stop, and `listen` between two of them once ready."""
        order = asyncio.ensure_future(read_order(self._reader))
        readiness = asyncio.ensure_future(ready.wait())
        try:
            while True:
                waiting = {order} if readiness.done() else {order, readiness}
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if readiness in done:
                    await listen()
                if order in done:
                    if isinstance(order.result(), Stop):
                        return
                    await self._do(order.result())
                    order = asyncio.ensure_future(read_order(self._reader))
        finally:
            order.cancel()
            readiness.cancel()

    async def _listen(self, server: GrpcServer, listening: contextlib.AsyncExitStack) -> None:
        """Answer from now on. Not before the copy is there: others answer on the same port."""
        await listening.enter_async_context(grpc_listening(server, self._context))
        if self._prepared is not None:  # without the certificates of this server
            one = self._prepared
            self._prepared = replace(one, commit=await self._hub.prepare(one.settings))
        self._report({"is": "ready"})

    async def _do(self, order: Order) -> None:
        match order:
            case Prepare():
                async with asyncio.TaskGroup() as group:
                    at_work = group.create_task(self._at_work())
                    problems = await self._prepare(order)
                    at_work.cancel()
                self._report({"is": "prepared", "serial": order.serial, "problems": problems})
            case Commit(serial=serial):
                one, self._prepared = self._prepared, None
                if one is not None and one.serial == serial:
                    one.commit()
                    self._report({"is": "committed", "serial": serial})
            case Serve():
                self._health.set_running(WORKERS_CHECK)
            case Terminate():
                self._health.terminate()

    async def _prepare(self, order: Prepare) -> list[list[str]]:
        """Be ready for other settings; what is wrong with them, if anything is."""
        self._prepared = None
        try:
            new = await asyncio.to_thread(decode_settings, order.settings)
            self._prepared = _Prepared(order.serial, new, await self._hub.prepare(new))
        except ConfigError as error:
            return [[one.key, one.message, one.fix] for one in error.issues]
        except Exception as error:  # noqa: BLE001 - the last good ones stay in force
            return [["authorize_workers", f"a worker refuses: {error}", ""]]
        return []

    async def _at_work(self) -> None:
        """Say again and again that the event loop runs, while threads do the work."""
        while True:
            self._report({"is": "at-work"})
            await asyncio.sleep(_AT_WORK_S)

    def _report(self, report: Report) -> None:
        with contextlib.suppress(ConnectionError):
            self._writer.write(encode_report(report))


async def _prepare_level(new: ResolvedSettings) -> Callable[[], None]:
    branding = branding_of(new.settings)

    def commit() -> None:
        set_level(new.settings.log_level)
        use_branding(branding)

    return commit


if __name__ == "__main__":
    sys.exit(main())
