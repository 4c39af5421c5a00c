"""What a process is called in metrics, in traces and by Envoy."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatehouse.common.runtime.metrics_server import telemetry_name
from tests.support.configuration import LOGIN, resolved


@pytest.mark.parametrize(
    ("services", "name"),
    [
        ("all", "pomerium"),
        ("proxy,authorize", "pomerium"),
        ("proxy", "pomerium-proxy"),
        ("authorize", "pomerium-authorize"),
        ("authenticate", "pomerium-authenticate"),
        ("cache", "pomerium-databroker"),
    ],
)
def test_one_service_alone_is_called_by_its_name(tmp_path: Path, services: str, name: str) -> None:
    assert telemetry_name(resolved(tmp_path, f"{LOGIN}services: {services}\n")[0]) == name
