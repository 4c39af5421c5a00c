"""Answers how programs reach *.localhost: browsers know it is this machine, resolvers often not.

RFC 6761 section 6.3 reserves the names for loopback. TLS still verifies the name that was asked
for, and the Host header still carries it.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Final

import httpx

_LOOPBACK: Final = "127.0.0.1"
_TIMEOUT_S: Final = 15.0


def is_local_name(host: str) -> bool:
    """Tell whether the name is localhost or below it."""
    return host == "localhost" or host.endswith(".localhost")


class LocalTransport(httpx.AsyncBaseTransport):
    """Connects local names to 127.0.0.1 and leaves all others alone.

    Each name has its own connections: one made for another name must not be reused, because the
    server saw that name when TLS began.
    """

    def __init__(self, verify: ssl.SSLContext) -> None:
        self._verify = verify
        self._transports: dict[str, httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request, to loopback when its host is a local name."""
        host = request.url.host
        transport = self._transports.get(host)
        if transport is None:
            transport = httpx.AsyncHTTPTransport(verify=self._verify, trust_env=False)
            self._transports[host] = transport
        if not is_local_name(host):
            return await transport.handle_async_request(request)
        sent = httpx.Request(
            request.method,
            request.url.copy_with(host=_LOOPBACK),
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": host},
        )
        return await transport.handle_async_request(sent)

    async def aclose(self) -> None:
        """Close all connections."""
        for transport in self._transports.values():
            await transport.aclose()
        self._transports.clear()


def local_client(authority: Path, **options: Any) -> httpx.AsyncClient:
    """Return a client that trusts `authority` only and finds *.localhost. Follows no redirects."""
    context = ssl.create_default_context(cafile=str(authority))
    return httpx.AsyncClient(
        transport=LocalTransport(context), timeout=_TIMEOUT_S, trust_env=False, **options
    )


def network_client(authority: Path, **options: Any) -> httpx.AsyncClient:
    """Return a client that trusts `authority` only and looks every name up. No redirects."""
    context = ssl.create_default_context(cafile=str(authority))
    return httpx.AsyncClient(verify=context, timeout=_TIMEOUT_S, trust_env=False, **options)
