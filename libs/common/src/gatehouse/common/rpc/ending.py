"""The end of gRPC handlers that outlive their server.

`grpc.aio.Server.stop` returns once the calls have ended on the wire; the handlers behind them may
still be cleaning up (grpc/grpc issue 37239). A loop that is closed in that moment cancels them in
mid-step, what they were to put in order stays undone, and gRPC prints a traceback for each.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from gatehouse.common.observability.logging import get_logger

PATIENCE_S: Final = 2.0  # for handlers to end by themselves, and once more when cancelled
# How gRPC (1.85) names the coroutines that run a handler and that wait for it.
_HANDLER: Final = "_handle_exceptions"
_WAITER: Final = "_schedule_rpc_coro"

_log = get_logger("grpc")


async def let_handlers_end(patience_s: float = PATIENCE_S) -> None:
    """Wait until no handler runs in this loop. Call when every gRPC server of it has stopped.

    Handlers that take longer than `patience_s` are cancelled; what ignores that for as long again
    is left, and told.
    """
    await _wait(_tasks(_HANDLER, _WAITER), patience_s)
    for task in _tasks(_HANDLER):
        task.cancel()
    await _wait(_tasks(_HANDLER, _WAITER), patience_s)
    left = len(_tasks(_HANDLER))
    if left:
        _log.warning("handlers still run after their server has stopped", handlers=left)


async def _wait(tasks: set[asyncio.Task[Any]], patience_s: float) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=patience_s)


def _tasks(*names: str) -> set[asyncio.Task[Any]]:
    return {
        task
        for task in asyncio.all_tasks()
        if getattr(task.get_coro(), "__qualname__", None) in names
    }
