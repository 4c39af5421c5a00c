"""Many people sign in at the same moment: each gets a session of their own, and no more."""

from __future__ import annotations

import asyncio

from gatehouse.common.databroker.records import unpack
from gatehouse.common.ids import SESSION, USER
from gatehouse.common.session.cookies import cookie_values
from gatehouse.common.session.handle import decode_handle
from gatehouse.pb.session_pb2 import Session
from tests.support.web_settings import APP, SHARED

PEOPLE = 60
ACCOUNTS = ("ada@example.com", "grace@example.com")


async def test_r33_concurrent_first_sign_ins_make_a_session_each(world):
    async def sign_in(number):
        browser = world.browser()
        leave = await browser.get(world.ask_to_sign_in(browser), timeout=60)
        user = ACCOUNTS[number % len(ACCOUNTS)]
        back = await world.choose(browser, leave.headers["location"], user)
        arrive = await browser.get(back, timeout=60)
        assert arrive.status_code == 302, arrive.text
        done = await browser.get(arrive.headers["location"], timeout=60)
        assert done.status_code in {200, 302}, done.text
        cookies = [f"{one.name}={one.value}" for one in browser.cookies.jar if one.domain == APP]
        (value,) = cookie_values(cookies, "_pomerium")
        return user, decode_handle(value, (SHARED,), allowed_uses=frozenset({"route"}))

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(sign_in(number)) for number in range(PEOPLE)]
    done = [task.result() for task in running]
    page = await world.databroker.query(SESSION, limit=1000)
    stored = {record.id: unpack(record, Session) for record in page.records}
    assert page.total_count == PEOPLE
    assert {handle.session_id for _, handle in done} == stored.keys()
    by_account = {user: handle.user_id for user, handle in done}
    assert len(set(by_account.values())) == len(ACCOUNTS)
    for user, handle in done:
        assert stored[handle.session_id].user_id == handle.user_id == by_account[user]
    assert (await world.databroker.query(USER, limit=10)).total_count == len(ACCOUNTS)
