"""The flow against a provider nobody here wrote."""

from __future__ import annotations

import json

import pytest

from gatehouse.common.databroker.records import unpack
from gatehouse.common.ids import SESSION
from gatehouse.common.session.handle import decode_handle
from gatehouse.pb.session_pb2 import Session
from tests.support.identity import provider_mock
from tests.support.sign_in_world import running_world
from tests.support.web_settings import APP, AUTHENTICATE, SHARED, provider, route, settings

HOSTILE = {
    "sub": "user-1",
    "email": "ada@example.com",
    "name": "<b>Ada</b>",
    "jti": "theirs",
    "idp_id": "theirs",
    "databroker_server_version": 1,
    "databroker_record_version": 2,
    "groups": ["a", "b"],
}


@pytest.fixture
async def world():
    arguments = ("--require-nonce", "true", "--user-claims", json.dumps(HOSTILE))
    with provider_mock(*arguments) as issuer:
        made = settings(idp=provider(issuer), routes=(route(),), databroker_storage_type="memory")
        async with running_world(made) as running:
            yield running


async def test_claims_that_look_like_ours_change_nothing(world):
    browser = world.browser()
    leave = await browser.get(world.ask_to_sign_in(browser))
    form = await browser.post(leave.headers["location"], data={"sub": "user-1"})
    arrive = await browser.get(form.headers["location"])
    assert arrive.status_code == 302, arrive.text
    done = await browser.get(arrive.headers["location"])
    assert done.headers["location"] == f"https://{APP}/page?x=1"
    token = browser.cookies.get("_pomerium", domain=APP)
    handle = decode_handle(token, (SHARED,), allowed_uses=frozenset({"route"}))
    assert handle.session_id != "theirs"
    assert handle.idp_id == "idp-global"
    record = await world.databroker.get(SESSION, handle.session_id)
    assert record.version == handle.record_version
    session = unpack(record, Session)
    assert session.user_id == "user-1"
    assert [value.string_value for value in session.claims["groups"].values] == ["a", "b"]
    page = await browser.get(f"https://{APP}/.pomerium/")
    assert "<b>Ada" not in page.text
    assert "&lt;b&gt;Ada&lt;/b&gt;" in page.text


async def test_somebody_who_is_denied_there_is_told_so(world):
    browser = world.browser()
    leave = await browser.get(world.ask_to_sign_in(browser))
    form = await browser.post(leave.headers["location"], data={"action": "deny"})
    assert form.headers["location"].startswith(f"{AUTHENTICATE}/oauth2/callback?error=")
    answer = await browser.get(form.headers["location"])
    assert answer.status_code == 401
