"""Sign-in and sign-out over real HTTP and gRPC, against a provider that insists on PKCE."""

from __future__ import annotations

import dataclasses
import re
from urllib.parse import urlencode, urlsplit

import pytest

from gatehouse.common.databroker.records import record_of, unpack
from gatehouse.common.ids import SESSION, USER
from gatehouse.common.jose.signed_url import sign_url
from gatehouse.common.session.handle import decode_handle
from gatehouse.common.session.login_binding import cookie_name
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User
from tests.support.sign_in import query_of
from tests.support.web_settings import APP, AUTHENTICATE, IDP_ID, SHARED

BINDING_COOKIE = cookie_name("_pomerium")


def route_handle(browser):
    token = browser.cookies.get("_pomerium", domain=APP)
    return decode_handle(token, (SHARED,), allowed_uses=frozenset({"route"}))


async def session_of(world, handle):
    record = await world.databroker.get(SESSION, handle.session_id)
    return None if record is None else unpack(record, Session)


async def test_a_sign_in_ends_where_it_began_with_a_session(world):
    browser = world.browser()
    leave = await browser.get(world.ask_to_sign_in(browser))
    assert leave.status_code == 302
    query = query_of(leave.headers["location"])
    assert query["response_type"] == "code"
    assert query["redirect_uri"] == f"{AUTHENTICATE}/oauth2/callback"
    assert query["code_challenge_method"] == "S256"
    assert query["nonce"]
    arrive = await browser.get(await world.choose(browser, leave.headers["location"]))
    assert arrive.status_code == 302
    done = await browser.get(arrive.headers["location"])
    assert done.status_code == 302
    assert done.headers["location"] == f"https://{APP}/page?x=1"
    handle = route_handle(browser)
    session = await session_of(world, handle)
    assert session.idp_id == IDP_ID
    assert session.user_id == handle.user_id
    assert session.oauth_token.refresh_token
    assert list(session.audience) == ["authenticate.example.com", APP]
    record = await world.databroker.get(USER, session.user_id)
    assert unpack(record, User).email == "ada@example.com"
    written = await world.databroker.get(SESSION, handle.session_id)
    assert handle.record_version == written.version
    assert record.version == written.version - 1  # one Put, user first
    for response in (leave, arrive, done):
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["referrer-policy"] == "no-referrer"


async def test_a_second_route_needs_no_second_sign_in(world):
    browser = world.browser()
    await world.sign_in(browser)
    again = await browser.get(world.ask_to_sign_in(browser))
    assert again.status_code == 302
    assert urlsplit(again.headers["location"]).netloc == APP
    first = route_handle(browser)
    await browser.get(again.headers["location"])
    assert route_handle(browser).session_id == first.session_id


async def test_r30_a_callback_url_works_once(world):
    browser = world.browser()
    url = await world.callback_url(browser)
    jar = dict(browser.cookies)
    assert (await browser.get(url)).status_code == 302
    thief = world.browser()
    for name, value in jar.items():  # even with every cookie of the first browser
        thief.cookies.set(name, value, domain=APP)
    replayed = await thief.get(url)
    assert replayed.status_code == 400
    assert "used already" in replayed.text
    assert thief.cookies.get("_pomerium", domain=APP) is None
    assert "set-cookie" not in replayed.headers


async def test_r31_a_callback_url_is_worth_nothing_in_another_browser(world):
    attacker, victim = world.browser(), world.browser()
    url = await world.callback_url(attacker)
    planted = await victim.get(url)
    assert planted.status_code == 400
    assert "started somewhere else" in planted.text
    assert victim.cookies.get("_pomerium", domain=APP) is None
    assert (await attacker.get(url)).status_code == 302  # and was not used up


async def test_r31_a_cookie_tossed_from_a_sibling_domain_binds_nothing(world):
    """A host of the same domain can plant any cookie but one with the prefix `__Host-`."""
    attacker = world.browser()
    url = await world.callback_url(attacker)
    nonce = attacker.cookies.get(BINDING_COOKIE, domain=APP)
    for name in ("_pomerium_login_binding", "__Secure-_pomerium_login_binding"):
        victim = world.browser()
        victim.cookies.set(name, nonce, domain=".example.com")
        assert (await victim.get(url)).status_code == 400
        assert victim.cookies.get("_pomerium", domain=APP) is None
    # Beside the victim's own binding, in a browser that knows no prefixes, neither is believed.
    victim = world.browser()
    world.ask_to_sign_in(victim)
    own = victim.cookies.get(BINDING_COOKIE, domain=APP)
    header = f"{BINDING_COOKIE}={nonce}; {BINDING_COOKIE}={own}"
    assert (await world.browser().get(url, headers={"cookie": header})).status_code == 400
    assert (await attacker.get(url)).status_code == 302


async def test_r31_an_attackers_link_starts_the_victims_own_sign_in(world):
    """A browser with a binding of its own is sent to the page, never into another's session."""
    attacker, victim = world.browser(), world.browser()
    url = await world.callback_url(attacker)
    world.ask_to_sign_in(victim)
    sent = await victim.get(url)
    assert (sent.status_code, sent.headers["location"]) == (302, f"https://{APP}/page?x=1")
    assert "set-cookie" not in sent.headers
    assert (await attacker.get(url)).status_code == 302  # and was not used up


async def test_r31_a_seen_sign_in_link_is_worth_nothing_once_it_was_used(world):
    """Whoever has read the sign-in URL could have a callback of their own made for the browser."""
    attacker, victim = world.browser(), world.browser()
    seen = world.ask_to_sign_in(victim)
    leave = await victim.get(seen)
    arrive = await victim.get(await world.choose(victim, leave.headers["location"]))
    assert (await victim.get(arrive.headers["location"])).status_code == 302
    own = route_handle(victim).session_id
    leave = await attacker.get(seen)
    arrive = await attacker.get(await world.choose(attacker, leave.headers["location"]))
    assert (await victim.get(arrive.headers["location"])).status_code == 400
    assert route_handle(victim).session_id == own


async def test_r31_a_planted_cookie_does_not_survive_a_sign_in(world):
    attacker, victim = world.browser(), world.browser()
    await world.sign_in(attacker)
    planted = attacker.cookies.get("_pomerium_authenticate", domain="authenticate.example.com")
    stale = await session_of(world, route_handle(attacker))
    await world.databroker.get(SESSION, stale.id)
    victim.cookies.set(
        "_pomerium_authenticate", planted[:-2] + "xx", domain="authenticate.example.com", path="/"
    )
    leave = await victim.get(world.ask_to_sign_in(victim))
    cleared = [
        line
        for line in leave.headers.get_list("set-cookie")
        if line.startswith("_pomerium_authenticate=;")
    ]
    domains = [re.search(r"Domain=([^;]+)", line) for line in cleared]
    assert {found[1] if found else "" for found in domains} == {
        "", "example.com", "authenticate.example.com",
    }  # fmt: skip
    await victim.get(
        (await victim.get(await world.choose(victim, leave.headers["location"]))).headers[
            "location"
        ]
    )
    assert route_handle(victim).session_id != stale.id


async def test_each_sign_in_makes_a_new_session(world):
    first, second = world.browser(), world.browser()
    await world.sign_in(first)
    await world.sign_in(second)
    assert route_handle(first).session_id != route_handle(second).session_id
    assert route_handle(first).user_id == route_handle(second).user_id


async def test_r32_a_code_is_redeemed_only_with_its_verifier(world):
    browser = world.browser()
    leave = await browser.get(world.ask_to_sign_in(browser))
    other = await browser.get(world.ask_to_sign_in(browser))
    back = query_of(await world.choose(browser, leave.headers["location"]))
    back["state"] = query_of(other.headers["location"])["state"]  # a good state, another verifier
    mixed = await browser.get(f"{AUTHENTICATE}/oauth2/callback", params=back)
    assert mixed.status_code == 500
    assert "could not be confirmed" in mixed.text
    assert browser.cookies.get("_pomerium_authenticate") is None


async def test_a_code_works_once(world):
    browser = world.browser()
    leave = await browser.get(world.ask_to_sign_in(browser))
    back = await world.choose(browser, leave.headers["location"])
    cookies = [(c.name, c.value, c.domain, c.path) for c in browser.cookies.jar]
    assert (await browser.get(back)).status_code == 302
    again = await browser.get(back)
    assert again.status_code == 400  # the PKCE cookie is gone
    for name, value, domain, path in cookies:
        browser.cookies.set(name, value, domain=domain, path=path)
    assert (await browser.get(back)).status_code == 500  # and the provider refuses the code


async def test_a_slow_sign_in_works_after_the_signed_url_has_expired(world):
    browser = world.browser()
    leave = await browser.get(world.ask_to_sign_in(browser))
    back = await world.choose(browser, leave.headers["location"])
    world.clock.offset_s = 14 * 60
    arrive = await browser.get(back)
    assert arrive.status_code == 302
    assert (await browser.get(arrive.headers["location"])).status_code == 302


async def test_a_sign_in_that_took_too_long_offers_to_begin_again(world):
    browser = world.browser()
    leave = await browser.get(world.ask_to_sign_in(browser))
    back = await world.choose(browser, leave.headers["location"])
    world.clock.offset_s = 16 * 60
    late = await browser.get(back)
    assert late.status_code == 400
    assert f'href="https://{APP}/page?x=1"' in late.text


async def test_somebody_who_declines_is_told_so(world):
    browser = world.browser()
    leave = await browser.get(world.ask_to_sign_in(browser))
    back = await world.choose(browser, leave.headers["location"], user="nobody")
    declined = await browser.get(back)
    assert declined.status_code == 401
    assert "access_denied" in declined.text
    assert f'href="https://{APP}/page?x=1"' in declined.text


async def test_sign_out_ends_the_session_everywhere(world):
    browser = world.browser()
    await world.sign_in(browser)
    handle = route_handle(browser)
    refresh_token = (await session_of(world, handle)).oauth_token.refresh_token
    first = await browser.get(f"https://{APP}/.pomerium/sign_out")
    assert first.status_code == 302
    assert browser.cookies.get("_pomerium", domain=APP) is None
    second = await browser.get(first.headers["location"])
    assert second.status_code == 302
    logout = second.headers["location"]
    assert urlsplit(logout).path == "/logout"
    assert query_of(logout)["post_logout_redirect_uri"] == f"{AUTHENTICATE}/.pomerium/signed_out"
    assert query_of(logout)["id_token_hint"]
    assert await world.databroker.get(SESSION, handle.session_id) is None
    assert browser.cookies.get("_pomerium_authenticate", domain="authenticate.example.com") is None
    third = await browser.get(logout)
    assert third.headers["location"] == f"{AUTHENTICATE}/.pomerium/signed_out"
    assert "You are signed out" in (await browser.get(third.headers["location"])).text
    assert refresh_token
    again = await browser.get(world.ask_to_sign_in(browser))
    assert urlsplit(again.headers["location"]).netloc.startswith("localhost:")


async def test_r34_an_unsigned_sign_out_asks_first(world):
    browser = world.browser()
    await world.sign_in(browser)
    page = await browser.get(
        f"{AUTHENTICATE}/.pomerium/sign_out?pomerium_redirect_uri=https://evil"
    )
    assert page.status_code == 200
    assert "Sign out?" in page.text
    assert "evil" not in page.text
    assert await session_of(world, route_handle(browser)) is not None
    crossed = await browser.get(
        f"https://{APP}/.pomerium/sign_out", headers={"sec-fetch-site": "cross-site"}
    )
    assert crossed.status_code == 200
    assert "Sign out?" in crossed.text
    assert browser.cookies.get("_pomerium", domain=APP) is not None


async def test_the_button_of_the_confirmation_page_signs_out(world):
    browser = world.browser()
    await world.sign_in(browser)
    handle = route_handle(browser)
    page = await browser.get(f"{AUTHENTICATE}/.pomerium/sign_out")
    href = page.text.partition('href="https://authenticate')[2].partition('"')[0]
    button = f"https://authenticate{href}".replace("&amp;", "&")
    assert (await browser.get(button)).status_code == 302
    assert await session_of(world, handle) is None


async def confirmed_target(world, browser, page):
    """Where a sign-out leads, of somebody who came to the page about their session from `page`."""
    query = urlencode({"pomerium_redirect_uri": page})
    url = f"{AUTHENTICATE}/.pomerium/?{query}"
    first = await browser.get(sign_url(url, SHARED, now_s=world.clock.now_s()))
    assert (first.status_code, first.headers["location"]) == (302, "/.pomerium/")
    shown = await browser.get(f"{AUTHENTICATE}/.pomerium/")
    assert "ada@example.com" in shown.text
    asked = await browser.get(
        f"{AUTHENTICATE}/.pomerium/sign_out", headers={"accept": "application/json"}
    )
    return asked.json()["confirm"]


async def test_who_was_refused_signs_out_and_comes_back_to_the_page(world):
    browser = world.browser()
    await world.sign_in(browser)
    page = f"https://{APP}/refused?x=1"
    confirm = await confirmed_target(world, browser, page)
    assert query_of(confirm)["pomerium_redirect_uri"] == page
    left = await browser.get(confirm)
    assert query_of(left.headers["location"])["post_logout_redirect_uri"] == page
    names = {cookie.name for cookie in browser.cookies.jar}
    assert not {name for name in names if "dashboard" in name or "authenticate" in name}
    await world.sign_in(browser)  # the next sign-out has nothing of the last one
    asked = await browser.get(
        f"{AUTHENTICATE}/.pomerium/sign_out", headers={"accept": "application/json"}
    )
    assert "pomerium_redirect_uri" not in query_of(asked.json()["confirm"])


@pytest.mark.parametrize("page", ["https://evil.example.net/", f"https://{APP}/" + "x" * 3000])
async def test_r26_no_other_page_is_gone_back_to_after_a_sign_out(world, page):
    browser = world.browser()
    await world.sign_in(browser)
    confirm = await confirmed_target(world, browser, page)
    assert "pomerium_redirect_uri" not in query_of(confirm)


async def test_user_info_shows_the_person_and_no_token(world):
    browser = world.browser()
    await world.sign_in(browser)
    session = await session_of(world, route_handle(browser))
    for url in (f"https://{APP}/.pomerium/", f"{AUTHENTICATE}/.pomerium/"):
        page = await browser.get(url)
        assert page.status_code == 200
        assert "ada@example.com" in page.text
        assert session.id in page.text
        for secret in (
            session.id_token.raw,
            session.oauth_token.access_token,
            session.oauth_token.refresh_token,
            "client-secret-value",
        ):
            assert secret not in page.text
    stranger = await world.browser().get(f"https://{APP}/.pomerium/")
    assert stranger.status_code == 200
    assert "not signed in" in stranger.text


async def test_every_page_has_a_json_twin(world):
    browser = world.browser()
    await world.sign_in(browser)
    json_only = {"accept": "application/json"}
    for host in (f"https://{APP}", AUTHENTICATE):
        answer = await browser.get(f"{host}/.pomerium/", headers=json_only)
        assert answer.headers["cache-control"] == "no-store"
        assert answer.json()["session"]["userId"] == "u-ada"
        assert answer.json()["user"]["email"] == "ada@example.com"
    asked = (await browser.get(f"{AUTHENTICATE}/.pomerium/sign_out", headers=json_only)).json()
    assert asked.keys() == {"confirm", "everywhere"}
    assert (await browser.get(asked["everywhere"])).status_code == 302
    done = await browser.get(f"{AUTHENTICATE}/.pomerium/signed_out", headers=json_only)
    assert done.json() == {"signedOut": True}
    after = await browser.get(f"https://{APP}/.pomerium/", headers=json_only)
    assert "session" not in after.json()


async def test_the_dashboard_asks_for_a_sign_in_and_comes_back(world):
    browser = world.browser()
    leave = await browser.get(f"{AUTHENTICATE}/.pomerium/")
    assert leave.status_code == 302
    arrive = await browser.get(await world.choose(browser, leave.headers["location"]))
    assert arrive.headers["location"] == f"{AUTHENTICATE}/.pomerium/"
    assert "ada@example.com" in (await browser.get(arrive.headers["location"])).text


async def test_a_program_signs_in(world):
    browser = world.browser()
    asked = await world.browser().get(
        f"https://{APP}/.pomerium/api/v1/login",
        params={"pomerium_redirect_uri": "http://localhost:9/cb"},
    )
    assert asked.status_code == 200
    assert asked.headers["content-type"].startswith("text/plain")
    leave = await browser.get(asked.text)
    arrive = await browser.get(await world.choose(browser, leave.headers["location"]))
    done = await browser.get(arrive.headers["location"])
    assert done.status_code == 302
    assert done.headers["location"].startswith("http://localhost:9/cb?pomerium_jwt=")
    token = query_of(done.headers["location"])["pomerium_jwt"]
    handle = decode_handle(token, (SHARED,), allowed_uses=frozenset({"api"}))
    assert await session_of(world, handle) is not None
    assert "set-cookie" not in done.headers
    assert (await browser.get(arrive.headers["location"])).status_code == 400


async def test_scripts_are_told_to_reload(world):
    browser = world.browser()
    answer = await browser.get(
        world.ask_to_sign_in(browser), headers={"X-Requested-With": "XmlHttpRequest"}
    )
    assert answer.status_code == 401


async def test_an_expired_session_asks_for_another_sign_in(world):
    browser = world.browser()
    await world.sign_in(browser)
    world.clock.offset_s = 15 * 3600
    again = await browser.get(world.ask_to_sign_in(browser))
    assert urlsplit(again.headers["location"]).netloc.startswith("localhost:")


async def test_a_session_that_is_about_to_end_saves_no_sign_in(world):
    """Where authorize's clock is ahead it has ended, and the browser would go in circles."""
    browser = world.browser()
    await world.sign_in(browser)
    for before_s, host in ((90, APP), (30, "localhost")):
        world.clock.offset_s = 14 * 3600 - before_s
        again = await browser.get(world.ask_to_sign_in(browser))
        assert urlsplit(again.headers["location"]).hostname == host
    page = await browser.get(f"{AUTHENTICATE}/.pomerium/")
    assert page.status_code == 302  # the cookie went with the sign-in that began


async def taken_place(world):
    """Grace's browser, whose session takes the place of Ada's; both sessions."""
    ada, grace = world.browser(), world.browser()
    await world.sign_in(ada)
    leave = await grace.get(world.ask_to_sign_in(grace))
    back = await world.choose(grace, leave.headers["location"], "grace@example.com")
    arrive = await grace.get(back)
    assert (await grace.get(arrive.headers["location"])).status_code == 302
    theirs = await session_of(world, route_handle(ada))
    own = await session_of(world, route_handle(grace))
    own.impersonate_session_id = theirs.id
    await world.operator.put([record_of(own, own.id)])
    return grace, own, theirs


HOME = (f"{AUTHENTICATE}/.pomerium/", f"https://{APP}/.pomerium/")


async def test_somebody_in_anothers_place_is_shown_whose(world):
    browser, own, theirs = await taken_place(world)
    for url in HOME:
        page = await browser.get(url)
        assert "in this person" in page.text
        assert "ada@example.com" in page.text
        shown = (await browser.get(url, headers={"accept": "application/json"})).json()
        assert shown["isImpersonated"] is True
        assert (shown["session"]["id"], shown["session"]["userId"]) == (own.id, theirs.user_id)
        assert shown["user"]["email"] == "ada@example.com"
    again = await browser.get(world.ask_to_sign_in(browser))
    assert again.headers["location"].startswith(f"https://{APP}/.pomerium/callback/")


@pytest.mark.parametrize("end", ["deleted", "expired"])
async def test_a_session_that_stands_for_nobody_asks_for_another_sign_in(world, end):
    """Authorize lets nobody in with it: sent back with it, the browser would turn in circles."""
    browser, own, theirs = await taken_place(world)
    if end == "deleted":
        await world.operator.delete(SESSION, theirs.id)
    else:
        theirs.expires_at.FromSeconds(int(world.clock.now_s()) - 1)
        await world.operator.put([record_of(theirs, theirs.id)])
    again = await browser.get(world.ask_to_sign_in(browser))
    assert urlsplit(again.headers["location"]).netloc.startswith("localhost:")
    for url in HOME:
        assert own.id not in (await browser.get(url)).text
    back = await world.choose(browser, again.headers["location"], "grace@example.com")
    arrive = await browser.get(back)
    assert (await browser.get(arrive.headers["location"])).status_code == 302
    fresh = await session_of(world, route_handle(browser))
    assert (fresh.impersonate_session_id, fresh.id == own.id) == ("", False)


async def test_a_strict_cookie_is_followed_by_a_page_and_not_by_a_redirect(world):
    old = world.hub.current
    strict = old.settings.model_copy(update={"cookie_same_site": "strict"})
    await world.hub.apply(dataclasses.replace(old, settings=strict))
    done = await world.sign_in(world.browser())
    assert done.status_code == 200
    assert "SameSite=Strict" in done.headers.get_list("set-cookie")[0]
    assert f'content="0; url=https://{APP}/page?x=1"' in done.text


async def test_how_long_a_sign_in_may_take_is_a_setting(world):
    old = world.hub.current
    patient = old.settings.model_copy(update={"sign_in_timeout": 3600.0})
    await world.hub.apply(dataclasses.replace(old, settings=patient))
    browser = world.browser()
    leave = await browser.get(world.ask_to_sign_in(browser))
    (pkce,) = [line for line in leave.headers.get_list("set-cookie") if "_pkce_" in line]
    assert "Max-Age=3600" in pkce
    back = await world.choose(browser, leave.headers["location"])
    world.clock.offset_s = 59 * 60
    arrive = await browser.get(back)
    assert arrive.status_code == 302
    # and what binds the callback to the browser has lasted as long
    assert (await browser.get(arrive.headers["location"])).status_code == 302


async def test_a_cookie_name_with_a_host_prefix_is_set_everywhere_that_it_may_be(world):
    """`__Host-` demands the path /, which the cookies of the flow do not have."""
    old = world.hub.current
    named = old.settings.model_copy(update={"cookie_name": "__Host-session"})
    await world.hub.apply(dataclasses.replace(old, settings=named))
    browser = world.browser()
    leave = await browser.get(world.ask_to_sign_in(browser))
    assert "__Host-session_login_binding" in browser.cookies
    assert leave.status_code == 302
    arrive = await browser.get(await world.choose(browser, leave.headers["location"]))
    done = await browser.get(arrive.headers["location"])
    assert done.status_code == 302
    (cookie,) = [
        line for line in done.headers.get_list("set-cookie") if line.startswith("__Host-session=")
    ]
    assert "Path=/;" in cookie
    assert "Domain" not in cookie
    out = await browser.get(f"https://{APP}/.pomerium/sign_out")
    assert out.status_code == 302
    assert any(line.startswith("__Host-session=;") for line in out.headers.get_list("set-cookie"))
