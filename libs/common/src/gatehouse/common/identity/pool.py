"""The clients of the configured identity providers, kept while their settings stay the same."""

from __future__ import annotations

from typing import Final

import httpx

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.config.resolved import IdentityProviderSettings
from gatehouse.common.identity.provider import Provider, make_provider

KEPT: Final = 256  # distinct provider settings; each route may have one of its own


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
        while len(self._known) >= KEPT:
            del self._known[next(iter(self._known))]
        self._known[settings.id] = (settings, provider)
        return provider
