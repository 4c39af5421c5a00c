"""The further processes that decide beside this one (`authorize_workers`).

Each is an authorize with its own copy of the records. This process starts them, gives them the
settings in force and each change of them in two phases, and says for all of them whether authorize
is healthy. One that ends unasked is replaced; the others answer meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from gatehouse.authorize.edge.worker_wire import (
    Commit,
    Order,
    Prepare,
    Serve,
    Start,
    Stop,
    Terminate,
    encode_order,
    read_report,
)
from gatehouse.common.config.hub import Lead
from gatehouse.common.config.issues import ConfigError, Issue, Severity
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.config.wire import encode_settings
from gatehouse.common.observability.logging import get_logger, share_output
from gatehouse.common.runtime.backoff import Backoff
from gatehouse.common.runtime.context import ProcessContext
from gatehouse.common.runtime.metrics_server import worker_page

PREPARE_TIMEOUT_S: Final = 60.0  # for one that starts, or says that it is at work
SILENCE_S: Final = 5.0  # who was ready and then says nothing for so long hangs
COMMIT_TIMEOUT_S: Final = 5.0
_RESERVE_S: Final = 0.5  # of the grace, for ending those who will not
_ENDING_S: Final = 5.0  # from the end of a worker's socket to that of its process
_STEADY_S: Final = 60.0  # who was ready for so long is replaced without a wait
_MODULE: Final = "gatehouse.authorize.worker"

T = TypeVar("T")

_log = get_logger("authorize")


class WorkerEndedError(Exception):
    """An authorize worker ended before it could ever answer."""


class WorkerPool:
    """All workers but the first, which is this process itself."""

    def __init__(self, context: ProcessContext) -> None:
        self._context = context
        workers = context.config.current.settings.authorize_workers
        self._workers = tuple(_Worker(number) for number in range(1, workers))
        for worker in self._workers:
            context.metrics.workers[str(worker.number)] = worker_page(context, worker.number)
        self._settings = b""  # in force, for those who start
        self._spawned = asyncio.Event()
        self._serial = 0
        self._complete = False  # all were ready once
        self._health: Order | None = None  # the last order about it

    async def run(self, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        """Start them, call `ready` once each has its copy, end them after `stop`.

        Raises WorkerEndedError when one ends before all are ready for the first time.
        """
        # One lock for all who write to standard error, so that no line breaks another.
        log_lock = os.memfd_create("gatehouse-log-lock", os.MFD_CLOEXEC)
        try:
            share_output(log_lock)
            self._settings = await asyncio.to_thread(encode_settings, self._context.config.current)
            async with asyncio.TaskGroup() as group:
                for worker in self._workers:
                    await worker.spawn(log_lock)
                    worker.write(self._start(worker, log_lock))
                keepers = [
                    group.create_task(
                        self._keep(worker, log_lock, stop), name=f"worker {worker.number}"
                    )
                    for worker in self._workers
                ]
                self._spawned.set()
                readiness = group.create_task(self._all_ready(ready))
                await stop.wait()
                readiness.cancel()
                for worker in self._workers:
                    worker.stop()
                _, late = await asyncio.wait(
                    keepers, timeout=max(self._context.grace_s - _RESERVE_S, 0.0)
                )
                for keeper in late:
                    keeper.cancel()
        finally:
            for worker in self._workers:
                await worker.kill()
            os.close(log_lock)

    def serve(self) -> None:
        """All are ready: each may say that authorize is healthy."""
        self._tell_health(Serve())

    def terminate(self) -> None:
        """The stop has begun: none may say so any more; all still answer."""
        self._tell_health(Terminate())

    async def prepare(self, new: ResolvedSettings) -> Lead:
        """Every worker ready for `new`; what is returned ends when all of them decide by it.

        A worker that hangs, or ended, counts as one to be replaced. Raises ConfigError with what
        the first refusing worker says.
        """
        await self._spawned.wait()
        self._serial += 1
        serial = self._serial
        settings = await asyncio.to_thread(encode_settings, new)
        frame = encode_order(Prepare(serial, settings))
        asked = [worker.ask(serial, frame) for worker in self._workers]
        await asyncio.gather(
            *(
                answered_or_silent(answer, worker.silent_from_s)
                for worker, answer in zip(self._workers, asked, strict=True)
            )
        )
        for answer in asked:
            problems = answer.result() if answer.done() else None
            if problems:
                raise ConfigError(tuple(problems))

        async def lead() -> None:
            # From here on whoever starts, starts with these.
            self._settings = settings
            frame = encode_order(Commit(serial))
            switching = [worker.switch(serial, frame) for worker in self._workers]
            await asyncio.wait(switching, timeout=COMMIT_TIMEOUT_S)
            for worker, switched in zip(self._workers, switching, strict=True):
                if not switched.done() or not switched.result():
                    # It may decide by the old ones: nobody must hear from it again.
                    await worker.kill()

        return lead

    async def _keep(self, worker: _Worker, log_lock: int, stop: asyncio.Event) -> None:
        """Have one worker running until the stop."""
        clock, rng = self._context.clock, self._context.rng
        pause = Backoff(0.2, 2.0, 30.0, 0.2)
        while True:
            status, ready_s = await worker.watch(clock.monotonic_s)
            if stop.is_set():
                return
            if not self._complete:
                raise WorkerEndedError(
                    f"authorize worker {worker.number} ended with status {status} "
                    "before it could answer"
                )
            _log.error("authorize worker replaced", worker=worker.number, status=status)
            if ready_s >= _STEADY_S:
                pause.reset()
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause.next_s(rng)):
                        await stop.wait()
            if stop.is_set():
                return
            await worker.spawn(log_lock)
            worker.write(self._start(worker, log_lock))
            if self._health is not None:
                worker.write(encode_order(self._health))

    async def _all_ready(self, ready: Callable[[], None]) -> None:
        for worker in self._workers:
            await worker.ready.wait()
        self._complete = True
        ready()

    def _start(self, worker: _Worker, log_lock: int) -> bytes:
        context = self._context
        return encode_order(
            Start(worker.number, str(context.run_dir), context.grace_s, log_lock, self._settings)
        )

    def _tell_health(self, order: Order) -> None:
        self._health = order
        frame = encode_order(order)
        for worker in self._workers:
            worker.write(frame)


class _Worker:
    """One place in the pool: the process that has it, and the socket to that."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.ready = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        # What is waited for, by serial: objections, and the switch itself.
        self._answers: dict[int, asyncio.Future[Sequence[Issue]]] = {}
        self._switches: dict[int, asyncio.Future[bool]] = {}
        self._willing: int | None = None  # the serial that this process has prepared
        self._heard_s = 0.0  # when it last said anything or was asked, by the loop's clock

    async def spawn(self, log_lock: int) -> None:
        """Start a process; it waits for its first order."""
        self.ready.clear()
        self._willing = None
        ours, theirs = socket.socketpair()
        try:
            # -P: what lies in the working directory is not imported.
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", _MODULE, str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), log_lock),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._reader, self._writer = await asyncio.open_unix_connection(sock=ours)

    async def watch(self, monotonic_s: Callable[[], float]) -> tuple[int, float]:
        """Take reports until the process ends; its status, and how long it was ready, seconds."""
        assert self._reader is not None
        assert self._writer is not None
        assert self._process is not None
        since_s: float | None = None
        try:
            while (report := await read_report(self._reader)) is not None:
                self._heard_s = asyncio.get_running_loop().time()
                self._take(report)
                if since_s is None and self.ready.is_set():
                    since_s = monotonic_s()
            # Who has closed the socket is about to end; who talks nonsense is of no more use.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ENDING_S):
                    await self._process.wait()
            if self._process.returncode is None:
                self._process.kill()
            status = await self._process.wait()
        finally:
            self._writer.close()
            self._willing = None
            for answer in self._answers.values():
                _settle(answer, ())
            for switched in self._switches.values():
                _settle(switched, False)  # noqa: FBT003 - a result
        return status, 0.0 if since_s is None else monotonic_s() - since_s

    def write(self, frame: bytes) -> None:
        """Write an order; nothing when there is no process to take it."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame)

    def ask(self, serial: int, frame: bytes) -> asyncio.Future[Sequence[Issue]]:
        """Let it prepare; the future is what it has against that."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[Issue]] = loop.create_future()
        self._answers = {serial: answer}  # an older question has nobody waiting for it
        self._heard_s = loop.time()
        if self._is_running:
            self.write(frame)
        else:
            answer.set_result(())  # it will start with what is in force then
        return answer

    def silent_from_s(self) -> float:
        """From when on it counts as hanging if it goes on saying nothing, by the loop's clock.

        One that starts says nothing while it reads its modules and settings.
        """
        return self._heard_s + SILENCE_S if self.ready.is_set() else math.inf

    def switch(self, serial: int, frame: bytes) -> asyncio.Future[bool]:
        """Let it put in force what it prepared; the future is whether it did.

        True also where no process runs, which could decide by anything else.
        """
        switched: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if not self._is_running or self._willing != serial:
            switched.set_result(not self._is_running)
            return switched
        self._switches = {serial: switched}
        self.write(frame)
        return switched

    def stop(self) -> None:
        """Ask it to end."""
        self.write(encode_order(Stop()))

    async def kill(self) -> None:
        """End it now if it still runs; returns once it is gone."""
        process, writer = self._process, self._writer
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()
        if writer is not None:
            writer.close()

    @property
    def _is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def _take(self, report: Mapping[str, object]) -> None:
        match report:
            case {"is": "ready"}:
                self.ready.set()
            case {"is": "prepared", "serial": int(serial), "problems": list(problems)}:
                self._willing = None if problems else serial
                answer = self._answers.get(serial)
                if answer is not None:
                    _settle(answer, [_problem(self.number, each) for each in problems])
            case {"is": "committed", "serial": int(serial)}:
                switched = self._switches.get(serial)
                if switched is not None:
                    _settle(switched, True)  # noqa: FBT003 - a result


async def answered_or_silent(answer: asyncio.Future[T], silent_from_s: Callable[[], float]) -> None:
    """Wait for an answer, for as long as who was asked is heard of.

    Large settings take their time to prepare, and that is no reason to end a worker; one that
    hangs must not keep everybody else on the old ones.
    """
    loop = asyncio.get_running_loop()
    until_s = loop.time() + PREPARE_TIMEOUT_S
    while not answer.done():
        left_s = min(until_s, silent_from_s()) - loop.time()
        if left_s <= 0:
            return
        await asyncio.wait((answer,), timeout=left_s)


def _settle(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _problem(number: int, problem: object) -> Issue:
    match problem:
        case [str(key), str(message), str(fix)]:
            return Issue(Severity.ERROR, key, message, fix)
    return Issue(Severity.ERROR, "authorize_workers", f"worker {number} refuses the configuration")
