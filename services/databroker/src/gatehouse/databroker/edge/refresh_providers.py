"""Which identity providers sessions are refreshed with: those that the settings name."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Protocol, Self

import httpx

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.config.resolved import IdentityProviderSettings, ResolvedSettings
from gatehouse.common.identity.errors import IdentityProviderError
from gatehouse.common.identity.http_client import close_all, http_client
from gatehouse.common.identity.pool import ProviderPool
from gatehouse.common.identity.provider import RefreshedIdentity
from gatehouse.common.observability.logging import get_logger

MAX_CONNECTIONS: Final = 256

_log = get_logger("databroker")


class Refresher(Protocol):
    """What a refresh asks of `identity.provider.Provider`."""

    async def refresh(self, refresh_token: str, *, subject: str) -> RefreshedIdentity:
        """New tokens and claims. Raises IdentityRefusedError, IdentityProviderError."""
        ...

    async def userinfo(self, access_token: str, *, subject: str) -> dict[str, Any]:
        """Userinfo claims. Raises IdentityRefusedError, IdentityProviderError."""
        ...


class RefreshProviders:
    """The providers of the settings in force. Belongs to one event loop.

    Use it as a context manager: its end closes the connections.
    """

    def __init__(self, settings_of: Callable[[], ResolvedSettings], clock: Clock, rng: Rng) -> None:
        self._settings_of = settings_of
        self._clock = clock
        self._rng = rng
        self._seen: ResolvedSettings | None = None
        self._ca_pem: bytes | None = None
        self._clients: list[httpx.AsyncClient] = []  # the last one is in use
        self._pool: ProviderPool | None = None
        self._usable: dict[str, IdentityProviderSettings] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        clients, self._clients = self._clients, []
        self._pool, self._seen, self._usable = None, None, {}
        await close_all(clients)

    def ids(self) -> frozenset[str]:
        """The idp ids that can be refreshed with now; none while no provider is configured."""
        self._follow()
        return frozenset(self._usable)

    def get(self, idp_id: str) -> Refresher | None:
        """The provider of that id; None for one that the settings do not name."""
        self._follow()
        wanted = self._usable.get(idp_id)
        if wanted is None or self._pool is None:
            return None
        return self._pool.provider(wanted)

    def _follow(self) -> None:
        settings = self._settings_of()
        if settings is self._seen:
            return
        self._seen = settings
        wanted: dict[str, IdentityProviderSettings] = {}
        if settings.identity_provider is not None:
            configured = [route.identity_provider for route in settings.routes]
            for one in (settings.identity_provider, *configured):
                if one is not None:
                    wanted.setdefault(one.id, one)
        pool = self._current_pool(settings.ca_bundle_pem) if wanted else None
        self._usable = {}
        for one in wanted.values():
            if pool is None:
                return
            try:
                pool.provider(one)
            except IdentityProviderError as error:
                _log.error("identity provider cannot be used", idp_id=one.id, error=str(error))
                continue
            self._usable[one.id] = one

    def _current_pool(self, ca_bundle_pem: bytes | None) -> ProviderPool | None:
        if self._pool is not None and ca_bundle_pem == self._ca_pem:
            return self._pool
        try:
            made = http_client(ca_bundle_pem, max_connections=MAX_CONNECTIONS)
        except (ssl.SSLError, ValueError) as error:
            # Calls under way must not suffer from it, nor those to come if it worked before.
            _log.error("authorities for identity providers cannot be used", error=str(error))
            return self._pool
        self._clients.append(made)  # calls under way on older ones end in their own time
        self._ca_pem = ca_bundle_pem
        if self._pool is None:
            self._pool = ProviderPool(made, self._clock, self._rng)
        else:
            self._pool.use_client(made)
        return self._pool
