"""Tokens of the Kubernetes cluster around us: an API server over TLS that wants to see ours."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.errors import InvalidArgumentError, InvalidTokenError
from gatehouse.common.identity.errors import IdentityProviderError
from gatehouse.common.identity.http_client import http_client
from gatehouse.common.identity.kubernetes import (
    CLUSTER,
    ClusterTransport,
    cluster_access,
)
from gatehouse.common.identity.trusted_issuers import TrustedIssuers, TrustedIssuerSettings
from tests.support.identity import CLIENT_ID, Asked, HostileProvider, Reply
from tests.support.pki import Authority

ISSUER = "https://kubernetes.default.svc.cluster.local"
DISCOVERY = "/.well-known/openid-configuration"
KEYS = "/openid/v1/jwks"


class Cluster:
    """An API server, and the mounted directory of a pod."""

    def __init__(self, mount: Path, authority: Authority) -> None:
        self.mount = mount
        self.api = HostileProvider()
        self.api.issuer = ISSUER
        self.api.answers = {DISCOVERY: self._about_issuer, KEYS: self._keys}
        self.environ: dict[str, str] = {}
        (mount / "ca.crt").write_bytes(authority.ca_pem)
        self.show("first-token")

    def show(self, token: str) -> None:
        """What the kubelet does when a token is about to end."""
        self.token = token
        (self.mount / "token").write_text(f"{token}\n")

    def _is_known(self, asked: Asked) -> bool:
        return asked.headers.get("authorization") == f"Bearer {self.token}"

    def _about_issuer(self, asked: Asked) -> Reply:
        # Where its keys are said to be is out of reach, as it often is.
        document = {"issuer": ISSUER, "jwks_uri": "https://10.255.255.1/openid/v1/jwks"}
        return Reply.of(document) if self._is_known(asked) else Reply(401)

    def _keys(self, asked: Asked) -> Reply:
        return Reply.of({"keys": self.api.published}) if self._is_known(asked) else Reply(401)


@asynccontextmanager
async def trusting(tmp_path: Path) -> AsyncIterator[tuple[Cluster, TrustedIssuers]]:
    authority = Authority()
    cluster = Cluster(tmp_path, authority)
    pair = authority.issue("127.0.0.1")
    (tmp_path / "server.pem").write_bytes(pair.certificate_pem + pair.key_pem)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "server.pem")
    server = await asyncio.start_server(cluster.api.handle, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    cluster.environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(port)}
    access = cluster_access(cluster.environ, tmp_path)
    settings = TrustedIssuerSettings("k8s", CLUSTER, "", ("ES256",), (CLIENT_ID,))
    async with http_client(access.ca_pem) as http:
        transport = ClusterTransport(http, access)
        yield (
            cluster,
            TrustedIssuers([settings], http, SystemClock(), SystemRng(), cluster=transport),
        )
    server.close()
    await server.wait_closed()


async def test_a_token_of_the_cluster_holds(tmp_path: Path) -> None:
    async with trusting(tmp_path) as (cluster, issuers):
        token = await issuers.verify(cluster.api.id_token())
        assert (token.provider, token.subject) == ("k8s", "user-1")
        await issuers.verify(cluster.api.id_token())
        assert (cluster.api.count(DISCOVERY), cluster.api.count(KEYS)) == (1, 1)


async def test_others_do_not(tmp_path: Path) -> None:
    async with trusting(tmp_path) as (cluster, issuers):
        for changes in (
            {"iss": "https://elsewhere.example"},
            {"iss": CLUSTER},
            {"iss": None},
            {"iss": f"{ISSUER}/"},
            {"aud": "another"},
            {"exp": 1_000_000_000},
        ):
            cluster.api.claims_changes = changes
            with pytest.raises(InvalidTokenError):
                await issuers.verify(cluster.api.id_token())
        cluster.api.claims_changes = {}
        with pytest.raises(InvalidTokenError):
            await issuers.verify(cluster.api.id_token(), allowed={"other"})


async def test_the_token_shown_is_the_one_that_is_mounted_now(tmp_path: Path) -> None:
    async with trusting(tmp_path) as (cluster, issuers):
        cluster.show("second-token")
        await issuers.verify(cluster.api.id_token())
        assert cluster.api.asked[0].headers["authorization"] == "Bearer second-token"


async def test_an_api_server_that_does_not_answer_is_no_verdict(tmp_path: Path) -> None:
    async with trusting(tmp_path) as (cluster, issuers):
        cluster.api.answers[DISCOVERY] = Reply(403)
        with pytest.raises(IdentityProviderError, match="answered 403 about its issuer"):
            await issuers.verify(cluster.api.id_token())


async def test_another_authority_is_not_trusted(tmp_path: Path) -> None:
    async with trusting(tmp_path) as (cluster, _):
        (tmp_path / "ca.crt").write_bytes(Authority().ca_pem)
        access = cluster_access(cluster.environ, tmp_path)
        async with http_client(access.ca_pem) as http:
            with pytest.raises(IdentityProviderError):
                await ClusterTransport(http, access).get(access.discovery_url)
        assert cluster.api.asked == []


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "runs in no Kubernetes cluster"),
        ({"KUBERNETES_SERVICE_HOST": "a", "KUBERNETES_SERVICE_PORT": "x"}, "runs in no Kubernetes"),
        ({"KUBERNETES_SERVICE_HOST": "a", "KUBERNETES_SERVICE_PORT": "1"}, "no service account"),
    ],
)
def test_outside_a_cluster_it_cannot_be_used(
    tmp_path: Path, environ: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        cluster_access(environ, tmp_path)


def test_an_ipv6_address_is_bracketed(tmp_path: Path) -> None:
    for name in ("ca.crt", "token"):
        (tmp_path / name).write_text("x")
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    access = cluster_access(environ, tmp_path)
    assert access.keys_url == "https://[fd00::1]:443/openid/v1/jwks"
