"""A file system of a few megabytes for one directory, as only the programs run in it see it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

_HOLD = """
mkdir -p "$1" && mount -t tmpfs -o "size=$2,mode=755" none "$1" && echo mounted && exec cat
"""


class NoSmallDiskError(Exception):
    """This machine does not let us mount anything."""


class SmallDisk:
    """`where`, on a disk of its own. Programs get there with `prefix`, this process by `seen`."""

    def __init__(self, where: Path, holder: int, *, is_root: bool) -> None:
        namespaces = ("--mount",) if is_root else ("--mount", "--user", "--preserve-credentials")
        self.prefix = ("nsenter", "--target", str(holder), *namespaces, "--")
        self.seen = Path(f"/proc/{holder}/root{where}")
        self._filler = self.seen / "filler"

    def fill(self) -> None:
        """Take all room that is left."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * size)
        assert self.free() == 0

    def free(self) -> int:
        """Bytes that are left."""
        found = os.statvfs(self.seen)
        return found.f_bavail * found.f_frsize

    def empty(self) -> None:
        """Give back what `fill` took."""
        self._filler.unlink()


@contextlib.contextmanager
def small_disk(where: Path, size: str) -> Iterator[SmallDisk]:
    """Raises NoSmallDiskError: root may, others where user namespaces are allowed."""
    is_root = os.geteuid() == 0
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        raise NoSmallDiskError("unshare and nsenter are not installed")
    user = () if is_root else ("--user", "--map-current-user", "--keep-caps")
    with subprocess.Popen(
        ["unshare", "--mount", *user, "sh", "-c", _HOLD, "sh", str(where), size],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stderr is not None
            if holder.stdout.readline() != "mounted\n":
                raise NoSmallDiskError(holder.stderr.read().strip())
            yield SmallDisk(where, holder.pid, is_root=is_root)
        finally:
            holder.kill()
