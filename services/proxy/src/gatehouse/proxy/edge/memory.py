"""How full this process's memory is, told to Envoy, which runs in the same control group.

The kernel's numbers (cgroup v2, else v1) become one number in a file that Envoy watches. What the
kernel would give back by itself, file pages not used lately, does not count: a busy disk must not
make Envoy turn users away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gatehouse.common.observability.logging import get_logger
from gatehouse.common.runtime.supervise import wait_or_stop

IDLE_S: Final = 10.0
BUSY_S: Final = 0.25
_CALM: Final = 0.5  # below this share the next look has time
_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")

_log = get_logger("proxy")


class MemoryGauge:
    """Reads the control groups of this process."""

    def __init__(self, mount: Path = _CGROUPS, own: Path = _OWN) -> None:
        self._mount = mount
        self._own = own

    def group(self) -> str:
        """The control group's name, for labels."""
        groups = self._groups()
        if not groups:
            return "/"
        path = groups[0][0].relative_to(groups[-1][0])
        return "/" if path == Path() else f"/{path}"

    def saturation(self) -> float:
        """0 to 1: the fullest of the group and those around it; 0 without a limit."""
        return max((_share(*group) for group in self._groups()), default=0.0)

    def _groups(self) -> list[tuple[Path, bool]]:
        """Directories from the own group outwards, and whether they are of version 2."""
        try:
            lines = self._own.read_text(encoding="ascii").splitlines()
        except OSError:
            return []
        for line in lines:
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if "memory" in controllers.split(","):
                return _up(self._mount / "memory", path, is_v2=False)
            if number == "0" and not controllers and (self._mount / "cgroup.controllers").exists():
                return _up(self._mount, path, is_v2=True)
        return []


async def watch_memory(
    gauge: MemoryGauge,
    file: Path,
    stop: asyncio.Event,
    *,
    enabled: Callable[[], bool],
    seen: Callable[[float], None],
) -> None:
    """Keep `file` up to date until `stop`; 0 while not `enabled`."""
    written: float | None = None
    while True:
        saturation = min(max(gauge.saturation(), 0.0), 1.0) if enabled() else 0.0
        seen(saturation)
        if saturation != written:
            write_saturation(file, saturation)
            written = saturation
        if await wait_or_stop(stop, interval_s(saturation)):
            return


def write_saturation(file: Path, saturation: float) -> None:
    """Replace the file. Envoy notices a file that is moved in, not one that is written to."""
    beside = file.with_suffix(".new")
    try:
        beside.write_text(f"{saturation:.4f}", encoding="ascii")
        beside.rename(file)
    except OSError as error:
        _log.warning("cannot tell envoy how full the memory is", error=str(error))


def interval_s(saturation: float) -> float:
    """How long a look holds good: long while there is plenty, short near the limit."""
    if saturation <= _CALM:
        return IDLE_S
    room = max(0.0, 1.0 - saturation) / (1.0 - _CALM)
    return BUSY_S + (IDLE_S - BUSY_S) * room**2


def _up(root: Path, path: str, *, is_v2: bool) -> list[tuple[Path, bool]]:
    directory = root / path.strip("/")
    if not directory.is_dir():
        directory = root  # a container sees its own group as the root
    found = [(directory, is_v2)]
    while directory != root:
        directory = directory.parent
        found.append((directory, is_v2))
    return found


def _share(directory: Path, is_v2: bool) -> float:
    names = (
        ("memory.max", "memory.current", "inactive_file")
        if is_v2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    limit, used = (_number(directory / name) for name in names[:2])
    if not limit or used is None or limit >= 1 << 62:  # v1 spells "no limit" as a huge number
        return 0.0
    return max(0, used - _statistic(directory / "memory.stat", names[2])) / limit


def _number(file: Path) -> int | None:
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None  # "max": no limit


def _statistic(file: Path, name: str) -> int:
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    for line in lines:
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return 0
