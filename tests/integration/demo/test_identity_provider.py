"""The development provider over HTTP, as a client that knows the standards would use it."""

from __future__ import annotations

import asyncio
import base64
import socket
from typing import Any
from urllib.parse import quote_plus

import httpx
import jwt
import pytest

from gatehouse.cli.demo import identity_provider
from gatehouse.cli.demo.identity_provider import SAMPLE_USERS, DevelopmentProvider
from gatehouse.cli.demo.provider_keys import ProviderKeys
from gatehouse.common.errors import FailedPreconditionError, InvalidArgumentError
from tests.support.development_provider import (
    CLIENT,
    OTHER,
    REDIRECT,
    SECRET,
    SIGNED_OUT,
    Party,
    answered,
)

GRACE = "grace@example.com"


@pytest.fixture(scope="module")
def keys():
    return ProviderKeys()


@pytest.fixture
async def party():
    """A client of a provider that runs on a port of its own."""
    stop, issuer = asyncio.Event(), asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        group.create_task(
            identity_provider.serve(stop, "127.0.0.1", 0, [CLIENT, OTHER], ready=issuer.set_result)
        )
        async with httpx.AsyncClient(base_url=await issuer, trust_env=False, timeout=10) as http:
            yield Party(http)
        stop.set()


async def discovery(party: Party) -> dict[str, Any]:
    found: dict[str, Any] = (await party.http.get("/.well-known/openid-configuration")).json()
    return found


async def test_discovery_names_itself_and_only_working_endpoints(party):
    document = await discovery(party)
    assert document["issuer"] == str(party.http.base_url).rstrip("/")
    for name in [name for name in document if name.endswith(("_endpoint", "_uri"))]:
        answer = await party.http.get(document[name])
        assert answer.status_code != 404, name
    assert document["code_challenge_methods_supported"] == ["S256"]


@pytest.mark.parametrize("user", SAMPLE_USERS, ids=lambda user: user.email)
async def test_signing_in_as_each_sample_user(party, user):
    page = await party.authorize()
    assert "Development only" in page.text
    carried = await party.choose(page, user.email)
    assert carried["state"] == "the-state"
    tokens = (await party.redeem(carried["code"])).json()
    document = await discovery(party)
    published = jwt.PyJWKSet.from_dict((await party.http.get(document["jwks_uri"])).json())
    kid = jwt.get_unverified_header(tokens["id_token"])["kid"]
    claims = jwt.decode(
        tokens["id_token"],
        published[kid],
        algorithms=["RS256"],
        audience=CLIENT.id,
        issuer=document["issuer"],
    )
    assert claims["nonce"] == "the-nonce"
    assert (claims["email"], claims["email_verified"]) == (user.email, True)
    assert claims["groups"] == list(user.groups)
    told = (await party.userinfo(tokens["access_token"])).json()
    assert told["sub"] == claims["sub"] == user.subject
    assert told["email"] == user.email


async def test_es256_can_be_asked_for(keys):
    provider = DevelopmentProvider("http://localhost:1", [CLIENT], keys=keys, alg="ES256")
    transport = httpx.ASGITransport(provider.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:1") as http:
        tokens = await Party(http).signed_in()
        published = jwt.PyJWKSet.from_dict((await http.get("/jwks.json")).json())
    header = jwt.get_unverified_header(tokens["id_token"])
    assert header["alg"] == "ES256"
    jwt.decode(
        tokens["id_token"], published[header["kid"]], algorithms=["ES256"], audience=CLIENT.id
    )


async def test_published_keys_are_public(party):
    found = (await party.http.get("/jwks.json")).json()["keys"]
    assert sorted(key["alg"] for key in found) == ["ES256", "RS256"]
    assert not any(set(key) & {"d", "p", "q", "dp", "dq", "qi", "oth"} for key in found)


async def test_without_offline_access_there_is_no_refresh_token(party):
    assert "refresh_token" not in await party.signed_in(scope="openid email")
    assert "refresh_token" in await party.signed_in()


# Authorization requests.


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"client_id": "nobody"}, "not known here"),
        ({"client_id": None}, "not known here"),
        ({"redirect_uri": None}, "unregistered address"),
        ({"redirect_uri": REDIRECT + "/"}, "unregistered address"),
        ({"redirect_uri": REDIRECT + "?x=1"}, "unregistered address"),
        ({"redirect_uri": REDIRECT.upper()}, "unregistered address"),
        ({"redirect_uri": REDIRECT.replace("https", "http")}, "unregistered address"),
        ({"redirect_uri": "https://authenticate.localhost:8443@evil.test/"}, "unregistered"),
        ({"client_id": "other"}, "unregistered address"),
    ],
)
async def test_an_unregistered_address_is_never_redirected_to(party, changes, said):
    answer = await party.authorize(**changes)
    assert answer.status_code == 400
    assert "location" not in answer.headers
    assert said in answer.text


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"response_type": None}, "unsupported_response_type"),
        ({"response_mode": "fragment"}, "invalid_request"),
        ({"scope": "profile"}, "invalid_scope"),
        ({"scope": None}, "invalid_scope"),
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge": "short"}, "invalid_request"),
        ({"code_challenge": "+" * 43}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge_method": None}, "invalid_request"),
        ({"prompt": "none"}, "login_required"),
        ({"request": "x.y.z"}, "request_not_supported"),
    ],
)
async def test_a_wrong_request_is_answered_to_the_client(party, changes, error):
    carried = answered(await party.authorize(**changes))
    assert carried["error"] == error
    assert carried["state"] == "the-state"
    assert "code" not in carried


async def test_a_parameter_given_twice_is_refused(party):
    url = str((await party.authorize()).request.url)
    assert answered(await party.http.get(url + "&state=other"))["error"] == "invalid_request"
    twice = await party.http.get(url + "&redirect_uri=https://evil.test/")
    assert twice.status_code == 400


async def test_cancelling_is_told_to_the_client(party):
    page = await party.authorize()
    carried = await party.choose(page, "nobody@example.com")
    assert (carried["error"], carried["state"]) == ("access_denied", "the-state")


async def test_a_page_answers_once(party):
    page = await party.authorize()
    await party.choose(page, GRACE)
    again = await party.http.post("/choose", data={"request": "x", "user": GRACE})
    assert again.status_code == 400
    with pytest.raises(AssertionError):
        await party.choose(page, GRACE)


async def test_what_a_client_sends_cannot_become_markup(party):
    page = await party.authorize(login_hint='"><script>alert(1)</script>', state="<b>")
    assert "<script" not in page.text
    assert "<b>" not in page.text.replace("<b>Ada", "").replace("<b>Grace", "").replace(
        "<b>Mallory", ""
    )
    assert "default-src 'none'" in page.headers["content-security-policy"]


# Codes.


@pytest.mark.parametrize(
    "changes",
    [
        {"redirect_uri": REDIRECT + "/"},
        {"code_verifier": "w" * 43},
        {"code_verifier": "short"},
        {"code_verifier": ""},
        {"code": "made-up"},
    ],
)
async def test_a_code_is_bound_to_its_request(party, changes):
    code = await party.code()
    answer = await party.redeem(**{"code": code, **changes})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")


async def test_a_code_is_bound_to_its_client(party):
    code = await party.code()
    answer = await Party(party.http, OTHER).redeem(code, redirect_uri=REDIRECT)
    assert answer.json()["error"] == "invalid_grant"
    assert (await party.redeem(code)).status_code == 200  # somebody else's try costs it nothing


async def test_a_code_used_twice_ends_what_it_gave(party):
    code = await party.code()
    tokens = (await party.redeem(code)).json()
    assert (await party.userinfo(tokens["access_token"])).status_code == 200
    assert (await party.redeem(code)).json()["error"] == "invalid_grant"
    assert (await party.userinfo(tokens["access_token"])).status_code == 401
    assert (await party.refresh(tokens["refresh_token"])).json()["error"] == "invalid_grant"


async def test_a_failed_try_uses_the_code_up(party):
    code = await party.code()
    await party.redeem(code, code_verifier="w" * 43)
    assert (await party.redeem(code)).json()["error"] == "invalid_grant"


# Client authentication.


def basic(user: str, password: str) -> dict[str, str]:
    joined = f"{quote_plus(user)}:{quote_plus(password)}".encode()
    return {"authorization": f"Basic {base64.b64encode(joined).decode()}"}


async def test_basic_authentication_works_encoded_as_the_standard_says(party):
    form = {"grant_type": "refresh_token", "refresh_token": "none"}
    good = await party.http.post("/token", data=form, headers=basic(CLIENT.id, SECRET))
    assert good.json()["error"] == "invalid_grant"  # past authentication


@pytest.mark.parametrize(
    ("form", "headers"),
    [
        ({}, {}),
        ({"client_id": CLIENT.id}, {}),
        ({"client_id": CLIENT.id, "client_secret": "wrong"}, {}),
        ({"client_id": "nobody", "client_secret": ""}, {}),
        ({"client_id": OTHER.id, "client_secret": SECRET}, {}),
        ({}, basic(CLIENT.id, "wrong")),
        ({}, {"authorization": "Basic !!!"}),
        ({}, {"authorization": "Bearer x"}),
    ],
)
async def test_wrong_client_credentials_are_refused(party, form, headers):
    for path in ("/token", "/revoke"):
        answer = await party.http.post(path, data={"grant_type": "x", **form}, headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
        assert SECRET not in answer.text


async def test_credentials_in_two_places_are_refused(party):
    form = {"client_id": CLIENT.id, "client_secret": SECRET}
    answer = await party.http.post("/token", data=form, headers=basic(CLIENT.id, SECRET))
    assert answer.json()["error"] == "invalid_request"


async def test_unknown_grants_and_huge_bodies_are_refused(party):
    assert (await party.token(grant_type="password")).json()["error"] == "unsupported_grant_type"
    assert (await party.token(grant_type="x" * 70_000)).status_code == 413
    many = "&".join(f"p{n}=1" for n in range(200))
    answer = await party.http.post("/token", content=many)
    assert answer.json()["error"] == "invalid_request"


# Refresh, revocation, sign-out.


async def test_refresh_tokens_rotate_and_a_replay_ends_the_family(party):
    first = await party.signed_in()
    second = (await party.refresh(first["refresh_token"])).json()
    assert second["refresh_token"] != first["refresh_token"]
    claims = jwt.decode(second["id_token"], options={"verify_signature": False})
    assert "nonce" not in claims
    third = (await party.refresh(second["refresh_token"])).json()
    assert (await party.userinfo(third["access_token"])).status_code == 200
    assert (await party.refresh(first["refresh_token"])).json()["error"] == "invalid_grant"
    assert (await party.refresh(third["refresh_token"])).json()["error"] == "invalid_grant"
    assert (await party.userinfo(third["access_token"])).status_code == 401


async def test_a_refresh_token_is_bound_to_its_client(party):
    tokens = await party.signed_in()
    answer = await Party(party.http, OTHER).refresh(tokens["refresh_token"])
    assert answer.json()["error"] == "invalid_grant"
    assert (await party.refresh(tokens["refresh_token"])).status_code == 200


async def revoke(party: Party, token: str) -> int:
    form = {"client_id": party.client.id, "client_secret": party.client.secret, "token": token}
    return (await party.http.post("/revoke", data=form)).status_code


async def test_revoking_an_access_token_leaves_the_refresh_token(party):
    tokens = await party.signed_in()
    assert await revoke(party, tokens["access_token"]) == 200
    assert (await party.userinfo(tokens["access_token"])).status_code == 401
    assert (await party.refresh(tokens["refresh_token"])).status_code == 200


async def test_revoking_a_refresh_token_ends_all(party):
    tokens = await party.signed_in()
    assert await revoke(party, tokens["refresh_token"]) == 200
    assert (await party.userinfo(tokens["access_token"])).status_code == 401
    assert (await party.refresh(tokens["refresh_token"])).status_code == 400


async def test_nobody_revokes_what_is_not_theirs(party):
    tokens = await party.signed_in()
    other = Party(party.http, OTHER)
    assert await revoke(other, tokens["refresh_token"]) == 200  # RFC 7009: not told apart
    assert await revoke(other, tokens["access_token"]) == 200
    assert (await party.userinfo(tokens["access_token"])).status_code == 200


async def test_signing_out_ends_the_grant_and_returns_to_a_registered_address(party):
    tokens = await party.signed_in()
    answer = await party.http.get(
        "/logout",
        params={
            "id_token_hint": tokens["id_token"],
            "client_id": CLIENT.id,
            "post_logout_redirect_uri": SIGNED_OUT,
            "state": "s",
        },
    )
    assert answer.headers["location"] == f"{SIGNED_OUT}?state=s"
    assert (await party.userinfo(tokens["access_token"])).status_code == 401


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"client_id": CLIENT.id, "post_logout_redirect_uri": "https://evil.test/"},
        {"client_id": "nobody", "post_logout_redirect_uri": SIGNED_OUT},
        {"post_logout_redirect_uri": SIGNED_OUT},
        {"id_token_hint": "forged", "post_logout_redirect_uri": SIGNED_OUT},
    ],
)
async def test_signing_out_redirects_nowhere_else(party, parameters):
    answer = await party.http.get("/logout", params=parameters)
    assert answer.status_code == 200
    assert "signed out" in answer.text


async def test_a_hint_for_another_client_is_no_proof(party):
    tokens = await party.signed_in()
    answer = await party.http.get(
        "/logout",
        params={
            "id_token_hint": tokens["id_token"],
            "client_id": OTHER.id,
            "post_logout_redirect_uri": SIGNED_OUT,
        },
    )
    assert "location" not in answer.headers


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer x", "Basic eDp5", "Bearer a b"])
async def test_userinfo_needs_a_good_token(party, header):
    answer = await party.http.get("/userinfo", headers={"authorization": header})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


# Where it may be reached.


@pytest.mark.parametrize("host", ["evil.test", "127.0.0.1", "localhost.evil.test", "localhost:1"])
async def test_it_answers_only_to_its_own_name(party, host):
    answer = await party.http.get("/.well-known/openid-configuration", headers={"host": host})
    assert answer.status_code == 421


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "*", "192.0.2.1", "example.com", "10.0.0.1"])
async def test_it_refuses_to_listen_elsewhere_than_on_loopback(host):
    with pytest.raises(InvalidArgumentError, match="loopback only"):
        await identity_provider.serve(asyncio.Event(), host, 0, [CLIENT])


async def test_a_taken_port_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(FailedPreconditionError, match=f"127.0.0.1:{port}: the port is taken"):
            await identity_provider.serve(asyncio.Event(), "localhost", port, [CLIENT])
