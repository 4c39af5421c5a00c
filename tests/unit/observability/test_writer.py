"""The queue in front of standard error."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading

from gatehouse.common.observability.writer import QueuedStream


class StalledStream(io.StringIO):
    """A reader that reads nothing until released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()
        self.entered = threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        self.released.wait(10)
        return super().write(text)


def test_lines_arrive_whole_and_in_order() -> None:
    target = io.StringIO()
    stream = QueuedStream(target)
    lines = [f'{{"n":{number}}}\n' for number in range(2000)]
    for line in lines:
        stream.write(line)
    assert stream.drain(5)
    assert target.getvalue() == "".join(lines)
    stream.close()


def test_a_stalled_reader_stops_nobody_and_breaks_no_line() -> None:
    target = StalledStream()
    stream = QueuedStream(target, limit=10)
    stream.write("0\n")
    assert target.entered.wait(5)
    for number in range(1, 101):
        stream.write(f"{number}\n")  # returns at once although nothing is written
    assert not stream.drain(0.01)
    target.released.set()
    assert stream.drain(5)
    *kept, report = target.getvalue().splitlines()
    assert kept == [str(number) for number in range(11)]
    assert json.loads(report)["dropped"] == 90
    stream.close()


def test_a_broken_target_is_survived() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    stream = QueuedStream(Broken())
    stream.write("x\n")
    assert stream.drain(5)
    stream.close()
    assert stream.write("after the end\n") == 0


def test_close_writes_what_is_left() -> None:
    target = io.StringIO()
    stream = QueuedStream(target)
    stream.write("last words\n")
    stream.close()
    stream.close()
    assert target.getvalue() == "last words\n"


WRITER = """
import sys
from gatehouse.common.observability.writer import QueuedStream
stream = QueuedStream(sys.stderr)
if sys.argv[2]:
    stream.take_turns(int(sys.argv[2]))
for _ in range(100):
    stream.write(sys.argv[1] * 50_000 + "\\n")
stream.drain(60)
"""


def test_lines_of_several_processes_stay_whole() -> None:
    """Longer than a pipe takes at once, with a reader that lets it fill up."""
    lock = os.memfd_create("lock")
    reading, writing = os.pipe()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, letter, str(lock)], stderr=writing, pass_fds=(lock,)
        )
        for letter in "abc"
    ]
    os.close(writing)
    with os.fdopen(reading) as pipe:
        lines = pipe.read().splitlines()
    assert [one.wait(60) for one in writers] == [0, 0, 0]
    os.close(lock)
    assert sorted(lines) == [letter * 50_000 for letter in "abc" for _ in range(100)]
