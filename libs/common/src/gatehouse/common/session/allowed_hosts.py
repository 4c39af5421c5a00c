"""The hosts that a browser may be sent to after signing in or out: those this deployment serves."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import Final
from urllib.parse import urlsplit

from gatehouse.common.config.resolved import FromURL, ResolvedSettings

_WEB_SCHEMES: Final = frozenset({"https", "http", "tcp+https", "udp+https"})
_LOOPBACK: Final = re.compile(r"127(?:\.[0-9]{1,3}){3}|::1")


def served_hosts(settings: ResolvedSettings) -> Callable[[str], bool]:
    """Whether a host (lower case, no port) is a route's, in a `depends_on`, or authenticate's.

    A process without any routes (authenticate alone may be given none) knows no hosts and accepts
    all: there the signature over the URL is what vouches for it, and the route's own proxy, which
    does know, asks again before it sends the browser on.
    """
    exact, patterns = _route_hosts(route.from_url for route in settings.routes)
    for route in settings.routes:
        exact.update(_host_of(entry) for entry in route.settings.depends_on)
    if not settings.routes:
        return lambda _host: True
    for url in (settings.authenticate_url, settings.authenticate_internal_url):
        if url:
            exact.add(_host_of(url))
    exact.discard("")
    known = frozenset(exact)
    return lambda host: host in known or any(pattern.fullmatch(host) for pattern in patterns)


def whitelisted_hosts(entries: Collection[str]) -> Callable[[str], bool]:
    """The programmatic whitelist: exact names; `localhost` also admits loopback addresses."""
    names = frozenset(entry.lower().removesuffix(".") for entry in entries)
    loopback = "localhost" in names
    return lambda host: host in names or (loopback and _LOOPBACK.fullmatch(host) is not None)


def host_pattern(host: str) -> re.Pattern[str]:
    """A `from` host with stars as a pattern over whole host names; a star needs a character."""
    return re.compile(".+".join(re.escape(part) for part in host.split("*")))


def _route_hosts(urls: Iterable[FromURL]) -> tuple[set[str], tuple[re.Pattern[str], ...]]:
    exact: set[str] = set()
    patterns: list[re.Pattern[str]] = []
    for url in urls:
        if url.scheme not in _WEB_SCHEMES:
            continue
        if url.is_wildcard:
            patterns.append(host_pattern(url.host))
        else:
            exact.add(url.host)
    return exact, tuple(patterns)


def _host_of(entry: str) -> str:
    parts = urlsplit(entry if "://" in entry else f"//{entry}")
    return (parts.hostname or "").removesuffix(".")
