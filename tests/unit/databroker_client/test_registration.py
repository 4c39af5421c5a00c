"""Where a process says that its metrics are read."""

from __future__ import annotations

import pytest

from gatehouse.common.config.resolved import ListenAddress, MetricsListener
from gatehouse.common.databroker.registration import metrics_url


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("10.0.0.1", "http://10.0.0.1:9090/metrics"),
        ("metrics.example.com", "http://metrics.example.com:9090/metrics"),
        ("2001:db8::1", "http://[2001:db8::1]:9090/metrics"),
        ("", "http://here:9090/metrics"),
        ("0.0.0.0", "http://here:9090/metrics"),
        ("::", "http://here:9090/metrics"),
    ],
)
def test_the_url(host: str, url: str) -> None:
    listener = MetricsListener(ListenAddress(host, 9090), None, None, None)
    assert metrics_url(listener, "here") == url
