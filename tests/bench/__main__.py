"""Run benchmarks, print a table, write bench-results/<time>.json; or make the report of them.

`python -m tests.bench [NAME ...]` runs all, or those named. `python -m tests.bench report` puts the
newest results into docs/performance*.md. FULL=1 asks for the whole grid of routes and sessions.
A benchmark is a module `bench_<name>` with `run() -> list[Figure]`. Add it to BENCHMARKS. Results
are written after each; one that fails, or takes longer than LIMIT_S seconds, stops no other.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from tests.bench import report
from tests.bench.figures import Figure, UnfinishedError
from tests.bench.machine import facts, was_busy
from tests.bench.progress import MISSING, bar

BENCHMARKS = ("startup", "check", "workers", "reload", "proxy", "revoke", "signin", "broker")
ALIASES = {"start": "startup"}
ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench-results"
_MORE_S = 60
LIMIT_S = int(os.environ.get("LIMIT_S", "900"))
PAGES = (ROOT / "docs" / "performance.md", ROOT / "docs" / "performance-databroker.md")


def available() -> list[str]:
    return [name for name in BENCHMARKS if (Path(__file__).parent / f"bench_{name}.py").exists()]


def main(arguments: list[str]) -> int:
    """The exit status: 1 when a benchmark failed, 2 for a name that there is not."""
    if arguments == ["report"]:
        for page in PAGES:
            for path in report.write(RESULTS, page):
                print(path.relative_to(ROOT))
        return 0
    asked = [ALIASES.get(name, name) for name in arguments]
    unknown = sorted(set(asked) - set(available()))
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(available())}, report")
        return 2
    wanted = [name for name in available() if not asked or name in asked]
    # So that what it has started ends with it, and what it has measured is written.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    machine = facts()
    if was_busy(machine):
        print("others use this machine now: expect wide spreads, and compare ratios only")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{dt.datetime.now(dt.UTC).strftime('%Y%m%dT%H%M%SZ')}.json"
    benchmarks: dict[str, list[Figure]] = {}
    failed = []
    for number, name in enumerate(wanted):
        print(f"{bar(number, len(wanted))} {name}", flush=True)
        begun_s = time.monotonic()
        try:
            with within(LIMIT_S):
                benchmarks[name] = importlib.import_module(f"tests.bench.bench_{name}").run()
        except UnfinishedError as error:
            print(error)
            failed.append(name)
            benchmarks[name] = list(error.figures)
        except Exception:  # noqa: BLE001 - what the others measured is worth keeping
            traceback.print_exc()
            failed.append(name)
        print(f"  {name} took {time.monotonic() - begun_s:.0f} s", flush=True)
        write(path, machine, benchmarks)
    print(f"{bar(len(wanted), len(wanted))} done\n")
    if not any(benchmarks.values()):
        path.unlink()
        return 1
    width = max(len(figure.name) for figures in benchmarks.values() for figure in figures)
    for figures in benchmarks.values():
        for figure in figures:
            print(figure.line(width))
    print(f"\nwritten to {path}")
    for what in MISSING:
        print(f"NOT MEASURED: {what}")
    if failed:
        print(f"FAILED: {', '.join(failed)}")
    return 1 if failed else 0


def write(
    path: Path, machine: Mapping[str, object], benchmarks: Mapping[str, Sequence[Figure]]
) -> None:
    """All that has been measured so far."""
    document = {
        "at": path.stem,
        "machine": machine,
        "full": bool(os.environ.get("FULL")),
        "missing": MISSING,
        "benchmarks": {
            name: [asdict(figure) for figure in figures]
            for name, figures in benchmarks.items()
            if figures
        },
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


@contextlib.contextmanager
def within(limit_s: int) -> Iterator[None]:
    """TimeoutError in the main thread when it takes longer."""

    def late(_signal: int, _frame: object) -> NoReturn:
        signal.alarm(_MORE_S)  # for what goes on after a part that failed
        message = f"it took longer than {limit_s} s"
        raise TimeoutError(message)

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(limit_s)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
