"""The public HTTPS listener: protocols, certificates by name, and their replacement."""

from __future__ import annotations

import asyncio
import json
import ssl
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from gatehouse.common.config.model import DownstreamMTLS, MTLSEnforcement
from gatehouse.common.config.resolved import ResolvedSettings
from tests.support.envoy import Proxy, eventually, proxy
from tests.support.tls import Authority
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e


@pytest.fixture
def upstream() -> Iterator[EchoUpstream]:
    with EchoUpstream().running() as running:
        yield running


def config(upstream: EchoUpstream, *leaves: Any, **keys: Any) -> dict[str, Any]:
    return {
        "certificates": [{"cert": str(leaf.certificate), "key": str(leaf.key)} for leaf in leaves],
        "routes": [
            {
                "from": f"https://{name}.example.com",
                "to": upstream.url,
                "allow_public_unauthenticated_access": True,
            }
            for name in ("a", "b")
        ],
        **keys,
    }


def context_of(authority: Authority, *alpn: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.path))
    context.set_alpn_protocols(list(alpn) or ["http/1.1"])
    return context


async def open_tls(
    running: Proxy, authority: Authority, name: str, *alpn: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(
        "127.0.0.1", running.port, ssl=context_of(authority, *alpn), server_hostname=name
    )


async def served(running: Proxy, authority: Authority, name: str) -> list[str]:
    """The names in the certificate shown for `name`."""
    context = context_of(authority)
    context.check_hostname = False
    _, writer = await asyncio.open_connection(
        "127.0.0.1", running.port, ssl=context, server_hostname=name
    )
    certificate = writer.get_extra_info("peercert")
    writer.close()
    return [value for _, value in certificate["subjectAltName"]]


async def get(
    running: Proxy, authority: Authority, host: str, *, http2: bool = False
) -> httpx.Response:
    context = context_of(authority, *(["h2", "http/1.1"] if http2 else ["http/1.1"]))
    transport = httpx.AsyncHTTPTransport(verify=context, http2=http2)
    async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
        return await client.get(
            f"https://127.0.0.1:{running.port}/",
            headers={"host": host},
            extensions={"sni_hostname": host},
        )


async def test_http1_and_http2_over_tls(upstream: EchoUpstream, tmp_path: Path):
    authority = Authority(tmp_path)
    leaf = authority.leaf("*.example.com")
    async with proxy(config(upstream, leaf), insecure=False) as running:
        for http2, version in ((False, "HTTP/1.1"), (True, "HTTP/2")):
            response = await get(running, authority, "a.example.com", http2=http2)
            assert (response.status_code, response.http_version) == (200, version)
            assert response.headers["strict-transport-security"].startswith("max-age=")
            seen = dict(response.json()["headers"])
            assert seen["x-forwarded-proto"] == "https"


@pytest.mark.parametrize(
    ("codec_type", "offered"), [("http1", "http/1.1"), ("http2", "h2"), ("auto", "h2")]
)
async def test_codec_type_decides_what_is_offered(
    upstream: EchoUpstream, tmp_path: Path, codec_type: str, offered: str
):
    authority = Authority(tmp_path)
    keys = config(upstream, authority.leaf("*.example.com"), codec_type=codec_type)
    async with proxy(keys, insecure=False) as running:
        _, writer = await open_tls(running, authority, "a.example.com", "h2", "http/1.1")
        chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        writer.close()
        assert chosen == offered


async def test_r09_names_choose_among_the_certificates_in_any_spelling(
    upstream: EchoUpstream, tmp_path: Path
):
    authority = Authority(tmp_path)
    a = authority.leaf("a.example.com", stem="a")
    b = authority.leaf("b.example.com", stem="b")
    async with proxy(config(upstream, a, b), insecure=False) as running:
        assert await served(running, authority, "a.example.com") == ["a.example.com"]
        assert await served(running, authority, "b.example.com") == ["b.example.com"]
        assert await served(running, authority, "B.EXAMPLE.com")
        assert await served(running, authority, "unknown.example.com") == ["a.example.com"]
        # One TLS context for all names: a connection for one may ask for another (HTTP/2 browsers).
        reader, writer = await open_tls(running, authority, "a.example.com")
        writer.write(b"GET / HTTP/1.1\r\nHost: b.example.com\r\nConnection: close\r\n\r\n")
        assert b" 200 " in await reader.readline()
        writer.close()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_tls_is_refused(upstream: EchoUpstream, tmp_path: Path):
    authority = Authority(tmp_path)
    async with proxy(config(upstream, authority.leaf("*.example.com")), insecure=False) as running:
        context = context_of(authority)
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection(
                "127.0.0.1", running.port, ssl=context, server_hostname="a.example.com"
            )


async def test_plain_http_on_the_https_port_gets_nothing(upstream: EchoUpstream, tmp_path: Path):
    authority = Authority(tmp_path)
    async with proxy(config(upstream, authority.leaf("*.example.com")), insecure=False) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        assert upstream.requests == []


async def test_a_new_certificate_is_served_at_once_and_old_connections_drain(
    upstream: EchoUpstream, tmp_path: Path
):
    authority = Authority(tmp_path)
    old = authority.leaf("a.example.com", "old.example.com")
    async with proxy(config(upstream, old), insecure=False) as running:
        reader, writer = await open_tls(running, authority, "a.example.com")
        new = authority.leaf("a.example.com", "new.example.com")  # same path, new content
        await running.push(config(upstream, new))
        assert await served(running, authority, "a.example.com") == [
            "a.example.com",
            "new.example.com",
        ]
        stats = await running.admin.stats(r"^listener_manager\.total_filter_chains_draining$")
        assert stats == {"listener_manager.total_filter_chains_draining": 1}
        writer.write(b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
        assert b" 200 " in await reader.readline()
        writer.close()


async def test_keys_are_files_that_nobody_else_can_read(upstream: EchoUpstream, tmp_path: Path):
    authority = Authority(tmp_path)
    leaf = authority.leaf("*.example.com")
    async with proxy(config(upstream, leaf), insecure=False) as running:
        directory = running.files.directory
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        files = list(directory.iterdir())
        assert leaf.key.read_bytes() in [path.read_bytes() for path in files]
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
        dump = json.dumps(await running.admin.config_dump())
        assert "PRIVATE KEY" not in dump
        sockets = [running.run_dir / name for name in ("xds.sock", "envoy-admin.sock")]
        assert {stat.S_IMODE(path.stat().st_mode) for path in sockets} == {0o600}


def with_client_authority(
    running: Proxy, keys: dict[str, Any], authority: Authority, enforcement: MTLSEnforcement
) -> ResolvedSettings:
    settings = running.settings(keys)
    mtls = DownstreamMTLS(enforcement=enforcement)
    return replace(
        settings,
        settings=settings.settings.model_copy(update={"downstream_mtls": mtls}),
        downstream_mtls_ca_pem=authority.path.read_bytes(),
    )


async def test_client_certificates_are_shown_to_authorize_or_demanded(
    upstream: EchoUpstream, tmp_path: Path
):
    authority, clients = Authority(tmp_path / "server"), Authority(tmp_path / "clients")
    mine, foreign = clients.leaf("me"), Authority(tmp_path / "foreign").leaf("foreign")
    keys = config(upstream, authority.leaf("*.example.com"))

    async def status(running: Proxy, certificate: Any) -> int:
        context = context_of(authority)
        if certificate is not None:
            context.load_cert_chain(certificate.certificate, certificate.key)
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", running.port, ssl=context, server_hostname="a.example.com"
            )
            writer.write(b"GET / HTTP/1.1\r\nHost: a.example.com\r\nConnection: close\r\n\r\n")
            line = await reader.readline()
            writer.close()
        except (ssl.SSLError, ConnectionError):
            return 0
        return int(line.split()[1]) if line else 0

    async with proxy(keys, insecure=False) as running:
        policy = with_client_authority(running, keys, clients, MTLSEnforcement.POLICY)
        await running.push(policy)
        for certificate, presented in ((None, False), (mine, True), (foreign, True)):
            assert await status(running, certificate) == 200
            attributes = running.authorize.requests[-1].attributes
            facts = attributes.metadata_context.filter_metadata[
                "com.pomerium.client-certificate-info"
            ]
            assert facts["presented"] is presented
            if certificate is not None:
                chain = unquote(facts["chain"])
                text = certificate.certificate.read_text()
                assert chain.startswith(text)
        checks = len(running.authorize.requests)
        await running.push(
            with_client_authority(running, keys, clients, MTLSEnforcement.REJECT_CONNECTION)
        )
        assert await status(running, None) == 0
        assert await status(running, foreign) == 0
        assert await status(running, mine) == 200
        assert len(running.authorize.requests) == checks + 1

        async def logged() -> bool:
            return running.access_log.read_text().count("listener connection failure") == 2

        await eventually(logged)


async def test_the_redirect_listener_drops_the_port(upstream: EchoUpstream, tmp_path: Path):
    from tests.support.stack import free_ports  # noqa: PLC0415

    authority = Authority(tmp_path)
    (port,) = free_ports(1)
    keys = config(upstream, authority.leaf("*.example.com"), http_redirect_addr=f"127.0.0.1:{port}")
    async with proxy(keys, insecure=False), httpx.AsyncClient(trust_env=False) as client:
        response = await client.get(
            f"http://127.0.0.1:{port}/a?b=1", headers={"host": f"a.example.com:{port}"}
        )
        assert response.status_code == 301
        assert response.headers["location"] == "https://a.example.com/a?b=1"
        assert response.headers["connection"] == "close"
