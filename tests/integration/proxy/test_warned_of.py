"""What configuration warnings say of Envoy is so: with a real one."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from gatehouse.common.config.model import DownstreamMTLS, MTLSEnforcement
from tests.support.client_pki import DAY, Issued
from tests.support.envoy import proxy
from tests.support.raw_http import http1
from tests.support.tls import Authority
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

HOST = "app.example.com"


async def test_random_takes_no_notice_of_weights() -> None:
    counts: dict[str, Counter[str]] = {}
    with EchoUpstream().running() as heavy, EchoUpstream().running() as light:
        keys = {
            "from": f"http://{HOST}",
            "to": [f"{heavy.url},50", f"{light.url},1"],
            "allow_public_unauthenticated_access": True,
        }
        async with proxy({"routes": [keys]}) as running:
            for policy in ("ROUND_ROBIN", "RANDOM"):
                await running.push({"routes": [{**keys, "load_balancing_policy": policy}]})
                heavy.requests.clear()
                light.requests.clear()
                for _ in range(51):
                    assert (await http1(running.port)).status == 200
                counts[policy] = Counter(heavy=len(heavy.requests), light=len(light.requests))
    assert counts["ROUND_ROBIN"]["light"] <= 3
    assert counts["RANDOM"]["light"] >= 8  # of 51; by chance fewer once in 10 million runs


async def test_lists_must_be_in_date_and_of_every_authority(tmp_path: Path) -> None:
    server = Authority(tmp_path)
    leaf = server.leaf(HOST)
    one, other = Issued.root("one"), Issued.root("other")
    config = {
        "certificate_file": str(leaf.certificate),
        "certificate_key_file": str(leaf.key),
        "routes": [
            {
                "from": f"https://{HOST}",
                "response": {"status": 200, "body": "in"},
                "allow_public_unauthenticated_access": True,
            }
        ],
    }

    async def gets_in(port: int, client: Issued) -> bool:
        context = ssl.create_default_context(cafile=str(server.path))
        client.load_into(context)
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=context, server_hostname=HOST
            )
            writer.write(f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
            line = await reader.readline()
            writer.close()
        except (ssl.SSLError, ConnectionError):
            return False
        return line.startswith(b"HTTP/1.1 200")

    clients = (one.issue(), other.issue())
    async with proxy(config, insecure=False) as running:
        settings = running.settings(config)
        mtls = DownstreamMTLS(enforcement=MTLSEnforcement.REJECT_CONNECTION)
        for lists, expected in (
            (one.revoke() + other.revoke(), [True, True]),
            (one.revoke(), [True, False]),
            (one.revoke() + other.revoke(ends=-DAY), [True, False]),
        ):
            await running.push(
                replace(
                    settings,
                    settings=settings.settings.model_copy(update={"downstream_mtls": mtls}),
                    downstream_mtls_ca_pem=(one.pem + other.pem).encode(),
                    downstream_mtls_crl_pem=lists.encode(),
                )
            )
            assert [await gets_in(running.port, client) for client in clients] == expected
