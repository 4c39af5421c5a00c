"""Who writes log lines while the reader of standard error stalls: a thread and a bounded queue.

Lines stay whole: each is one `write`. When the queue is full, lines are dropped and counted, and
the count is written once there is room, so that logging never stops the event loop.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import queue
import threading
import time
from collections.abc import Iterator
from typing import Final, TextIO

QUEUE_LINES: Final = 4_096
EXIT_WAIT_S: Final = 2.0


class QueuedStream:
    """The `write` and `flush` of a text stream, done by a daemon thread."""

    def __init__(self, target: TextIO, *, limit: int = QUEUE_LINES) -> None:
        self._target = target
        self._queue: queue.Queue[str | None] = queue.Queue(limit)
        self._dropped = 0
        self._closed = False
        self._lock: int | None = None  # file descriptor; None: nobody else writes there
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def write(self, line: str) -> int:
        """Queue one line; drops it when the queue is full."""
        if self._closed:
            return 0
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self._dropped += 1
        return len(line)

    def flush(self) -> None:
        """Nothing: the thread flushes when its queue is empty."""

    def take_turns(self, lock: int) -> None:
        """Hold the lock of the file `lock` (fcntl(2), by process) while writing."""
        self._lock = os.dup(lock)

    def drain(self, timeout_s: float) -> bool:
        """Wait until all lines are written; False when that takes longer than `timeout_s`."""
        lines = self._queue
        with lines.all_tasks_done:
            return lines.all_tasks_done.wait_for(lambda: not lines.unfinished_tasks, timeout_s)

    def close(self) -> None:
        """Write what is queued, waiting a moment at most, and end the thread."""
        if self._closed:
            return
        self.drain(EXIT_WAIT_S)
        self._closed = True
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join(0.2)
        atexit.unregister(self.close)

    def _run(self) -> None:
        while True:
            line = self._queue.get()
            if line is None:
                return
            # Nowhere is left to report a broken standard error to.
            with contextlib.suppress(OSError, ValueError), self._turn():
                self._target.write(line)
                if self._queue.empty():
                    self._report_dropped()
                if self._lock is not None or self._queue.empty():
                    self._target.flush()
            self._queue.task_done()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        lock = self._lock
        if lock is None:
            yield
            return
        fcntl.lockf(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(lock, fcntl.LOCK_UN)

    def _report_dropped(self) -> None:
        dropped, self._dropped = self._dropped, 0
        if dropped:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            message = {"level": "warn", "time": now, "service": "logging", "dropped": dropped}
            message["message"] = "log lines dropped: standard error was not read fast enough"
            self._target.write(json.dumps(message) + "\n")
