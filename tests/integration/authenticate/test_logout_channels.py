"""Sessions that end together: on all devices, and by the identity provider's own word."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hmac
import html
import json
import re
from typing import Any
from urllib.parse import urlencode

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.databroker.records import record_of, unpack
from gatehouse.common.identity.errors import IdentityRefusedError
from gatehouse.common.identity.http_client import http_client
from gatehouse.common.identity.provider import make_provider
from gatehouse.common.ids import SESSION
from gatehouse.common.jose.signed_url import sign_url
from gatehouse.common.session.handle import decode_handle
from gatehouse.pb.session_pb2 import Session
from tests.support.identity import CLIENT_ID, Reply, key_pair
from tests.support.provider_dialect import on_loopback
from tests.support.provider_dialects import Keycloak
from tests.support.sign_in_world import running_world
from tests.support.web_settings import APP, AUTHENTICATE, SHARED, provider, route, settings

BACK_CHANNEL = f"{AUTHENTICATE}/.pomerium/backchannel_logout"
EVENT = "http://schemas.openid.net/event/backchannel-logout"


@pytest.fixture
def dialect():
    return Keycloak()


@pytest.fixture
async def world(dialect):
    async with on_loopback(dialect) as url:
        idp = provider(url, client_id=CLIENT_ID, client_secret=dialect.client_secret)
        other = provider(
            url, idp_id="idp-other", client_id="other", client_secret=idp.client_secret
        )
        routes = (route(), route("https://other.example.com", idp=other))
        made = settings(idp=idp, routes=routes, databroker_storage_type="memory")
        async with running_world(made) as running:
            yield running


async def signed_in(world, dialect, *, sub="user-1", sid="sid-1", claims=None, **asked):
    """A browser with a session, and the session."""
    browser = world.browser()
    dialect.claims_changes = {"sub": sub, "sid": sid, **(claims or {})}
    dialect.userinfo_changes = {"sub": sub}
    leave = await browser.get(world.ask_to_sign_in(browser, **asked))
    back = dialect.authorize(leave.headers["location"])
    arrive = await browser.get(f"{AUTHENTICATE}/oauth2/callback", params=back)
    assert arrive.status_code == 302, arrive.text
    await browser.get(arrive.headers["location"])
    token = browser.cookies.get("_pomerium", domain=APP)
    handle = decode_handle(token, (SHARED,), allowed_uses=frozenset({"route"}))
    return browser, await session_of(world, handle.session_id)


async def session_of(world, session_id):
    record = await world.databroker.get(SESSION, session_id)
    return None if record is None else unpack(record, Session)


async def alive(world, *sessions):
    return [await session_of(world, one.id) is not None for one in sessions]


async def deliver(world, token, **headers):
    return await world.browser().post(BACK_CHANNEL, data={"logout_token": token}, headers=headers)


# --- back channel ---


async def test_the_provider_ends_one_of_its_sessions(world, dialect):
    _, first = await signed_in(world, dialect, sid="sid-1")
    _, second = await signed_in(world, dialect, sid="sid-2")
    assert (first.idp_session_id, second.idp_session_id) == ("sid-1", "sid-2")
    answer = await deliver(world, dialect.logout_token(sid="sid-1"))
    assert (answer.status_code, answer.text) == (200, "")
    assert answer.headers["cache-control"] == "no-store"
    assert await alive(world, first, second) == [False, True]
    again = await deliver(world, dialect.logout_token(sid="sid-1"))
    assert again.status_code == 200  # nothing left to end is no error


async def test_a_session_is_enough_and_so_is_a_person(world, dialect):
    _, first = await signed_in(world, dialect, sid="sid-1")
    _, second = await signed_in(world, dialect, sid="sid-2")
    _, third = await signed_in(world, dialect, sub="user-2", sid="sid-3")
    assert (await deliver(world, dialect.logout_token(sub=None, sid="sid-1"))).status_code == 200
    assert await alive(world, first, second, third) == [False, True, True]
    assert (await deliver(world, dialect.logout_token(sid=None))).status_code == 200
    assert await alive(world, first, second, third) == [False, False, True]


async def test_a_session_of_another_person_is_not_ended_by_its_name_alone(world, dialect):
    _, session = await signed_in(world, dialect, sub="user-2", sid="sid-1")
    assert (await deliver(world, dialect.logout_token(sub="user-1"))).status_code == 200
    assert await alive(world, session) == [True]


async def test_a_session_of_another_client_is_not_ended(world, dialect):
    _, session = await signed_in(world, dialect)
    elsewhere = Session()
    elsewhere.CopyFrom(session)
    elsewhere.id, elsewhere.idp_id = "elsewhere", "idp-other"
    await world.operator.put([record_of(elsewhere, elsewhere.id)])
    await deliver(world, dialect.logout_token())
    assert await alive(world, session, elsewhere) == [False, True]


async def signed_in_at_both_clients(world, dialect):
    """Two sessions of one person in one single sign-on: one issuer, one `sid`, two clients."""
    _, one = await signed_in(world, dialect)
    dialect.client_id = "other"
    try:
        _, two = await signed_in(world, dialect, pomerium_idp_id="idp-other")
    finally:
        dialect.client_id = CLIENT_ID
    assert (one.idp_session_id, two.idp_session_id) == ("sid-1", "sid-1")
    assert one.idp_id != two.idp_id
    return one, two


@pytest.mark.parametrize("named", [{}, {"sid": None}, {"sub": None}])
@pytest.mark.parametrize(
    ("audience", "left"),
    [(CLIENT_ID, [False, True]), ("other", [True, False]), ([CLIENT_ID, "other"], [False, False])],
)
async def test_two_clients_of_one_issuer_end_their_own_sessions(
    world, dialect, named, audience, left
):
    one, two = await signed_in_at_both_clients(world, dialect)
    answer = await deliver(world, dialect.logout_token(aud=audience, **named))
    assert answer.status_code == 200
    assert await alive(world, one, two) == left


async def test_a_person_is_found_by_the_subject_whatever_the_user_id_is(world, dialect):
    """The user id is `oid` where the provider gives one; its logout token names the `sub`."""
    _, session = await signed_in(world, dialect, claims={"oid": "object-1"})
    _, other = await signed_in(world, dialect, sub="user-2", sid="s", claims={"oid": "user-1"})
    assert (session.user_id, other.user_id) == ("object-1", "user-1")
    assert (await deliver(world, dialect.logout_token(sid=None))).status_code == 200
    assert await alive(world, session, other) == [False, True]


async def test_a_logout_token_works_once(world, dialect):
    token = dialect.logout_token(sid=None)
    assert (await deliver(world, token)).status_code == 200
    _, session = await signed_in(world, dialect)
    again = await deliver(world, token)
    assert again.status_code == 400
    assert again.json()["error"] == "invalid_request"
    assert again.headers["cache-control"] == "no-store"
    assert await alive(world, session) == [True]


async def test_of_two_deliveries_at_once_one_is_taken(world, dialect):
    token = dialect.logout_token()
    answers = await asyncio.gather(*(deliver(world, token) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400]


BAD: dict[str, dict[str, Any]] = {
    "another issuer": {"iss": "https://evil.example.net"},
    "another audience": {"aud": "nobody"},
    "no audience": {"aud": None},
    "no event": {"events": None},
    "an event that is no object": {"events": {EVENT: "x"}},
    "another event": {"events": {"http://schemas.openid.net/event/other": {}}},
    "a nonce": {"nonce": "n"},
    "no id": {"jti": None},
    "an id that is no text": {"jti": 7},
    "no iat": {"iat": None},
    "an old iat": {"iat": 1_700_000_000, "exp": None},
    "a far iat": {"iat": 4_000_000_000},
    "an old exp": {"exp": 1_700_000_000},
    "nobody": {"sub": None, "sid": None},
    "a sub that is no text": {"sub": ["user-1"]},
    "an empty sid": {"sid": ""},
}


@pytest.mark.parametrize("what", BAD)
async def test_a_bad_logout_token_ends_nothing(world, dialect, what):
    _, session = await signed_in(world, dialect)
    answer = await deliver(world, dialect.logout_token(**BAD[what]))
    assert answer.status_code == 400
    assert "no-store" in answer.headers["cache-control"]
    assert await alive(world, session) == [True]


async def test_a_forged_logout_token_ends_nothing(world, dialect):
    browser, session = await signed_in(world, dialect)
    good = dialect.logout_token()
    claims = jwt.decode(good, options={"verify_signature": False})
    strange, _ = key_pair("ES256")
    public = dialect.private.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    forged = [
        "", "x", "a.b.c", good[:-4], good + ".x",
        jwt.encode(claims, "", algorithm="none"),
        jwt.encode(claims, strange, algorithm="ES256", headers={"kid": "rsa-1"}),
        _hs256(claims, pem),
        dialect.logout_token(typ="at+jwt"),
        session.id_token.raw,
    ]  # fmt: skip
    for token in forged:
        assert (await deliver(world, token)).status_code == 400
    assert (await browser.post(BACK_CHANNEL)).status_code == 400
    assert (await browser.get(BACK_CHANNEL)).status_code == 405
    assert await alive(world, session) == [True]


def _hs256(claims, key):
    """PyJWT itself refuses to sign with a public key as a secret."""

    def encode(raw):
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    head = encode(json.dumps({"alg": "HS256", "kid": "rsa-1"}).encode())
    signed = f"{head}.{encode(json.dumps(claims).encode())}"
    return f"{signed}.{encode(hmac.digest(key, signed.encode(), 'sha256'))}"


async def test_what_cannot_be_done_now_may_be_delivered_again(world, dialect):
    _, session = await signed_in(world, dialect)
    token = dialect.logout_token()
    # Other settings make another client, which has no keys yet.
    changed = dataclasses.replace(world.hub.current.identity_provider, scopes=("openid",))
    await world.hub.apply(dataclasses.replace(world.hub.current, identity_provider=changed))
    keys = dialect.endpoints["jwks_uri"]
    dialect.answers[keys] = Reply.of({"error": "down"}, 503)
    away = await deliver(world, token)
    assert away.status_code == 503
    assert int(away.headers["retry-after"]) > 0
    assert await alive(world, session) == [True]
    del dialect.answers[keys]
    assert (await deliver(world, token)).status_code == 200
    assert await alive(world, session) == [False]


async def test_a_logout_token_is_no_identity(world, dialect):
    """Signed by the provider, for us, about the person: and yet it signs nobody in."""
    async with http_client(None) as http:
        client = make_provider(dialect.settings(), http, SystemClock(), SystemRng())
        for typ in ("JWT", "logout+jwt"):
            with pytest.raises(IdentityRefusedError):
                await client.verify_identity_token(dialect.logout_token(typ=typ))


# --- front channel ---


async def front_channel(browser, **query):
    url = f"https://{APP}/.pomerium/sign_out?{urlencode(query)}"
    return await browser.get(url, headers={"sec-fetch-site": "cross-site"})


async def test_the_provider_ends_a_session_in_its_frame(world, dialect):
    browser, session = await signed_in(world, dialect)
    first = await front_channel(browser, iss=dialect.issuer, sid="sid-1")
    assert first.status_code == 302
    # In a frame the cookies of authenticate may be missing: the session is ended all the same.
    done = await world.browser().get(first.headers["location"])
    assert done.status_code == 200
    assert "location" not in done.headers  # never back to the provider, where this began
    assert await alive(world, session) == [False]


@pytest.mark.parametrize(
    "query",
    [
        {"iss": "https://evil.example.net", "sid": "sid-1"},
        {"sid": "sid-1"},
        {"sid": "sid-2"},
        {},
    ],
)
async def test_r34_another_site_that_knows_no_session_is_asked(world, dialect, query):
    browser, session = await signed_in(world, dialect)
    if query.get("sid") == "sid-2":
        query = {"iss": dialect.issuer, **query}
    page = await front_channel(browser, **query)
    assert page.status_code == 200
    assert "Sign out?" in page.text
    assert await alive(world, session) == [True]


# --- on all devices ---


def button(page, label):
    href = re.search(rf'href="([^"]+)">{label}<', page.text)
    assert href is not None, page.text
    return html.unescape(href[1])


async def test_all_sessions_of_a_person_end_together(world, dialect):
    first, one = await signed_in(world, dialect)
    _, two = await signed_in(world, dialect, sid="sid-2")
    _, other = await signed_in(world, dialect, sub="user-2", sid="sid-3")
    page = await first.get(f"{AUTHENTICATE}/.pomerium/sign_out")
    answer = await first.get(button(page, "Sign out on all devices"))
    assert answer.status_code == 302
    assert await alive(world, one, two, other) == [False, False, True]
    assert dialect.revoked.count("access_token") == 2


async def test_signing_out_here_leaves_the_other_devices(world, dialect):
    first, one = await signed_in(world, dialect)
    _, two = await signed_in(world, dialect, sid="sid-2")
    page = await first.get(f"{AUTHENTICATE}/.pomerium/sign_out")
    await first.get(button(page, "Sign out"))
    assert await alive(world, one, two) == [False, True]


async def test_r34_a_link_for_all_devices_is_for_one_session(world, dialect):
    attacker, one = await signed_in(world, dialect)
    victim, two = await signed_in(world, dialect, sub="user-2", sid="sid-2")
    page = await attacker.get(f"{AUTHENTICATE}/.pomerium/sign_out")
    asked = await victim.get(button(page, "Sign out on all devices"))
    assert asked.status_code == 200
    assert "Sign out?" in asked.text
    assert await alive(world, one, two) == [True, True]
    # Without a signature the wish is not even read.
    unsigned = await victim.get(f"{AUTHENTICATE}/.pomerium/sign_out?gatehouse_everywhere=true")
    assert unsigned.status_code == 200
    assert await alive(world, two) == [True]


async def test_an_old_handle_ends_no_other_session(world, dialect):
    """Whoever finds a handle of a session that has ended cannot sign the person out with it."""
    first, one = await signed_in(world, dialect)
    _, two = await signed_in(world, dialect, sid="sid-2")
    page = await first.get(f"{AUTHENTICATE}/.pomerium/sign_out")
    link = button(page, "Sign out on all devices")
    await world.operator.delete(SESSION, one.id)
    await first.get(link)
    assert await alive(world, two) == [True]


async def test_a_person_with_many_sessions_loses_them_all(world, dialect):
    first, one = await signed_in(world, dialect)
    for number in range(0, 450, 150):
        many = []
        for index in range(number, number + 150):
            copy = Session()
            copy.CopyFrom(one)
            copy.id = f"session-{index}"
            copy.ClearField("oauth_token")
            many.append(record_of(copy, copy.id))
        await world.operator.put(many)
    page = await first.get(f"{AUTHENTICATE}/.pomerium/sign_out")
    await first.get(button(page, "Sign out on all devices"))
    left = await world.databroker.query(SESSION, {"user_id": "user-1"}, limit=1)
    assert left.total_count == 0


# --- keys change while people sign in ---


async def test_no_sign_in_or_session_is_lost_when_secrets_are_rotated(world, dialect):
    browser, session = await signed_in(world, dialect)
    newcomer = world.browser()
    leave = await newcomer.get(world.ask_to_sign_in(newcomer))
    back = dialect.authorize(leave.headers["location"])
    old = world.hub.current
    rotated = dataclasses.replace(
        old,
        shared_secrets=(b"n" * 32, *old.shared_secrets),
        cookie_secrets=(b"m" * 32, *old.cookie_secrets),
    )
    await world.hub.apply(rotated)
    arrive = await newcomer.get(f"{AUTHENTICATE}/oauth2/callback", params=back)
    assert arrive.status_code == 302
    assert (await newcomer.get(arrive.headers["location"])).status_code == 302
    assert session.id in (await browser.get(f"{AUTHENTICATE}/.pomerium/")).text
    assert session.id in (await browser.get(f"https://{APP}/.pomerium/")).text
    url = sign_url(
        f"{AUTHENTICATE}/.pomerium/sign_in?pomerium_redirect_uri=https%3A%2F%2F{APP}%2F",
        SHARED,
        now_s=world.clock.now_s(),
    )
    assert (await browser.get(url)).status_code == 302  # another replica still signs with the old
    await world.hub.apply(
        dataclasses.replace(
            old, shared_secrets=(b"n" * 32,), cookie_secrets=(b"m" * 32,), generation="3"
        )
    )
    assert session.id not in (await browser.get(f"https://{APP}/.pomerium/")).text


async def test_a_new_client_secret_loops_nobody(world, dialect):
    """Half of the replicas have the new one: a session of either is good at both."""
    browser, session = await signed_in(world, dialect)
    current = world.hub.current
    renewed = dataclasses.replace(current.identity_provider, client_secret="new")
    await world.hub.apply(dataclasses.replace(current, identity_provider=renewed))
    again = await browser.get(world.ask_to_sign_in(browser))
    assert again.headers["location"].startswith(f"https://{APP}/.pomerium/callback/")
    assert await alive(world, session) == [True]
