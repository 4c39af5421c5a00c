"""Run every benchmark, print a table, write bench-results/<time>.json.

A benchmark is a module with `NAME` and `run() -> list[Figure]`. Add it to BENCHMARKS.
"""

from __future__ import annotations

import datetime as dt
import importlib
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

from tests.bench.figures import Figure

BENCHMARKS = ("startup", "check", "reload")
RESULTS = Path(__file__).resolve().parents[2] / "bench-results"


def main() -> int:
    wanted = [name for name in BENCHMARKS if not sys.argv[1:] or name in sys.argv[1:]]
    figures: list[Figure] = []
    for name in wanted:
        print(f"running {name} ...", flush=True)
        module = importlib.import_module(f"tests.bench.bench_{name}")
        figures.extend(module.run())
    width = max(len(figure.name) for figure in figures)
    print()
    for figure in figures:
        print(figure.line(width))
    RESULTS.mkdir(exist_ok=True)
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    path = RESULTS / f"{stamp}.json"
    document = {
        "at": stamp,
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
        "figures": [asdict(figure) for figure in figures],
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\nwritten to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
