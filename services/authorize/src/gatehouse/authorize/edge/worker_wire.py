"""What a process and its authorize workers tell each other, over a socket pair.

Downwards go pickled orders (they hold settings); upwards goes JSON, so that a worker, who meets
what clients send, cannot make its parent run anything.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

_LENGTH: Final = struct.Struct(">I")
MAX_ORDER: Final = 1 << 30  # bytes; settings with very many routes
MAX_REPORT: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Start:
    """The first order. `settings` is of `config.wire`."""

    number: int
    run_dir: str
    grace_s: float
    log_lock: int  # file descriptor
    settings: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Prepare:
    """Get ready for other settings and answer with the same serial."""

    serial: int
    settings: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Commit:
    """Put in force what was prepared, and say so."""

    serial: int


@dataclass(frozen=True, slots=True)
class Serve:
    """Every worker is ready: be healthy."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """The stop has begun: be unhealthy, and still answer."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Finish what is under way and end. The end of the stream means the same."""


Order: TypeAlias = Start | Prepare | Commit | Serve | Terminate | Stop
# {"is": "ready"}, {"is": "at-work"} while it prepares, {"is": "prepared", "serial": n,
# "problems": [...]} or {"is": "committed", "serial": n}
Report: TypeAlias = Mapping[str, object]


def encode_order(order: Order) -> bytes:
    """One order, framed."""
    return _framed(pickle.dumps(order, protocol=5))


def encode_report(report: Report) -> bytes:
    """One report, framed."""
    return _framed(json.dumps(report).encode())


async def read_order(reader: asyncio.StreamReader) -> Order:
    """The next order; Stop when the parent is gone."""
    data = await _read(reader, MAX_ORDER)
    if data is None:
        return Stop()
    order = pickle.loads(data)  # noqa: S301 - from the process that started this one
    assert isinstance(order, Start | Prepare | Commit | Serve | Terminate | Stop), type(order)
    return order


async def read_report(reader: asyncio.StreamReader) -> Report | None:
    """The next report; None when the worker is gone or talks nonsense."""
    data = await _read(reader, MAX_REPORT)
    try:
        report = json.loads(data) if data is not None else None
    except ValueError:
        return None
    return report if isinstance(report, dict) else None


def _framed(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


async def _read(reader: asyncio.StreamReader, limit: int) -> bytes | None:
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return await reader.readexactly(length) if length <= limit else None
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
