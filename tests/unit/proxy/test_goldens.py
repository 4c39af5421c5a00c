"""Each golden is what the builders make today, and what a real Envoy accepts as a whole.

`UPDATE_GOLDENS=1` writes them anew; review the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from google.protobuf import json_format

from gatehouse.proxy.core.xds.resource import (
    CLUSTER,
    LISTENER,
    ROUTE_CONFIGURATION,
    SECRET,
    resource_of,
)
from gatehouse.proxy.core.xds.snapshot import Snapshot
from gatehouse.proxy.edge.secret_files import SecretFiles
from tests.support.envoy import static_bootstrap, validate
from tests.support.golden_settings import (
    CONFIGURATIONS,
    GOLDENS,
    RUN_DIR,
    golden_snapshot,
    read,
    written,
)

KINDS = {
    CLUSTER: cluster_pb2.Cluster,
    LISTENER: listener_pb2.Listener,
    ROUTE_CONFIGURATION: route_pb2.RouteConfiguration,
    SECRET: secret_pb2.Secret,
}


def path_of(name: str) -> Path:
    return GOLDENS / f"{name}.json"


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_golden(name: str):
    text = written(golden_snapshot(name))
    if os.environ.get("UPDATE_GOLDENS") == "1":
        path_of(name).write_text(text)
    assert text == path_of(name).read_text()


def test_no_golden_is_left_over():
    assert {path.stem for path in GOLDENS.glob("*.json")} == CONFIGURATIONS.keys()


@pytest.mark.e2e
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_real_envoy_accepts_the_golden(name: str, tmp_path: Path):
    tree = read(path_of(name).read_text(), str(tmp_path))
    resources = {}
    for type_url, kind in KINDS.items():
        found = [json_format.ParseDict(item, kind()) for item in tree[type_url.rpartition(".")[2]]]
        resources[type_url] = {each.name: resource_of(each, each.name) for each in found}
    files = golden_snapshot(name, str(tmp_path)).files
    assert sorted(files) == tree["files"]
    store = SecretFiles(tmp_path / "envoy-files")
    store.prepare()
    store.write(files)
    assert validate(static_bootstrap(Snapshot("golden", resources)), tmp_path) == ""


def test_secrets_are_nowhere_in_the_resources():
    """Keys travel as files only (the service JWT is the one exception, over a 0600 socket)."""
    for name in CONFIGURATIONS:
        snapshot = golden_snapshot(name, RUN_DIR)
        for resources in snapshot.resources.values():
            for resource in resources.values():
                assert b"PRIVATE KEY" not in resource.body
                assert b"MDEyMzQ1" not in resource.body
