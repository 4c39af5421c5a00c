"""What is known of the Envoy process from outside: time, memory, files, and what it sheds."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gatehouse.common.observability.metrics import PREFIX
from gatehouse.proxy.core.xds.resources.overload import ACTIONS

_PROCESS: Final = f"{PREFIX}_envoy_process"


class EnvoyCollector(Collector):
    """Read from /proc for each page; nothing while no Envoy runs."""

    def __init__(self, pid: Callable[[], int | None], group: Callable[[], str]) -> None:
        self._pid = pid
        self._group = group
        self.saturation = 0.0
        self.overload: Mapping[str, int] = {}  # action to how far it is taken, in percent

    def collect(self) -> Iterable[Metric]:
        """All families."""
        yield from self._process()
        group = self._group()
        saturation = GaugeMetricFamily(
            f"{PREFIX}_envoy_cgroup_memory_saturation",
            "Share of the memory limit in use, as Envoy is told.",
            labels=("cgroup",),
        )
        saturation.add_metric((group,), self.saturation)
        state = GaugeMetricFamily(
            f"{PREFIX}_envoy_overload_action_state",
            "Percent to which Envoy takes an action against overload.",
            labels=("cgroup", "action_name"),
        )
        threshold = GaugeMetricFamily(
            f"{PREFIX}_envoy_overload_action_threshold",
            "Share of memory from which the action is taken.",
            labels=("action_name",),
        )
        for name, limits in ACTIONS.items():
            state.add_metric((group, name), self.overload.get(name, 0))
            threshold.add_metric((name,), limits[0])
        yield from (saturation, state, threshold)

    def _process(self) -> Iterable[Metric]:
        pid = self._pid()
        if pid is None:
            return ()
        try:
            return tuple(_families(pid))
        except (OSError, ValueError, IndexError):
            return ()  # it ended meanwhile, or there is no /proc


def _families(pid: int) -> Iterable[Metric]:
    directory = Path(f"/proc/{pid}")
    # proc(5): after the name, which may hold blanks and brackets, fields count from the third.
    fields = (directory / "stat").read_text().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    started = next(
        int(line.split()[1])
        for line in Path("/proc/stat").read_text().splitlines()
        if line.startswith("btime ")
    )
    cpu = CounterMetricFamily(f"{_PROCESS}_cpu_seconds", "CPU time of Envoy.")
    cpu.add_metric((), (int(fields[11]) + int(fields[12])) / ticks)
    yield cpu
    files, space = (
        resource.prlimit(pid, limit)[0] for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS)
    )
    for name, text, value in (
        ("open_fds", "Files open.", sum(1 for _ in (directory / "fd").iterdir())),
        ("max_fds", "Files that may be open.", files),
        ("virtual_memory_bytes", "Virtual memory.", int(fields[20])),
        ("virtual_memory_max_bytes", "Limit of virtual memory; -1: none.", space),
        ("resident_memory_bytes", "Resident memory.", int(fields[21]) * resource.getpagesize()),
        ("start_time_seconds", "Unix time of its start.", started + int(fields[19]) / ticks),
    ):
        family = GaugeMetricFamily(f"{_PROCESS}_{name}", text)
        family.add_metric((), value)
        yield family
