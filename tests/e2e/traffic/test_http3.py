"""HTTP/3 from a client that is not Envoy: what HTTP/1.1 and HTTP/2 get, and no more."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.client_pki import CLIENT, Issued
from tests.support.envoy_processes import envoy_of, memory_mib
from tests.support.http3 import Http3Error, http3
from tests.support.sign_in import sign_in
from tests.support.tls import Leaf
from tests.support.traffic import DOMAIN, Http2Connection, Product, Reply, https
from tests.support.traffic_upstreams import Application

pytestmark = pytest.mark.e2e

APP = f"app.{DOMAIN}"
USERS = f"users.{DOMAIN}"
HTML = [("accept", "text/html")]
ROOT = Issued.root()
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def made(application: Application) -> list[dict[str, Any]]:
    up = {"to": application.url, "pass_identity_headers": True}
    signed_in = {"allow_public_unauthenticated_access": False, "allow_any_authenticated_user": True}
    nobody = {"allow_public_unauthenticated_access": False, "allowed_users": ["nobody@example.com"]}
    return [
        https("app", **up),
        https("users", **up, **signed_in),
        https("nobody", **up, **nobody),
    ]


@pytest.fixture(scope="module")
def world(shared: Product, made: list[dict[str, Any]]) -> Iterator[Product]:
    shared.reload(made, codec_type="http3")
    yield shared
    shared.reload(made)


def announced(reply: Reply) -> int:
    """The UDP port that alt-svc leads to (RFC 7838)."""
    found = re.fullmatch(r'h3=":(\d+)"; ma=86400', reply.value("alt-svc") or "")
    assert found is not None, reply.headers
    return int(found.group(1))


async def test_alt_svc_leads_to_http3(world: Product) -> None:
    port = announced(world.get("app"))
    async with http3(port, world.authority.path, APP) as client:
        reply = await client.request("/a?b=c", host=APP)
        assert reply.seen["path"] == "/a?b=c"
        assert reply.arrived("x-forwarded-proto") == ["https"]
        assert reply.value("x-frame-options") == "SAMEORIGIN"
        forged = [("x-pomerium-claim-email", "forged")]
        assert (await client.request(host=APP, headers=forged)).arrived(forged[0][0]) == []


async def test_bodies_of_any_size_arrive(world: Product) -> None:
    async with http3(world.port, world.authority.path, APP) as client:
        for size in (0, 1, 70_000, MEGABYTE):
            reply = await client.request("/up", host=APP, method="POST", body=b"x" * size)
            assert (reply.status, reply.seen["body_size"]) == (200, size)
        reply = await client.request(f"/?size={6 * MEGABYTE}", host=APP)
        assert (reply.status, len(reply.body)) == (200, 6 * MEGABYTE)


async def test_requests_share_a_connection(world: Product) -> None:
    async with http3(world.port, world.authority.path, APP) as client, asyncio.TaskGroup() as group:
        asked = [group.create_task(client.request(f"/{n}", host=APP)) for n in range(30)]
    assert [task.result().seen["path"] for task in asked] == [f"/{n}" for n in range(30)]


async def test_policy_applies_as_over_http2(world: Product) -> None:
    with Http2Connection(world.port, world.client_tls("h2")) as older:
        async with http3(world.port, world.authority.path, APP) as client:
            for host in ("app", "nobody", "users", "unknown"):
                name = f"{host}.{DOMAIN}"
                over_http3 = await client.request(host=name)
                assert over_http3.status == older.request(host=name), host


async def test_signing_in_begins_and_holds_as_over_http2(world: Product) -> None:
    older = world.get("users", "/a?b", headers=HTML)
    async with http3(world.port, world.authority.path, USERS) as client:
        newer = await client.request("/a?b", host=USERS, headers=HTML)
        assert (newer.status, older.status) == (302, 302)
        targets = [urlsplit(reply.value("location") or "") for reply in (newer, older)]
        assert targets[0][:3] == targets[1][:3]
        assert targets[0].hostname == f"authenticate.{DOMAIN}"
        with world.browser("users") as browser:
            hops = await asyncio.to_thread(sign_in, browser, world.url("users"), "ada")
            assert hops[-1].status_code == 200, [(str(h.url)[:80], h.status_code) for h in hops]
            cookie = "; ".join(f"{each.name}={each.value}" for each in browser.cookies.jar)
        reply = await client.request(host=USERS, headers=[("cookie", cookie)])
        assert json.loads(reply.body)["method"] == "GET"
        assert reply.arrived("x-pomerium-jwt-assertion")
        assert "_pomerium" not in "".join(reply.arrived("cookie"))
        nobody = f"nobody.{DOMAIN}"
        assert (await client.request(host=nobody, headers=[("cookie", cookie)])).status == 403


@pytest.mark.parametrize(("announced", "body"), [("5", None), ("5", b"abc"), ("2", b"abcd")])
async def test_r53_a_length_that_is_not_kept_to_reaches_no_upstream(
    world: Product, application: Application, announced: str, body: bytes | None
) -> None:
    """Passed on, the next request on that connection would be read as the body of this one."""
    lie = [("content-length", announced)]
    before = application.received
    async with http3(world.port, world.authority.path, APP) as client:
        try:
            reply = await client.request("/liar", host=APP, method="POST", headers=lie, body=body)
        except Http3Error:
            pass
        else:
            assert reply.status in {400, 502, 503}, reply
    if body is None:  # where it shows before anything could be passed on
        assert application.received == before
    async with http3(world.port, world.authority.path, APP) as after:
        seen = (await after.request("/after", host=APP)).seen
    assert (seen["path"], seen["body_size"]) == ("/after", 0)
    assert not [each for each in application.seen if each.target == "/liar" and each.whole]


async def test_r55_a_small_header_block_that_means_a_hundred_megabytes_is_refused(
    world: Product, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One large field in QPACK's dynamic table, then a byte or two for each further copy of it."""
    envoy = envoy_of(world.stack)
    large = ("x-large", "v" * 3500)
    blocks: list[int] = []
    async with http3(world.port, world.authority.path, APP) as client:
        encode = client._http._encode_headers

        def recorded(stream: int, headers: Any) -> bytes:
            block = encode(stream, headers)
            blocks.append(len(block))
            return block

        monkeypatch.setattr(client._http, "_encode_headers", recorded)
        for _ in range(4):  # until the server has acknowledged the entry
            assert (await client.request(host=APP, headers=[large])).status == 200
        assert blocks[-1] < 1000
        before, memory = application.received, memory_mib(envoy)
        with contextlib.suppress(Http3Error):
            reply = await client.request(host=APP, headers=[large] * 30_000)
            assert reply.status == 431
        assert blocks[-1] < 200_000
        assert application.received == before
    assert memory_mib(envoy) - memory < 64
    async with http3(world.port, world.authority.path, APP) as after:
        assert (await after.request("/after", host=APP)).seen["path"] == "/after"
    assert envoy_of(world.stack) == envoy


async def test_a_client_certificate_is_asked_for(
    world: Product, made: list[dict[str, Any]], tmp_path: Path
) -> None:
    ada = ROOT.issue("ada", purposes=CLIENT)
    leaf = Leaf(tmp_path / "ada.pem", tmp_path / "ada.key")
    leaf.certificate.write_text(ada.pem)
    leaf.key.write_text(ada.key_pem)
    authority = tmp_path / "clients.pem"
    authority.write_text(ROOT.pem)
    known = world.client_tls()
    ada.load_into(known)
    mtls = {"ca_file": str(authority), "enforcement": "policy_with_default_deny"}
    world.reload(made, dial={"tls": known}, codec_type="http3", downstream_mtls=mtls)
    try:
        statuses = []
        for certificate in (None, leaf):
            async with http3(world.port, world.authority.path, APP, certificate) as client:
                statuses.append((await client.request(host=APP)).status)
        assert statuses == [495, 200]
    finally:
        world.reload(made, codec_type="http3")
