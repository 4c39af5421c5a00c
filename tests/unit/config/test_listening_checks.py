"""Two listeners that want one address."""

from __future__ import annotations

import pytest

from gatehouse.common.config.listening_checks import check_listeners
from gatehouse.common.config.model import Settings


def keys(**settings: object) -> list[str]:
    return [str(finding.path[0]) for finding in check_listeners(Settings(**settings))]


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"metrics_address": ":9902"}, []),
        ({"metrics_address": ":443"}, ["metrics_address"]),
        ({"metrics_address": "127.0.0.1:443"}, ["metrics_address"]),
        ({"address": "127.0.0.1:443", "metrics_address": "127.0.0.2:443"}, []),
        ({"address": "127.0.0.1:443", "metrics_address": "localhost:443"}, ["metrics_address"]),
        ({"address": "127.0.0.1:443", "metrics_address": "0.0.0.0:443"}, ["metrics_address"]),
        ({"http_redirect_addr": ":443"}, ["http_redirect_addr"]),
        ({"metrics_address": ":1", "envoy_admin_address": ":1"}, ["envoy_admin_address"]),
        ({"debug_address": "127.0.0.1:2", "metrics_address": ":2"}, ["debug_address"]),
        ({"metrics_address": "127.0.0.1:28080"}, []),  # the probes' default steps back
        (
            {"metrics_address": ":5", "health_check_addr": "127.0.0.1:5"},
            ["health_check_addr"],
        ),
        ({"services": "databroker", "metrics_address": ":443"}, ["metrics_address"]),
        ({"services": "databroker", "metrics_address": ":444"}, []),
        ({"metrics_address": ":5443"}, ["metrics_address"]),
        ({"address": ":5443", "metrics_address": ":5443"}, ["metrics_address"]),
        ({"address": ":8443", "grpc_address": ":8443"}, ["grpc_address"]),
        ({"address": ":443", "grpc_address": ":443"}, []),  # as if it were left out
        ({"services": "databroker", "metrics_address": ":1", "envoy_admin_address": ":1"}, []),
        ({"services": "nonsense", "metrics_address": ":443"}, []),
    ],
)
def test_listeners(settings: dict[str, object], found: list[str]) -> None:
    assert keys(**settings) == found
