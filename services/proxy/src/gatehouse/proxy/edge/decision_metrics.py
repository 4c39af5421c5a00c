"""What remembered decisions and watched connections come to, as metrics."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gatehouse.common.observability.metrics import PREFIX
from gatehouse.proxy.core.decision_table import BYPASSES
from gatehouse.proxy.edge.decision_table import DecisionCounters
from gatehouse.proxy.edge.stream_guard import StreamGuard

_NAME = f"{PREFIX}_decision_cache"


class DecisionCollector(Collector):
    """Read from shared memory for each page."""

    def __init__(self, counters: DecisionCounters) -> None:
        self._counters = counters

    def collect(self) -> Iterable[Metric]:
        """All families; none when the file cannot be read."""
        try:
            counted = self._counters.read()
        except OSError:
            return
        requests = CounterMetricFamily(
            f"{_NAME}_requests",
            "Requests by what became of them: hit, miss, or why no decision was looked for.",
            labels=("result",),
        )
        requests.add_metric(("hit",), counted["hits"])
        requests.add_metric(("miss",), counted["misses"])
        for reason in BYPASSES:
            requests.add_metric((reason,), counted[f"bypass_{reason}"])
        yield requests
        for name, text in (
            ("outdated", "Misses that found a decision which did not count any more."),
            ("insertions", "Decisions that were remembered."),
            ("evictions", "Decisions that were forgotten for want of room."),
        ):
            yield CounterMetricFamily(f"{_NAME}_{name}", text, value=counted[name])
        for name, text in (
            ("decisions", "Decisions held now."),
            ("bytes", "Memory that they take, roughly."),
            ("heap", "Memory of the scripts as a whole, in bytes."),
        ):
            yield GaugeMetricFamily(f"{_NAME}_{name}", text, value=counted[name])


class GuardCollector(Collector):
    """What the guard of open connections counts."""

    def __init__(self, guard: StreamGuard) -> None:
        self._guard = guard

    def collect(self) -> Iterable[Metric]:
        """All families."""
        name = f"{PREFIX}_open_connections"
        yield GaugeMetricFamily(
            f"{name}_watched", "Connections that stay open and are watched.", value=self._guard.open
        )
        yield CounterMetricFamily(
            f"{name}_checks", "Times that authorize was asked about one.", value=self._guard.asked
        )
        yield CounterMetricFamily(
            f"{name}_cut", "Those that were ended because access had.", value=self._guard.ended
        )
