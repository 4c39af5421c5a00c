"""Which identity providers sessions are refreshed with: those that the settings name."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Protocol, Self

import httpx

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.config.resolved import IdentityProviderSettings, ResolvedSettings
from gatehouse.common.identity.errors import IdentityProviderError
from gatehouse.common.identity.provider import RefreshedIdentity, make_provider
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.rpc.trust import roots_pem

MAX_CONNECTIONS = 256

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

    A provider remembers what discovery said, so it is kept until its settings change. Use it as a
    context manager: its end closes the connections.
    """

    def __init__(self, settings_of: Callable[[], ResolvedSettings], clock: Clock, rng: Rng) -> None:
        self._settings_of = settings_of
        self._clock = clock
        self._rng = rng
        self._seen: ResolvedSettings | None = None
        self._ca_pem: bytes | None = None
        self._http: httpx.AsyncClient | None = None
        self._old: list[httpx.AsyncClient] = []
        self._known: dict[str, tuple[IdentityProviderSettings, Refresher]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        clients = [*self._old, *([self._http] if self._http else [])]
        self._old, self._http, self._seen = [], None, None
        self._known.clear()
        async with AsyncExitStack() as stack:
            for client in clients:
                stack.push_async_callback(client.aclose)

    def ids(self) -> frozenset[str]:
        """The idp ids that can be refreshed with now; none while no provider is configured."""
        self._follow()
        return frozenset(self._known)

    def get(self, idp_id: str) -> Refresher | None:
        """The provider of that id; None for one that the settings do not name."""
        self._follow()
        known = self._known.get(idp_id)
        return None if known is None else known[1]

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
        if not wanted:
            self._known = {}
            return
        http = self._client(settings.ca_bundle_pem)
        if http is None:
            return
        known: dict[str, tuple[IdentityProviderSettings, Refresher]] = {}
        for one in wanted.values():
            before = self._known.get(one.id)
            if before is not None and before[0] == one:
                known[one.id] = before
                continue
            try:
                known[one.id] = (one, make_provider(one, http, self._clock, self._rng))
            except IdentityProviderError as error:
                _log.error("identity provider cannot be used", idp_id=one.id, error=str(error))
        self._known = known

    def _client(self, ca_bundle_pem: bytes | None) -> httpx.AsyncClient | None:
        if self._http is not None and ca_bundle_pem == self._ca_pem:
            return self._http
        try:
            made = _http_client(ca_bundle_pem)
        except (ssl.SSLError, ValueError) as error:
            # Calls under way must not suffer from it, nor those to come if it worked before.
            _log.error("authorities for identity providers cannot be used", error=str(error))
            return self._http
        if self._http is not None:
            self._old.append(self._http)  # calls under way end in their own time
        self._http, self._ca_pem, self._known = made, ca_bundle_pem, {}
        return made


def _http_client(ca_bundle_pem: bytes | None) -> httpx.AsyncClient:
    roots = roots_pem(ca_bundle_pem)
    context = ssl.create_default_context(cadata=roots.decode("ascii") if roots else None)
    return httpx.AsyncClient(
        verify=context,
        timeout=10.0,
        follow_redirects=False,
        limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=32),
    )
