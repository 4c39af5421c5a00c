"""With which HTTP client identity providers are asked."""

from __future__ import annotations

import ssl
from contextlib import AsyncExitStack

import httpx

from gatehouse.common.rpc.trust import roots_pem


def http_client(ca_bundle_pem: bytes | None, *, max_connections: int = 64) -> httpx.AsyncClient:
    """A client that trusts the system's authorities and the configured ones.

    Redirects are not followed; each request's deadline is set where it is made.
    """
    return httpx.AsyncClient(
        verify=tls_context(ca_bundle_pem),
        timeout=10.0,
        follow_redirects=False,
        limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=16),
    )


def tls_context(ca_bundle_pem: bytes | None) -> ssl.SSLContext:
    """Certificates and names are always verified, by the system's authorities and ours."""
    roots = roots_pem(ca_bundle_pem)
    return ssl.create_default_context(cadata=roots.decode("ascii") if roots else None)


async def close_all(clients: list[httpx.AsyncClient]) -> None:
    """Close every client, whatever closing one of them does."""
    async with AsyncExitStack() as stack:
        for client in clients:
            stack.push_async_callback(client.aclose)
