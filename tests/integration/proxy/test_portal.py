"""The routes portal: a real authorize says what may be opened, the pages show it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from gatehouse.common.config.resolved import ResolvedRoute
from gatehouse.common.ids import RouteId
from gatehouse.common.jose.keys import derive_signing_key, sign_jwt
from tests.support.policy import directory_user_record, policy_of, session_record, user_record
from tests.support.sign_in_world import World, running_world
from tests.support.web_settings import APP, SHARED, route, settings

PORTAL = f"https://{APP}/.pomerium/routes"
API = f"https://{APP}/.pomerium/api/v1/routes"
ATTACK = '"><script>alert(1)</script>'
EVERYBODY = "allow: {or: [{authenticated_user: true}]}"


def portal_route(number: int, policy: str, from_: str = "", **keys: Any) -> ResolvedRoute:
    made = route(from_ or f"https://r{number}.example.com", **keys)
    return dataclasses.replace(made, id=RouteId(f"{number:016x}"), policy=policy_of(policy))


ROUTES = (
    portal_route(0, EVERYBODY, f"https://{APP}", name="Home", description="Where all begins"),
    portal_route(1, "allow: {and: [{email: ann@example.com}]}", name="Ann's own"),
    portal_route(2, "allow: {and: [{email: bob@example.com}]}", name="Bob's own"),
    portal_route(3, "allow: {and: [{groups: {has: eng}}]}", name="Engineers"),
    portal_route(4, "allow: {and: [{groups: {has: sales}}]}", name="Sales"),
    portal_route(5, "allow: {or: [{accept: true}]}", name=ATTACK, description=ATTACK),
    portal_route(6, f"{EVERYBODY}\ndeny: {{or: [{{domain: example.com}}]}}", name="Denied"),
    portal_route(7, "allow: {and: [{device: {is: any}}]}", name="Behind a device"),
    portal_route(8, "allow: {and: [{source_ip: 192.0.2.0/24}]}", name="Office"),
    portal_route(9, EVERYBODY, "tcp+https://db.example.com:5432", name="Database"),
    portal_route(10, EVERYBODY, "https://*.wild.example.com", name="Wildcard"),
    portal_route(11, EVERYBODY, name="Below", prefix="/app", logo_url="javascript:alert(1)"),
    portal_route(12, "allow: {and: [{http_path: /}]}", name="Not at its start", prefix="/x"),
)


class Page(HTMLParser):
    """The elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with running_world(settings(routes=ROUTES, databroker_storage_type="memory")) as running:
        await running.operator.put(
            [
                user_record("u1", "ann@example.com"),
                session_record("s1", "u1", expires_at_s=4_000_000_000),
                directory_user_record("u1", group_ids=["eng"]),
            ]
        )
        yield running


def signed_in(session_id: str = "s1", **headers: str) -> dict[str, str]:
    """What Envoy sends once authorize has let a session in."""
    token = sign_jwt({"sid": session_id, "sub": "u1"}, derive_signing_key(SHARED))
    return {"x-pomerium-jwt-assertion": token, **headers}


async def names(browser: httpx.AsyncClient, query: str = "", **headers: str) -> list[str]:
    answer = await browser.get(f"{API}{query}", headers=signed_in(**headers))
    assert answer.status_code == 200, answer.text
    return [entry["name"] for entry in answer.json()["routes"]]


async def test_shows_what_policy_allows_and_nothing_else(world: World) -> None:
    browser = world.browser()
    assert await names(browser) == [
        *("Home", "Ann's own", "Engineers", ATTACK, "Behind a device", "Database", "Wildcard"),
        "Below",
    ]
    address = {"x-envoy-external-address": "192.0.2.7"}
    assert "Office" in await names(browser, **address)
    page = await browser.get(PORTAL, headers=signed_in())
    assert page.status_code == 200
    for name in ("Bob", "Sales", "Denied", "Office", "Not at its start"):
        assert name not in page.text
    assert "Asks for a registered device" in page.text


async def test_follows_the_records(world: World) -> None:
    browser = world.browser()
    assert "Sales" not in await names(browser)
    put = await world.operator.put([directory_user_record("u1", group_ids=["sales"])])
    assert put.records
    for _ in range(200):
        found = await names(browser)
        if "Sales" in found:
            break
    assert "Sales" in found
    assert "Engineers" not in found


async def test_the_json_says_how_to_reach_each_route(world: World) -> None:
    answer = await world.browser().get(API, headers=signed_in())
    assert answer.headers["cache-control"] == "no-store"
    routes = {entry["name"]: entry for entry in answer.json()["routes"]}
    assert routes["Home"] == {
        "id": f"{0:016x}",
        "name": "Home",
        "type": "http",
        "from": f"https://{APP}",
        "description": "Where all begins",
        "connect_command": "",
        "logo_url": "",
    }
    assert routes["Database"]["type"] == "tcp"
    assert routes["Database"]["connect_command"] == "pomerium-cli tcp db.example.com:5432"
    assert routes["Below"]["logo_url"] == ""
    twin = await world.browser().get(PORTAL, headers=signed_in() | {"accept": "application/json"})
    assert twin.json() == answer.json()


async def test_the_page_links_searches_and_runs_no_inline_script(world: World) -> None:
    browser = world.browser()
    answer = await browser.get(f"{PORTAL}?q=ENGIN", headers=signed_in())
    page = Page(answer.text)
    assert "1 application for" in answer.text
    (field,) = page.all("input")
    assert (field["name"], field["value"]) == ("q", "ENGIN")
    assert [label["for"] for label in page.all("label")] == [field["id"]]
    assert [link["href"] for link in page.all("a") if "r3." in (link["href"] or "")] == [
        "https://r3.example.com/"
    ]
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "form-action 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-inline" not in policy
    (script,) = page.all("script")
    assert re.fullmatch(r"/\.pomerium/index\.js\?v=[0-9a-f]{16}", str(script["src"]))
    loaded = await browser.get(f"https://{APP}{script['src']}")
    assert loaded.headers["content-type"].startswith("text/javascript")
    assert loaded.headers["x-content-type-options"] == "nosniff"
    assert "addEventListener" in loaded.text
    nothing = await browser.get(f"{PORTAL}?q=nothing+like+it", headers=signed_in())
    assert "Nothing that you may open fits" in nothing.text


async def test_links_keep_the_port_that_the_portal_is_reached_by(world: World) -> None:
    headers = signed_in() | {"host": f"{APP}:8443"}
    page = Page((await world.browser().get(PORTAL, headers=headers)).text)
    links = [link["href"] for link in page.all("a")]
    assert "https://r11.example.com:8443/app" in links
    assert not [link for link in links if "wild" in str(link) or "db." in str(link)]


async def test_r34_names_are_text(world: World) -> None:
    answer = await world.browser().get(f"{PORTAL}?q={ATTACK}", headers=signed_in())
    assert "alert(1)" in answer.text
    assert "<script>" not in answer.text
    assert [script.get("src") is not None for script in Page(answer.text).all("script")] == [True]


async def test_many_routes_come_in_pages(world: World) -> None:
    many = tuple(portal_route(number, EVERYBODY, name=f"app {number}") for number in range(130))
    await world.hub.apply(dataclasses.replace(world.hub.current, routes=(route(), *many)))
    browser = world.browser()
    assert len(await names(browser)) == 130
    shown = []
    for page in ("", "?page=2", "?page=3", "?page=99", "?page=-1", "?page=x"):
        answer = await browser.get(f"{PORTAL}{page}", headers=signed_in())
        shown.append(len(re.findall(r"<li>", answer.text)))
    assert shown == [60, 60, 10, 10, 60, 60]
    assert "page 3 of 3" in (await browser.get(f"{PORTAL}?page=3", headers=signed_in())).text
    second = Page((await browser.get(f"{PORTAL}?q=app&page=2", headers=signed_in())).text)
    turns = {link["rel"]: link["href"] for link in second.all("a") if "rel" in link}
    assert turns == {
        "prev": "/.pomerium/routes?q=app&page=1",
        "next": "/.pomerium/routes?q=app&page=3",
    }


async def test_only_whom_authorize_has_let_in(world: World) -> None:
    browser = world.browser()
    forged = sign_jwt({"sid": "s1"}, derive_signing_key(b"x" * 32))
    for url in (PORTAL, API):
        assert (await browser.get(url)).status_code == 404
        headers = {"x-pomerium-jwt-assertion": forged}
        assert (await browser.get(url, headers=headers)).status_code == 404
        ended = await browser.get(url, headers=signed_in("gone"))
        assert ended.status_code == 401
        long = await browser.get(f"{url}?q={'x' * 201}", headers=signed_in())
        assert long.status_code == 400
        assert (await browser.post(url, headers=signed_in())).status_code == 405


async def test_switched_off(world: World) -> None:
    old = world.hub.current
    flags = {**old.settings.runtime_flags, "routes_portal": False}
    changed = old.settings.model_copy(update={"runtime_flags": flags})
    await world.hub.apply(dataclasses.replace(old, settings=changed))
    for url in (PORTAL, API):
        assert (await world.browser().get(url, headers=signed_in())).status_code == 404
    info = await world.browser().get(
        f"https://{APP}/.pomerium/", headers={"accept": "application/json"}
    )
    assert info.json()["runtimeFlags"] == {"routes_portal": False}


async def test_authorize_away_is_a_503_and_says_so(world: World) -> None:
    await world.broker.go_away()
    answer = await world.browser().get(PORTAL, headers=signed_in(), timeout=20)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert "cannot be shown" in answer.text
