"""Processes of a benchmark that fail are noticed, and what was measured before is kept."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.bench import __main__ as bench
from tests.bench import bench_broker
from tests.bench.broker_processes import Peer
from tests.bench.figures import Figure, UnfinishedError


async def test_a_peer_that_ends_early_is_an_error_and_not_a_hang() -> None:
    async with Peer.started("replica", "no-port") as peer:
        with pytest.raises(RuntimeError, match="replica ended with status 1"):
            await peer.line(30)


def test_a_store_that_fails_leaves_the_figures_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def of_store(storage: str, _sizes: object, figures: list[Figure]) -> None:
        if storage == "file":
            raise RuntimeError("the disk is full")
        figures.append(Figure(storage, "/s", (1.0,)))

    monkeypatch.setattr(bench_broker, "_of_store", of_store)
    with pytest.raises(UnfinishedError, match="file") as caught:
        bench_broker.run()
    assert [figure.name for figure in caught.value.figures] == ["memory", "postgres"]


def test_what_was_measured_before_an_end_from_outside_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def of_store(storage: str, _sizes: object, figures: list[Figure]) -> None:
        figures.append(Figure(f"{storage} small", "/s", (1.0,)))
        sys.exit("ended from outside")

    monkeypatch.setattr(bench_broker, "_of_store", of_store)
    with pytest.raises(UnfinishedError) as caught:
        bench_broker.run()
    assert [figure.name for figure in caught.value.figures] == ["memory small"]


def test_an_unfinished_benchmark_is_written_and_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run() -> list[Figure]:
        raise UnfinishedError("stores that failed: file", [Figure("kept", "/s", (1.0,))])

    monkeypatch.setitem(sys.modules, "tests.bench.bench_broker", SimpleNamespace(run=run))
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert bench.main(["broker"]) == 1
    (written,) = tmp_path.glob("*.json")
    figures = json.loads(written.read_text())["benchmarks"]["broker"]
    assert [figure["name"] for figure in figures] == ["kept"]
