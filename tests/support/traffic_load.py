"""Steady traffic while something else happens, of which no request may fail."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterator

from tests.support.traffic import Http2Connection, Product, eventually


class Load(threading.Thread):
    """Requests one after the other; connects again when it is told to, and only then."""

    def __init__(self, world: Product, host: str, *, http2: bool) -> None:
        super().__init__()
        self.world, self.host, self.http2 = world, host, http2
        self.sent = 0
        self.connections = 0
        self.failures: list[str] = []
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            self.connections += 1
            try:
                if self.http2:
                    self._second()
                else:
                    self._first()
            except (OSError, AssertionError, http.client.HTTPException) as error:
                self.failures.append(repr(error))

    def _note(self, status: int) -> None:
        self.sent += 1
        if status != 200:
            self.failures.append(str(status))

    def _first(self) -> None:
        with self.world.connection() as connection:
            while not self.done.is_set():
                reply = connection.request(host=self.host)
                self._note(reply.status)
                if reply.value("connection") == "close":
                    return

    def _second(self) -> None:
        with Http2Connection(self.world.port, self.world.client_tls("h2")) as connection:
            while not self.done.is_set() and not connection.going_away:
                self._note(connection.request(host=self.host))


@contextlib.contextmanager
def load(world: Product, host: str) -> Iterator[list[Load]]:
    """Traffic of both versions for the time of the block; nothing may fail."""
    threads = [Load(world, host, http2=http2) for http2 in (False, True)]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads:
            thread.done.set()
        for thread in threads:
            thread.join(20)
    for thread in threads:
        assert thread.failures == []


def go_on(threads: list[Load], count: int = 30) -> None:
    """Until each has sent some more requests."""
    wanted = [thread.sent + count for thread in threads]
    eventually(lambda: all(one.sent >= many for one, many in zip(threads, wanted, strict=True)), 20)
