"""How Envoy is started, watched, started again and ended.

`core/supervision.py` decides; this module runs the process. Envoy gets a process group of its own,
so that a Ctrl-C in the terminal reaches us alone and we drain it first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final

from gatehouse.common.clock import Clock
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.runtime.supervise import wait_or_stop
from gatehouse.proxy.core import supervision
from gatehouse.proxy.edge import envoy_log
from gatehouse.proxy.errors import EnvoyGaveUpError

DRAIN_TIME_S: Final = 600
_FLUSH_INTERVAL_MS: Final = 1000
_TERM_GRACE_S: Final = 5.0
_LAUNCHER: Final = Path(__file__).with_name("envoy_launcher.py")
# All that Envoy and its resolver look at; our own environment holds secrets.
_ENVIRONMENT: Final = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LOCALDOMAIN",
    "RES_OPTIONS",
)
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108

_log = get_logger("proxy")


@dataclass(frozen=True, slots=True)
class EnvoyCommand:
    """What is run. `run_dir` is private to this process."""

    binary: Path
    bootstrap: Path
    run_dir: Path
    log_level: str  # Envoy's name
    concurrency: int | None  # threads; None: as many as Envoy finds processors

    @property
    def base_id_path(self) -> Path:
        """Where Envoy notes the id it chose, so that instances never share one."""
        return self.run_dir / "envoy-base-id"

    def arguments(self) -> list[str]:
        """The command line after the binary."""
        threads = () if self.concurrency is None else ("--concurrency", str(self.concurrency))
        return [
            *("-c", str(self.bootstrap)),
            *("--log-level", self.log_level),
            *("--log-format", envoy_log.LOG_FORMAT),
            "--log-format-escaped",
            *threads,
            "--use-dynamic-base-id",
            *("--base-id-path", str(self.base_id_path)),
            *("--drain-time-s", str(DRAIN_TIME_S)),
            *("--file-flush-interval-msec", str(_FLUSH_INTERVAL_MS)),
        ]


class EnvoyProcess:
    """Keeps one Envoy running until told to stop."""

    def __init__(
        self,
        command: EnvoyCommand,
        clock: Clock,
        *,
        on_exit: Callable[[str], None],
        stdout: int | IO[bytes] | None = None,
    ) -> None:
        """`on_exit` is told in words of each end that nobody asked for."""
        self.command = command
        self.starts = 0
        self._clock = clock
        self._on_exit = on_exit
        self._stdout = stdout
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The running Envoy, or None between two runs."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    def use_log_level(self, level: str) -> None:
        """Start with this level (in Envoy's words) from the next start on."""
        self.command = replace(self.command, log_level=level)

    async def run(self, stop: asyncio.Event) -> None:
        """Run Envoy until `stop`, then end it. Raises EnvoyGaveUpError when it keeps ending."""
        state, command = supervision.step(supervision.State(), supervision.Start())
        while True:
            match command:
                case supervision.Spawn():
                    event = await self._run_once(stop)
                case supervision.Wait(delay_s):
                    _log.warning("envoy is started again", delay_s=delay_s)
                    stopped = await wait_or_stop(stop, delay_s)
                    event = supervision.Stop() if stopped else supervision.TimerFired()
                case supervision.Terminate():
                    await self._terminate()
                    event = supervision.Exited(self._clock.monotonic_s())
                case supervision.GiveUp(exits):
                    raise EnvoyGaveUpError(
                        f"envoy ended {exits} times within "
                        f"{supervision.WINDOW_S / 60:.0f} minutes; see its lines above",
                        exits=exits,
                    )
                case supervision.Nothing():
                    return
            state, command = supervision.step(state, event)

    async def _run_once(self, stop: asyncio.Event) -> supervision.Event:
        """Spawn, and wait for the end of the process or for `stop`."""
        command = self.command
        launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid())]
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        try:
            process = await asyncio.create_subprocess_exec(
                *launcher,
                str(command.binary),
                *command.arguments(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=self._stdout,
                stderr=asyncio.subprocess.PIPE,
                env=environment,
                process_group=0,
            )
        except OSError as error:
            self._on_exit(f"envoy cannot be started: {error}")
            return supervision.Exited(self._clock.monotonic_s())
        self._process = process
        self.starts += 1
        assert process.stderr is not None
        _log.info("envoy started", pid=process.pid)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(envoy_log.relay(process.stderr, stop), name="envoy-log")
                ended = group.create_task(process.wait(), name="envoy-wait")
                stopping = group.create_task(stop.wait(), name="envoy-stop")
                await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
                if not ended.done():
                    # Terminate while its lines are still read.
                    await self._terminate()
                    await ended
                    self._forget_shared_memory()
                    return supervision.Stop()
                stopping.cancel()
        finally:
            if process.returncode is None:
                # Cancelled: the process must not stay behind, nor the pipe to it.
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.stderr.read()
                await process.wait()
                self._forget_shared_memory()
        self._forget_shared_memory()
        how = _describe(process.returncode)
        _log.error("envoy ended", how=how)
        self._on_exit(f"envoy {how}")
        return supervision.Exited(self._clock.monotonic_s())

    async def _terminate(self) -> None:
        """SIGTERM, then SIGKILL. Envoy exits at once on the first; drain before."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_TERM_GRACE_S):
                await process.wait()
        except TimeoutError:
            _log.warning("envoy does not end; it is killed")
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _forget_shared_memory(self) -> None:
        """Remove the segment that Envoy leaves behind, named after its base id."""
        try:
            base_id = int(self.command.base_id_path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return
        with contextlib.suppress(OSError):
            (_SHARED_MEMORY / f"envoy_shared_memory_{base_id}0").unlink()


def _describe(returncode: int | None) -> str:
    if returncode is None:
        return "did not end"
    if returncode >= 0:
        return f"exited with status {returncode}"
    try:
        return f"was ended by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was ended by signal {-returncode}"


def usable_cpus() -> int:
    """CPUs this process may use: its affinity, capped by its control group's quota."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        count = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(count, quota)) if quota is not None else max(1, count)


def _cgroup_quota() -> int | None:
    """Whole CPUs of cgroup v2's cpu.max or v1's cfs quota, rounded up; None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            base = Path("/sys/fs/cgroup/cpu")
            quota = (base / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (base / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except OSError:
            return None
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None
    return -(-int(quota) // int(period))
