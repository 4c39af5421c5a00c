"""Who writes log lines while the reader of standard error stalls: a thread and a bounded queue.

Lines stay whole and in order. When the queue is full, lines are dropped and counted, and the count
is written once there is room, so that logging never stops the event loop.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Final, TextIO

QUEUE_LINES: Final = 4_096
EXIT_WAIT_S: Final = 2.0
# Between two writes: waking the thread for each line costs the event loop more than the line does.
PAUSE_S: Final = 0.01
_AT_ONCE: Final = 64  # lines of one write


class QueuedStream:
    """The `write` and `flush` of a text stream, done by a daemon thread."""

    def __init__(self, target: TextIO, *, limit: int = QUEUE_LINES) -> None:
        self._target = target
        self._limit = limit
        self._lines: deque[str] = deque()
        self._wake = threading.Event()  # there are lines, or it is the end
        self._hurry = threading.Event()  # somebody waits for what is queued
        self._idle = threading.Condition()
        self._is_writing = False
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
        if len(self._lines) < self._limit:
            self._lines.append(line)
        else:
            self._dropped += 1
        if not self._wake.is_set():
            self._wake.set()
        return len(line)

    def flush(self) -> None:
        """Nothing: the thread flushes when its queue is empty."""

    def take_turns(self, lock: int) -> None:
        """Hold the lock of the file `lock` (fcntl(2), by process) while writing."""
        self._lock = os.dup(lock)

    def drain(self, timeout_s: float) -> bool:
        """Wait until all lines are written; False when that takes longer than `timeout_s`."""
        self._hurry.set()
        with self._idle:
            done = self._idle.wait_for(lambda: not self._lines and not self._is_writing, timeout_s)
        self._hurry.clear()
        return done

    def close(self) -> None:
        """Write what is queued, waiting a moment at most, and end the thread."""
        if self._closed:
            return
        self.drain(EXIT_WAIT_S)
        self._closed = True
        self._hurry.set()
        self._wake.set()
        self._thread.join(0.2)
        atexit.unregister(self.close)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if self._closed:
                return
            self._wake.clear()
            self._is_writing = True
            while self._lines:
                self._write_some()
            with self._idle:
                self._is_writing = False
                self._idle.notify_all()
            self._hurry.wait(PAUSE_S)

    def _write_some(self) -> None:
        lines = self._lines
        some = "".join(lines.popleft() for _ in range(min(len(lines), _AT_ONCE)))
        # Nowhere is left to report a broken standard error to.
        with contextlib.suppress(OSError, ValueError), self._turn():
            self._target.write(some)
            if not lines:
                self._report_dropped()
            if self._lock is not None or not lines:
                self._target.flush()

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
