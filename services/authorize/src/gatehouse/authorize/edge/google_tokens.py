"""Tokens that Google Cloud gives us for its serverless upstreams, fetched seldom and kept.

A request waits for at most one attempt; when it fails the request goes on without a token, and so
do the others for a while, so that an endpoint that is down does not slow every request.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import httpx

from gatehouse.authorize.core.google_identity import (
    METADATA_HEADERS,
    METADATA_HOST,
    IdentityToken,
    ServiceAccount,
    identity_token,
    metadata_url,
    token_form,
)
from gatehouse.authorize.core.lru import LruCache
from gatehouse.common.clock import Clock
from gatehouse.common.errors import GatehouseError, UnavailableError
from gatehouse.common.identity.transport import ProviderResponse, ProviderTransport
from gatehouse.common.observability.logging import get_logger

TIMEOUT_S: Final = 3.0  # well within Envoy's patience with authorize
RETRY_AFTER_S: Final = 5.0
_KEPT: Final = 1000

_Key: TypeAlias = tuple[str, str, str]  # account, its key, audience


@dataclass(slots=True)
class _Held:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    token: IdentityToken | None = None
    retry_at_s: float = 0.0  # monotonic seconds


class GoogleTokens:
    """One per process: it outlives configurations."""

    def __init__(
        self,
        clock: Clock,
        http: Callable[[], httpx.AsyncClient],
        *,
        metadata_host: str = "",
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`http` makes a client that trusts what the configuration in force trusts.

        `metadata_host`: where the metadata server is, if not where GCE_METADATA_HOST or Google's
        documentation says.
        """
        self._clock = clock
        self._http = http
        self._metadata_host = (
            metadata_host or os.environ.get("GCE_METADATA_HOST", "") or METADATA_HOST
        )
        self._timeout_s = timeout_s
        self._held: LruCache[_Key, _Held] = LruCache(_KEPT)
        self._log = get_logger("authorize")

    async def token(self, account: ServiceAccount | None, audience: str) -> str:
        """A token for this audience; "" when there is none to be had now.

        Without an account it is that of the machine. Never raises for what Google does.
        """
        who = (account.email, account.key.kid) if account is not None else ("", "")
        key = (*who, audience)
        held = self._held.get(key)
        if held is None:
            held = _Held()
            self._held.put(key, held)
        if self._is_due(held):
            async with held.lock:
                if self._is_due(held):  # nobody else fetched it meanwhile
                    await self._renew(held, account, audience)
        token = held.token
        return token.text if token is not None and self._clock.now_s() < token.ends_at_s else ""

    def _is_due(self, held: _Held) -> bool:
        if self._clock.monotonic_s() < held.retry_at_s:
            return False
        return held.token is None or self._clock.now_s() >= held.token.renew_at_s

    async def _renew(self, held: _Held, account: ServiceAccount | None, audience: str) -> None:
        try:
            text = await self._fetch(account, audience)
            held.token = identity_token(text, self._clock.now_s())
            held.retry_at_s = 0.0
        except GatehouseError as error:
            held.retry_at_s = self._clock.monotonic_s() + RETRY_AFTER_S
            self._log.warning(
                "no token of Google Cloud for an upstream", audience=audience, error=str(error)
            )

    async def _fetch(self, account: ServiceAccount | None, audience: str) -> str:
        # A client for each fetch: they are rare, and this one trusts what is trusted now.
        if account is None:
            async with _plain_client() as http:
                response = await ProviderTransport(http, timeout_s=self._timeout_s).get(
                    metadata_url(self._metadata_host, audience), headers=METADATA_HEADERS
                )
            _expect_ok(response, "the metadata server")
            return response.body.decode("ascii", "replace").strip()
        form = token_form(account, audience, self._clock.now_s())
        async with self._http() as http:
            response = await ProviderTransport(http, timeout_s=self._timeout_s).post_form(
                account.token_url, form
            )
        _expect_ok(response, "the token endpoint")
        found: Any = response.json("the token endpoint").get("id_token")
        if not isinstance(found, str):
            raise UnavailableError("the token endpoint gave no id_token")
        return found


def _plain_client() -> httpx.AsyncClient:
    """For the metadata server: no TLS there, and never a proxy in between."""
    return httpx.AsyncClient(
        trust_env=False,
        follow_redirects=False,
        verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    )


def _expect_ok(response: ProviderResponse, where: str) -> None:
    if response.status != 200:
        raise UnavailableError(f"{where} answered {response.status}")
