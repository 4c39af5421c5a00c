"""The public HTTPS listener: protocols, certificates by name, and their replacement."""

from __future__ import annotations

import asyncio
import json
import ssl
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from gatehouse.common.config.model import DownstreamMTLS, MTLSEnforcement
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.proxy.edge import envoy_process
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
    return names_of(certificate)


def names_of(certificate: Mapping[str, Any]) -> list[str]:
    """The names in a certificate as `ssl` decodes it."""
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


async def test_codec_type_decides_what_is_offered(upstream: EchoUpstream, tmp_path: Path):
    authority = Authority(tmp_path)
    leaf = authority.leaf("*.example.com")
    async with proxy(config(upstream, leaf, codec_type="http1"), insecure=False) as running:
        for codec_type, offered in (("http1", "http/1.1"), ("http2", "h2"), ("auto", "h2")):
            await running.push(config(upstream, leaf, codec_type=codec_type))
            _, writer = await open_tls(running, authority, "a.example.com", "h2", "http/1.1")
            chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
            writer.close()
            assert chosen == offered, codec_type


async def test_r09_names_choose_among_the_certificates_in_any_spelling(
    upstream: EchoUpstream, tmp_path: Path
):
    authority = Authority(tmp_path)
    a = authority.leaf("a.example.com", stem="a")
    b = authority.leaf("b.example.com", stem="b")
    async with proxy(config(upstream, a, b), insecure=False) as running:
        assert await served(running, authority, "a.example.com") == ["a.example.com"]
        assert await served(running, authority, "b.example.com") == ["b.example.com"]
        assert await served(running, authority, "B.EXAMPLE.com") == ["b.example.com"]
        assert await served(running, authority, "unknown.example.com") == ["a.example.com"]
        # One TLS context for all names: a connection for one may ask for another (HTTP/2 browsers).
        reader, writer = await open_tls(running, authority, "a.example.com")
        writer.write(b"GET / HTTP/1.1\r\nHost: b.example.com\r\nConnection: close\r\n\r\n")
        assert b" 200 " in await reader.readline()
        writer.close()


async def test_r09_a_star_is_found_in_any_spelling_and_the_exact_name_wins(
    upstream: EchoUpstream, tmp_path: Path
):
    authority = Authority(tmp_path)
    first = authority.leaf("first.example.org", stem="first")
    star = authority.leaf("*.example.com", stem="star")
    exact = authority.leaf("exact.example.com", stem="exact")
    async with proxy(config(upstream, first, star, exact), insecure=False) as running:
        for name, shown in (
            ("any.example.com", "*.example.com"),
            ("ANY.Example.COM", "*.example.com"),
            ("EXACT.example.com", "exact.example.com"),
            ("First.Example.Org", "first.example.org"),
            ("other.example.net", "first.example.org"),
        ):
            assert await served(running, authority, name) == [shown], name


async def goes_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> bool:
    """Whether an open connection serves a request without being asked to leave."""
    writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in head
    body = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    await reader.readexactly(body)
    return b"connection: close" not in head.lower()


async def lives(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Whether an open connection still serves requests."""
    try:
        return await goes_on(reader, writer, "a.example.com")
    except (asyncio.IncompleteReadError, ConnectionError):
        return False


async def test_certificates_are_replaced_one_by_one_and_connections_for_others_live_on(
    upstream: EchoUpstream, tmp_path: Path
):
    authority = Authority(tmp_path)
    a = authority.leaf("a.example.com", stem="a")
    b = authority.leaf("b.example.com", stem="b")
    draining = "listener_manager.total_filter_chains_draining"
    async with proxy(config(upstream, a, b), insecure=False) as running:
        for_a = await open_tls(running, authority, "a.example.com")
        for_b = await open_tls(running, authority, "b.example.com")
        a_fresh = authority.leaf("a.example.com", "new-a.example.com", stem="a2")
        b_fresh = authority.leaf("b.example.com", "new-b.example.com", stem="b2")
        for leaves, name, chains in (
            ((a, b_fresh), "b.example.com", 1),
            ((a_fresh, b_fresh), "a.example.com", 3),  # the first one also serves other names
        ):
            await running.push(config(upstream, *leaves))
            assert f"new-{name}" in await served(running, authority, name)
            assert await running.admin.stats(rf"^{draining}$") == {draining: chains}
            if name == "b.example.com":
                assert await goes_on(*for_a, "a.example.com")
        later = authority.leaf("later.example.com", stem="later")
        fresh_b = await open_tls(running, authority, "b.example.com")
        await running.push(config(upstream, a_fresh, b_fresh, later))
        assert await served(running, authority, "later.example.com") == ["later.example.com"]
        assert await running.admin.stats(rf"^{draining}$") == {draining: 3}
        assert await goes_on(*fresh_b, "b.example.com")
        for _, writer in (for_a, for_b, fresh_b):
            writer.close()


async def test_one_of_many_certificates_is_replaced_and_most_connections_live_on(
    upstream: EchoUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """More certificates than filter chains: each name gets its own, and few share a fate."""
    monkeypatch.setattr(envoy_process, "DRAIN_TIME_S", 1)
    authority = Authority(tmp_path)
    names = [f"n{number}.example.com" for number in range(40)]
    leaves = [authority.leaf(name, stem=name) for name in names]
    async with proxy(config(upstream, *leaves), insecure=False) as running:
        for name in names[::7]:
            assert await served(running, authority, name) == [name]
        assert await served(running, authority, "other.example.com") == names[:1]
        held = {name: await open_tls(running, authority, name) for name in names}
        leaves[7] = authority.leaf(names[7], "new.example.com", stem="fresh")
        await running.push(config(upstream, *leaves))
        assert await served(running, authority, names[7]) == [names[7], "new.example.com"]
        async with asyncio.timeout(20):
            assert await held[names[7]][0].read() == b""  # the drain is over
        cut = [name for name in names if not await lives(*held[name])]
        assert names[7] in cut
        assert len(cut) < 10
        for _, writer in held.values():
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


def in_pieces(hello: bytes, size: int) -> list[bytes]:
    """A ClientHello in TLS records of at most `size` bytes each (RFC 8446, section 5.1)."""
    kind, body = hello[:3], hello[5 : 5 + int.from_bytes(hello[3:5])]
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return [kind + len(part).to_bytes(2) + part for part in parts]


async def over_pieces(
    running: Proxy, context: ssl.SSLContext, name: str, size: int
) -> tuple[bytes, list[str]]:
    """The answer to a request after a fragmented ClientHello, and the names of the certificate.

    No answer is empty.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    hello_sent, request_sent, answer = False, False, b""
    names: list[str] = []
    async with asyncio.timeout(60):
        while True:
            try:
                if not request_sent:
                    tls.do_handshake()
                    names = names_of(tls.getpeercert() or {})
                    tls.write(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                    request_sent = True
                answer += tls.read(65536)
                break
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                break
            data = outgoing.read()
            for part in [data] if hello_sent else in_pieces(data, size):
                writer.write(part)
                await writer.drain()
            hello_sent = True
            received = await reader.read(65536)
            if not received:
                break
            incoming.write(received)
    writer.close()
    return answer, names


async def test_r57_a_fragmented_hello_gets_around_no_client_certificate(
    upstream: EchoUpstream, tmp_path: Path
):
    authority, clients = Authority(tmp_path / "server"), Authority(tmp_path / "clients")
    mine = clients.leaf("me")
    a = authority.leaf("a.example.com", stem="a")
    b = authority.leaf("b.example.com", stem="b")
    anonymous, known = context_of(authority), context_of(authority)
    known.load_cert_chain(mine.certificate, mine.key)
    keys = config(upstream, a, b)
    async with proxy(keys, insecure=False) as running:
        await running.push(
            with_client_authority(running, keys, clients, MTLSEnforcement.REJECT_CONNECTION)
        )
        for name in ("a.example.com", "b.example.com"):
            for size in (7, 100):
                answer, names = await over_pieces(running, known, name, size)
                assert answer.startswith(b"HTTP/1.1 200 ")
                assert names == [name]
        before, asked = upstream.received, len(running.authorize.requests)
        for name in ("a.example.com", "b.example.com"):
            for size in (7, 100):
                answer, _ = await over_pieces(running, anonymous, name, size)
                assert answer == b""
        assert upstream.received == before
        assert len(running.authorize.requests) == asked


async def test_the_redirect_listener_drops_the_port(upstream: EchoUpstream, tmp_path: Path):
    from tests.support.ports import free_ports  # noqa: PLC0415

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
