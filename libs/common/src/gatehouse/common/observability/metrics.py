"""What this process counts, under the names Pomerium's dashboards know.

Instruments are made here, once for the process, so that all parts agree on names and labels. Label
values come from code and configuration only, never from a request: their number stays small.
Everything is counted on the event loop's thread. `metrics_page.py` shows it.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

PREFIX: Final = "pomerium"
MAX_SERIES: Final = 2_000  # of one family; more label values than that are not counted apart

DURATION_MS: Final = (
    *(1.0, 2.0, 5.0, 7.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 750.0, 1000.0, 2500.0),
    *(5000.0, 7500.0, 10000.0, 25000.0, 50000.0, 75000.0, 100000.0),
)
GRPC_BYTES: Final = tuple(float(2**power) for power in range(15))
HTTP_BYTES: Final = (1.0, 256.0, 512.0, *(float(2**power) for power in range(10, 24)))

# A second series for each counter, which says when it was first counted, is of no use here.
disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY: Final = CollectorRegistry()
"""Everything that is counted in this process, whichever service counts it."""


class RequestStats(Collector):
    """Counts, durations and sizes of one kind of call.

    The four families of a kind share one key, so that a call costs one look-up.
    """

    def __init__(self, kind: str, labels: Sequence[str], bytes_buckets: Sequence[float]) -> None:
        self._kind = f"{PREFIX}_{kind}"
        self._labels = tuple(labels)
        self._bytes = tuple(bytes_buckets)
        self._series: dict[tuple[str, ...], _Series] = {}
        REGISTRY.register(self)

    def observe(
        self,
        key: tuple[str, ...],
        duration_s: float,
        request_bytes: int | None = None,
        response_bytes: int | None = None,
    ) -> None:
        """Count one call; `key` holds the labels' values in order."""
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= MAX_SERIES:
                key = ("other",) * len(self._labels)
            series = self._series.setdefault(key, _Series(self._bytes))
        series.duration_ms.add(duration_s * 1000.0)
        if request_bytes is not None:
            series.request_bytes.add(request_bytes)
        if response_bytes is not None:
            series.response_bytes.add(response_bytes)

    def collect(self) -> Iterable[Metric]:
        """The four families as they stand."""
        total = CounterMetricFamily(f"{self._kind}_requests", "Calls.", labels=self._labels)
        families = [
            HistogramMetricFamily(f"{self._kind}_{name}", text, labels=self._labels)
            for name, text in (
                ("request_duration_ms", "Time from the call to its end."),
                ("request_size_bytes", "Size of the request message."),
                ("response_size_bytes", "Size of the response message."),
            )
        ]
        for key, series in self._series.items():
            total.add_metric(key, series.duration_ms.count)
            measured = (series.duration_ms, series.request_bytes, series.response_bytes)
            for family, buckets in zip(families, measured, strict=True):
                if buckets.count:
                    family.add_metric(key, buckets.cumulative(), buckets.sum)
        return (total, *families)


class _Series:
    __slots__ = ("duration_ms", "request_bytes", "response_bytes")

    def __init__(self, bytes_buckets: Sequence[float]) -> None:
        self.duration_ms = _Buckets(DURATION_MS)
        self.request_bytes = _Buckets(bytes_buckets)
        self.response_bytes = _Buckets(bytes_buckets)


class _Buckets:
    __slots__ = ("_counts", "_limits", "count", "sum")

    def __init__(self, limits: Sequence[float]) -> None:
        self._limits = limits
        self._counts = [0] * (len(limits) + 1)
        self.count = 0
        self.sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._limits, value)] += 1
        self.count += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Upper limit and how many were not above it, as the text format has them."""
        return list(self._cumulative())

    def _cumulative(self) -> Iterator[tuple[str, float]]:
        so_far = 0
        for limit, count in zip(self._limits, self._counts, strict=False):
            so_far += count
            yield f"{limit:.1f}", so_far
        yield "+Inf", self.count


GRPC_SERVER: Final = RequestStats(
    "grpc_server", ("grpc_service", "grpc_method", "grpc_server_status"), GRPC_BYTES
)
GRPC_CLIENT: Final = RequestStats(
    "grpc_client", ("host", "grpc_service", "grpc_method", "grpc_client_status"), GRPC_BYTES
)
_HTTP_LABELS: Final = ("host", "http_method", "http_status")
HTTP_SERVER: Final = RequestStats("http_server", _HTTP_LABELS, HTTP_BYTES)
HTTP_CLIENT: Final = RequestStats("http_client", _HTTP_LABELS, HTTP_BYTES)

EVALUATIONS: Final = Counter(
    f"{PREFIX}_authorize_evaluator_evaluations", "Decisions made.", registry=REGISTRY
)
ALLOWALS: Final = Counter(
    f"{PREFIX}_authorize_evaluator_allowals", "Decisions that allowed.", registry=REGISTRY
)
DENIALS: Final = Counter(
    f"{PREFIX}_authorize_evaluator_denials", "Decisions that did not allow.", registry=REGISTRY
)
EVALUATION_MS: Final = Histogram(
    f"{PREFIX}_authorize_evaluator_evaluation_duration",
    "Milliseconds for one decision, its answer included.",
    buckets=DURATION_MS,
    registry=REGISTRY,
)

HEADER_EVALUATIONS: Final = Counter(
    f"{PREFIX}_authorize_header_evaluator_evaluations",
    "Allowed requests that got their headers.",
    registry=REGISTRY,
)
HEADER_EVALUATION_MS: Final = Histogram(
    f"{PREFIX}_authorize_header_evaluator_evaluation_duration",
    "Milliseconds for the headers of one allowed request, signing included.",
    buckets=DURATION_MS,
    registry=REGISTRY,
)
AUTHORIZE_LOG_MS: Final = Histogram(
    f"{PREFIX}_authorize_log_duration",
    "Milliseconds to write one line of the authorize log.",
    buckets=DURATION_MS,
    registry=REGISTRY,
)


@dataclass(frozen=True, slots=True)
class TokenSessions:
    """What became of bearer tokens of one kind."""

    created: Counter
    cached: Counter
    create_s: Histogram


def _token_sessions(kind: str) -> TokenSessions:
    name = f"{PREFIX}_config_idp_token_session_creator_{kind}"
    return TokenSessions(
        Counter(f"{name}_sessions_created", "Sessions made of tokens.", registry=REGISTRY),
        Counter(f"{name}_sessions_cached", "Tokens whose session was there.", registry=REGISTRY),
        Histogram(
            f"{name}_create_session_duration",
            "Seconds to verify a token and store its session.",
            registry=REGISTRY,
        ),
    )


ACCESS_TOKEN_SESSIONS: Final = _token_sessions("access_token")
IDENTITY_TOKEN_SESSIONS: Final = _token_sessions("identity_token")
JWT_SESSIONS: Final = _token_sessions("jwt_bearer")

CONFIG_RELOAD_SUCCESS: Final = Gauge(
    f"{PREFIX}_config_last_reload_success", "1 when the last reload worked.", registry=REGISTRY
)
CONFIG_RELOAD_TIME: Final = Gauge(
    f"{PREFIX}_config_last_reload_success_timestamp",
    "Unix time of the configuration in force.",
    registry=REGISTRY,
)
CONFIG_DB_VERSION: Final = Gauge(
    f"{PREFIX}_config_db_version",
    "How far the databroker's routes have been followed.",
    ("config_id",),
    registry=REGISTRY,
)
CONFIG_DB_ERRORS: Final = Gauge(
    f"{PREFIX}_config_db_errors",
    "What is wrong with the databroker's routes; -1 when none of a change were taken.",
    ("config_id",),
    registry=REGISTRY,
)

STORAGE_MS: Final = Histogram(
    f"{PREFIX}_storage_operation_duration_ms",
    "Milliseconds for one operation of the record store.",
    ("operation", "result", "backend"),
    buckets=DURATION_MS,
    registry=REGISTRY,
)

STORAGE_CHECKPOINT_SERVER: Final = Gauge(
    f"{PREFIX}_storage_pebble_checkpoint_server_version",
    "Server version of the last checkpoint; 0 when there is none.",
    registry=REGISTRY,
)
STORAGE_CHECKPOINT_RECORD: Final = Gauge(
    f"{PREFIX}_storage_pebble_checkpoint_record_version",
    "Record version of the last checkpoint; 0 when there is none.",
    registry=REGISTRY,
)

REFRESH_TIME: Final = Gauge(
    f"{PREFIX}_identity_manager_last_refresh_timestamp",
    "Unix time of the last refresh of a session.",
    registry=REGISTRY,
)
SESSION_REFRESHES: Final = Counter(
    f"{PREFIX}_identity_manager_last_session_refresh_success",
    "Sessions refreshed.",
    registry=REGISTRY,
)
SESSION_REFRESH_ERRORS: Final = Counter(
    f"{PREFIX}_identity_manager_last_session_refresh_errors",
    "Sessions that could not be refreshed.",
    registry=REGISTRY,
)
SESSION_REFRESH_TIME: Final = Gauge(
    f"{PREFIX}_identity_manager_last_session_refresh_success_timestamp",
    "Unix time of the last refresh that worked.",
    registry=REGISTRY,
)
SESSION_REFRESH_ERROR_TIME: Final = Gauge(
    f"{PREFIX}_identity_manager_last_session_refresh_error_timestamp",
    "Unix time of the last refresh that failed.",
    registry=REGISTRY,
)

DIRECTORY_SYNC_TIME: Final = Gauge(
    f"{PREFIX}_directory_last_sync_success_timestamp",
    "Unix time at which the directory was last read and stored.",
    registry=REGISTRY,
)
DIRECTORY_ERRORS: Final = Counter(
    f"{PREFIX}_directory_sync_errors",
    "Readings of the directory that failed; the last good one stays.",
    registry=REGISTRY,
)
DIRECTORY_RECORDS: Final = Gauge(
    f"{PREFIX}_directory_records",
    "Users and groups of the directory as last read.",
    ("kind",),
    registry=REGISTRY,
)

SYNCS: Final = Counter(
    f"{PREFIX}_databroker_syncer_sync", "Change streams opened.", ("type",), registry=REGISTRY
)
SYNC_FAILURES: Final = Counter(
    f"{PREFIX}_databroker_syncer_sync_failures",
    "Streams from the databroker that ended badly.",
    ("type",),
    registry=REGISTRY,
)
SYNC_COPIES: Final = Counter(
    f"{PREFIX}_databroker_syncer_sync_latest",
    "Copies of all records begun.",
    ("type",),
    registry=REGISTRY,
)
SYNC_CLEARS: Final = Counter(
    f"{PREFIX}_databroker_syncer_clear_records",
    "Copies of all records that took the place of what was held.",
    ("type",),
    registry=REGISTRY,
)
SYNC_UPDATES: Final = Counter(
    f"{PREFIX}_databroker_syncer_update_records",
    "Changes taken into what is held.",
    ("type",),
    registry=REGISTRY,
)
SYNC_VERSION: Final = Gauge(
    f"{PREFIX}_databroker_syncer_latest_record_version",
    "Newest record version that this process holds.",
    ("type",),
    registry=REGISTRY,
)
