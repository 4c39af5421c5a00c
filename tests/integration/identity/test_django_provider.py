"""The identity client, and a whole sign-in, against a second provider that nobody here wrote."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.databroker.records import unpack
from gatehouse.common.identity.errors import (
    GRANT_REFUSED,
    MISCONFIGURED,
    IdentityProviderError,
    IdentityRefusedError,
)
from gatehouse.common.identity.provider import Identity, Provider, make_provider
from gatehouse.common.ids import SESSION
from gatehouse.common.session.handle import decode_handle
from gatehouse.pb.session_pb2 import Session
from tests.support.django_provider import (
    CLIENTS,
    EMAIL,
    REDIRECT_URI,
    SIGNED_OUT,
    django_provider,
    visit,
)
from tests.support.identity import provider_settings
from tests.support.sign_in import query_of
from tests.support.sign_in_world import running_world
from tests.support.web_settings import APP, AUTHENTICATE, SHARED, provider, route, settings

SCOPES = ("openid", "profile", "email", "groups")
VERIFIER = "v" * 43
CHALLENGE = (
    base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
)


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    with django_provider() as url:
        yield url


@pytest.fixture
async def browser() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False) as client:
        yield client


def client_of(issuer: str, http: httpx.AsyncClient, client_id: str, **changes: str) -> Provider:
    made = provider_settings(
        issuer, client_id=client_id, client_secret=CLIENTS[client_id], scopes=SCOPES
    )
    return make_provider(
        dataclasses.replace(made, **changes),  # type: ignore[arg-type]
        http,
        SystemClock(),
        SystemRng(),
    )


async def code_of(client: Provider, browser: httpx.AsyncClient) -> str:
    url = await client.authorization_url(
        redirect_uri=REDIRECT_URI, state="s", nonce="n0nce", code_challenge=CHALLENGE
    )
    back = query_of(await visit(browser, url))
    assert back["state"] == "s"
    return back["code"]


async def redeem(client: Provider, code: str, *, verifier: str = VERIFIER) -> Identity:
    return await client.exchange(
        code=code, redirect_uri=REDIRECT_URI, code_verifier=verifier, nonce="n0nce"
    )


@pytest.mark.parametrize("client_id", CLIENTS)
async def test_sign_in_refresh_and_sign_out(
    issuer: str, http: httpx.AsyncClient, browser: httpx.AsyncClient, client_id: str
) -> None:
    client = client_of(issuer, http, client_id)
    identity = await redeem(client, await code_of(client, browser))
    assert (identity.name, identity.email) == ("Ada Example", EMAIL)
    assert identity.claims["groups"] == ["staff"]
    first = identity.tokens.refresh_token
    refreshed = await client.refresh(first, subject=identity.subject)
    assert refreshed.problem is None
    assert refreshed.tokens.refresh_token != first
    assert refreshed.claims["groups"] == ["staff"]
    claims = await client.userinfo(refreshed.tokens.access_token, subject=identity.subject)
    assert claims["email"] == EMAIL
    with pytest.raises(IdentityRefusedError) as caught:
        await client.userinfo("unknown", subject=identity.subject)
    assert caught.value.ends_session
    with pytest.raises(IdentityRefusedError):
        await client.refresh(refreshed.tokens.refresh_token, subject="somebody-else")
    assert identity.id_token is not None
    url = await client.end_session_url(
        id_token_hint=identity.id_token.raw, post_logout_redirect_uri=SIGNED_OUT
    )
    assert url is not None
    assert await visit(browser, url) == SIGNED_OUT


async def test_r32_what_does_not_belong_together_is_refused(
    issuer: str, http: httpx.AsyncClient, browser: httpx.AsyncClient
) -> None:
    client = client_of(issuer, http, "client-basic")
    other = client_of(issuer, http, "client-post")
    for attempt in (redeem(client, await code_of(client, browser), verifier="x" * 43),
                    redeem(other, await code_of(client, browser)),
                    redeem(client, "nonsense")):  # fmt: skip
        with pytest.raises(IdentityRefusedError) as caught:
            await attempt
        assert caught.value.reason == GRANT_REFUSED
    code = await code_of(client, browser)
    await redeem(client, code)
    with pytest.raises(IdentityRefusedError):
        await redeem(client, code)
    with pytest.raises(IdentityRefusedError) as caught:
        await client.refresh("nonsense", subject="1")
    assert caught.value.ends_session
    wrong = client_of(issuer, http, "client-basic", client_secret="wrong")
    with pytest.raises(IdentityProviderError) as failed:
        await redeem(wrong, await code_of(client, browser))
    assert failed.value.reason == MISCONFIGURED


async def test_a_person_signs_in_to_an_application(issuer: str) -> None:
    idp = provider(
        issuer,
        client_id="client-basic",
        client_secret=CLIENTS["client-basic"],
        scopes=SCOPES,
    )
    made = settings(idp=idp, routes=(route(),), databroker_storage_type="memory")
    async with running_world(made) as world:
        browser, there = world.browser(), httpx.AsyncClient(trust_env=False)
        async with there:
            leave = await browser.get(world.ask_to_sign_in(browser))
            declined = await visit(there, leave.headers["location"], button="no button")
            answer = await browser.get(declined)
            assert answer.status_code == 401
            assert "access_denied" in answer.text
            leave = await browser.get(world.ask_to_sign_in(browser))
            arrive = await browser.get(await visit(there, leave.headers["location"]))
            assert arrive.status_code == 302, arrive.text
            await browser.get(arrive.headers["location"])
            token = browser.cookies.get("_pomerium", domain=APP)
            assert token is not None
            handle = decode_handle(token, (SHARED,), allowed_uses=frozenset({"route"}))
            record = await world.databroker.get(SESSION, handle.session_id)
            assert record is not None
            session = unpack(record, Session)
            assert [one.string_value for one in session.claims["groups"].values] == ["staff"]
            first = await browser.get(f"https://{APP}/.pomerium/sign_out")
            second = await browser.get(first.headers["location"])
            last = await visit(there, second.headers["location"])
            assert last == f"{AUTHENTICATE}/.pomerium/signed_out"
            assert "You are signed out" in (await browser.get(last)).text
