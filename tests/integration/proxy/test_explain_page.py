"""The page of administrators: a real authorize says who may ask, and why others are let in."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from gatehouse.common.ids import RouteId
from gatehouse.common.jose.keys import derive_signing_key, sign_jwt
from tests.support.policy import directory_user_record, policy_of, session_record, user_record
from tests.support.sign_in_world import World, running_world
from tests.support.web_settings import APP, SHARED, route, settings

PAGE = f"https://{APP}/.pomerium/explain"
ATTACK = '"><script>alert(1)</script>'
JSON = {"accept": "application/json"}
ADMINISTRATORS = policy_of(
    "{allow: {or: [{groups: admins}]}, deny: {not: [{source_ip: [192.0.2.0/24, '::1']}]}}"
)
WIKI = policy_of(
    "allow: {and: [{email: ann@example.com}, {http_method: GET}, {claim/access_token: t}]}"
)
SECRET_CLAIM = "eyJ-what-nobody-may-see"
OFFICE = {"x-envoy-external-address": "192.0.2.7"}


class Text(HTMLParser):
    """What a page says, and the elements in it."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.said: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    wiki = dataclasses.replace(
        route("https://wiki.example.com", name="wiki"), id=RouteId("0123"), policy=WIKI
    )
    one = settings(routes=(route(), wiki), databroker_storage_type="memory")
    one = dataclasses.replace(one, explain_policy=ADMINISTRATORS)
    async with running_world(one) as running:
        await running.operator.put(
            [
                user_record("boss", "boss@example.com"),
                directory_user_record("boss", group_ids=["admins"]),
                session_record("s-boss", "boss", expires_at_s=4_000_000_000),
                user_record("u1", "ann@example.com"),
                session_record(
                    *("s1", "u1"),
                    claims={"access_token": [SECRET_CLAIM]},
                    expires_at_s=4_000_000_000,
                ),
                session_record("s2", "u1", expires_at_s=4_000_000_000),
                session_record("old", "u1", expires_at_s=1_000_000_000),
            ]
        )
        browser = running.browser()
        async with asyncio.timeout(60):  # until authorize's copy has them all
            while not await knows_everybody(browser):
                pass
        yield running


async def knows_everybody(browser: httpx.AsyncClient) -> bool:
    answer = await browser.get(f"{PAGE}?route=wiki&who=u1", headers=as_session("s-boss", **JSON))
    return answer.status_code == 200 and len(answer.json().get("session_id", ())) == 2


def as_session(session_id: str, **headers: str) -> dict[str, str]:
    """What Envoy sends once authorize has let a session in."""
    token = sign_jwt({"sid": session_id, "sub": "x"}, derive_signing_key(SHARED))
    return {"x-pomerium-jwt-assertion": token, **OFFICE, **headers}


async def explained(browser: httpx.AsyncClient, **typed: str) -> dict[str, Any]:
    headers = as_session("s-boss", **JSON)
    answer = await browser.get(f"{PAGE}?{urlencode(typed)}", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    found: dict[str, Any] = answer.json()
    return found


async def test_an_administrator_sees_why(world: World) -> None:
    browser = world.browser()
    form = await browser.get(PAGE, headers=as_session("s-boss"))
    assert form.status_code == 200
    page = Text(form.text)
    assert [one["name"] for one in page.all("input")] == [
        *("route", "who", "method", "path", "ip", "time")
    ]
    assert "0123" in [one["value"] for one in page.all("option")]
    assert "wiki https://wiki.example.com" in page.said
    question = urlencode({"route": "wiki", "who": "ann@example.com", "method": "POST"})
    answer = await browser.get(f"{PAGE}?{question}", headers=as_session("s-boss"))
    said = Text(answer.text).said
    assert "Refused with 403" in said
    assert "ann@example.com at https://wiki.example.com" in said
    assert "Rule 1, allow.and: false" in said
    assert "allow.and[1].http_method" in " ".join(said)
    assert "http-method-unauthorized" in said
    assert "method: POST" in said
    assert "What would change the answer" in said
    policy = answer.headers["content-security-policy"]
    assert "script-src" not in policy
    assert "form-action 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["cache-control"] == "no-store"
    assert not Text(answer.text).all("script")
    # What was asked stands in the form again.
    assert [one["value"] for one in Text(answer.text).all("input")][:3] == [
        *("wiki", "ann@example.com", "POST")
    ]


async def test_who_may_be_meant_in_many_ways(world: World) -> None:
    browser = world.browser()
    for who, sessions in (
        ("s1", ["s1"]),
        ("u1", ["s2", "s1"]),
        ("ann@example.com", ["s2", "s1"]),
        ("Ann@Example.com", ["s2", "s1"]),
        ("", []),
    ):
        found = await explained(browser, route="wiki", who=who)
        assert sorted(found.get("session_id", [])) == sorted(sessions), who
        outcome = "denied 403" if who else "sign-in"
        assert found["explanation"]["outcome"] == outcome
    answer = await browser.get(f"{PAGE}?route=wiki&who=u1", headers=as_session("s-boss"))
    (link,) = [one["href"] for one in Text(answer.text).all("a") if "who=" in str(one["href"])]
    assert link in {"/.pomerium/explain?route=wiki&who=s1", "/.pomerium/explain?route=wiki&who=s2"}


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        ({"route": "nowhere"}, "no single route is"),
        ({"route": "wiki", "who": "old"}, "no live session is 'old'"),
        ({"route": "wiki", "who": "nobody@example.com"}, "no live session is"),
        ({"route": "wiki", "who": "x" * 600}, "session_id has 1 to"),
        ({"route": "wiki", "path": "wiki"}, "expected a path that begins with /"),
        ({"route": "wiki", "path": "/%"}, "not correctly percent-encoded"),
        ({"route": "wiki", "time": "yesterday"}, "expected a moment with its zone"),
    ],
)
async def test_what_cannot_be_answered_is_said(
    world: World, typed: dict[str, str], problem: str
) -> None:
    browser = world.browser()
    found = await explained(browser, **typed)
    assert problem in found["problem"]
    assert "explanation" not in found
    page = await browser.get(f"{PAGE}?{urlencode(typed)}", headers=as_session("s-boss"))
    assert page.status_code == 200
    assert problem in " ".join(Text(page.text).said)


async def test_r47_nobody_else_may_ask(world: World) -> None:
    browser = world.browser()
    question = f"{PAGE}?route=wiki&who=s1"
    forged = sign_jwt({"sid": "s-boss"}, derive_signing_key(b"x" * 32))
    # No administrator; an administrator from elsewhere, or from nowhere; no session any more.
    for headers, status in (
        (as_session("s1"), 403),
        (as_session("s-boss") | {"x-envoy-external-address": "198.51.100.1"}, 403),
        (as_session("s-boss") | {"x-envoy-external-address": ""}, 403),
        (as_session("gone"), 401),
        ({}, 404),
        ({"x-pomerium-jwt-assertion": forged}, 404),
        ({"x-pomerium-jwt-assertion": forged, **OFFICE}, 404),
    ):
        for url in (PAGE, question):
            for accept in ("text/html", "application/json"):
                answer = await browser.get(url, headers={**headers, "accept": accept})
                assert answer.status_code == status
                assert "ann@example.com" not in answer.text
                assert "wiki" not in answer.text
    assert (await browser.post(question, headers=as_session("s-boss"))).status_code == 405
    twice = await browser.get(f"{question}&who=s2", headers=as_session("s-boss"))
    assert twice.status_code == 400
    await world.operator.put([directory_user_record("boss", group_ids=[])])
    async with asyncio.timeout(60):  # until authorize's copy has heard of it
        while (await browser.get(question, headers=as_session("s-boss"))).status_code != 403:
            pass


async def test_r36_no_token_is_shown(world: World) -> None:
    browser = world.browser()
    question = f"{PAGE}?route=wiki&who=s1"
    for accept in ("text/html", "application/json"):
        answer = await browser.get(question, headers=as_session("s-boss", accept=accept))
        assert answer.status_code == 200
        assert "claim access_token" in answer.text
        assert SECRET_CLAIM not in answer.text


async def test_r34_what_was_typed_is_text(world: World) -> None:
    typed = urlencode({"route": ATTACK, "who": ATTACK, "path": f"/{ATTACK}"})
    answer = await world.browser().get(f"{PAGE}?{typed}", headers=as_session("s-boss"))
    assert "alert(1)" in answer.text
    assert not Text(answer.text).all("script")


async def test_without_the_setting_there_is_no_page(world: World) -> None:
    await world.hub.apply(dataclasses.replace(world.hub.current, explain_policy=None))
    for url in (PAGE, f"{PAGE}?route=wiki"):
        answer = await world.browser().get(url, headers=as_session("s-boss"))
        assert answer.status_code == 404


async def test_authorize_away_is_a_503_and_says_so(world: World) -> None:
    await world.broker.go_away()
    answer = await world.browser().get(PAGE, headers=as_session("s-boss"), timeout=20)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
