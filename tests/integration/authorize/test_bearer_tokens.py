"""Bearer tokens of a provider nobody here wrote, against real services."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest

from gatehouse.common.config.resolved import ServiceName
from gatehouse.common.databroker.records import record_of, seconds_of, tombstone_of, unpack
from gatehouse.common.identity.token_check import AUDIENCE
from gatehouse.common.ids import SESSION, USER
from gatehouse.common.observability.metrics import REGISTRY
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.pb.user_pb2 import User
from tests.support.bearer_world import bearer_world, signed_in_program
from tests.support.check import (
    AUTHENTICATE_URL,
    SECRET,
    is_allowed,
    resolved_settings,
    route,
    set_headers,
    status_of,
)
from tests.support.identity import id_token_of, provider_mock, provider_settings
from tests.support.policy import policy_of

ADA = policy_of("allow: {or: [{email: ada@example.com}]}")
OTHER_ROUTE = "bbbbbbbbbbbbbbbb"
CLAIMS = {"sub": "user-1", "email": "ada@example.com", "name": "Ada", "groups": ["a", "b"]}


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    with provider_mock("--user-claims", json.dumps(CLAIMS)) as url:
        yield url


def settings_for(issuer: str, token_format: str, *routes: Any, **keys: Any):
    idp = provider_settings(issuer, id="idp-1")
    chosen = routes or (
        route(ADA, idp=idp, bearer_token_format=token_format, pass_identity_headers=True),
    )
    made = resolved_settings(
        *chosen,
        services=frozenset(ServiceName),
        databroker_storage_type="memory",
        **keys,
    )
    return dataclasses.replace(made, identity_provider=idp)


@pytest.mark.parametrize("token_format", ["idp_access_token", "idp_identity_token"])
async def test_a_providers_token_is_a_session(issuer: str, token_format: str) -> None:
    program = await signed_in_program(issuer, "user-1")
    is_access = token_format == "idp_access_token"
    token = program.tokens.access_token if is_access else id_token_of(program).raw
    kind = token_format.removeprefix("idp_")

    def counted() -> list[float]:
        name = f"pomerium_config_idp_token_session_creator_{kind}"
        return [
            REGISTRY.get_sample_value(f"{name}_{what}") or 0.0
            for what in (
                *("sessions_created_total", "sessions_cached_total"),
                "create_session_duration_count",
            )
        ]

    before = counted()
    async with bearer_world(settings_for(issuer, token_format)) as world:
        before_s = world.clock.now_s()
        response = await world.check(token)
        assert is_allowed(response)
        assert "authorization" not in response.ok_response.headers_to_remove
        assert "authorization" not in set_headers(response)
        (session,) = await world.sessions()
        assert session.refresh_disabled
        assert (session.user_id, session.idp_id) == ("user-1", "idp-1")
        assert session.oauth_token.access_token == (token if is_access else "")
        assert session.id_token.raw == ("" if is_access else token)
        lives_s = seconds_of(session.expires_at) - before_s
        assert lives_s == pytest.approx(id_token_of(program).expires_at_s - before_s, abs=5) or (
            is_access and lives_s == pytest.approx(14 * 3600, abs=5)
        )
        record = await world.databroker.get(USER, "user-1")
        assert record is not None
        user = unpack(record, User)
        assert (user.email, user.name) == ("ada@example.com", "Ada")
        # Again, from the copy: nothing is written anew.
        assert is_allowed(await world.check(token))
        assert await world.sessions() == [session]
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1, 1]


async def test_thousand_concurrent_first_requests_make_one_session(issuer: str) -> None:
    program = await signed_in_program(issuer, "user-1")
    token = program.tokens.access_token
    async with bearer_world(settings_for(issuer, "idp_access_token")) as world:
        puts: list[Any] = []
        put = world.authorize._client.put

        async def counted(records: Any) -> Any:
            puts.append(records)
            return await put(records)

        world.authorize._client.put = counted  # type: ignore[method-assign]
        answers = await world.crowd(token, 1000)
        assert all(is_allowed(answer) for answer in answers)
        assert len(await world.sessions()) == 1
        assert len(puts) == 1
        assert len(puts[0]) == 2


@pytest.mark.parametrize("token_format", ["idp_access_token", "idp_identity_token"])
async def test_r38_what_the_provider_does_not_confirm_is_403_and_no_sign_in(
    issuer: str, token_format: str
) -> None:
    program = await signed_in_program(issuer, "user-1")
    async with bearer_world(settings_for(issuer, token_format)) as world:
        for token in (
            "opaque-and-made-up",
            program.tokens.access_token[:-3],
            id_token_of(program).raw[:-4],
            "two words",
            "",
            'quo"te',
            "Pomerium-handle",
            "x" * 40_000,
        ):
            response = await world.check(token)
            assert status_of(response) == 403, token[:40]
        assert await world.sessions() == []


async def test_r40_an_identity_token_for_another_application_is_refused(issuer: str) -> None:
    theirs = await signed_in_program(issuer, "user-1", client_id="another-app")
    async with bearer_world(settings_for(issuer, "idp_identity_token")) as world:
        assert status_of(await world.check(id_token_of(theirs).raw)) == 403
        assert await world.sessions() == []


async def test_r40_an_access_token_passes_for_no_identity_token_and_back(issuer: str) -> None:
    program = await signed_in_program(issuer, "user-1")
    async with bearer_world(settings_for(issuer, "idp_identity_token")) as world:
        assert status_of(await world.check(program.tokens.access_token)) == 403
    async with bearer_world(settings_for(issuer, "idp_access_token")) as world:
        assert status_of(await world.check(id_token_of(program).raw)) == 403


async def test_r33_r40_a_session_of_one_route_does_not_carry_over_an_audience(
    issuer: str,
) -> None:
    """Both routes share a provider, and so the session; only one of them takes this audience."""
    program = await signed_in_program(issuer, "user-1")
    idp = provider_settings(issuer, id="idp-1")
    anyone = route(ADA, idp=idp, bearer_token_format="idp_access_token")
    strict = route(
        ADA,
        route_id=OTHER_ROUTE,
        from_="https://strict.example.com",
        idp=idp,
        bearer_token_format="idp_access_token",
        idp_access_token_allowed_audiences=["strict-api"],
    )
    made = settings_for(issuer, "idp_access_token", anyone, strict)
    token = program.tokens.access_token
    async with bearer_world(made) as world:
        assert status_of(await world.check(token, route_id=OTHER_ROUTE)) == 403
        assert is_allowed(await world.check(token))
        assert status_of(await world.check(token, route_id=OTHER_ROUTE)) == 403


async def test_r33_two_tokens_and_two_users_never_share_a_session(issuer: str) -> None:
    one = await signed_in_program(issuer, "user-1")
    two = await signed_in_program(issuer, "mallory")
    async with bearer_world(settings_for(issuer, "idp_access_token")) as world:
        tokens = [one.tokens.access_token, two.tokens.access_token] * 20
        answers = await asyncio.gather(*(world.check(token) for token in tokens))
        assert [status_of(answer) for answer in answers] == [200, 403] * 20
        assert {session.user_id for session in await world.sessions()} == {"user-1", "mallory"}


async def test_what_cannot_be_known_is_unavailable_and_later_known(issuer: str) -> None:
    program = await signed_in_program(issuer, "user-1")
    made = settings_for(issuer, "idp_access_token")
    async with bearer_world(made) as world:
        gone = dataclasses.replace(provider_settings("http://127.0.0.1:9", id="idp-1"))
        away = dataclasses.replace(
            settings_for("http://127.0.0.1:9", "idp_access_token"), identity_provider=gone
        )
        await world.context.config.apply(away)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.check(program.tokens.access_token)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert program.tokens.access_token not in (caught.value.details() or "")
        await world.context.config.apply(made)
        assert is_allowed(await world.check(program.tokens.access_token))


async def test_without_a_databroker_a_new_token_is_unavailable(issuer: str) -> None:
    program = await signed_in_program(issuer, "user-1")
    async with bearer_world(settings_for(issuer, "idp_access_token")) as world:
        assert is_allowed(await world.check(program.tokens.access_token))
        await world.broker.go_away()
        other = await signed_in_program(issuer, "user-1")
        assert is_allowed(await world.check(program.tokens.access_token))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.check(other.tokens.access_token)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_r44_a_deleted_session_is_verified_anew(issuer: str) -> None:
    program = await signed_in_program(issuer, "user-1")
    token = program.tokens.access_token
    async with bearer_world(settings_for(issuer, "idp_access_token")) as world:
        assert is_allowed(await world.check(token))
        (session,) = await world.sessions()
        now_s = world.clock.now_s()
        put = await world.databroker.put([tombstone_of(SESSION, session.id, now_s=now_s)])
        await world.authorize._source.caught_up(put, 5)
        assert is_allowed(await world.check(token))
        (again,) = await world.sessions()
        assert again.id == session.id


async def test_r45_an_expired_session_is_never_used(issuer: str) -> None:
    program = await signed_in_program(issuer, "user-1")
    token = id_token_of(program).raw
    async with bearer_world(settings_for(issuer, "idp_identity_token")) as world:
        assert is_allowed(await world.check(token))
        world.clock.offset_s = 15 * 3600.0
        assert status_of(await world.check(token)) == 403


async def test_a_narrow_token_takes_nothing_away_from_its_user(issuer: str) -> None:
    program = await signed_in_program(issuer, "user-1")
    async with bearer_world(settings_for(issuer, "idp_access_token")) as world:
        known = User(id="user-1", email="old@example.com", device_credential_ids=["d1"])
        known.claims["department"].extend(["x"])
        await world.databroker.put([record_of(known, "user-1")])
        assert is_allowed(await world.check(program.tokens.access_token))
        record = await world.databroker.get(USER, "user-1")
        assert record is not None
        user = unpack(record, User)
        assert user.email == "ada@example.com"
        assert list(user.device_credential_ids) == ["d1"]
        assert user.claims["department"].values[0].string_value == "x"


async def test_by_default_the_header_is_the_upstreams(issuer: str) -> None:
    program = await signed_in_program(issuer, "user-1")
    async with bearer_world(settings_for(issuer, "default")) as world:
        assert status_of(await world.check(program.tokens.access_token)) == 302
        assert await world.sessions() == []


async def test_r39_questions_about_tokens_need_the_service_token(issuer: str) -> None:
    program = await signed_in_program(issuer, "user-1")
    body = {"accessToken": program.tokens.access_token, "identityProviderId": "idp-1"}
    async with (
        bearer_world(settings_for(issuer, "idp_access_token")) as world,
        httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(world.context.authenticate_http_socket)),
            base_url=AUTHENTICATE_URL.replace("https", "http"),
        ) as http,
    ):
        path = "/.pomerium/verify-access-token"

        def headers(subject: str, secret: bytes = SECRET, audience: str = AUDIENCE) -> Any:
            credentials = ServiceCredentials(subject, lambda: (secret,), world.clock)
            return dict(credentials.metadata(audience))

        good = headers("authorize")
        answer = await http.post(path, json=body, headers=good)
        assert answer.status_code == 200
        assert answer.json()["valid"] is True
        assert answer.json()["claims"]["email"] == "ada@example.com"
        assert answer.headers["cache-control"] == "no-store"
        for refused in (
            {},
            {"jwt": good["jwt"]},
            {"gatehouse-jwt": good["gatehouse-jwt"]},
            headers("proxy"),
            headers("authorize", b"x" * 32),
            headers("authorize", audience="databroker"),
        ):
            answer = await http.post(path, json=body, headers=refused)
            assert answer.status_code == 401, refused.keys()
        assert (await http.get(path, headers=good)).status_code == 405
        for content in (b"", b"[]", b'{"accessToken": 1}', b'{"accessToken": "a"}'):
            assert (await http.post(path, content=content, headers=good)).status_code == 400
        large = b'{"accessToken": "' + b"a" * 70_000 + b'"}'
        assert (await http.post(path, content=large, headers=good)).status_code == 413
        foreign = body | {"identityProviderId": "another"}
        assert (await http.post(path, json=foreign, headers=good)).status_code == 503
        wrong = body | {"accessToken": "made-up"}
        assert (await http.post(path, json=wrong, headers=good)).json() == {"valid": False}
