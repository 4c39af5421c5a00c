"""The Envoys that Gatehouse has started: which they are, and what they use."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tests.support.stack import Stack


def envoys_of(pid: int) -> list[int]:
    """Process ids of the Envoys that this process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has ended meanwhile
            name, _, fields = (entry / "stat").read_text().rpartition(")")
            if fields.split()[1] == str(pid) and "envoy" in name:
                found.append(int(entry.name))
    return found


def envoy_of(stack: Stack) -> int:
    """The process id of the stack's Envoy."""
    (found,) = envoys_of(stack.processes["proxy"].process.pid)
    return found


def memory_mib(pid: int) -> float:
    """What the process has in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
