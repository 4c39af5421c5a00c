"""A progress bar on a terminal, a line each elsewhere; and going on after what failed."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.bench.figures import Figure, UnfinishedError

_WIDTH = 30
MISSING: list[str] = []  # what could not be measured in this run
_FAILED: list[str] = []  # parts of the benchmark that runs now


def bar(done: int, steps: int, width: int = _WIDTH) -> str:
    full = width * done // max(1, steps)
    return f"[{'#' * full}{'.' * (width - full)}] {done}/{steps}"


@contextmanager
def progress(what: str, steps: int) -> Iterator[Callable[[], None]]:
    """Gives what to call after each step."""
    is_terminal = sys.stderr.isatty()
    done = 0

    def show(end: str) -> None:
        start = "\r" if is_terminal else ""
        print(f"{start}  {bar(done, steps)} {what}", end=end, file=sys.stderr, flush=True)

    def advance() -> None:
        nonlocal done
        done += 1
        if is_terminal:
            show("")

    try:
        yield advance
    finally:
        show("\n")


def attempted(what: str, measure: Callable[[], list[Figure]]) -> list[Figure]:
    """The figures of a part of a benchmark; none, said aloud, when it fails: others go on."""
    try:
        return measure()
    except Exception:  # noqa: BLE001 - what the others measured is worth keeping
        traceback.print_exc()
        missed(what)
        _FAILED.append(what)
        return []


def missed(what: str) -> None:
    """Say that something is not among the figures."""
    MISSING.append(what)
    print(f"  NOT MEASURED: {what}", flush=True)


def whole(figures: list[Figure]) -> list[Figure]:
    """These figures; raises UnfinishedError with them when a part failed."""
    if _FAILED:
        failed = ", ".join(_FAILED)
        _FAILED.clear()
        raise UnfinishedError(f"failed: {failed}", figures)
    return figures
