"""What the identity client sends, how it authenticates, and what ends a session on refresh."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.identity.errors import (
    MISCONFIGURED,
    SUBJECT_CHANGED,
    IdentityProviderError,
    IdentityRefusedError,
)
from gatehouse.common.identity.provider import Provider, make_provider
from tests.support.identity import (
    CLIENT_ID,
    CLIENT_SECRET,
    NONCE,
    REDIRECT_URI,
    Asked,
    HostileProvider,
    Reply,
    failed,
    provider_settings,
    refused,
    sign_in,
)

# --- client authentication ---


async def test_body_parameters_are_found_out_once(client: Provider, idp: HostileProvider) -> None:
    def only_post(asked: Asked) -> Reply:
        if "authorization" in asked.headers:
            return Reply.of({"error": "invalid_client"}, 401)
        assert asked.form["client_secret"] == CLIENT_SECRET
        return Reply.of(idp.tokens())

    idp.answers["/token"] = only_post
    for _ in range(3):
        await sign_in(client)
    with_basic = [
        one for one in idp.asked if one.path == "/token" and "authorization" in one.headers
    ]
    assert (len(with_basic), idp.count("/token")) == (1, 4)


async def test_the_discovery_document_may_name_the_way(
    client: Provider, idp: HostileProvider
) -> None:
    idp.metadata_changes = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    await sign_in(client)
    (asked,) = [one for one in idp.asked if one.path == "/token"]
    assert asked.form["client_secret"] == CLIENT_SECRET
    assert "authorization" not in asked.headers


async def test_a_public_client_sends_no_secret(
    idp: HostileProvider, http: httpx.AsyncClient
) -> None:
    settings = provider_settings(idp.issuer, client_secret="")
    await sign_in(make_provider(settings, http, SystemClock(), SystemRng()))
    (asked,) = [one for one in idp.asked if one.path == "/token"]
    assert asked.form["client_id"] == CLIENT_ID
    assert "client_secret" not in asked.form
    assert "authorization" not in asked.headers


async def test_a_wrong_secret_is_no_refusal_of_the_user(
    client: Provider, idp: HostileProvider
) -> None:
    idp.answers["/token"] = Reply.of({"error": "invalid_client"}, 401)
    assert (await failed(client)).reason == MISCONFIGURED
    idp.answers["/token"] = Reply.of({"error": "invalid_grant"}, 400)
    before = idp.count("/token")
    await refused(client)
    assert idp.count("/token") == before + 1  # a code is not presented twice


# --- refresh ---


async def test_refresh_keeps_or_replaces_the_refresh_token(
    client: Provider, idp: HostileProvider
) -> None:
    idp.claims_changes = {"nonce": None}
    refreshed = await client.refresh("old", subject="user-1")
    assert refreshed.tokens.refresh_token == "refresh-token"
    assert refreshed.id_token is not None
    idp.token_changes = {"refresh_token": None, "id_token": None}
    refreshed = await client.refresh("old", subject="user-1")
    assert refreshed.tokens.refresh_token == "old"
    assert refreshed.id_token is None
    assert refreshed.claims["groups"] == ["a", "b"]
    forms = [one.form for one in idp.asked if one.path == "/token"]
    assert forms == [{"grant_type": "refresh_token", "refresh_token": "old"}] * 2


async def test_a_new_refresh_token_is_not_lost_when_userinfo_fails(
    client: Provider, idp: HostileProvider
) -> None:
    idp.answers["/userinfo"] = Reply(503)
    refreshed = await client.refresh("old", subject="user-1")
    assert refreshed.tokens.refresh_token == "refresh-token"
    assert isinstance(refreshed.problem, IdentityProviderError)
    assert refreshed.claims == {}
    del idp.answers["/userinfo"]
    idp.claims_changes = {"iss": "https://evil.example"}
    refreshed = await client.refresh("old", subject="user-1")
    assert refreshed.id_token is None
    assert isinstance(refreshed.problem, IdentityRefusedError)
    assert not refreshed.problem.ends_session


@pytest.mark.parametrize(
    "where", [("claims_changes",), ("userinfo_changes",), ("claims_changes", "userinfo_changes")]
)
async def test_refresh_for_another_subject_ends_the_session(
    client: Provider, idp: HostileProvider, where: tuple[str, ...]
) -> None:
    for one in where:
        setattr(idp, one, {"sub": "user-2"})
    with pytest.raises(IdentityRefusedError) as caught:
        await client.refresh("old", subject="user-1")
    assert (caught.value.reason, caught.value.ends_session) == (SUBJECT_CHANGED, True)


@pytest.mark.parametrize(
    ("reply", "ends"),
    [
        (Reply.of({"error": "invalid_grant"}, 400), True),
        (Reply.of({"error": "unauthorized_client"}, 400), True),
        (Reply.of({"error": "invalid_client"}, 401), False),
        (Reply(503), False),
        (Reply.of({}, 429, Retry_After="86400"), False),
        (Reply(200, b"<html>"), False),
    ],
)
async def test_which_refresh_failures_end_a_session(
    client: Provider, idp: HostileProvider, reply: Reply, ends: bool
) -> None:
    idp.answers["/token"] = reply
    with pytest.raises(IdentityRefusedError if ends else IdentityProviderError) as caught:
        await client.refresh("old", subject="user-1")
    if isinstance(caught.value, IdentityRefusedError):
        assert caught.value.ends_session
    elif reply.status == 429:
        assert isinstance(caught.value, IdentityProviderError)
        assert caught.value.retry_after_s == 3600  # bounded


# --- the rest ---


async def test_revocation_starts_with_the_refresh_token(
    client: Provider, idp: HostileProvider
) -> None:
    assert await client.revoke(access_token="a", refresh_token="r")
    forms = [one.form for one in idp.asked if one.path == "/revoke"]
    assert forms == [
        {"token": "r", "token_type_hint": "refresh_token"},
        {"token": "a", "token_type_hint": "access_token"},
    ]
    idp.answers["/revoke"] = Reply(503)
    with pytest.raises(IdentityProviderError):
        await client.revoke(access_token="a", refresh_token="")


async def test_endpoints_keep_their_own_query(client: Provider) -> None:
    url = await client.authorization_url(
        redirect_uri=REDIRECT_URI, state="s", nonce="n", code_challenge=None
    )
    query = parse_qs(urlsplit(url).query)
    assert query["tenant"] == ["t"]
    assert "code_challenge" not in query
    assert "code_challenge_method" not in query
    url = (
        await client.end_session_url(id_token_hint="", post_logout_redirect_uri="https://a/") or ""
    )
    assert parse_qs(urlsplit(url).query) == {
        "x": ["1"],
        "client_id": [CLIENT_ID],
        "post_logout_redirect_uri": ["https://a/"],
    }


async def test_configured_parameters_never_replace_the_protocols_own(
    idp: HostileProvider, http: httpx.AsyncClient
) -> None:
    params = {
        "prompt": "login", "state": "x", "redirect_uri": "https://evil.example", "nonce": "x",
        "code_challenge": "x", "code_challenge_method": "plain", "client_id": "x", "scope": "x",
        "response_type": "token", "request": "x", "request_uri": "x",
    }  # fmt: skip
    settings = provider_settings(idp.issuer, request_params=params, scopes=("openid", "groups"))
    client = make_provider(settings, http, SystemClock(), SystemRng())
    for challenge in ("challenge", None):
        url = await client.authorization_url(
            redirect_uri=REDIRECT_URI, state="s", nonce="n", code_challenge=challenge
        )
        query = parse_qs(urlsplit(url).query)
        expected = {
            "tenant": ["t"], "prompt": ["login"], "state": ["s"], "redirect_uri": [REDIRECT_URI],
            "nonce": ["n"], "client_id": [CLIENT_ID], "scope": ["openid groups"],
            "response_type": ["code"],
        }  # fmt: skip
        if challenge is not None:
            expected |= {"code_challenge": [challenge], "code_challenge_method": ["S256"]}
        assert query == expected


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"type": "nonsense"}, "unknown"),
        ({"type": "github", "url": "ghe.example.com"}, "absolute"),
        ({"url": ""}, "idp_provider_url"),
        ({"url": "idp.example.com"}, "absolute"),
    ],
)
async def test_bad_settings_are_refused_at_once(
    http: httpx.AsyncClient, changes: dict[str, Any], says: str
) -> None:
    settings = provider_settings(**{"url": "https://idp.example.com", **changes})
    with pytest.raises(IdentityProviderError, match=says) as caught:
        make_provider(settings, http, SystemClock(), SystemRng())
    assert caught.value.reason == MISCONFIGURED


async def test_r25_no_secret_in_errors(client: Provider, idp: HostileProvider) -> None:
    leaky = {"error": "invalid_grant", "error_description": f"{CLIENT_SECRET} code-1 verifier-1"}
    idp.answers["/token"] = Reply.of(leaky, 400)
    with pytest.raises(IdentityRefusedError) as caught:
        await client.exchange(
            code="code-1", redirect_uri=REDIRECT_URI, code_verifier="verifier-1", nonce=NONCE
        )
    error = caught.value
    shown = f"{error!r} {error.fields} {error.public_message} {client!r} {error.__cause__!r}"
    for secret in (CLIENT_SECRET, "code-1", "verifier-1", hashlib.sha256(b"").hexdigest()):
        assert secret not in shown
