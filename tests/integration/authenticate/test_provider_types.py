"""Provider types that shape the whole flow, not the conversation with the provider alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from urllib.parse import urlsplit

from gatehouse.common.databroker.records import unpack
from gatehouse.common.ids import SESSION, USER
from gatehouse.common.session.handle import decode_handle
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User
from tests.support.identity import CLIENT_ID, provider_mock
from tests.support.provider_dialect import on_loopback
from tests.support.provider_dialects import Apple, Cognito, GithubServer, Keycloak
from tests.support.sign_in import query_of
from tests.support.sign_in_world import running_world
from tests.support.web_settings import APP, AUTHENTICATE, SHARED, provider, route, settings

CALLBACK = f"{AUTHENTICATE}/oauth2/callback"


@contextlib.asynccontextmanager
async def world_of(dialect, **keys):
    async with on_loopback(dialect) as url:
        idp = provider(
            url, type=dialect.type, client_id=CLIENT_ID, client_secret=dialect.client_secret
        )
        made = settings(idp=idp, routes=(route(),), databroker_storage_type="memory", **keys)
        async with running_world(made) as running:
            yield running


async def session_of(world, browser):
    token = browser.cookies.get("_pomerium", domain=APP)
    handle = decode_handle(token, (SHARED,), allowed_uses=frozenset({"route"}))
    return unpack(await world.databroker.get(SESSION, handle.session_id), Session)


async def sign_in(world, dialect, browser):
    leave = await browser.get(world.ask_to_sign_in(browser))
    assert leave.status_code == 302, leave.text
    back = dialect.authorize(leave.headers["location"])
    if isinstance(dialect, Apple):
        # httpx has no notion of SameSite: what makes a browser send them is asserted elsewhere
        headers = {"origin": "https://appleid.apple.com", "sec-fetch-site": "cross-site"}
        arrive = await browser.post(CALLBACK, data=back, headers=headers)
    else:
        arrive = await browser.get(CALLBACK, params=back)
    assert arrive.status_code == 302, arrive.text
    assert (await browser.get(arrive.headers["location"])).status_code == 302
    return leave


async def test_r35_apple_answers_with_a_form_and_tells_the_name_once():
    dialect = Apple()
    async with world_of(dialect) as world:
        for _ in range(2):
            browser = world.browser()
            leave = await sign_in(world, dialect, browser)
            flow = [
                line
                for line in leave.headers.get_list("set-cookie")
                if "_csrf=" in line or "_pkce_" in line
            ]
            assert len(flow) == 2
            assert all("SameSite=None" in line and "Secure" in line for line in flow)
            session = await session_of(world, browser)
            user = unpack(await world.databroker.get(USER, session.user_id), User)
            assert (user.name, user.email) == ("Ada Example", "ada@example.com")
        first = await browser.get(f"https://{APP}/.pomerium/sign_out")
        second = await browser.get(first.headers["location"])
        assert second.headers["location"] == f"{AUTHENTICATE}/.pomerium/signed_out"
        assert dialect.revoked == ["refresh_token", "access_token"]


async def test_a_form_with_the_answer_twice_is_refused():
    dialect = Apple()
    async with world_of(dialect) as world:
        browser = world.browser()
        leave = await browser.get(world.ask_to_sign_in(browser))
        back = dialect.authorize(leave.headers["location"])
        query = f"code={back['code']}&state={back['state']}"
        answer = await browser.post(
            CALLBACK,
            content=f"{query}&code=other",
            headers={"content-type": "application/x-www-form-urlencoded"},
        )
        assert answer.status_code == 400


async def test_github_has_no_id_token_and_no_sign_out_page():
    dialect = GithubServer()
    async with world_of(dialect) as world:
        browser = world.browser()
        await sign_in(world, dialect, browser)
        session = await session_of(world, browser)
        assert session.user_id == "MDQ6VXNlcjU4MzIzMQ=="
        assert not session.HasField("id_token")
        assert not session.oauth_token.HasField("expires_at")
        again = await browser.get(world.ask_to_sign_in(browser))
        assert urlsplit(again.headers["location"]).netloc == APP  # the session is good
        first = await browser.get(f"https://{APP}/.pomerium/sign_out")
        second = await browser.get(first.headers["location"])
        assert second.headers["location"] == f"{AUTHENTICATE}/.pomerium/signed_out"
        assert session.oauth_token.access_token not in dialect.valid
        assert await world.databroker.get(SESSION, session.id) is None


async def test_cognito_comes_back_to_one_page_which_leads_on():
    dialect = Cognito()
    target = "https://www.example.com/bye?x=1"
    async with world_of(dialect, signout_redirect_url=target) as world:
        browser = world.browser()
        await sign_in(world, dialect, browser)
        first = await browser.get(f"https://{APP}/.pomerium/sign_out")
        second = await browser.get(first.headers["location"])
        away = second.headers["location"]
        assert urlsplit(away).path == "/logout"
        signed_out = f"{AUTHENTICATE}/.pomerium/signed_out"
        assert query_of(away) == {"client_id": CLIENT_ID, "logout_uri": signed_out}
        assert dialect.revoked == ["refresh_token"]
        kept = browser.cookies.get("_pomerium_signed_out_redirect_uri")
        assert kept
        assert "example" not in kept  # sealed: nobody else can name the target
        third = await browser.get(signed_out)
        assert (third.status_code, third.headers["location"]) == (302, target)
        assert "You are signed out" in (await browser.get(signed_out)).text  # it leads on once


async def test_r26_the_signed_out_page_leads_nowhere_that_we_did_not_name():
    dialect = Cognito()
    async with world_of(dialect) as world:
        browser = world.browser()
        name = "_pomerium_signed_out_redirect_uri"
        for value in ("https://evil.example.net/", "aHR0cHM6Ly9ldmls", "A" * 500, ""):
            answer = await browser.get(
                f"{AUTHENTICATE}/.pomerium/signed_out", headers={"cookie": f"{name}={value}"}
            )
            assert answer.status_code == 200
            assert "location" not in answer.headers


async def test_a_route_with_its_own_client_is_signed_in_to_and_out_of_with_it():
    arguments = ("--require-nonce", "true", "--user-claims", json.dumps({"sub": "user-1"}))
    with provider_mock(*arguments) as issuer:
        own = provider(issuer, idp_id="idp-own", client_id="own-client")
        made = settings(
            idp=provider(issuer),
            routes=(route("https://other.example.com"), route(idp=own)),
            databroker_storage_type="memory",
        )
        async with running_world(made) as world:
            browser = world.browser()
            for idp_id, client_id in (("idp-own", "own-client"), ("idp-global", "client")):
                leave = await browser.get(world.ask_to_sign_in(browser, pomerium_idp_id=idp_id))
                assert query_of(leave.headers["location"])["client_id"] == client_id
                form = await browser.post(leave.headers["location"], data={"sub": "user-1"})
                arrive = await browser.get(form.headers["location"])
                await browser.get(arrive.headers["location"])
                session = await session_of(world, browser)
                assert session.idp_id == idp_id
                first = await browser.get(f"https://{APP}/.pomerium/sign_out")
                second = await browser.get(first.headers["location"])
                query = query_of(second.headers["location"])
                assert query["client_id"] == client_id
                assert query["id_token_hint"] == session.id_token.raw


class Unknowing(Keycloak):
    """Refuses an authorization request that has a parameter it does not know."""

    def check_request(self, query):
        assert "code_challenge" not in query
        assert "code_challenge_method" not in query
        assert query["nonce"]


async def test_a_provider_that_cannot_bear_pkce_is_asked_without():
    dialect = Unknowing()
    async with world_of(dialect, idp_pkce=False) as world:
        browser = world.browser()
        leave = await sign_in(world, dialect, browser)
        assert "code_challenge" not in leave.headers["location"]
        session = await session_of(world, browser)
        assert session.user_id == "user-1"


async def test_a_sign_in_under_way_ends_as_it_began_when_pkce_is_switched():
    for before in (True, False):
        dialect = Keycloak()
        async with world_of(dialect, idp_pkce=before) as world:
            browser = world.browser()
            leave = await browser.get(world.ask_to_sign_in(browser))
            assert ("code_challenge" in query_of(leave.headers["location"])) is before
            old = world.hub.current
            switched = old.settings.model_copy(update={"idp_pkce": not before})
            await world.hub.apply(dataclasses.replace(old, settings=switched))
            back = dialect.authorize(leave.headers["location"])
            assert (await browser.get(CALLBACK, params=back)).status_code == 302
