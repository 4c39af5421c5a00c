"""What `/metrics` shows: our own numbers, those of further sources, and Envoy's, on one page.

Prometheus text, version 0.0.4. A source that fails is left out and counted; it never fails the
page.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from gatehouse.common.observability.logging import get_logger
from gatehouse.common.observability.metrics import PREFIX, REGISTRY

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
BUDGET_S: Final = 30.0  # for all sources of a page together
_LOG_INTERVAL_S: Final = 60.0
_NAME: Final = rb"^([a-zA-Z_:][a-zA-Z0-9_:]*)"
_LABELLED: Final = re.compile(_NAME + rb"\{(?=[^}])", re.MULTILINE)
_BARE: Final = re.compile(_NAME + rb"(?:\{\})?(?= )", re.MULTILINE)
_UNSAFE: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})

Fetch = Callable[[], Awaitable[bytes]]

FAILURES: Final = Counter(
    f"{PREFIX}_metrics_source_failures",
    "Sources of metrics that did not answer.",
    ("source",),
    registry=REGISTRY,
)

_log = get_logger("metrics")


@dataclass(slots=True)
class MetricsSources:
    """Who adds to the metrics of this process. Parts join before the first page is asked for."""

    collectors: list[Collector] = field(default_factory=list)
    workers: dict[str, Fetch] = field(default_factory=dict)  # pages of processes that we started
    envoy: Fetch | None = None  # Envoy's own page
    build: dict[str, str] = field(default_factory=dict)  # what else `build_info` says


class MetricsPage:
    """Makes pages from sources. One at a time: further readers wait for the one being made."""

    def __init__(self, sources: MetricsSources) -> None:
        self._sources = sources
        self._turn = asyncio.Lock()
        self._next_log_s = 0.0

    async def merged(self, labels: Mapping[str, str], service: str) -> bytes:
        """Everything. `labels` are put on every sample, `service` on ours (Envoy has its own)."""
        async with self._turn, asyncio.timeout(BUDGET_S):
            sources = self._sources
            names = sorted(sources.workers)
            pages = await asyncio.gather(
                *(self._fetch(f"worker {name}", sources.workers[name]) for name in names),
                self.envoy(),
            )
            texts = dict(zip(names, pages[:-1], strict=True))
            ours = await asyncio.to_thread(_own, tuple(sources.collectors), texts)
            return await asyncio.to_thread(
                lambda: (
                    relabelled(ours, {**labels, "service": service}) + relabelled(pages[-1], labels)
                )
            )

    async def envoy(self) -> bytes:
        """Envoy's page as it is; empty where there is none or it does not answer."""
        return await self._fetch("envoy", self._sources.envoy)

    async def _fetch(self, name: str, fetch: Fetch | None) -> bytes:
        if fetch is None:
            return b""
        try:
            async with asyncio.timeout(BUDGET_S * 0.8):
                return await fetch()
        except Exception as error:  # noqa: BLE001 - the rest of the page is still worth having
            FAILURES.labels(name.partition(" ")[0]).inc()
            if time.monotonic() >= self._next_log_s:
                self._next_log_s = time.monotonic() + _LOG_INTERVAL_S
                _log.warning("a source of metrics does not answer", source=name, error=str(error))
            return b""


def own_page() -> bytes:
    """What this process itself counts; for the process that merges."""
    return generate_latest(REGISTRY)


def extra_labels(installation_id: str, *, wanted: bool) -> dict[str, str]:
    """The labels that tell machines and installations apart."""
    if not wanted:
        return {}
    found = {"hostname": socket.gethostname()}
    if installation_id:
        found["installation_id"] = installation_id
    return found


def relabelled(page: bytes, labels: Mapping[str, str]) -> bytes:
    """The page with `labels` on every sample."""
    if not labels or not page:
        return page
    text = ",".join(f'{name}="{value.translate(_UNSAFE)}"' for name, value in labels.items())
    # Not as a template: a value may hold what means something there.
    added = text.encode()
    page = _LABELLED.sub(lambda match: match[1] + b"{" + added + b",", page)
    return _BARE.sub(lambda match: match[1] + b"{" + added + b"}", page)


def _own(collectors: Iterable[Collector], workers: Mapping[str, bytes]) -> bytes:
    """Our families, each once: those of workers join those of this process."""
    families: dict[tuple[str, str], Metric] = {}

    def add(family: Metric, worker: str = "") -> None:
        known = families.setdefault(
            (family.name, family.type), Metric(family.name, family.documentation, family.type)
        )
        for sample in family.samples:
            if worker:
                sample = sample._replace(labels={**sample.labels, "worker": worker})  # noqa: PLW2901
            known.samples.append(sample)

    machine = CollectorRegistry()
    for collector in (
        REGISTRY,
        ProcessCollector(registry=machine),
        PlatformCollector(registry=machine),
        *collectors,
    ):
        for family in collector.collect():
            add(family)
    for worker, text in workers.items():
        for family in text_string_to_metric_families(text.decode()):
            add(family, worker)
    whole = CollectorRegistry()
    whole.register(_Fixed(tuple(families.values())))
    return generate_latest(whole)


class _Fixed(Collector):
    def __init__(self, families: tuple[Metric, ...]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
