"""Each provider type against a stand-in that speaks, and refuses, as that provider does."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.identity.errors import (
    ACCESS_REFUSED,
    GRANT_REFUSED,
    MISCONFIGURED,
    IdentityProviderError,
    IdentityRefusedError,
)
from gatehouse.common.identity.github import api_url
from gatehouse.common.identity.provider import Identity, Provider, make_provider
from tests.support.identity import Reply
from tests.support.provider_dialect import REDIRECT_URI, Dialect, at_home, query_of
from tests.support.provider_dialects import (
    ALL,
    OIDC,
    TENANT,
    Apple,
    Auth0,
    Azure,
    Cognito,
    Github,
    GithubServer,
    Gitlab,
    Google,
    Keycloak,
    Okta,
    Onelogin,
    Onelogin2,
    Ping,
)

VERIFIER = "v" * 43
CHALLENGE = (
    base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
)
SIGNED_OUT = "https://authenticate.localhost/.pomerium/signed_out"


@pytest.fixture
def kind() -> type[Dialect]:
    return Keycloak


@pytest.fixture
def dialect(kind: type[Dialect]) -> Dialect:
    return kind()


@pytest.fixture
async def http(dialect: Dialect) -> AsyncIterator[httpx.AsyncClient]:
    async with at_home(dialect) as client:
        yield client


def client_of(dialect: Dialect, http: httpx.AsyncClient, **changes: Any) -> Provider:
    return make_provider(dialect.settings(**changes), http, SystemClock(), SystemRng())


@pytest.fixture
def client(dialect: Dialect, http: httpx.AsyncClient) -> Provider:
    return client_of(dialect, http)


async def leave(client: Provider) -> str:
    return await client.authorization_url(
        redirect_uri=REDIRECT_URI, state="st&te +", nonce="n0nce", code_challenge=CHALLENGE
    )


async def redeem(
    client: Provider, code: str, *, verifier: str = VERIFIER, hint: str = ""
) -> Identity:
    return await client.exchange(
        code=code,
        redirect_uri=REDIRECT_URI,
        code_verifier=verifier,
        nonce="n0nce",
        user_hint=hint,
    )


async def sign_in(client: Provider, dialect: Dialect) -> Identity:
    back = dialect.authorize(await leave(client))
    assert back["state"] == "st&te +"
    assert "error" not in back, back
    return await redeem(client, back["code"], hint=back.get("user", ""))


every = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)


def only(*kinds: type[Dialect]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.__name__)


# --- what all have in common ---


@every
async def test_a_person_signs_in(client: Provider, dialect: Dialect) -> None:
    identity = await sign_in(client, dialect)
    assert (identity.name, identity.email) == ("Ada Example", "ada@example.com")
    assert identity.user_id
    assert identity.claims["sub"] == [identity.subject]
    assert dialect.broken == []


USER_IDS = {
    Keycloak: "user-1",
    Google: "110169484474386276334",
    Azure: "00000000-0000-0000-66f3-3332eca7ea81",  # oid, not sub
    Auth0: "auth0|5f7c8ec7c33c6c004bbafe82",
    Gitlab: "4242",
    Github: "MDQ6VXNlcjU4MzIzMQ==",
    Apple: "001234.0123456789abcdef0123456789abcdef.1234",
}


@only(*USER_IDS)
async def test_whom_the_session_is_for(
    client: Provider, dialect: Dialect, kind: type[Dialect]
) -> None:
    assert (await sign_in(client, dialect)).user_id == USER_IDS[kind]


GROUPS = {
    Keycloak: ("groups", ["/staff"]),
    Okta: ("groups", ["Everyone", "Staff"]),
    Auth0: ("https://acme.example.com/groups", ["staff"]),
    Cognito: ("cognito:groups", ["staff"]),
    Gitlab: ("groups", ["acme", "acme/ops"]),
    Onelogin: ("groups", ["Staff"]),
}


@only(*GROUPS)
async def test_where_groups_come_from(
    client: Provider, dialect: Dialect, kind: type[Dialect]
) -> None:
    name, groups = GROUPS[kind]
    assert (await sign_in(client, dialect)).claims[name] == groups


@every
async def test_r32_a_code_works_once_and_with_its_verifier(
    client: Provider, dialect: Dialect
) -> None:
    back = dialect.authorize(await leave(client))
    with pytest.raises(IdentityRefusedError) as caught:
        await redeem(client, back["code"], verifier="x" * 43)
    assert caught.value.reason == GRANT_REFUSED
    back = dialect.authorize(await leave(client))
    await redeem(client, back["code"])
    with pytest.raises(IdentityRefusedError) as caught:
        await redeem(client, back["code"])
    assert caught.value.reason == GRANT_REFUSED


@every
async def test_a_wrong_secret_is_the_operators_fault_and_ends_nothing(
    dialect: Dialect, http: httpx.AsyncClient
) -> None:
    client = client_of(dialect, http, client_secret="wrong")
    back = dialect.authorize(await leave(client))
    with pytest.raises(IdentityProviderError) as caught:
        await redeem(client, back["code"])
    assert caught.value.reason == MISCONFIGURED


@only(*(kind for kind in OIDC))
async def test_sessions_are_refreshed_and_end_when_the_provider_says_so(
    client: Provider, dialect: Dialect
) -> None:
    identity = await sign_in(client, dialect)
    token = identity.tokens.refresh_token
    assert token
    for _ in range(2):
        refreshed = await client.refresh(token, subject=identity.subject)
        assert refreshed.problem is None
        assert refreshed.id_token is not None
        assert refreshed.email == "ada@example.com"
        assert (refreshed.tokens.refresh_token == token) is not dialect.rotates
        token = refreshed.tokens.refresh_token
    dialect.valid.clear()
    with pytest.raises(IdentityRefusedError) as caught:
        await client.refresh(token, subject=identity.subject)
    assert caught.value.ends_session


SIGN_OUT = {
    Keycloak: "https://sso.example.com/realms/acme/protocol/openid-connect/logout",
    Google: None,
    Azure: "https://login.microsoftonline.com/common/oauth2/v2.0/logout",
    Okta: "https://acme.okta.com/oauth2/v1/logout",
    Onelogin: "https://openid-connect.onelogin.com/oidc/logout",
    Onelogin2: "https://acme.onelogin.com/oidc/2/logout",
    Ping: "https://auth.pingone.eu/11111111-2222-3333-4444-555555555555/as/signoff",
    Apple: None,
    Github: None,
    Gitlab: None,
    Auth0: "https://acme.eu.auth0.com/v2/logout",
    Cognito: "https://acme.auth.eu-west-1.amazoncognito.com/logout",
}
OWN_WAY = {
    Auth0: {"client_id": "gatehouse", "returnTo": SIGNED_OUT},
    Cognito: {"client_id": "gatehouse", "logout_uri": SIGNED_OUT},
}


@only(*SIGN_OUT)
async def test_where_people_sign_out(
    client: Provider, dialect: Dialect, kind: type[Dialect]
) -> None:
    url = await client.end_session_url(id_token_hint="raw", post_logout_redirect_uri=SIGNED_OUT)
    expected = SIGN_OUT[kind]
    assert (url is None) is (expected is None)
    if url is not None:
        assert url.partition("?")[0] == expected
        standard = {
            "id_token_hint": "raw",
            "client_id": "gatehouse",
            "post_logout_redirect_uri": SIGNED_OUT,
        }
        assert query_of(url) == OWN_WAY.get(kind, standard)
    assert client.has_fixed_return is (kind is Cognito)


BOTH = ["refresh_token", "access_token"]
REVOKED: dict[type[Dialect], list[str]] = dict.fromkeys(OIDC, BOTH) | {
    Azure: [],  # offers none
    Cognito: ["refresh_token"],  # its access tokens go along
    Github: ["access_token"],
    GithubServer: ["access_token"],
}


@every
async def test_tokens_are_revoked_refresh_token_first(
    client: Provider, dialect: Dialect, kind: type[Dialect]
) -> None:
    tokens = (await sign_in(client, dialect)).tokens
    done = await client.revoke(access_token=tokens.access_token, refresh_token=tokens.refresh_token)
    assert dialect.revoked == REVOKED[kind]
    assert done is bool(REVOKED[kind])


@every
async def test_userinfo_of_somebody_else_ends_the_session(
    client: Provider, dialect: Dialect
) -> None:
    identity = await sign_in(client, dialect)
    token = identity.tokens.access_token
    if isinstance(dialect, Apple):
        assert await client.userinfo(token, subject=identity.subject) == {}
        return
    claims = await client.userinfo(token, subject=identity.subject)
    assert claims["email"] == "ada@example.com"
    with pytest.raises(IdentityRefusedError):
        await client.userinfo(token, subject="somebody-else")
    dialect.valid.clear()
    with pytest.raises(IdentityRefusedError) as caught:
        await client.userinfo(token, subject=identity.subject)
    assert caught.value.reason == ACCESS_REFUSED


# --- Google ---


@only(Google)
async def test_google_gives_no_refresh_token_unless_asked_its_way(
    dialect: Dialect, http: httpx.AsyncClient
) -> None:
    client = client_of(dialect, http, request_params={})
    assert (await sign_in(client, dialect)).tokens.refresh_token == ""
    client = client_of(dialect, http, request_params={"hd": "example.com"})  # replaces, not merges
    query = query_of(await leave(client))
    assert query["hd"] == "example.com"
    assert "access_type" not in query


@only(Google)
@pytest.mark.parametrize("issuer", ["https://accounts.google.com", "accounts.google.com"])
async def test_google_names_itself_with_and_without_scheme(
    client: Provider, dialect: Dialect, issuer: str
) -> None:
    dialect.claims_changes = {"iss": issuer}
    identity = await sign_in(client, dialect)
    assert identity.claims["hd"] == ["example.com"]


# --- Azure ---


@only(Azure)
async def test_azure_is_believed_about_the_tenant_it_names_and_no_other(
    client: Provider, dialect: Dialect
) -> None:
    assert isinstance(dialect, Azure)
    other = TENANT.replace("9", "8", 1)
    dialect.claims_changes = {"tid": other}
    with pytest.raises(IdentityRefusedError):
        await sign_in(client, dialect)
    dialect.claims_changes = {"iss": dialect.token_issuer.replace(TENANT, other), "tid": other}
    assert (await sign_in(client, dialect)).claims["tid"] == [other]  # a multi-tenant application


@only(Azure)
async def test_r42_too_many_groups_are_no_groups(client: Provider, dialect: Dialect) -> None:
    dialect.claims_changes = {
        "_claim_names": {"groups": "src1"},
        "_claim_sources": {"src1": {"endpoint": "https://graph.example/getMemberObjects"}},
    }
    identity = await sign_in(client, dialect)
    assert "groups" not in identity.claims
    assert not any("graph.example" in asked.headers["host"] for asked in dialect.asked)


@only(Azure)
async def test_r40_azure_access_tokens_are_verified_as_jwts(
    client: Provider, dialect: Dialect
) -> None:
    assert isinstance(dialect, Azure)
    good: tuple[dict[str, Any], ...] = (
        {},
        {"iss": dialect.token_issuer, "ver": "2.0"},
        {"scp": None, "idtyp": "app"},
    )
    for changes in good:
        claims = await client.verify_access_token(dialect.access_jwt(**changes))
        assert claims["aud"] == "api://gatehouse"
    assert not [asked for asked in dialect.asked if asked.headers["host"] == "graph.microsoft.com"]
    refused: tuple[dict[str, Any], ...] = (
        {"iss": "https://sts.windows.net/00000000-0000-0000-0000-000000000000/"},
        {"iss": f"https://sts.windows.net.evil.test/{TENANT}/"},
        {"scp": None},  # an ID token
        {"exp": 1},
        {"scp": "openid"},  # asks userinfo, which does not know it
    )
    for changes in refused:
        with pytest.raises(IdentityRefusedError) as caught:
            await client.verify_access_token(dialect.access_jwt(**changes))
        assert caught.value.reason == ACCESS_REFUSED


# --- Cognito, Apple ---


@only(Cognito, Apple)
async def test_flags_written_as_text_become_booleans(client: Provider, dialect: Dialect) -> None:
    identity = await sign_in(client, dialect)
    assert identity.claims["email_verified"] == [True]
    refreshed = await client.refresh(identity.tokens.refresh_token, subject=identity.subject)
    assert refreshed.claims["email_verified"] == [True]
    checked = await client.userinfo(identity.tokens.access_token, subject=identity.subject)
    assert checked.get("email_verified", True) is True


@only(Apple)
async def test_apple_tells_the_name_once(client: Provider, dialect: Dialect) -> None:
    first = await sign_in(client, dialect)
    assert first.name == "Ada Example"
    # The browser has brought it unsigned: no policy may find it among the claims.
    assert "name" not in {**first.claims, **first.user_claims}
    second = await sign_in(client, dialect)
    assert second.name == ""
    assert "name" not in second.claims


@only(Apple)
@pytest.mark.parametrize(
    "hint",
    [
        "", "x", "[]", "{}", '{"name": "Ada"}', '{"name": {"firstName": 1}}', "{" * 3000,
        '{"name": {"firstName": "a\\u0000b"}}', '{"name": {"firstName": "' + "a" * 300 + '"}}',
        '{"email": "root@example.com", "sub": "other", "groups": ["admin"]}',
    ],
)  # fmt: skip
async def test_what_a_browser_brings_is_a_name_or_nothing(
    client: Provider, dialect: Dialect, hint: str
) -> None:
    back = dialect.authorize(await leave(client))
    identity = await redeem(client, back["code"], hint=hint)
    assert identity.name == ""
    assert identity.email == "ada@example.com"
    assert "groups" not in identity.claims
    assert identity.subject == USER_IDS[Apple]


@only(Apple)
async def test_apples_id_token_is_verified(client: Provider, dialect: Dialect) -> None:
    dialect.claims_changes = {"aud": "another-app"}
    with pytest.raises(IdentityRefusedError):
        await sign_in(client, dialect)


@only(Apple)
async def test_apple_takes_a_secret_signed_by_the_team_and_not_for_long(
    dialect: Dialect, http: httpx.AsyncClient
) -> None:
    assert isinstance(dialect, Apple)
    now = int(SystemClock().now_s())
    for changes in ({"exp": now - 1}, {"exp": now + 200 * 86400}, {"sub": "x"}, {"aud": "x"}):
        client = client_of(dialect, http, client_secret=dialect.make_secret(**changes))
        with pytest.raises(IdentityProviderError):
            await sign_in(client, dialect)


@only(Apple)
async def test_apples_access_tokens_cannot_be_verified(client: Provider) -> None:
    with pytest.raises(IdentityProviderError) as caught:
        await client.verify_access_token("opaque")
    assert caught.value.reason == MISCONFIGURED


# --- OneLogin, Ping ---


@only(Onelogin, Onelogin2)
async def test_onelogins_scopes_are_fixed(dialect: Dialect, http: httpx.AsyncClient) -> None:
    client = client_of(dialect, http, scopes=("openid", "nonsense"))
    assert (await sign_in(client, dialect)).claims["groups"] == ["Staff"]


@only(Ping)
async def test_a_mail_without_an_at_sign_is_no_address(client: Provider, dialect: Dialect) -> None:
    dialect.userinfo_changes = {"mail": "ada"}
    assert (await sign_in(client, dialect)).email == ""


# --- GitHub ---


@only(Github, GithubServer)
async def test_github_claims(client: Provider, dialect: Dialect) -> None:
    identity = await sign_in(client, dialect)
    assert identity.id_token is None
    assert identity.tokens.expires_at_s is None
    assert identity.tokens.refresh_token == ""
    shown = {name: values[0] for name, values in identity.user_claims.items()}
    assert shown == {
        "sub": "MDQ6VXNlcjU4MzIzMQ==",
        "user": "ada",
        "preferred_username": "ada",
        "name": "Ada Example",
        "picture": "https://avatars.githubusercontent.com/u/583231",
        "profile": "https://github.com/ada",
        "email": "ada@example.com",
    }
    lifetime = identity.claims["exp"][0] - identity.claims["iat"][0]
    assert lifetime == 3600


@only(Github)
async def test_github_is_asked_its_own_way(dialect: Dialect, http: httpx.AsyncClient) -> None:
    client = client_of(dialect, http, request_params={"prompt": "x"})  # has no effect
    url = await leave(client)
    assert url.startswith("https://github.com/login/oauth/authorize?")
    query = query_of(url)
    assert query["scope"] == "user:email read:org"
    assert query["access_type"] == "offline"
    assert "prompt" not in query
    assert "nonce" not in query


@only(Github)
async def test_an_account_without_a_node_id_is_its_number_and_never_its_login(
    client: Provider, dialect: Dialect
) -> None:
    dialect.userinfo_changes = {"node_id": None}
    assert (await sign_in(client, dialect)).user_id == "583231"
    dialect.userinfo_changes = {"node_id": "", "id": None}
    with pytest.raises(IdentityProviderError):
        await sign_in(client, dialect)


@only(Github)
@pytest.mark.parametrize(
    "emails",
    [
        [],
        [{"email": "ada@example.com", "primary": True, "verified": False}],
        [{"email": "ada@example.com", "primary": False, "verified": True}],
        [{"email": "a@evil.com@example.com", "primary": True, "verified": True}],
        [{"email": "ada@example.com", "primary": True, "verified": "yes"}],
        ["ada@example.com"],
    ],
)
async def test_r41_only_a_primary_and_verified_address_counts(
    client: Provider, dialect: Dialect, emails: list[Any]
) -> None:
    assert isinstance(dialect, Github)
    dialect.emails = emails
    dialect.userinfo_changes = {"email": "public@example.com"}  # anybody may write there
    identity = await sign_in(client, dialect)
    assert identity.email == ""
    assert identity.claims["email"] == [""]


@only(Github)
async def test_without_the_scope_for_addresses_there_is_none(
    client: Provider, dialect: Dialect
) -> None:
    dialect.answers["https://api.github.com/user/emails"] = Reply.of({"message": "Not Found"}, 404)
    assert (await sign_in(client, dialect)).email == ""


@only(Github)
async def test_asking_too_often_ends_no_session(client: Provider, dialect: Dialect) -> None:
    identity = await sign_in(client, dialect)
    limited = Reply.of({"message": "You have exceeded a rate limit"}, 403, Retry_After="60")
    for path in ("user", "user/emails"):
        dialect.answers = {f"https://api.github.com/{path}": limited}
        with pytest.raises(IdentityProviderError) as caught:
            await client.userinfo(identity.tokens.access_token, subject=identity.subject)
        assert caught.value.retry_after_s == 60


@only(Github)
async def test_github_apps_with_tokens_that_expire_are_refreshed(
    client: Provider, dialect: Dialect
) -> None:
    assert isinstance(dialect, Github)
    dialect.expiring = True
    identity = await sign_in(client, dialect)
    assert identity.tokens.expires_at_s is not None
    refreshed = await client.refresh(identity.tokens.refresh_token, subject=identity.subject)
    assert refreshed.tokens.refresh_token != identity.tokens.refresh_token
    assert refreshed.email == "ada@example.com"
    with pytest.raises(IdentityRefusedError) as caught:
        await client.refresh(identity.tokens.refresh_token, subject=identity.subject)
    assert caught.value.ends_session


@only(Github)
async def test_r40_a_github_token_of_another_application_is_refused(
    client: Provider, dialect: Dialect
) -> None:
    tokens = (await sign_in(client, dialect)).tokens
    claims = await client.verify_access_token(tokens.access_token)
    assert claims["email"] == "ada@example.com"
    dialect.valid["ghp_of-another-application"] = dialect.valid[tokens.access_token]
    with pytest.raises(IdentityRefusedError) as caught:
        await client.verify_access_token("ghp_of-another-application")
    assert caught.value.reason == ACCESS_REFUSED
    with pytest.raises(IdentityRefusedError):
        await client.verify_identity_token(tokens.access_token)
    with pytest.raises(IdentityRefusedError):
        await client.verify_logout_token(tokens.access_token)


@only(Github)
async def test_signing_out_leaves_the_persons_other_tokens_alone(
    client: Provider, dialect: Dialect
) -> None:
    first = (await sign_in(client, dialect)).tokens.access_token
    second = (await sign_in(client, dialect)).tokens.access_token
    assert await client.revoke(access_token=first, refresh_token="")
    assert first not in dialect.valid
    assert second in dialect.valid
    assert await client.revoke(access_token=first, refresh_token="")  # there is none any more


def test_where_the_api_is() -> None:
    assert api_url("https://github.com") == "https://api.github.com"
    assert api_url("https://acme.ghe.com") == "https://api.acme.ghe.com"
    assert api_url("https://git.example.com") == "https://git.example.com/api/v3"
