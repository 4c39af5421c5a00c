"""The identity client against a provider that nobody here wrote."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.identity.errors import (
    GRANT_REFUSED,
    IdentityProviderError,
    IdentityRefusedError,
)
from gatehouse.common.identity.provider import Identity, Provider, make_provider
from tests.support.identity import (
    CLIENT_ID,
    REDIRECT_URI,
    approve,
    provider_mock,
    provider_settings,
)

ALICE = {
    "sub": "alice",
    "name": "Alice Example",
    "email": "alice@example.com",
    "email_verified": True,
    "groups": ["staff", "ops"],
    "org": {"team": "core"},
    "idp_id": "forged",
    "databroker_record_version": 99,
}
VERIFIER = base64.urlsafe_b64encode(bytes(range(32))).rstrip(b"=").decode()
CHALLENGE = (
    base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
)
NONCE = hashlib.sha256(VERIFIER.encode()).hexdigest()


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    with provider_mock("--require-nonce", "--user-claims", json.dumps(ALICE)) as url:
        yield url


@pytest.fixture
def provider(issuer: str, http: httpx.AsyncClient) -> Provider:
    return make_provider(provider_settings(issuer), http, SystemClock(), SystemRng())


async def _code(provider: Provider, http: httpx.AsyncClient, subject: str = "alice") -> str:
    url = await provider.authorization_url(
        redirect_uri=REDIRECT_URI, state="st&te", nonce=NONCE, code_challenge=CHALLENGE
    )
    callback = await approve(http, url, subject)
    assert callback["state"] == "st&te"
    return callback["code"]


async def _sign_in(provider: Provider, http: httpx.AsyncClient) -> Identity:
    return await provider.exchange(
        code=await _code(provider, http),
        redirect_uri=REDIRECT_URI,
        code_verifier=VERIFIER,
        nonce=NONCE,
    )


async def test_authorization_url(provider: Provider, issuer: str) -> None:
    url = await provider.authorization_url(
        redirect_uri=REDIRECT_URI, state="s", nonce="n", code_challenge="c"
    )
    assert url.startswith(f"{issuer}/oauth2/authorize?")
    assert parse_qs(urlsplit(url).query) == {
        "response_type": ["code"],
        "client_id": [CLIENT_ID],
        "redirect_uri": [REDIRECT_URI],
        "scope": ["openid profile email offline_access"],
        "state": ["s"],
        "nonce": ["n"],
        "code_challenge": ["c"],
        "code_challenge_method": ["S256"],
    }


async def test_sign_in(provider: Provider, http: httpx.AsyncClient, issuer: str) -> None:
    identity = await _sign_in(provider, http)
    assert identity.user_id == identity.subject == "alice"
    assert (identity.name, identity.email) == ("Alice Example", "alice@example.com")
    assert identity.claims["groups"] == ["staff", "ops"]
    assert identity.claims["org.team"] == ["core"]
    assert identity.claims["idp_id"] == ["forged"]  # data like any other, and nothing more
    assert identity.claims["iss"] == [issuer]
    assert "iss" not in identity.user_claims
    assert "nonce" not in identity.user_claims
    assert identity.user_claims["sub"] == ["alice"]
    now = SystemClock().now_s()
    assert identity.id_token is not None
    assert identity.id_token.issuer == issuer
    assert identity.id_token.subject == "alice"
    assert identity.id_token.expires_at_s == pytest.approx(now + 3600, abs=30)
    assert identity.id_token.issued_at_s == pytest.approx(now, abs=30)
    assert identity.tokens.refresh_token
    assert identity.tokens.expires_at_s is not None
    assert identity.tokens.access_token not in repr(identity)
    assert identity.id_token.raw not in repr(identity)


async def test_refresh(provider: Provider, http: httpx.AsyncClient) -> None:
    identity = await _sign_in(provider, http)
    refreshed = await provider.refresh(identity.tokens.refresh_token, subject="alice")
    assert refreshed.tokens.access_token != identity.tokens.access_token
    assert refreshed.tokens.refresh_token
    assert refreshed.problem is None
    assert refreshed.claims["groups"] == ["staff", "ops"]
    assert not {"iss", "sub", "exp", "iat"} & set(refreshed.claims)
    assert refreshed.email == "alice@example.com"
    with pytest.raises(IdentityRefusedError):
        await provider.refresh(refreshed.tokens.refresh_token, subject="someone-else")


async def test_userinfo(provider: Provider, http: httpx.AsyncClient) -> None:
    identity = await _sign_in(provider, http)
    claims = await provider.userinfo(identity.tokens.access_token, subject="alice")
    assert claims["email"] == "alice@example.com"
    with pytest.raises(IdentityRefusedError):
        await provider.userinfo(identity.tokens.access_token, subject="bob")
    # the mock answers 400 access_denied here, which says nothing certain about the token
    with pytest.raises(IdentityProviderError):
        await provider.userinfo("unknown-token", subject="alice")


async def test_r32_a_code_works_once(provider: Provider, http: httpx.AsyncClient) -> None:
    code = await _code(provider, http)
    await provider.exchange(
        code=code, redirect_uri=REDIRECT_URI, code_verifier=VERIFIER, nonce=NONCE
    )
    with pytest.raises(IdentityRefusedError) as caught:
        await provider.exchange(
            code=code, redirect_uri=REDIRECT_URI, code_verifier=VERIFIER, nonce=NONCE
        )
    assert caught.value.reason == GRANT_REFUSED


async def test_r32_a_code_of_another_login_is_refused(
    provider: Provider, http: httpx.AsyncClient
) -> None:
    """The nonce of the browser's own login does not match (code injection)."""
    code = await _code(provider, http)
    with pytest.raises(IdentityRefusedError, match="nonce"):
        await provider.exchange(
            code=code, redirect_uri=REDIRECT_URI, code_verifier=VERIFIER, nonce="other"
        )


async def test_bad_code_and_bad_refresh_token_are_refusals(provider: Provider) -> None:
    for code in ("", "nonsense", "a" * 5000, "ü\x00"):
        with pytest.raises(IdentityRefusedError):
            await provider.exchange(
                code=code, redirect_uri=REDIRECT_URI, code_verifier=VERIFIER, nonce=NONCE
            )
    for token in ("", "nonsense"):
        with pytest.raises(IdentityRefusedError) as caught:
            await provider.refresh(token, subject="alice")
        assert caught.value.ends_session


async def test_sign_out(provider: Provider, issuer: str) -> None:
    url = await provider.end_session_url(
        id_token_hint="raw.id.token", post_logout_redirect_uri="https://a/.pomerium/signed_out"
    )
    assert url is not None
    assert url.startswith(f"{issuer}/oauth2/end_session?")
    assert parse_qs(urlsplit(url).query) == {
        "id_token_hint": ["raw.id.token"],
        "client_id": [CLIENT_ID],
        "post_logout_redirect_uri": ["https://a/.pomerium/signed_out"],
    }
    assert await provider.revoke(access_token="a", refresh_token="r") is False


async def test_registered_clients_authenticate_either_way(http: httpx.AsyncClient) -> None:
    with provider_mock("--require-registration") as issuer:
        for method in ("client_secret_basic", "client_secret_post"):
            registered = await http.post(
                f"{issuer}/oauth2/clients",
                json={"redirect_uris": [REDIRECT_URI], "token_endpoint_auth_method": method},
            )
            client = registered.json()
            settings = provider_settings(
                issuer, client_id=client["client_id"], client_secret=client["client_secret"]
            )
            provider = make_provider(settings, http, SystemClock(), SystemRng())
            identity = await _sign_in(provider, http)
            assert identity.user_id == "alice"
            if method == "client_secret_basic":  # all that the mock takes for a refresh
                refreshed = await provider.refresh(identity.tokens.refresh_token, subject="alice")
                assert refreshed.tokens.access_token
