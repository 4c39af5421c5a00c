"""How keys and certificates reach Envoy's disk, readable by nobody else.

File names carry a hash of their content (`core/xds/snapshot.py`), so a file is written once and
never changed; Envoy notices a new certificate because its listener names another file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_DIRECTORY_MODE: Final = 0o700
_FILE_MODE: Final = 0o600


class SecretFiles:
    """A directory of content-addressed files, emptied when it is taken over."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def prepare(self) -> None:
        """Make the directory, or empty one left over from an earlier run. Raises OSError."""
        self.directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        self.directory.chmod(_DIRECTORY_MODE)
        for path in self.directory.iterdir():
            path.unlink()

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write what is not there yet, each file whole or not at all. Raises OSError."""
        for name, content in files.items():
            assert name == os.path.basename(name), name  # noqa: PTH119
            path = self.directory / name
            if path.exists():
                continue
            temporary = self.directory / f".{name}"
            temporary.unlink(missing_ok=True)
            descriptor = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _FILE_MODE
            )
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            temporary.rename(path)

    def keep_only(self, names: frozenset[str]) -> None:
        """Remove files that no configuration in force names any more."""
        for path in self.directory.iterdir():
            if path.name not in names:
                path.unlink(missing_ok=True)
