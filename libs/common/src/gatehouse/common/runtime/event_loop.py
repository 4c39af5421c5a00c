"""The event loop that a process runs on.

A process of authorize alone answers calls and little else, and of what a call costs there most is
the loop and gRPC: uvloop takes about a twentieth off. The others keep asyncio's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

from gatehouse.common.config.resolved import ServiceName

_T = TypeVar("_T")


def run(main: Coroutine[Any, Any, _T], services: frozenset[ServiceName]) -> _T:
    """`asyncio.run` on the loop for a process with these services."""
    fast = services == {ServiceName.AUTHORIZE}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if fast else None) as runner:
        return runner.run(main)
