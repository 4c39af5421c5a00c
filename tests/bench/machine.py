"""What a result file says of the machine, so that figures are read beside it."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_WATCHED_S: Final = 2.0


def facts() -> dict[str, object]:
    """Processor, memory, kernel, tools, and how busy it is at this moment."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_model": cpu_model(_read("/proc/cpuinfo")),
        "memory_mib": memory_mib(_read("/proc/meminfo")),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": list(os.getloadavg()),
        "used_by_others": used_share(_read("/proc/stat"), _after(_WATCHED_S, "/proc/stat")),
        "tools": [tool for tool in ("wrk", "h2load") if shutil.which(tool)],
    }


def was_busy(machine: Mapping[str, object]) -> bool:
    """Whether others used the machine as the run began: more than an eighth of its CPUs.

    The load average would also count the benchmark that ended a moment ago.
    """
    used = machine.get("used_by_others")
    return isinstance(used, float) and used > 1 / 8


def used_share(before: str, after: str) -> float:
    """The share of all CPUs that was not idle between two readings of /proc/stat (proc(5))."""
    first, second = (_jiffies(text) for text in (before, after))
    passed = [then - now for now, then in zip(first, second, strict=True)]
    idle = sum(passed[3:5])  # idle, iowait
    return 1.0 - idle / sum(passed) if sum(passed) else 0.0


def _jiffies(stat: str) -> list[int]:
    line = stat.partition("\n")[0].split()
    return [int(number) for number in line[1:9]]


def _after(pause_s: float, path: str) -> str:
    time.sleep(pause_s)
    return _read(path)


def cpu_model(cpuinfo: str) -> str:
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "unknown"


def memory_mib(meminfo: str) -> int:
    for line in meminfo.splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) // 1024
    return 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
