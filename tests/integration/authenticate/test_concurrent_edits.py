"""What happens to one person's records at the same moment: some order of the steps explains it."""

from __future__ import annotations

import asyncio
import html
import re

import pytest

from gatehouse.authenticate.core.records import session_record, user_record
from gatehouse.authenticate.edge.session_writer import SessionWriter
from gatehouse.common.databroker.records import record_of, unpack
from gatehouse.common.identity.tokens import Identity, OAuthTokens
from gatehouse.common.ids import SESSION, USER
from gatehouse.common.session.handle import decode_handle
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User
from tests.support.identity import CLIENT_ID
from tests.support.provider_dialect import on_loopback
from tests.support.provider_dialects import Keycloak
from tests.support.sign_in_world import running_world
from tests.support.web_settings import APP, AUTHENTICATE, SHARED, provider, route, settings

SIGN_OUT = f"{AUTHENTICATE}/.pomerium/sign_out"
REFRESHED = ("oauth_token", "claims")


@pytest.fixture
def dialect():
    return Keycloak()


@pytest.fixture
async def world(dialect):
    async with on_loopback(dialect) as url:
        idp = provider(url, client_id=CLIENT_ID, client_secret=dialect.client_secret)
        made = settings(idp=idp, routes=(route(),), databroker_storage_type="memory")
        async with running_world(made) as running:
            yield running


# -- one person's sessions


class Person:
    """A browser of the one person that there is."""

    def __init__(self, world, dialect):
        self.world, self.dialect = world, dialect
        self.browser = world.browser()

    async def leave(self):
        """Go to the provider; what it sends back waits in `back`."""
        leave = await self.browser.get(self.world.ask_to_sign_in(self.browser))
        self.back = self.dialect.authorize(leave.headers["location"])

    async def arrive(self):
        done = await self.browser.get(f"{AUTHENTICATE}/oauth2/callback", params=self.back)
        assert done.status_code == 302, done.text
        done = await self.browser.get(done.headers["location"])
        assert done.status_code == 302, done.text
        token = self.browser.cookies.get("_pomerium", domain=APP)
        handle = decode_handle(token, (SHARED,), allowed_uses=frozenset({"route"}))
        self.session_id = handle.session_id

    async def sign_out_link(self, label):
        page = await self.browser.get(SIGN_OUT)
        href = re.search(rf'href="([^"]+)">{label}<', page.text)
        assert href is not None, page.text
        return html.unescape(href[1])

    async def follow(self, link):
        assert (await self.browser.get(link)).status_code == 302

    async def record(self):
        return await self.world.databroker.get(SESSION, self.session_id)

    async def is_shown(self):
        """Whether route and authenticate both know the session; they agree."""
        pages = [
            await self.browser.get(url)
            for url in (f"https://{APP}/.pomerium/", f"{AUTHENTICATE}/.pomerium/")
        ]
        known = {self.session_id in page.text for page in pages}
        assert len(known) == 1, [page.text[:500] for page in pages]
        return known == {True}


async def refresh(world, held):
    """What a refresh does with a session that it has read, again and again; how often it could."""
    changed = Session()
    changed.CopyFrom(held)
    times = 0
    while True:
        changed.oauth_token.access_token = f"refreshed-{times}"
        answer = await world.operator.patch([record_of(changed, changed.id)], REFRESHED)
        if not answer.records:
            return times
        times += 1


@pytest.mark.parametrize("begins", range(4))
async def test_r47_what_ends_a_session_wins_over_whatever_happens_beside_it(world, dialect, begins):
    dialect.claims_changes, dialect.userinfo_changes = {"sub": "user-1"}, {"sub": "user-1"}
    people = [Person(world, dialect) for _ in range(4)]
    for one in people:
        await one.leave()
    newcomer, *known = people
    for one in known:
        await one.arrive()
    first, second, third = known
    held = [unpack(await one.record(), Session) for one in known]
    links = [
        await first.sign_out_link("Sign out on all devices"),
        await second.sign_out_link("Sign out"),
    ]
    steps = [
        newcomer.arrive(),
        first.follow(links[0]),
        second.follow(links[1]),
        world.operator.delete(SESSION, third.session_id),
        *(refresh(world, one) for one in held),
    ]
    async with asyncio.timeout(60):  # every refresh ends, as every session does
        await asyncio.gather(*steps[begins:], *steps[:begins])
    for one in known:
        assert await one.record() is None
        assert not await one.is_shown()
    # The one that was made meanwhile came before the end of all, or after it; never half.
    assert await newcomer.is_shown() is (await newcomer.record() is not None)
    assert [await refresh(world, one) for one in held] == [0, 0, 0]
    user = unpack(await world.databroker.get(USER, "user-1"), User)
    assert user.email == "ada@example.com"


# -- one person's record


def identity(**changes):
    values = {
        "user_id": "user-1",
        "subject": "user-1",
        "name": "Ada",
        "email": "ada@example.com",
        "claims": {"groups": ["staff"]},
        "user_claims": {"groups": ["staff"]},
        "id_token": None,
        "tokens": OAuthTokens("access", "Bearer", "", None),
    }
    return Identity(**(values | changes))


async def sign_in(writer, known, who, session_id):
    session = session_record(
        who, session_id=session_id, idp_id="idp", audience=(), expire_s=60.0, now_s=1e9
    )
    return await writer.store(session, user_record(known, who), known)


async def stored_user(world):
    record = await world.databroker.get(USER, "user-1")
    return None if record is None else unpack(record, User)


@pytest.fixture
def writer(world):
    return SessionWriter(world.operator, world.clock)


async def test_r47_a_sign_in_overwrites_nothing_that_is_not_its_own(world, writer):
    """A device is enrolled between a sign-in's look at the user and its writing."""
    await sign_in(writer, None, identity(), "s1")
    known = await writer.user("user-1")
    enrolled = User(id="user-1", device_credential_ids=["device-1"])
    await world.operator.patch([record_of(enrolled, "user-1")], ("device_credential_ids",))
    promoted = identity(user_claims={"groups": ["staff", "admins"]})
    stored = await sign_in(writer, known, promoted, "s2")
    user = await stored_user(world)
    assert list(user.device_credential_ids) == ["device-1"]
    assert [value.string_value for value in user.claims["groups"].values] == ["staff", "admins"]
    assert stored.record_version == (await world.databroker.get(SESSION, "s2")).version


async def test_a_sign_in_that_brings_nothing_new_leaves_the_user_alone(world, writer):
    await sign_in(writer, None, identity(), "s1")
    before = await world.databroker.get(USER, "user-1")
    await sign_in(writer, await writer.user("user-1"), identity(), "s2")
    assert (await world.databroker.get(USER, "user-1")).version == before.version
    assert await writer.session("s2") is not None


async def test_r47_a_user_who_was_deleted_meanwhile_is_a_new_one(world, writer):
    await sign_in(writer, None, identity(), "s1")
    enrolled = User(id="user-1", device_credential_ids=["device-1"])
    await world.operator.patch([record_of(enrolled, "user-1")], ("device_credential_ids",))
    known = await writer.user("user-1")
    await world.operator.delete(USER, "user-1")
    await sign_in(writer, known, identity(email="new@example.com"), "s2")
    user = await stored_user(world)
    assert (user.email, list(user.device_credential_ids)) == ("new@example.com", [])
