"""HTTP clients that find *.localhost on this machine, as browsers do (RFC 6761 section 6.3)."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import httpcore
import httpx


class LocalhostBackend(httpcore.NetworkBackend):
    """Connects every name below localhost to 127.0.0.1; the name stays in SNI and Host.

    `hosts` maps further names to the loopback port where each is found.
    """

    def __init__(self, hosts: Mapping[str, int]) -> None:
        self._inner = httpcore.SyncBackend()
        self._hosts = hosts

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        address = host
        if host in self._hosts:
            address, port = "127.0.0.1", self._hosts[host]
        elif host == "localhost" or host.endswith(".localhost"):
            address = "127.0.0.1"
        return self._inner.connect_tcp(address, port, timeout, local_address, socket_options)

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


def localhost_client(
    authority: Path,
    *,
    http2: bool = False,
    hosts: Mapping[str, int] | None = None,
    **options: Any,
) -> httpx.Client:
    """A client that trusts `authority` and follows no redirect unless told to."""
    context = ssl.create_default_context(cafile=str(authority))
    context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
    transport = httpx.HTTPTransport(verify=context, http2=http2)
    transport._pool = httpcore.ConnectionPool(
        ssl_context=context,
        http2=http2,
        http1=True,
        network_backend=LocalhostBackend(hosts or {}),
    )
    return httpx.Client(transport=transport, timeout=30.0, trust_env=False, **options)
