"""A relying party's side of the development identity provider, for its tests."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from gatehouse.cli.demo.provider_grants import Client
from gatehouse.cli.demo.smoke import choice_of

REDIRECT = "https://authenticate.localhost:8443/oauth2/callback"
SIGNED_OUT = "https://authenticate.localhost:8443/.pomerium/signed_out"
SECRET = "s3cret/with+odd characters:and%"
VERIFIER = "v" * 43
CHALLENGE = (
    base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode().rstrip("=")
)
CLIENT = Client("gatehouse", SECRET, frozenset({REDIRECT}), frozenset({SIGNED_OUT}))
OTHER = Client("other", "other-secret", frozenset({"https://other.localhost/cb"}), frozenset())

REQUEST: Mapping[str, str] = {
    "client_id": CLIENT.id,
    "redirect_uri": REDIRECT,
    "response_type": "code",
    "scope": "openid profile email offline_access",
    "state": "the-state",
    "nonce": "the-nonce",
    "code_challenge": CHALLENGE,
    "code_challenge_method": "S256",
}


@dataclass
class Party:
    """Talks to the provider as one client."""

    http: httpx.AsyncClient
    client: Client = field(default=CLIENT)

    async def authorize(self, **changes: str | None) -> httpx.Response:
        merged = {**REQUEST, "client_id": self.client.id, **changes}
        parameters = {name: value for name, value in merged.items() if value is not None}
        return await self.http.get("/authorize", params=parameters)

    async def choose(self, page: httpx.Response, email: str) -> dict[str, str]:
        """Press a button; what the redirect carries."""
        target, form = choice_of(page.text, str(page.url), email)
        return answered(await self.http.post(target, data=form))

    async def code(self, email: str = "grace@example.com", **changes: str | None) -> str:
        return (await self.choose(await self.authorize(**changes), email))["code"]

    async def token(self, **form: str) -> httpx.Response:
        credentials = {"client_id": self.client.id, "client_secret": self.client.secret}
        return await self.http.post("/token", data={**credentials, **form})

    async def redeem(self, code: str, **changes: str) -> httpx.Response:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": next(iter(self.client.redirect_uris)),
            "code_verifier": VERIFIER,
        }
        return await self.token(**{**form, **changes})

    async def refresh(self, refresh_token: str) -> httpx.Response:
        return await self.token(grant_type="refresh_token", refresh_token=refresh_token)

    async def userinfo(self, access_token: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {access_token}"}
        return await self.http.get("/userinfo", headers=headers)

    async def signed_in(self, email: str = "grace@example.com", **changes: str) -> dict[str, Any]:
        answer = await self.redeem(await self.code(email, **changes))
        assert answer.status_code == 200, answer.text
        tokens: dict[str, Any] = answer.json()
        return tokens


def answered(response: httpx.Response) -> dict[str, str]:
    """What a redirect to the client carries; asserts that it goes there."""
    assert response.status_code == 303, response.text
    target = response.headers["location"]
    assert target.startswith(f"{REDIRECT}?"), target
    return {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
