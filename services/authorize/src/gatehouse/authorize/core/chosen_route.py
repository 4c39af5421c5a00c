"""Which route an operator means, and what a request to it is like if nothing else is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

from gatehouse.common.config.resolved import ResolvedRoute, ResolvedSettings

_NAMES: Final[tuple[Callable[[ResolvedRoute], str], ...]] = (
    lambda route: route.id,
    lambda route: route.settings.name,
    lambda route: route.settings.from_.rstrip("/"),
)


def chosen_route(routes: Sequence[ResolvedRoute], wanted: str) -> ResolvedRoute | None:
    """The one route with this id, name, `from` URL or number; None when there is not one.

    An address as a browser shows it (with a port, with a path) is that of the only route of its
    host. Where a host has several, Envoy alone knows which of them a request takes.
    """
    text = wanted.rstrip("/")
    for name in _NAMES if text else ():
        found = [route for route in routes if name(route) == text]
        if found:
            return found[0] if len(found) == 1 else None
    if text.isascii() and text.isdecimal() and int(text) < len(routes):
        return routes[int(text)]
    host = _host_of(text)
    found = [route for route in routes if host and route.from_url.host == host]
    return found[0] if len(found) == 1 else None


def _host_of(text: str) -> str:
    """The host of a URL, without port; "" for anything else."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return ""
    return (parts.hostname or "") if parts.scheme and "@" not in parts.netloc else ""


def usual_facts(settings: ResolvedSettings, route: ResolvedRoute) -> dict[str, object]:
    """The host, and no client certificate where one is asked for."""
    authority = route.tls_downstream_client_ca_pem or settings.downstream_mtls_ca_pem
    return {"host": route.from_url.host, "certificate": "missing" if authority else "none"}
