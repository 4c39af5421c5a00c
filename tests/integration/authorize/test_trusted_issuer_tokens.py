"""`bearer_token_format: jwt`: tokens of trusted issuers, verified by authorize itself."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest

from gatehouse.authorize.service import build as build_authorize
from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.resolved import ServiceName
from gatehouse.common.databroker.records import record_of, seconds_of, timestamp_of, unpack
from gatehouse.common.ids import USER
from gatehouse.common.observability.metrics import REGISTRY
from gatehouse.pb.user_pb2 import User
from tests.integration.authorize.conftest import Node
from tests.support.bearer_world import bearer_world
from tests.support.check import (
    is_allowed,
    resolved_settings,
    route,
    status_of,
)
from tests.support.identity import (
    CLIENT_ID,
    HostileProvider,
    Reply,
    hostile_provider,
    provider_settings,
)
from tests.support.policy import policy_of

CI_USER = policy_of("allow: {or: [{user: ci/user-1}]}")
OTHER_ROUTE = "bbbbbbbbbbbbbbbb"


@pytest.fixture
async def idp() -> AsyncIterator[HostileProvider]:
    async with hostile_provider() as provider:
        yield provider


def settings_for(idp: HostileProvider, *routes: Any, **keys: Any):
    own = provider_settings("https://idp.example.com", id="idp-1")
    chosen = routes or (
        route(CI_USER, idp=own, bearer_token_format="jwt", pass_identity_headers=True),
    )
    made = resolved_settings(
        *chosen,
        services=frozenset(ServiceName),
        databroker_storage_type="memory",
        **{
            "identity_providers": {"ci": {"issuer": idp.issuer, "audiences": [CLIENT_ID]}},
            **keys,
        },
    )
    return dataclasses.replace(made, identity_provider=own)


async def test_a_token_is_a_session_of_its_own_user(idp: HostileProvider) -> None:
    name = "pomerium_config_idp_token_session_creator_jwt_bearer"

    def counted() -> list[float]:
        kinds = ("sessions_created_total", "sessions_cached_total", "create_session_duration_count")
        return [REGISTRY.get_sample_value(f"{name}_{kind}") or 0.0 for kind in kinds]

    before = counted()
    async with bearer_world(settings_for(idp)) as world:
        token = idp.id_token()
        assert is_allowed(await world.check(token))
        (session,) = await world.sessions()
        assert (session.user_id, session.idp_id) == ("ci/user-1", "")
        assert session.refresh_disabled
        stated = jwt.decode(token, options={"verify_signature": False})
        assert seconds_of(session.expires_at) == stated["exp"]
        assert token not in str(session)
        record = await world.databroker.get(USER, "ci/user-1")
        assert record is not None
        assert unpack(record, User).email == "user@example.com"
        assert is_allowed(await world.check(token))
        assert await world.sessions() == [session]
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1, 1]


async def test_it_lives_no_longer_than_a_cookie(idp: HostileProvider) -> None:
    idp.claims_changes = {"exp": 4_000_000_000}
    async with bearer_world(settings_for(idp, cookie_expire="1h")) as world:
        assert is_allowed(await world.check(idp.id_token()))
        (session,) = await world.sessions()
        lives_s = seconds_of(session.expires_at) - world.clock.now_s()
        assert 3590 < lives_s <= 3600


async def test_an_expired_session_of_a_good_token_is_made_anew(idp: HostileProvider) -> None:
    idp.claims_changes = {"exp": 4_000_000_000}
    async with bearer_world(settings_for(idp)) as world:
        token = idp.id_token()
        assert is_allowed(await world.check(token))
        (session,) = await world.sessions()
        session.expires_at.CopyFrom(timestamp_of(world.clock.now_s() - 1))
        put = await world.databroker.put([record_of(session, session.id)])
        await world.authorize._source.caught_up(put, 5)
        assert is_allowed(await world.check(token))


async def test_r45_the_token_is_verified_every_time(idp: HostileProvider) -> None:
    async with bearer_world(settings_for(idp)) as world:
        token = idp.id_token()
        assert is_allowed(await world.check(token))
        narrower = {"ci": {"issuer": idp.issuer, "audiences": ["another"]}}
        await world.context.config.apply(settings_for(idp, identity_providers=narrower))
        assert status_of(await world.check(token)) == 403
        await world.context.config.apply(settings_for(idp))
        assert is_allowed(await world.check(token))
        world.clock.offset_s = 600.0
        assert status_of(await world.check(token)) == 403


@pytest.mark.parametrize(
    "changes", [{"exp": 1}, {"aud": "another-app"}, {"iss": "https://other.example.com"}]
)
async def test_r38_r40_what_does_not_hold_is_403(
    idp: HostileProvider, changes: dict[str, Any]
) -> None:
    idp.claims_changes = changes
    async with bearer_world(settings_for(idp)) as world:
        assert status_of(await world.check(idp.id_token())) == 403
        assert await world.sessions() == []


async def test_r37_a_token_signed_by_somebody_else_is_403(idp: HostileProvider) -> None:
    async with hostile_provider() as stranger, bearer_world(settings_for(idp)) as world:
        stranger.issuer = idp.issuer
        assert status_of(await world.check(stranger.id_token())) == 403
        idp.header_changes = {"jku": "https://evil.test/jwks"}
        assert status_of(await world.check(idp.id_token())) == 403


async def test_r40_a_route_may_trust_fewer_issuers(idp: HostileProvider) -> None:
    async with hostile_provider() as other:
        both = {
            "ci": {"issuer": idp.issuer, "audiences": [CLIENT_ID]},
            "other": {"issuer": other.issuer, "audiences": [CLIENT_ID]},
        }
        anyone = policy_of("allow: {or: [{authenticated_user: true}]}")
        wide = route(anyone, bearer_token_format="jwt")
        narrow = route(
            anyone,
            route_id=OTHER_ROUTE,
            bearer_token_format="jwt",
            identity_providers=["CI"],
        )
        made = settings_for(idp, wide, narrow, identity_providers=both)
        async with bearer_world(made) as world:
            theirs = other.id_token()
            assert is_allowed(await world.check(theirs))
            assert status_of(await world.check(theirs, route_id=OTHER_ROUTE)) == 403
            assert is_allowed(await world.check(idp.id_token(), route_id=OTHER_ROUTE))
            users = {session.user_id for session in await world.sessions()}
            assert users == {"ci/user-1", "other/user-1"}


async def test_without_the_issuers_keys_nothing_is_known(idp: HostileProvider) -> None:
    idp.answers["/jwks"] = Reply(503)
    async with bearer_world(settings_for(idp)) as world:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.check(idp.id_token())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        del idp.answers["/jwks"]
        assert is_allowed(await world.check(idp.id_token()))


async def test_cookie_and_token_together_are_400(idp: HostileProvider) -> None:
    async with bearer_world(settings_for(idp)) as world:
        headers = {"cookie": "_pomerium=x"}
        assert status_of(await world.check(idp.id_token(), headers=headers)) == 400


async def test_r33_concurrent_tokens_of_two_users_stay_apart(idp: HostileProvider) -> None:
    first = idp.id_token()
    idp.claims_changes = {"sub": "user-2"}
    second = idp.id_token()
    async with bearer_world(settings_for(idp)) as world:
        answers = await asyncio.gather(*(world.check(t) for t in [first, second] * 40))
        assert [status_of(answer) for answer in answers] == [200, 403] * 40
        assert len(await world.sessions()) == 2


async def test_the_tokens_of_a_cluster_need_one_around_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    settings = resolved_settings(
        route(CI_USER, bearer_token_format="jwt"),
        databroker_urls=("http://127.0.0.1:1",),
        identity_providers={"k8s": {"issuer": "kubernetes:///", "audiences": ["a"]}},
    )
    node = Node(settings, tmp_path)
    with pytest.raises(
        ConfigError, match=r"identity_providers\.k8s\.issuer: this process runs in no"
    ):
        build_authorize(node.context)
