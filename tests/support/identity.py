"""Identity providers to test against: one nobody here wrote, and one that signs what it is told.

`provider_mock` runs `oidc-provider-mock` as a process of its own. `HostileProvider` speaks raw HTTP
on loopback, so that a test can decide about every byte of an answer.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from gatehouse.common.clock import SystemClock
from gatehouse.common.config.resolved import IdentityProviderSettings
from gatehouse.common.identity.errors import IdentityProviderError, IdentityRefusedError
from gatehouse.common.identity.provider import Identity, Provider
from gatehouse.common.identity.tokens import IdToken
from tests.support.ports import free_ports

CLIENT_ID: Final = "gatehouse"
CLIENT_SECRET: Final = "s3cret with : and ü"
REDIRECT_URI: Final = "https://authenticate.localhost/oauth2/callback"
NONCE: Final = "n0nce"
ACCESS_TOKEN: Final = "access-token"
START_TIMEOUT_S: Final = 30.0


def id_token_of(identity: Identity) -> IdToken:
    """The ID token of a sign-in at a provider that gives one."""
    assert identity.id_token is not None
    return identity.id_token


def provider_settings(url: str, **changes: Any) -> IdentityProviderSettings:
    """Settings of a generic provider at `url`."""
    values: dict[str, Any] = {
        "id": "idp",
        "type": "oidc",
        "url": url,
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
        "scopes": (),
        "request_params": None,
    }
    return IdentityProviderSettings(**{**values, **changes})


@contextlib.contextmanager
def provider_mock(*arguments: str) -> Iterator[str]:
    """Run `oidc-provider-mock` with these command-line arguments; gives its issuer URL."""
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "oidc_provider_mock", "--port", str(port), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    issuer = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                httpx.get(f"{issuer}/jwks", timeout=1, trust_env=False).raise_for_status()
                break
            except httpx.HTTPError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield issuer
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def approve(http: httpx.AsyncClient, authorization_url: str, subject: str) -> dict[str, str]:
    """Answer the mock's form as the user `subject`; gives the callback's query parameters."""
    response = await http.post(authorization_url, data={"sub": subject}, follow_redirects=False)
    assert response.status_code == 302, response.text
    query = parse_qs(urlsplit(response.headers["location"]).query)
    return {name: values[0] for name, values in query.items()}


async def sign_in(client: Provider) -> Identity:
    """Redeem a code at a hostile provider, which takes any."""
    return await client.exchange(
        code="code", redirect_uri=REDIRECT_URI, code_verifier="verifier", nonce=NONCE
    )


async def refused(client: Provider) -> IdentityRefusedError:
    """The refusal that a sign-in must end in."""
    with pytest.raises(IdentityRefusedError) as caught:
        await sign_in(client)
    return caught.value


async def failed(client: Provider) -> IdentityProviderError:
    """The failure, no refusal, that a sign-in must end in."""
    with pytest.raises(IdentityProviderError) as caught:
        await sign_in(client)
    return caught.value


@dataclass(frozen=True)
class Asked:
    """A request that the hostile provider got."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        """The decoded form body."""
        return {name: values[0] for name, values in parse_qs(self.body.decode()).items()}


@dataclass(frozen=True)
class Reply:
    """An answer of the hostile provider."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    drip: bool = False  # send one byte at a time and never finish
    cut: bool = False  # close the connection without a word

    @classmethod
    def of(cls, value: object, status: int = 200, **headers: str) -> Reply:
        """A JSON answer."""
        complete = {
            "Content-Type": "application/json",
            **{name.replace("_", "-"): text for name, text in headers.items()},
        }
        return cls(status, json.dumps(value).encode(), complete)


Answer = Reply | Callable[[Asked], Reply]


def key_pair(algorithm: str, kid: str | None = "key-1") -> tuple[Any, dict[str, Any]]:
    """A new private key for the algorithm, and its public JWK."""
    curves: dict[str, ec.EllipticCurve] = {
        "ES256": ec.SECP256R1(),
        "ES384": ec.SECP384R1(),
        "ES512": ec.SECP521R1(),
    }
    private: Any
    if algorithm in curves:
        private = ec.generate_private_key(curves[algorithm])
    elif algorithm == "EdDSA":
        private = ed25519.Ed25519PrivateKey.generate()
    else:
        private = rsa.generate_private_key(65537, 2048)
    handler = jwt.get_algorithm_by_name(algorithm)
    jwk: dict[str, Any] = dict(handler.to_jwk(private.public_key(), as_dict=True))
    jwk.pop("key_ops", None)
    return private, {**jwk, **({} if kid is None else {"kid": kid})}


def at_hash(access_token: str, digest: str = "sha256") -> str:
    """The access token hash of OpenID Connect Core 3.1.3.6."""
    half = hashlib.new(digest, access_token.encode()).digest()
    return base64.urlsafe_b64encode(half[: len(half) // 2]).rstrip(b"=").decode()


class HostileProvider:
    """A provider whose every answer a test may replace, by path, in `answers`."""

    def __init__(self) -> None:
        self.issuer = ""
        self.algorithm = "ES256"
        self.private, public = key_pair("ES256")
        self.published: list[dict[str, Any]] = [public]
        self.metadata_changes: dict[str, Any] = {}
        self.claims_changes: dict[str, Any] = {}
        self.header_changes: dict[str, Any] = {}
        self.token_changes: dict[str, Any] = {}
        self.userinfo_changes: dict[str, Any] = {}
        self.answers: dict[str, Answer] = {}
        self.asked: list[Asked] = []

    def count(self, path: str) -> int:
        """How often a path was asked for."""
        return sum(1 for one in self.asked if one.path == path)

    def metadata(self) -> dict[str, Any]:
        """The discovery document; a change to None removes a member."""
        return _changed(
            {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize?tenant=t",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/jwks",
                "userinfo_endpoint": f"{self.issuer}/userinfo",
                "revocation_endpoint": f"{self.issuer}/revoke",
                "end_session_endpoint": f"{self.issuer}/logout?x=1",
                "id_token_signing_alg_values_supported": ["ES256", "RS256", "HS256", "none"],
                "code_challenge_methods_supported": ["plain", "S256"],
            },
            self.metadata_changes,
        )

    def id_claims(self) -> dict[str, Any]:
        """Claims of the next ID token; a change to None removes one."""
        now = int(SystemClock().now_s())
        return _changed(
            {
                "iss": self.issuer,
                "sub": "user-1",
                "aud": CLIENT_ID,
                "exp": now + 300,
                "iat": now,
                "nonce": NONCE,
                "at_hash": at_hash(ACCESS_TOKEN),
                "email": "user@example.com",
                "name": "From Token",
            },
            self.claims_changes,
        )

    def id_token(self) -> str:
        """A signed ID token."""
        headers = _changed({"kid": "key-1"}, self.header_changes)
        algorithm = headers.pop("alg", self.algorithm)
        with_none = {name: value for name, value in headers.items() if value is not None}
        return jwt.encode(self.id_claims(), self.private, algorithm=algorithm, headers=with_none)

    def tokens(self) -> dict[str, Any]:
        """The token response."""
        return _changed(
            {
                "access_token": ACCESS_TOKEN,
                "token_type": "bearer",
                "expires_in": 3600,
                "refresh_token": "refresh-token",
                "id_token": self.id_token(),
            },
            self.token_changes,
        )

    def _answer(self, asked: Asked) -> Reply:
        special = self.answers.get(asked.path)
        if special is not None:
            return special if isinstance(special, Reply) else special(asked)
        match asked.path:
            case "/.well-known/openid-configuration":
                return Reply.of(self.metadata())
            case "/jwks":
                return Reply.of({"keys": self.published})
            case "/token":
                return Reply.of(self.tokens())
            case "/userinfo":
                given = {"sub": "user-1", "name": "From Userinfo", "groups": ["a", "b"]}
                return Reply.of(_changed(given, self.userinfo_changes))
            case "/revoke":
                return Reply()
            case _:
                return Reply(404)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection with one request."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            request_line, *lines = head.rstrip("\r\n").split("\r\n")
            method, target, _ = request_line.split(" ")
            headers = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines)
            }
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            asked = Asked(method, target.partition("?")[0], headers, body)
            self.asked.append(asked)
            await _write(self._answer(asked), reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def hostile_provider() -> AsyncIterator[HostileProvider]:
    """A hostile provider on an ephemeral loopback port; well-behaved until told otherwise."""
    provider = HostileProvider()
    server = await asyncio.start_server(provider.handle, "127.0.0.1", 0)
    provider.issuer = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield provider
    finally:
        server.close()
        await server.wait_closed()


async def _write(reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if reply.cut:
        return
    if reply.drip:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
        gone = asyncio.ensure_future(reader.read())
        while not gone.done():  # until the client gives up
            writer.write(b" ")
            await asyncio.wait({gone}, timeout=0.02)
        return
    lines = [f"HTTP/1.1 {reply.status} X", f"Content-Length: {len(reply.body)}"]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    lines.append("Connection: close")
    writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + reply.body)
    await writer.drain()


def _changed(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**values, **changes}
    return {name: value for name, value in merged.items() if value is not None}
