"""What people see while something that signing in needs is away."""

from __future__ import annotations

import dataclasses

from tests.support.web_settings import APP, AUTHENTICATE, provider


async def settle(world):
    """Make sure that calls work before the databroker is taken away."""
    await world.databroker.server_info()


async def test_nobody_leaves_for_a_sign_in_that_cannot_be_kept(world):
    browser = world.browser()
    await settle(world)
    await world.broker.go_away()
    answer = await browser.get(world.ask_to_sign_in(browser))
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "location" not in answer.headers
    assert "Wait a few seconds" in answer.text


async def test_a_session_that_cannot_be_read_is_not_missing(world):
    browser = world.browser()
    await world.sign_in(browser)
    await world.broker.go_away()
    for url in (
        world.ask_to_sign_in(browser),
        f"https://{APP}/.pomerium/",
        f"{AUTHENTICATE}/.pomerium/",
    ):
        answer = await browser.get(url)
        assert answer.status_code == 503, url
        assert "retry-after" in answer.headers


async def test_a_sign_in_that_cannot_be_stored_is_a_503(world):
    browser = world.browser()
    leave = await browser.get(world.ask_to_sign_in(browser))
    back = await world.choose(browser, leave.headers["location"])
    await world.broker.go_away()
    answer = await browser.get(back)
    assert answer.status_code == 503
    cookies = answer.headers.get_list("set-cookie")
    assert [line.partition("=")[0][:14] for line in cookies] == ["_pomerium_pkce"]


async def test_r30_a_callback_is_not_honoured_when_nobody_can_say_whether_it_was_used(world):
    browser = world.browser()
    url = await world.callback_url(browser)
    await world.broker.go_away()
    answer = await browser.get(url)
    assert answer.status_code == 503
    assert browser.cookies.get("_pomerium", domain=APP) is None


async def test_a_sign_out_that_did_not_happen_is_not_claimed(world):
    browser = world.browser()
    await world.sign_in(browser)
    first = await browser.get(f"https://{APP}/.pomerium/sign_out")
    await world.broker.go_away()
    answer = await browser.get(first.headers["location"])
    assert answer.status_code == 503
    assert browser.cookies.get("_pomerium_authenticate", domain="authenticate.example.com")


async def with_provider(world, url):
    new = dataclasses.replace(world.hub.current, identity_provider=provider(url))
    await world.hub.apply(new)


async def test_a_provider_that_is_away_is_a_502_that_says_what_to_do(world):
    browser = world.browser()
    await with_provider(world, "http://127.0.0.1:9")
    answer = await browser.get(world.ask_to_sign_in(browser))
    assert answer.status_code == 502
    assert "Your identity provider does not answer" in answer.text
    assert f'href="https://{APP}/page?x=1"' in answer.text
    assert "127.0.0.1:9" not in answer.text


async def test_a_provider_that_goes_away_during_the_sign_in_is_a_502(world):
    browser = world.browser()
    leave = await browser.get(world.ask_to_sign_in(browser))
    back = await world.choose(browser, leave.headers["location"])
    await with_provider(world, "http://127.0.0.1:9")
    answer = await browser.get(back)
    assert answer.status_code == 502
    assert "Max-Age=0" in answer.headers["set-cookie"]


async def test_signing_out_works_while_the_provider_is_away(world):
    browser = world.browser()
    await world.sign_in(browser)
    await with_provider(world, "http://127.0.0.1:9")
    first = await browser.get(f"https://{APP}/.pomerium/sign_out")
    second = await browser.get(first.headers["location"])
    assert second.status_code == 302
    assert second.headers["location"] == f"{AUTHENTICATE}/.pomerium/signed_out"


async def test_without_a_provider_signing_in_is_not_set_up(world):
    browser = world.browser()
    await world.hub.apply(dataclasses.replace(world.hub.current, identity_provider=None))
    answer = await browser.get(world.ask_to_sign_in(browser))
    assert answer.status_code == 500
    assert "not set up" in answer.text


async def test_new_settings_count_from_the_next_request(world):
    browser = world.browser()
    await world.sign_in(browser)
    old = world.hub.current
    rotated = dataclasses.replace(old, shared_secrets=(b"n" * 32, *old.shared_secrets))
    await world.hub.apply(rotated)
    assert "ada@example.com" in (await browser.get(f"https://{APP}/.pomerium/")).text
    assert (await browser.get(world.ask_to_sign_in(browser))).status_code == 302
    await world.hub.apply(dataclasses.replace(old, shared_secrets=(b"n" * 32,)))
    assert "not signed in" in (await browser.get(f"https://{APP}/.pomerium/")).text
