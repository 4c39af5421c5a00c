"""Envoy asks each authorize worker beside it."""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2

from gatehouse.common.extauthz_context import AUTHORIZE_CLUSTER
from gatehouse.proxy.core.xds.resources.environment import SnapshotFiles
from gatehouse.proxy.core.xds.resources.internal_clusters import internal_clusters
from tests.support.envoy import environment, resolved


def authorize_cluster(*workers: str) -> cluster_pb2.Cluster:
    files = SnapshotFiles("/run/files")
    clusters = internal_clusters(resolved({}), environment("/run", worker_sockets=workers), files)
    return next(cluster for cluster in clusters if cluster.name == AUTHORIZE_CLUSTER)


def paths(cluster: cluster_pb2.Cluster) -> list[str]:
    (locality,) = cluster.load_assignment.endpoints
    return [one.endpoint.address.pipe.path for one in locality.lb_endpoints]


def test_one_worker_is_the_process_itself() -> None:
    assert paths(authorize_cluster()) == ["/run/grpc.sock"]


def test_several_are_asked_by_how_busy_they_are() -> None:
    cluster = authorize_cluster("/run/grpc-worker-1.sock", "/run/grpc-worker-2.sock")
    assert paths(cluster) == [
        "/run/grpc.sock",
        "/run/grpc-worker-1.sock",
        "/run/grpc-worker-2.sock",
    ]
    assert cluster.lb_policy == cluster_pb2.Cluster.LEAST_REQUEST
