"""One sign-in for a route and the five hosts it depends on, over real HTTP."""

from __future__ import annotations

import httpx
import pytest

from gatehouse.common.session.handle import decode_handle
from tests.support.sign_in import query_of
from tests.support.sign_in_world import running_world
from tests.support.web_settings import APP, SHARED, provider, route, settings

HOSTS = tuple(f"h{number}.example.com{port}" for number, port in enumerate(("", ":8443") * 3))[:5]


@pytest.fixture
async def world(issuer):
    made = settings(
        idp=provider(issuer),
        routes=(route(depends_on=list(HOSTS)),),
        databroker_storage_type="memory",
    )
    async with running_world(made) as running:
        running.hosts = (APP, *HOSTS)
        yield running


async def follow(browser, url):
    """Every URL on the way, and the last answer."""
    seen = [url]
    while True:
        answer = await browser.get(seen[-1])
        if answer.status_code != 302 or "/page" in answer.headers["location"]:
            return seen, answer
        seen.append(answer.headers["location"])
        assert len(seen) < 20


def session_ids(browser):
    found = {}
    for cookie in browser.cookies.jar:
        if cookie.name == "_pomerium":
            handle = decode_handle(cookie.value, (SHARED,), allowed_uses=frozenset({"route"}))
            found[cookie.domain] = handle.session_id
    return found


def asking(world, browser):
    return world.callback_url(browser, pomerium_additional_hosts=",".join(HOSTS))


async def test_a_chain_of_five_hosts_with_ports(world):
    browser = world.browser()
    url = await asking(world, browser)
    seen, answer = await follow(browser, url)
    assert answer.headers["location"] == f"https://{APP}/page?x=1"
    assert [httpx.URL(one).netloc.decode() for one in seen] == [APP, *HOSTS, APP, *HOSTS]
    ids = session_ids(browser)
    assert len(ids) == 6
    assert len(set(ids.values())) == 1
    for url in seen:  # every binding was burned
        if "gatehouse_chain_step" not in url:
            assert (await browser.get(url)).status_code == 400


async def test_a_host_that_is_down_costs_the_others_nothing(world):
    browser = world.browser()
    url = await asking(world, browser)
    first = await browser.get(url)
    assert first.headers["location"].startswith(f"https://{HOSTS[0]}/.pomerium/callback/")
    # The browser stops here when h0 is down; the route itself has its session.
    assert list(session_ids(browser)) == [APP]


async def test_r31_no_step_of_a_chain_gives_another_browser_a_session(world):
    attacker, victim = world.browser(), world.browser()
    seen, _ = await follow(attacker, await asking(world, attacker))
    fresh = world.browser()
    steps, _ = await follow(fresh, await asking(world, fresh))
    for url in (*seen, *steps):
        await follow(victim, url)
        assert session_ids(victim) == {}, url
    # A chain that stopped half-way: the victim goes on where the attacker left off.
    half = world.browser()
    url = await asking(world, half)
    for _ in range(3):
        url = (await half.get(url)).headers["location"]
    assert "gatehouse_chain_step" in query_of(url)
    _, answer = await follow(victim, url)
    assert answer.status_code == 400
    assert session_ids(victim) == {}


async def test_r30_each_step_with_a_session_works_once(world):
    browser = world.browser()
    seen, _ = await follow(browser, await asking(world, browser))
    for url in (seen[0], *seen[-6:]):
        again = await browser.get(url)
        assert again.status_code == 400, url
