"""What of the configuration only a restart can change.

A reload that changes one of these is refused as a whole, so that a process never runs half of a
configuration. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from gatehouse.common.config.issues import Issue, Severity
from gatehouse.common.config.resolved import ListenAddress, ResolvedSettings, ServiceName

# A flag: Envoy's threads follow the processors that this process may use.
USABLE_CPUS = "set_envoy_concurrency_to_go_max_procs"
# A flag: changed files are taken up by themselves.
HOT_RELOAD = "config_hot_reload"
_WITH_ENVOY = ("envoy_admin_access_log_path", "envoy_admin_profile_path")


def restart_needed(first: ResolvedSettings, new: ResolvedSettings) -> tuple[Issue, ...]:
    """An error for each key that differs from what the process was started with."""
    return tuple(
        Issue(
            Severity.ERROR,
            key,
            f"cannot change while running: {before} is in force, {after} is asked for",
            f"restart the process, or set {before} again; until then nothing of this is taken up",
        )
        for key, before, after in _compared(first, new)
        if before != after
    )


def _compared(first: ResolvedSettings, new: ResolvedSettings) -> Iterator[tuple[str, str, str]]:
    yield "services", _services(first), _services(new)
    yield "grpc_address", _address(first.grpc_address), _address(new.grpc_address)
    if bool(first.shared_grpc_urls) != bool(new.shared_grpc_urls):
        # gRPC would have to begin or cease to listen by itself.
        yield "address", _address(first.address), _address(new.address)
    yield "grpc_insecure", _flag(first.grpc_insecure), _flag(new.grpc_insecure)
    if not (first.grpc_insecure and new.grpc_insecure):
        # Other authorities are taken up; whether callers are asked at all is settled at the start.
        asks, asked = new.grpc_client_ca_pem is not None, first.grpc_client_ca_pem is not None
        yield "grpc_client_ca", _flag(asked), _flag(asks)
    before, after = first.settings, new.settings
    yield "authorize_workers", str(before.authorize_workers), str(after.authorize_workers)
    # Envoy refuses a listener on an address that one of another name still has.
    yield "insecure_server", _flag(before.insecure_server), _flag(after.insecure_server)
    yield "health_check_addr", before.health_check_addr, after.health_check_addr
    key = "health_check_systemd_disabled"
    yield key, _flag(getattr(before, key)), _flag(getattr(after, key))
    follows = (before.runtime_flags[HOT_RELOAD], after.runtime_flags[HOT_RELOAD])
    yield f"runtime_flags.{HOT_RELOAD}", _flag(follows[0]), _flag(follows[1])
    if first.runs(ServiceName.PROXY):
        for key in _WITH_ENVOY:
            yield key, getattr(before, key), getattr(after, key)
        flags = (before.runtime_flags[USABLE_CPUS], after.runtime_flags[USABLE_CPUS])
        yield f"runtime_flags.{USABLE_CPUS}", _flag(flags[0]), _flag(flags[1])


def _services(settings: ResolvedSettings) -> str:
    return "all" if settings.is_all_in_one else ",".join(sorted(settings.services))


def _address(address: ListenAddress) -> str:
    return f"{address.host}:{address.port}"


def _flag(value: bool) -> str:
    return "true" if value else "false"
