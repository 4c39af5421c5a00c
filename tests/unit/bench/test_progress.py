"""A part that fails is said aloud, kept out of the figures, and stops no other."""

from __future__ import annotations

import time

import pytest

from tests.bench import progress
from tests.bench.__main__ import within
from tests.bench.figures import Figure, UnfinishedError

ONE = Figure("one", "s", (1.0,))


def test_what_fails_is_named_and_the_rest_is_kept(capsys, monkeypatch):
    monkeypatch.setattr(progress, "MISSING", [])

    def fails() -> list[Figure]:
        raise RuntimeError("no such tool")

    found = progress.attempted("a", lambda: [ONE]) + progress.attempted("b", fails)
    progress.missed("c: not installed")
    with pytest.raises(UnfinishedError, match="failed: b") as caught:
        progress.whole(found)
    assert caught.value.figures == (ONE,)
    assert progress.MISSING == ["b", "c: not installed"]
    assert "NOT MEASURED: b" in capsys.readouterr().out
    # The next benchmark begins anew; what is merely not installed is no failure.
    assert progress.whole([ONE]) == [ONE]


def test_a_benchmark_that_hangs_is_ended():
    with pytest.raises(TimeoutError, match="longer than 1 s"), within(1):
        time.sleep(30)
    with within(1):
        pass
