"""Routes of the databroker in a real Envoy: a bad one answers 503 and takes nobody with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format

from gatehouse.common.config.refused_routes import OUT_OF_SERVICE
from gatehouse.common.config.resolve import load_and_resolve
from gatehouse.common.config.route_records import CONFIG, ConfigRecord
from gatehouse.pb import config_pb2
from tests.support.envoy import BASE, proxy
from tests.support.raw_http import http1
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e


@pytest.fixture
def upstream() -> Iterator[EchoUpstream]:
    with EchoUpstream().running() as running:
        yield running


def record(*routes: dict[str, Any]) -> ConfigRecord:
    message = json_format.ParseDict({"routes": list(routes)}, config_pb2.Config())
    return ConfigRecord(CONFIG, "ingress", message.SerializeToString())


async def test_a_bad_route_does_not_fall_through_to_a_wider_one(
    upstream: EchoUpstream, tmp_path: Path
) -> None:
    public = {"from": "http://app.example.com", "allowPublicUnauthenticatedAccess": True}
    wide = {**public, "to": [upstream.url], "name": "wide"}
    bad = {**public, "prefix": "/secret", "to": ["nonsense"]}
    other = {**wide, "from": "http://other.example.com", "statName": "other"}
    path = tmp_path / "config.yaml"
    local = {"from": "http://local.example.com", "to": upstream.url}
    async with proxy() as running:
        own = {"address": f"127.0.0.1:{running.port}", "insecure_server": True}
        local_routes = [{**local, "allow_public_unauthenticated_access": True}]
        path.write_text(yaml.safe_dump({**BASE, **own, "routes": local_routes}))
        settings, _ = load_and_resolve(
            path, {}, random_secret=lambda: bytes(32), records=[record(wide, bad, other)]
        )
        assert [issue.key for issue in settings.left_out] == ["Config ingress routes[1].to"]
        await running.push(settings)
        for host, target, status in (
            ("local.example.com", "/", 200),
            ("app.example.com", "/", 200),
            ("app.example.com", "/secrets", 503),
            ("app.example.com", "/secret/x?y", 503),
            ("other.example.com", "/secret", 200),
        ):
            answer = await http1(running.port, target, host=host)
            assert answer.status == status, (host, target)
            if status == 503:
                assert answer.body.decode() == OUT_OF_SERVICE
        assert [seen["path"] for seen in upstream.requests] == ["/", "/", "/secret"]
        statistics = await running.admin.stats("cluster.other.upstream_rq_total")
        assert statistics == {"cluster.other.upstream_rq_total": 1}
