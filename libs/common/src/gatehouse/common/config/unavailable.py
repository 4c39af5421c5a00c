"""Which known settings cannot be honoured yet.

Their keys are parsed and checked like all others; using one is an error that says so, since
ignoring it would give the user less than was asked for, silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gatehouse.common.config import derive
from gatehouse.common.config.model import Route, Settings
from gatehouse.common.config.resolved import FromURL

MESSAGE: Final = "not available yet"

# For the reference: keys whose use is an error, and keys that are accepted and do nothing.
REFUSED: Final = frozenset(
    {"autocert", "ssh_address", "ssh_rls_enabled", "blob_storage"}
    | {"databroker_cluster_nodes", "databroker_cluster_node_id"}
    | {"databroker_cluster_leader_id", "databroker_raft_bind_address"}
    | {"pomerium_zero_token"}
)
REFUSED_IN_ROUTE: Final = frozenset({"mcp", "upstream_tunnel", "session_recording"})
IDLE: Final = frozenset(
    {"mcp_allowed_client_id_domains", "mcp_allowed_as_metadata_domains"}
    | {"auto_apply_changesets"}
    | {"session_recording_concurrency", "envoy_dynamic_extensions"}
)
IDLE_IN_ROUTE: Final = frozenset({"connect_chaining"})
_IDLE_PREFIXES: Final = ("autocert_", "ssh_")


def note(key: str, *, of_route: bool) -> str:
    """What the reference says of a key that cannot be used, or need not be; "" of all others."""
    if key in (REFUSED_IN_ROUTE if of_route else REFUSED):
        return "Not available yet: using it is an error."
    if key in (IDLE_IN_ROUTE if of_route else IDLE):
        return "No effect yet."
    return "No effect yet." if not of_route and key.startswith(_IDLE_PREFIXES) else ""


def unavailable_schemes() -> tuple[str, ...]:
    """Schemes of `from` that are known and cannot be served yet."""
    return tuple(
        scheme
        for scheme in ("tcp+https", "udp+https", "ssh")
        if any(
            key == "from" for key, _ in unavailable_in_route(Route(), FromURL(scheme, "a", None))
        )
    )


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
    ):
        if used:
            yield key, fix


def without_effect_yet(settings: Settings) -> Iterator[str]:
    """Global keys that only watch or decorate and do nothing yet: a warning is enough."""
    for key, used in (
        ("databroker_internal_service_url", _names_nothing(settings)),
        ("mcp_allowed_client_id_domains", bool(settings.mcp_allowed_client_id_domains)),
        ("mcp_allowed_as_metadata_domains", bool(settings.mcp_allowed_as_metadata_domains)),
        ("auto_apply_changesets", settings.auto_apply_changesets is not None),
    ):
        if used:
            yield key


def _names_nothing(settings: Settings) -> bool:
    """True when the host of `databroker_internal_service_url` is asked for by nobody."""
    if not settings.databroker_internal_service_url:
        return False
    services = derive.parse_services(settings.services)
    return isinstance(services, str) or not derive.shares_address(settings, services)


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
