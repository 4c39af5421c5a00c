"""How pages of metrics are labelled and joined."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from gatehouse.common.observability.metrics import MAX_SERIES, REGISTRY, RequestStats
from gatehouse.common.observability.metrics_page import (
    MetricsPage,
    MetricsSources,
    extra_labels,
    own_page,
    relabelled,
)

PAGE = b"""\
# HELP a_total With "a b" 1 and {c}.
# TYPE a_total counter
a_total 1
a_total{} 2
a_total{x="y z {",w="\\"q\\""} 3
# TYPE b histogram
b_bucket{le="+Inf"} 4 1700000000
b_sum 0.5
"""


def test_every_sample_gets_the_labels_and_nothing_else_changes() -> None:
    labels = {"hostname": 'od"d\\1\n', "service": r"\g<0>"}
    text = relabelled(PAGE, labels).decode()
    assert '# HELP a_total With "a b" 1 and {c}.' in text
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert [sample.value for sample in found] == [1, 2, 3, 4, 0.5]
    for sample in found:
        assert sample.labels.items() >= labels.items()
    assert found[2].labels["x"] == "y z {"
    assert found[2].labels["w"] == '"q"'


def test_without_labels_a_page_is_left_as_it_is() -> None:
    assert relabelled(PAGE, {}) is PAGE
    assert relabelled(b"", {"a": "b"}) == b""
    assert extra_labels("", wanted=False) == {}
    assert extra_labels("", wanted=True).keys() == {"hostname"}
    assert extra_labels("x", wanted=True)["installation_id"] == "x"


async def test_pages_of_workers_join_ours_and_a_silent_source_costs_nothing_else() -> None:
    async def worker() -> bytes:
        return own_page()

    async def gone() -> bytes:
        raise OSError("gone")

    sources = MetricsSources(workers={"1": worker, "2": gone}, envoy=gone)
    page = (await MetricsPage(sources).merged({}, "svc")).decode()
    names = [line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names)), "a family must come once"
    mine = [line for line in page.splitlines() if line.startswith("pomerium_config_last_reload_s")]
    assert [line for line in mine if 'worker="1"' in line]
    assert [line for line in mine if "worker" not in line]
    assert 'pomerium_metrics_source_failures_total{service="svc",source="envoy"} 1.0' in page
    assert 'pomerium_metrics_source_failures_total{service="svc",source="worker"} 1.0' in page


async def test_readers_share_the_work() -> None:
    started: list[int] = []
    at_once = 0

    async def slow() -> bytes:
        nonlocal at_once
        at_once += 1
        started.append(at_once)
        await asyncio.sleep(0)
        at_once -= 1
        return b""

    page = MetricsPage(MetricsSources(envoy=slow))
    await asyncio.gather(*(page.merged({}, "svc") for _ in range(3)))
    assert started == [1, 1, 1]


def test_the_number_of_series_is_bounded() -> None:
    stats = RequestStats("test_bound", ("method",), (1.0, 10.0))
    try:
        for number in range(MAX_SERIES + 50):
            stats.observe((f"m{number}",), 0.001, 5, 50)
        total, duration, request, response = stats.collect()
        assert len(total.samples) == MAX_SERIES + 1
        (other,) = [one for one in total.samples if one.labels["method"] == "other"]
        assert other.value == 50
        first = [one for one in request.samples if one.labels["method"] == "m0"]
        assert [(one.labels.get("le"), one.value) for one in first][:3] == [
            ("1.0", 0),
            ("10.0", 1),
            ("+Inf", 1),
        ]
        assert next(one.value for one in response.samples if one.name.endswith("_sum")) == 50
        assert duration.name.endswith("request_duration_ms")
    finally:
        REGISTRY.unregister(stats)
