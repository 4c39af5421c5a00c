"""What the backend of the store knows about itself, as metrics."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gatehouse.common.observability.metrics import PREFIX
from gatehouse.databroker.edge.backends.base import Storage


class StoreCollector(Collector):
    """Read anew for each page."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def collect(self) -> Iterable[Metric]:
        """One family for each figure."""
        for figure in self._storage.figures():
            kind = CounterMetricFamily if figure.is_counter else GaugeMetricFamily
            yield kind(f"{PREFIX}_{figure.name}", figure.meaning, value=figure.value)
