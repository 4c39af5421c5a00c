"""Which known settings cannot be honoured yet.

Their keys are parsed and checked like all others; using one is an error that says so, since
ignoring it would give the user less than was asked for, silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gatehouse.common.config.model import Route, Settings
from gatehouse.common.config.resolved import FromURL

MESSAGE: Final = "not available yet"


def unavailable_settings(settings: Settings) -> Iterator[tuple[str, str]]:
    """Global keys in use that nothing serves yet, each with what to do instead."""
    certificates = "give certificates by certificate_file or certificates"
    ssh = "leave the ssh keys out"
    storage = "databroker_storage_type: postgres serves several instances"
    recording = "leave session recording out"
    for key, used, fix in (
        ("autocert", settings.autocert, certificates),
        ("ssh_address", bool(settings.ssh_address), ssh),
        ("ssh_rls_enabled", settings.ssh_rls_enabled, ssh),
        ("databroker_cluster_nodes", bool(settings.databroker_cluster_nodes), storage),
        ("databroker_cluster_node_id", bool(settings.databroker_cluster_node_id), storage),
        ("databroker_cluster_leader_id", bool(settings.databroker_cluster_leader_id), storage),
        ("databroker_raft_bind_address", bool(settings.databroker_raft_bind_address), storage),
        ("blob_storage", settings.blob_storage is not None, recording),
        ("pomerium_zero_token", bool(settings.pomerium_zero_token), "managed mode is not offered"),
        ("authorize_workers", settings.authorize_workers > 1, "start further authorize processes"),
    ):
        if used:
            yield key, fix


def unavailable_in_route(route: Route, from_url: FromURL | None) -> Iterator[tuple[str, str]]:
    """Keys of a route that nothing serves yet, each with what to do instead."""
    scheme = from_url.scheme if from_url is not None else ""
    for key, used, fix in (
        ("from", scheme == "ssh", "ssh routes cannot be served"),
        ("from", scheme in {"tcp+https", "udp+https"}, "tunnel routes cannot be served"),
        ("mcp", route.mcp is not None, "leave mcp out"),
        ("upstream_tunnel", route.upstream_tunnel is not None, "leave upstream_tunnel out"),
        (
            "session_recording",
            route.session_recording is not None and route.session_recording.enabled,
            "leave session_recording out",
        ),
        (
            "kubernetes_service_account_token",
            route.kubernetes_service_account_token is not None,
            "leave it out",
        ),
        (
            "kubernetes_service_account_token_file",
            bool(route.kubernetes_service_account_token_file),
            "leave it out",
        ),
        (
            "enable_google_cloud_serverless_authentication",
            route.enable_google_cloud_serverless_authentication,
            "leave it out",
        ),
    ):
        if used:
            yield key, fix
