"""The change table and the counters as files in shared memory: this process's side of them."""

from __future__ import annotations

import array
import ctypes
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gatehouse.proxy.core.decision_table import (
    BLOCK_BYTES,
    BLOCKS,
    COUNTERS,
    HEADER_WORDS,
    LAYOUT,
    MAGIC,
    SLOTS,
    WORDS,
    slot_of,
    table_bytes,
)

_NUMBER_BYTES: Final = 8


class ChangeTable:
    """The table in force, if there is one. Belongs to one thread.

    Every word is stored whole: `ctypes` copies eight aligned bytes at once.
    """

    def __init__(self, path: Path, *, slots: int = SLOTS) -> None:
        self._path = path
        self._slots = slots
        self._map: mmap.mmap | None = None
        self._words: Any = None  # an array of c_uint64 in the map
        self._configuration = 1
        self._budget = 0
        path.unlink(missing_ok=True)  # of a process that did not come to its end

    def __repr__(self) -> str:
        if self._words is None:
            return "ChangeTable(none)"
        return f"ChangeTable({self._words[WORDS['server_version']]})"

    def begin(self, server_version: int, floor: int) -> None:
        """Put a new table in the place of the one in force, if any."""
        words = array.array("Q", bytes(HEADER_WORDS * 8)) + array.array("Q", (floor,) * self._slots)
        for name, value in (
            ("magic", MAGIC),
            ("layout", LAYOUT),
            ("server_version", server_version),
            ("slots", self._slots),
            ("configuration", self._configuration),
            ("budget", self._budget),
        ):
            words[WORDS[name]] = value
        beside = self._path.with_suffix(".new")
        beside.unlink(missing_ok=True)
        file = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(os.dup(file), "wb") as out:
                out.write(words.tobytes())
            mapped = mmap.mmap(file, table_bytes(self._slots))
        finally:
            os.close(file)
        beside.rename(self._path)
        self.retire()
        self._map = mapped
        self._words = (ctypes.c_uint64 * (HEADER_WORDS + self._slots)).from_buffer(mapped)

    @property
    def server_version(self) -> int:
        """The history that the table in force is of; 0 without one."""
        return 0 if self._words is None else int(self._words[WORDS["server_version"]])

    def version_of(self, key: int) -> int:
        """The newest version of anything under a key; 0 without a table."""
        if self._words is None:
            return 0
        return int(self._words[HEADER_WORDS + slot_of(key, self._slots)])

    def raise_slot(self, key: int, version: int) -> None:
        """Say that something under a key has changed at a version."""
        place = HEADER_WORDS + slot_of(key, self._slots)
        if self._words is not None and self._words[place] < version:
            self._words[place] = version

    def stamp(self, at_ns: int) -> None:
        """Say that the table was current at a time of CLOCK_MONOTONIC."""
        if self._words is not None and self._words[WORDS["fresh_at"]] < at_ns:
            self._words[WORDS["fresh_at"]] = at_ns

    def configure(self, budget: int) -> None:
        """End every decision that was remembered, and say how many bytes others may take."""
        self._configuration += 1
        self._budget = budget
        if self._words is not None:
            self._words[WORDS["budget"]] = budget
            self._words[WORDS["configuration"]] = self._configuration

    def retire(self) -> None:
        """Say that the table is out of force. What has it mapped lets go of it."""
        if self._words is None:
            return
        self._words[WORDS["retired"]] = 1
        self._words = None
        assert self._map is not None
        self._map.close()
        self._map = None


class DecisionCounters:
    """What Envoy's interpreters have counted, summed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_bytes(b"")
        path.chmod(0o600)

    def read(self) -> Mapping[str, float]:
        """Every counter by name. Costs a file of at most 2 MiB."""
        numbers = array.array("d")
        with self._path.open("rb") as file:
            data = file.read(BLOCK_BYTES * BLOCKS)
        numbers.frombytes(data[: len(data) - len(data) % BLOCK_BYTES])
        stride = BLOCK_BYTES // _NUMBER_BYTES
        return {name: sum(numbers[place::stride]) for place, name in enumerate(COUNTERS)}
