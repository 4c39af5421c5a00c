"""What is known of a process without counting: its build, configuration, certificates, health."""

from __future__ import annotations

import platform
import socket
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.observability.metrics import PREFIX
from gatehouse.common.runtime.certificate_expiry import Expiry, expiries
from gatehouse.common.runtime.health import HealthRegistry

_DISTRIBUTION: Final = "gatehouse"


class ProcessCollector(Collector):
    """Read anew for each page."""

    def __init__(
        self,
        settings_of: Callable[[], ResolvedSettings],
        health: HealthRegistry,
        build: Mapping[str, str],
    ) -> None:
        """`build`: further labels of `build_info`, filled in by whoever knows them."""
        self._settings_of = settings_of
        self._health = health
        self._build = build
        self._changes: dict[str, int] = {}
        self._statuses: dict[str, str] = {}
        self._expiries: tuple[object, tuple[Expiry, ...]] = (None, ())
        health.subscribe(self._count_changes)

    def collect(self) -> Iterable[Metric]:
        """All families."""
        settings = self._settings_of()
        yield self._build_info()
        routes = GaugeMetricFamily(f"{PREFIX}_policy_count_total", "Routes in force.")
        routes.add_metric((), len(settings.routes))
        yield routes
        # 48 bits, so that the text format's floating point number holds all of them.
        checksum = GaugeMetricFamily(
            f"{PREFIX}_config_checksum_decimal",
            "Of the configuration in force; to be compared within one machine.",
            labels=("config",),
        )
        checksum.add_metric(("settings",), int(settings.generation, 16))
        yield checksum
        yield self._certificates(settings)
        yield from self._checks()

    def _build_info(self) -> Metric:
        labels = {
            "version": _version(),
            "revision": "",
            "goversion": f"python{platform.python_version()}",
            "host": socket.gethostname(),
            "envoy_version": "",
            **self._build,
        }
        family = GaugeMetricFamily(
            f"{PREFIX}_build_info", "What runs here.", labels=tuple(sorted(labels))
        )
        family.add_metric(tuple(labels[name] for name in sorted(labels)), 1)
        return family

    def _certificates(self, settings: ResolvedSettings) -> Metric:
        if self._expiries[0] is not settings:
            self._expiries = (settings, tuple(expiries(settings)))
        family = GaugeMetricFamily(
            f"{PREFIX}_certificate_expires_timestamp",
            "Unix time at which a configured certificate ends.",
            labels=("certificate", "name"),
        )
        for one in self._expiries[1]:
            family.add_metric((one.source, one.name), one.ends_s)
        return family

    def _checks(self) -> Iterable[Metric]:
        status = GaugeMetricFamily(
            f"{PREFIX}_health_status", "1 for what a check says now.", labels=("check", "status")
        )
        changes = CounterMetricFamily(
            f"{PREFIX}_health_status", "Changes of a check.", labels=("check",)
        )
        for check, said in self._said().items():
            status.add_metric((check, said), 1)
            changes.add_metric((check,), self._changes.get(check, 0))
        return (status, changes)

    def _said(self) -> dict[str, str]:
        snapshot = self._health.snapshot()
        return {
            check: "ERROR" if record.error else record.status.value
            for check, record in sorted(snapshot.records.items())
        }

    def _count_changes(self) -> None:
        said = self._said()
        for check, status in said.items():
            if self._statuses.get(check) != status:
                self._changes[check] = self._changes.get(check, 0) + 1
        self._statuses = said


def _version() -> str:
    try:
        return version(_DISTRIBUTION)
    except PackageNotFoundError:  # run from a source tree
        return "0"
