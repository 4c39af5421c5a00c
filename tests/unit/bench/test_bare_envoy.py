"""The yardstick: the product's configuration with nothing but the deciding filters gone."""

from __future__ import annotations

import json
from pathlib import Path

from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)
from google.protobuf.json_format import ParseDict

from gatehouse.proxy.core.xds.snapshot import build_snapshot
from tests.bench.envoys import DECIDING, answering_config, without_checks
from tests.support.envoy import environment, resolved, static_bootstrap, validate


def managers(
    bootstrap: bootstrap_pb2.Bootstrap,
) -> list[http_connection_manager_pb2.HttpConnectionManager]:
    found = []
    for listener in bootstrap.static_resources.listeners:
        for chain in listener.filter_chains:
            for network_filter in chain.filters:
                manager = http_connection_manager_pb2.HttpConnectionManager()
                assert network_filter.typed_config.Unpack(manager)
                found.append(manager)
    return found


def test_only_the_deciding_filters_are_gone(tmp_path: Path) -> None:
    settings = resolved(
        {
            "insecure_server": True,
            "routes": [{"from": "http://app.example.com", "to": "http://127.0.0.1:1"}],
        }
    )
    whole = static_bootstrap(build_snapshot(settings, environment(str(tmp_path))))
    before = managers(whole)
    names = [item.name for item in before[0].http_filters]
    assert set(DECIDING) <= set(names)
    after = managers(without_checks(whole))
    assert [item.name for item in after[0].http_filters] == [
        name for name in names if name not in DECIDING
    ]
    for old, new in zip(before, after, strict=True):
        old.ClearField("http_filters")
        new.ClearField("http_filters")
        assert old == new
    assert validate(whole, tmp_path) == ""


def test_envoy_accepts_the_upstream(tmp_path: Path) -> None:
    config = answering_config(1)
    # Through the typed message, so that a misspelt key does not pass.
    message = ParseDict(json.loads(json.dumps(config)), bootstrap_pb2.Bootstrap())
    assert validate(message, tmp_path) == ""
