"""The clients of the configured identity providers, kept while their settings stay the same."""

from __future__ import annotations

import ssl
from contextlib import AsyncExitStack

import httpx

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.config.resolved import IdentityProviderSettings
from gatehouse.common.identity.provider import Provider, make_provider
from gatehouse.common.rpc.trust import roots_pem

_LIMIT = 256  # distinct provider settings; each route may have one of its own


class ProviderPool:
    """Provider objects by idp id. Belongs to one event loop.

    A provider remembers what discovery said, so it is kept until its settings change.
    """

    def __init__(self, http: httpx.AsyncClient, clock: Clock, rng: Rng) -> None:
        self._http = http
        self._clock = clock
        self._rng = rng
        self._known: dict[str, tuple[IdentityProviderSettings, Provider]] = {}

    def use_client(self, http: httpx.AsyncClient) -> None:
        """Make requests with another client from now on; the caller owns both."""
        self._http = http
        self._known.clear()

    def provider(self, settings: IdentityProviderSettings) -> Provider:
        """The client for `settings`. Raises IdentityProviderError for settings it cannot use."""
        known = self._known.get(settings.id)
        if known is not None and known[0] == settings:
            return known[1]
        provider = make_provider(settings, self._http, self._clock, self._rng)
        while len(self._known) >= _LIMIT:
            del self._known[next(iter(self._known))]
        self._known[settings.id] = (settings, provider)
        return provider


def http_client(ca_bundle_pem: bytes | None) -> httpx.AsyncClient:
    """A client that trusts the system's authorities and the configured ones.

    Redirects are not followed; each request's deadline is set where it is made.
    """
    roots = roots_pem(ca_bundle_pem)
    context = ssl.create_default_context(cadata=roots.decode("ascii") if roots else None)
    return httpx.AsyncClient(
        verify=context,
        timeout=10.0,
        follow_redirects=False,
        limits=httpx.Limits(max_connections=64, max_keepalive_connections=16),
    )


async def close_all(clients: list[httpx.AsyncClient]) -> None:
    """Close every client, whatever closing one of them does."""
    async with AsyncExitStack() as stack:
        for client in clients:
            stack.push_async_callback(client.aclose)
