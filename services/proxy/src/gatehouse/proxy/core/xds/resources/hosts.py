"""Which host names a virtual host or a wildcard route stands for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from gatehouse.common.config.resolved import FromURL, ResolvedSettings, ServiceName
from gatehouse.common.extauthz_context import AUTHORIZE_CLUSTER

_DEFAULT_PORTS = {"https": 443, "http": 80}
_MATCH_ANY_PORT = "match_any_incoming_port"
# What a star stands for: one label or more (RFC 1123, 2.1, and `_`), in lower case.
_LABELS = r"[a-z0-9_-]+(\.[a-z0-9_-]+)*"


@dataclass(frozen=True, slots=True, order=True)
class Host:
    """A host as routes name it: lower case, with a port only when that port alone is meant."""

    name: str
    port: int | None = None

    @property
    def key(self) -> str:
        """`name` or `name:port`."""
        return self.name if self.port is None else f"{self.name}:{self.port}"

    @property
    def is_wildcard(self) -> bool:
        """True when a star stands for a part of the name."""
        return "*" in self.name

    def domains(self, resolved: ResolvedSettings) -> tuple[str, ...]:
        """The `Host` headers of this virtual host, as Envoy matches them (in any letters)."""
        if self.port is not None:
            return (self.key,)
        if resolved.settings.runtime_flags.get(_MATCH_ANY_PORT, True):
            return (self.name, f"{self.name}:*")
        default = 80 if resolved.settings.insecure_server else 443
        return (self.name, f"{self.name}:{default}")

    def authority_regex(self) -> str:
        """An expression for wildcard hosts over the whole `:authority`, in any letters.

        Everything but the stars is taken literally; a star never stands for a port or userinfo.
        """
        name = _LABELS.join(re.escape(part) for part in self.name.split("*"))
        port = "(:[0-9]{1,5})?" if self.port is None else f":{self.port}"
        return f"(?i)^{name}{port}$"


def route_hosts(from_url: FromURL) -> tuple[Host, ...]:
    """The hosts a route answers to. Tunnel routes mean the authority of CONNECT."""
    if from_url.scheme in {"tcp+https", "udp+https"}:
        if from_url.connect_targets:
            return tuple(_split(target) for target in from_url.connect_targets)
        return (Host(from_url.host, from_url.port or 443),)
    port = from_url.port
    if port == _DEFAULT_PORTS.get(from_url.scheme):
        port = None
    return (Host(from_url.host, port),)


def authenticate_host(resolved: ResolvedSettings) -> Host | None:
    """Where users sign in, when that is known."""
    return _host_of(resolved.authenticate_url) if resolved.authenticate_url else None


def service_hosts(resolved: ResolvedSettings) -> frozenset[Host]:
    """Where our own services are called through Envoy; none when gRPC has a listener.

    An Envoy elsewhere that asks our authorize, and checks its health, names its cluster as host.
    """
    if not resolved.shared_grpc_urls:
        return frozenset()
    clusters = {Host(AUTHORIZE_CLUSTER)} if resolved.runs(ServiceName.AUTHORIZE) else set()
    return frozenset(_host_of(url) for url in resolved.shared_grpc_urls) | clusters


def _host_of(url: str) -> Host:
    parts = urlsplit(url)
    port = None if parts.port == _DEFAULT_PORTS.get(parts.scheme) else parts.port
    name = (parts.hostname or "").lower().removesuffix(".")
    return Host(f"[{name}]" if ":" in name else name, port)


def _split(target: str) -> Host:
    name, _, port = target.rpartition(":")
    return Host(name.lower(), int(port)) if name else Host(target.lower(), 443)
