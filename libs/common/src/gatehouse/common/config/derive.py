"""What follows from the settings without reading anything: services, addresses, URLs.

Spec: configuration.md section 2.2. Pure; each function names the keys it reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from gatehouse.common.config.model import Settings
from gatehouse.common.config.resolved import ListenAddress, ServiceName
from gatehouse.common.config.values import parse_host_port
from gatehouse.common.extauthz_context import AUTHORIZE_CLUSTER
from gatehouse.common.policy.ast import Policy

HOSTED_AUTHENTICATE: Final = frozenset(
    {"authenticate.pomerium.app", "authenticate.staging.pomerium.app"}
)
DEFAULT_GRPC_ADDRESS: Final = ":443"
_DOMAIN: Final = re.compile(r"[a-z0-9*](?:[a-z0-9.*\-]*[a-z0-9*])?", re.ASCII)

# Criteria that an anonymous request can satisfy; all others need to know who asks.
_ANONYMOUS_CRITERIA: Final = frozenset(
    {"accept", "reject", "cors_preflight", "http_method", "http_path", "source_ip"}
    | {"date", "day_of_week", "time_of_day", "client_certificate", "invalid_client_certificate"}
)

_SERVICE_NAMES: Final[Mapping[str, frozenset[ServiceName]]] = {
    "all": frozenset(ServiceName),
    "cache": frozenset({ServiceName.DATABROKER}),
    **{str(name): frozenset({name}) for name in ServiceName},
}
SERVICE_CHOICES: Final = "all, proxy, authorize, authenticate, databroker, or several with commas"


def parse_services(text: str) -> frozenset[ServiceName] | str:
    """The services of `services`, or the first element that names none."""
    chosen: set[ServiceName] = set()
    for part in text.split(","):
        names = _SERVICE_NAMES.get(part.strip().lower())
        if names is None:
            return part.strip()
        chosen |= names
    return frozenset(chosen)


def has_listener(services: frozenset[ServiceName]) -> bool:
    """True when the process serves `address`: proxy or authenticate."""
    return bool(services & {ServiceName.PROXY, ServiceName.AUTHENTICATE})


def alternative_port(settings: Settings) -> int:
    """Where gRPC listens beside a main listener, and where unset service URLs point."""
    return 5444 if settings.address.endswith(":5443") else 5443


def main_address(settings: Settings) -> ListenAddress:
    """`address`; a port that does not parse becomes 443 (80 without TLS), as upstream has it."""
    parsed = parse_host_port(settings.address)
    if parsed is not None:
        return ListenAddress(*parsed)
    host = settings.address.rpartition(":")[0] if ":" in settings.address else settings.address
    return ListenAddress(host.strip("[]"), 80 if settings.insecure_server else 443)


def grpc_address(settings: Settings, services: frozenset[ServiceName]) -> ListenAddress | None:
    """Where gRPC listens; None when `grpc_address` is not an address."""
    if has_listener(services) and settings.grpc_address in {DEFAULT_GRPC_ADDRESS, ""}:
        return ListenAddress("", alternative_port(settings))
    parsed = parse_host_port(settings.grpc_address or DEFAULT_GRPC_ADDRESS)
    return None if parsed is None else ListenAddress(*parsed)


def shares_address(settings: Settings, services: frozenset[ServiceName]) -> bool:
    """True when gRPC has no listener of its own: `grpc_address` is `address`, which Envoy has.

    Spec: dataplane.md section 6.1. Needs Envoy, and a service that is called, in this process.
    """
    main = main_address(settings)
    called = services & {ServiceName.AUTHORIZE, ServiceName.DATABROKER}
    return (
        ServiceName.PROXY in services
        and bool(called)
        and main.port > 0
        and grpc_address(settings, services) == main
    )


def own_service_urls(settings: Settings, services: frozenset[ServiceName]) -> tuple[str, ...]:
    """The URLs by which other processes call what this one runs: authorize's, then databroker's."""
    found: list[str] = []
    for service, single, several, internal in (
        (
            ServiceName.AUTHORIZE,
            settings.authorize_service_url,
            settings.authorize_service_urls,
            settings.authorize_internal_service_url,
        ),
        (
            ServiceName.DATABROKER,
            settings.databroker_service_url,
            settings.databroker_service_urls,
            settings.databroker_internal_service_url,
        ),
    ):
        if service in services:
            found += configured_urls(single, (*several, internal))
    return tuple(dict.fromkeys(found))


def shared_grpc_hosts(settings: Settings, services: frozenset[ServiceName]) -> frozenset[str]:
    """The host names under which Envoy passes calls on to this process; lower case."""
    if not shares_address(settings, services):
        return frozenset()
    hosts = {urlsplit(url).hostname or "" for url in own_service_urls(settings, services)}
    if ServiceName.AUTHORIZE in services:
        hosts.add(AUTHORIZE_CLUSTER)  # as an Envoy elsewhere says
    return frozenset(host.removesuffix(".") for host in hosts if host)


def grpc_insecure(settings: Settings, services: frozenset[ServiceName]) -> bool:
    """`grpc_insecure`; unset: plain text where a main listener shares the process.

    Asking callers for certificates (`grpc_client_ca`) is asking for TLS.
    """
    if settings.grpc_insecure is not None:
        return settings.grpc_insecure
    asks = settings.grpc_client_ca or settings.grpc_client_ca_file
    return has_listener(services) and not asks


def configured_urls(single: str, several: tuple[str, ...]) -> tuple[str, ...]:
    """Singular key first, then the list; blanks and repeats are left out."""
    urls = [url.strip() for url in (single, *several)]
    return tuple(dict.fromkeys(url for url in urls if url))


def derived_name(settings: Settings) -> str | None:
    """The domain of `tls_derive`, lower case; None when it is none. 64: X.509 upper bounds."""
    name = settings.tls_derive.lower()
    return name if _DOMAIN.fullmatch(name) and len(name) <= 64 else None


def loopback_url(settings: Settings) -> str:
    """Where a service is looked for when its URL is not set."""
    return f"http://127.0.0.1:{alternative_port(settings)}"


def is_hosted(url: str) -> bool:
    """True for Pomerium's own authenticate service, which needs the stateless flow."""
    return (urlsplit(url).hostname or "").removesuffix(".") in HOSTED_AUTHENTICATE


def needs_login(policy: Policy) -> bool:
    """True when some criterion of `policy` asks who the user is."""
    return any(criterion.name not in _ANONYMOUS_CRITERIA for criterion in policy.criteria())


def data_directory(environ: Mapping[str, str]) -> Path:
    """`$XDG_DATA_HOME/pomerium`, else `~/.local/share/pomerium`."""
    base = environ.get("XDG_DATA_HOME", "")
    if base:
        return Path(base) / "pomerium"
    return Path(environ.get("HOME", "/")) / ".local" / "share" / "pomerium"
