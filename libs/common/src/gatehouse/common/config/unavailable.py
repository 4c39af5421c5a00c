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
_NULL: Final = "/dev/null"
PROVIDERS_TO_COME: Final = frozenset({"apple", "cognito", "github"})


def unavailable_settings(settings: Settings) -> Iterator[tuple[str, str]]:
    """Global keys in use that nothing serves yet, each with what to do instead."""
    certificates = "give certificates by certificate_file or certificates"
    ssh = "leave the ssh keys out"
    storage = "databroker_storage_type: postgres serves several instances"
    recording = "leave session recording out"
    internal_mtls = "protect service-to-service traffic by grpc_insecure: false"
    for key, used, fix in (
        (
            "idp_provider",
            settings.idp_provider.strip().lower() in PROVIDERS_TO_COME,
            "many such providers also work with idp_provider: oidc",
        ),
        (
            "identity_providers",
            any(one.issuer == "kubernetes:///" for one in settings.identity_providers.values()),
            "give the cluster's issuer and its jwks_url",
        ),
        ("grpc_client_ca", bool(settings.grpc_client_ca), internal_mtls),
        ("grpc_client_ca_file", bool(settings.grpc_client_ca_file), internal_mtls),
        (
            "grpc_client_certificate_file",
            bool(settings.grpc_client_certificate_file),
            internal_mtls,
        ),
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


def without_effect_yet(settings: Settings) -> Iterator[str]:
    """Global keys that only watch or decorate and do nothing yet: a warning is enough."""
    for key, used in (
        ("installation_id", bool(settings.installation_id)),
        ("databroker_internal_service_url", bool(settings.databroker_internal_service_url)),
        ("metrics_address", bool(settings.metrics_address)),
        ("debug_address", bool(settings.debug_address)),
        (
            "otel_traces_exporter",
            settings.otel_traces_exporter.lower() not in {"", "none", "noop"},
        ),
        ("envoy_admin_access_log_path", settings.envoy_admin_access_log_path != _NULL),
        ("envoy_admin_profile_path", settings.envoy_admin_profile_path != _NULL),
        ("mcp_allowed_client_id_domains", bool(settings.mcp_allowed_client_id_domains)),
        ("mcp_allowed_as_metadata_domains", bool(settings.mcp_allowed_as_metadata_domains)),
        ("auto_apply_changesets", settings.auto_apply_changesets is not None),
    ):
        if used:
            yield key


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
    ):
        if used:
            yield key, fix
