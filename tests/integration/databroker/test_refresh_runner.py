"""The identity manager against a provider that nobody here wrote, and over every store."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.config.hub import ConfigHub
from gatehouse.common.databroker.records import record_of, timestamp_of
from gatehouse.common.identity.errors import IdentityProviderError
from gatehouse.common.identity.provider import make_provider
from gatehouse.common.identity.tokens import Identity, OAuthTokens, RefreshedIdentity
from gatehouse.common.ids import SESSION, USER
from gatehouse.common.observability.logging import configure_logging
from gatehouse.common.runtime.context import ProcessContext
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.databroker.core.partitions import PARTITIONS
from gatehouse.databroker.core.records import Incoming, Patch, Put, Reap, accept
from gatehouse.databroker.core.refresh import Rules
from gatehouse.databroker.edge import refresh_runner
from gatehouse.databroker.edge.backends.base import Storage
from gatehouse.databroker.edge.change_hub import ChangeHub
from gatehouse.databroker.edge.refresh_providers import RefreshProviders
from gatehouse.databroker.edge.refresh_runner import RefreshRunner, Surroundings
from gatehouse.databroker.edge.tasks import background
from gatehouse.databroker.service import IDENTITY_CHECK, build
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User
from tests.support.check import Desk, resolved_settings, route, status_of
from tests.support.identity import REDIRECT_URI, approve, id_token_of, provider_mock
from tests.support.policy import World, policy_of
from tests.support.storage import BACKENDS, StorageCase, packed, storage_case
from tests.support.web_settings import provider, settings

PATIENCE_S = 60.0
CLOCK, RNG = SystemClock(), SystemRng()
QUICK = Rules(
    lead_s=1.0,
    lead_spread_s=0.2,
    least_s=0.3,
    userinfo_s=0.5,
    backoff_s=0.3,
    backoff_cap_s=1.0,
    quiet_s=0.0,
    quiet_spread_s=0.1,
    doubt_s=0.4,
    sweep_s=1.0,
    steady_s=0.0,
)
ALICE = {"sub": "alice", "name": "Alice", "email": "alice@example.com", "groups": ["staff"]}
MARKS = [
    pytest.param(name, marks=[pytest.mark.postgres] * (name == "postgres")) for name in BACKENDS
]


@dataclass
class Managed:
    """A store with an identity manager beside it."""

    storage: Storage
    runner: RefreshRunner
    stop: asyncio.Event
    shown: dict[str, str] = field(default_factory=dict)

    async def session(self, id_: str = "s1") -> Session | None:
        record = await self.storage.get(SESSION, id_)
        session = Session()
        if record is None:
            return None
        assert record.to_message().data.Unpack(session)
        return session

    async def user(self, id_: str = "alice") -> User:
        record = await self.storage.get(USER, id_)
        user = User()
        assert record is not None
        assert record.to_message().data.Unpack(user)
        return user


@contextlib.asynccontextmanager
async def managed(
    storage: Storage, providers: Any, *, rules: Rules = QUICK, alone: bool = True
) -> AsyncIterator[Managed]:
    hub = ChangeHub(storage, CLOCK, RNG)
    shown: dict[str, str] = {}
    around = Surroundings(
        storage,
        hub,
        providers,
        CLOCK,
        RNG,
        alone=alone,
        rules_of=lambda: rules,
        show=shown.__setitem__,
    )
    runner = RefreshRunner(around)
    stop = asyncio.Event()
    async with background(hub.run()), asyncio.TaskGroup() as group:
        running = group.create_task(runner.run(stop))
        try:
            yield Managed(storage, runner, stop, shown)
        finally:
            stop.set()
            async with asyncio.timeout(PATIENCE_S):
                await running


async def until(condition: Any) -> None:
    """Wait until an async condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - the store tells nobody here
            await asyncio.sleep(0.02)


async def put(storage: Storage, session: Session, user: User | None = None) -> None:
    records = [record_of(session, session.id)]
    if user is not None:
        records.append(record_of(user, user.id))
    await storage.write(Put(accept(records)))


def session_of(identity: Identity, idp_id: str, *, id_: str = "s1") -> Session:
    """A session as a sign-in leaves it."""
    now_s = CLOCK.now_s()
    session = Session(id=id_, user_id=identity.user_id, idp_id=idp_id)
    session.issued_at.CopyFrom(timestamp_of(now_s))
    session.expires_at.CopyFrom(timestamp_of(now_s + 3600))
    session.id_token.raw = id_token_of(identity).raw
    session.id_token.issuer = id_token_of(identity).issuer
    session.id_token.subject = id_token_of(identity).subject
    session.id_token.expires_at.CopyFrom(timestamp_of(id_token_of(identity).expires_at_s))
    session.oauth_token.access_token = identity.tokens.access_token
    session.oauth_token.token_type = identity.tokens.token_type
    session.oauth_token.refresh_token = identity.tokens.refresh_token
    assert identity.tokens.expires_at_s is not None
    session.oauth_token.expires_at.CopyFrom(timestamp_of(identity.tokens.expires_at_s))
    for name, values in identity.claims.items():
        session.claims[name].extend(values)
    return session


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    with provider_mock("--token-max-age", "3", "--user-claims", json.dumps(ALICE)) as url:
        yield url


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[StorageCase]:
    async with storage_case("memory", tmp_path) as case:
        yield case


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that is logged, at the most talkative level."""
    stream = io.StringIO()
    configure_logging("trace", stream=stream)
    yield stream
    configure_logging("info")


async def sign_in(issuer: str, http: httpx.AsyncClient, sub: str = "alice") -> tuple[Any, Identity]:
    configured = provider(issuer)
    client = make_provider(configured, http, CLOCK, RNG)
    url = await client.authorization_url(
        redirect_uri=REDIRECT_URI, state="s", nonce="n", code_challenge=None
    )
    callback = await approve(http, url, sub)
    identity = await client.exchange(
        code=callback["code"], redirect_uri=REDIRECT_URI, code_verifier=None, nonce="n"
    )
    return configured, identity


def decided(session: Session | None, user: User) -> int:
    """What authorize answers to this session by these records, on a route for the group "ops"."""
    kept = [record_of(user, user.id)]
    if session is not None:
        kept.append(record_of(session, session.id))
    policy = policy_of("allow: {or: [{claim/groups: ops}]}")
    desk = Desk(resolved_settings(route(policy)), World(*kept))
    desk.now_s = CLOCK.now_s()
    return status_of(desk.check(headers=desk.cookie("s1")))


async def test_r43_r44_a_session_is_refreshed_follows_its_claims_and_ends_when_revoked(
    issuer: str, tmp_path: Path, log: io.StringIO
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        case = await stack.enter_async_context(storage_case("memory", tmp_path))
        http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        configured, identity = await sign_in(issuer, http)
        first = session_of(identity, configured.id)
        await put(case.storage, first, User(id="alice", device_credential_ids=["key"]))
        in_force = settings(idp=configured)
        providers = await stack.enter_async_context(RefreshProviders(lambda: in_force, CLOCK, RNG))
        made = await stack.enter_async_context(managed(case.storage, providers))

        async def is_refreshed() -> bool:
            session = await made.session()
            assert session is not None
            return session.oauth_token.access_token != first.oauth_token.access_token

        await until(is_refreshed)
        second = await made.session()
        assert second is not None
        assert second.oauth_token.expires_at.seconds > first.oauth_token.expires_at.seconds
        assert second.expires_at == first.expires_at
        assert second.claims["sub"].values[0].string_value == "alice"
        user = await made.user()
        assert (user.name, user.email) == ("Alice", "alice@example.com")
        assert list(user.device_credential_ids) == ["key"]
        assert decided(second, user) == 403

        changed = {"name": "Alice", "email": "alice@example.com", "groups": ["ops"]}
        (await http.put(f"{issuer}/users/alice", json=changed)).raise_for_status()

        async def has_new_groups() -> bool:
            session, user = await made.session(), await made.user()
            assert session is not None
            groups = [
                [value.string_value for value in record.claims["groups"].values]
                for record in (session, user)
                if "groups" in record.claims
            ]
            return groups == [["ops"], ["ops"]]

        await until(has_new_groups)

        latest, user = await made.session(), await made.user()
        assert decided(latest, user) == 200
        (await http.post(f"{issuer}/users/alice/revoke-tokens")).raise_for_status()

        async def is_gone() -> bool:
            return await made.session() is None

        await until(is_gone)
        assert latest is not None
        assert decided(await made.session(), user) == 302
    logged = log.getvalue()
    assert "session ended by the identity provider" in logged
    for session in (first, second, latest):
        for secret in (
            session.oauth_token.access_token,
            session.oauth_token.refresh_token,
            session.id_token.raw,
            configured.client_secret,
        ):
            assert not secret or secret not in logged


async def test_nothing_ends_while_the_provider_is_away(store: StorageCase) -> None:
    configured = provider("http://127.0.0.1:9")  # nobody listens there
    in_force = settings(idp=configured)
    session = Session(id="s1", user_id="alice", idp_id=configured.id)
    session.oauth_token.access_token = "a"
    session.oauth_token.refresh_token = "r"
    session.oauth_token.expires_at.CopyFrom(timestamp_of(CLOCK.now_s() - 100))
    session.id_token.subject = "alice"
    await put(store.storage, session)
    async with (
        RefreshProviders(lambda: in_force, CLOCK, RNG) as providers,
        managed(store.storage, providers) as made,
    ):
        runner = made.runner

        async def has_failed_often() -> bool:
            return runner.tally.failed >= 3

        await until(has_failed_often)
        assert await made.session() == session
        assert made.shown["state"] == "running"
    assert runner.tally.troubled == {configured.id}


async def test_without_a_provider_it_only_sweeps(
    store: StorageCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh_runner, "CONFIGURED_S", 0.02)
    in_force = settings(no_idp=True)
    await put(store.storage, scripted_session("old", expires_in_s=-100))
    await put(store.storage, scripted_session("new"))
    async with (
        RefreshProviders(lambda: in_force, CLOCK, RNG) as providers,
        managed(store.storage, providers) as made,
    ):

        async def is_swept() -> bool:
            return await made.session("old") is None

        await until(is_swept)
        await put(store.storage, scripted_session("later", expires_in_s=-100))

        async def is_swept_too() -> bool:
            return await made.session("later") is None

        await until(is_swept_too)
        assert await made.session("new") is not None
        assert made.shown["state"].startswith("only sweeping")
        # it holds no lease, so that another process may
        assert await store.storage.acquire_lease("identity_manager/0", "me", 1_000_000)
        in_force = settings(idp=provider("http://127.0.0.1:9"))

        async def is_working() -> bool:
            return made.shown.get("partitions") == str(PARTITIONS - 1)

        await until(is_working)
        assert made.shown["state"] == "running"
        stopped_s = CLOCK.monotonic_s()
    assert CLOCK.monotonic_s() - stopped_s < 8


async def test_a_broken_ca_bundle_does_not_take_the_providers_away() -> None:
    in_force = settings(idp=provider())
    async with RefreshProviders(lambda: in_force, CLOCK, RNG) as providers:
        known = providers.get(provider().id)
        assert known is not None
        in_force = replace(in_force, ca_bundle_pem=b"-----BEGIN CERTIFICATE-----\nnonsense\n")
        assert providers.get(provider().id) is known
        assert providers.get("another") is None
        in_force = settings(no_idp=True)
        assert providers.ids() == frozenset()


@pytest.mark.parametrize("configured", [True, False])
async def test_the_service_runs_it_and_its_health_rests_on_nothing_of_it(
    configured: bool, tmp_path: Path
) -> None:
    in_force = replace(
        settings(
            no_idp=not configured,
            idp=provider("http://127.0.0.1:9"),
            databroker_storage_type="memory",
        ),
        databroker_connection="",
    )
    health = HealthRegistry(CLOCK)
    ctx = ProcessContext(ConfigHub(in_force), health, CLOCK, RNG, tmp_path, grace_s=5.0)
    service = build(ctx)
    stop, ready = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(service.run(stop, ready.set))
        async with asyncio.timeout(PATIENCE_S):
            await ready.wait()

        async def is_shown() -> bool:
            return IDENTITY_CHECK in health.snapshot().records

        await until(is_shown)
        state = health.snapshot().records[IDENTITY_CHECK].attributes["state"]
        assert state.startswith("running" if configured else "only sweeping")
        assert IDENTITY_CHECK not in health.snapshot().expected
        stop.set()
        async with asyncio.timeout(PATIENCE_S):
            await running


@dataclass
class ScriptedProvider:
    """A provider that says what it is told to."""

    answer: Any = None
    asked: list[str] = field(default_factory=list)
    hold: asyncio.Event | None = None

    def ids(self) -> frozenset[str]:
        return frozenset({"idp"})

    def get(self, idp_id: str) -> ScriptedProvider:
        return self

    async def refresh(self, refresh_token: str, *, subject: str) -> RefreshedIdentity:
        self.asked.append(refresh_token)
        if self.hold is not None:
            await self.hold.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        tokens = OAuthTokens(f"access-{len(self.asked)}", "Bearer", "next", CLOCK.now_s() + 3600)
        return RefreshedIdentity(tokens, None, "", "", {"email": ["new@example.com"]}, {})

    async def userinfo(self, access_token: str, *, subject: str) -> dict[str, Any]:
        raise IdentityProviderError("not asked for here")


def scripted_session(id_: str = "s1", *, expires_in_s: float = 3600) -> Session:
    now_s = CLOCK.now_s()
    session = Session(id=id_, user_id="alice", idp_id="idp")
    session.expires_at.CopyFrom(timestamp_of(now_s + expires_in_s))
    session.oauth_token.access_token = "access"
    session.oauth_token.refresh_token = "spent"
    session.oauth_token.expires_at.CopyFrom(timestamp_of(now_s - 1))
    session.claims["sub"].extend(["alice"])
    return session


NO_CHECKS = replace(QUICK, userinfo_s=3600.0)


@pytest.mark.parametrize("backend", MARKS)
async def test_every_store_refreshes_and_sweeps(backend: str, tmp_path: Path) -> None:
    async with storage_case(backend, tmp_path) as case:
        await put(case.storage, scripted_session(), User(id="alice"))
        old = scripted_session("old", expires_in_s=-3600)
        old.refresh_disabled = True
        await put(case.storage, old)
        forever = Session(id="forever", user_id="bob")
        await put(case.storage, forever)
        async with managed(case.storage, ScriptedProvider(), rules=NO_CHECKS) as made:

            async def is_done() -> bool:
                is_swept = await made.session("old") is None
                return is_swept and (await made.user()).email == "new@example.com"

            await until(is_done)
            session = await made.session()
            assert session is not None
            assert session.oauth_token.refresh_token == "next"
            assert await made.session("forever") == forever
            assert made.shown["partitions"] == str(PARTITIONS)
        for number in range(PARTITIONS):  # given back
            name = f"identity_manager/{number}"
            assert await case.storage.acquire_lease(name, "me", 1_000_000)


@pytest.mark.parametrize("backend", MARKS)
async def test_a_patch_that_rests_on_an_old_version_is_left_out(
    backend: str, tmp_path: Path
) -> None:
    async with storage_case(backend, tmp_path) as case:
        session = scripted_session()
        (first,) = (await case.storage.write(Put(accept([record_of(session, "s1")])))).records
        session.oauth_token.refresh_token = "newer"
        (second,) = (await case.storage.write(Put(accept([record_of(session, "s1")])))).records
        session.oauth_token.refresh_token = "stale"
        for version, expected in ((first.version, 0), (second.version, 1), (None, 1)):
            item = Incoming(SESSION, "s1", packed(session), expected_version=version)
            result = await case.storage.write(Patch((item,), ("oauth_token",)))
            assert len(result.records) == expected
            if not expected:
                assert await case.storage.get(SESSION, "s1") == second


async def test_new_tokens_are_stored_over_a_change_that_came_between(store: StorageCase) -> None:
    scripted = ScriptedProvider(hold=asyncio.Event())
    await put(store.storage, scripted_session())
    async with managed(store.storage, scripted, rules=NO_CHECKS) as made:

        async def is_asked() -> bool:
            return bool(scripted.asked)

        await until(is_asked)
        touched = await made.session()
        assert touched is not None
        touched.accessed_at.CopyFrom(timestamp_of(CLOCK.now_s()))
        await put(store.storage, touched)
        assert scripted.hold is not None
        scripted.hold.set()

        async def is_stored() -> bool:
            session = await made.session()
            assert session is not None
            return session.oauth_token.refresh_token == "next"

        await until(is_stored)
        session = await made.session()
        assert session is not None
        assert session.accessed_at == touched.accessed_at


async def test_tokens_that_others_have_replaced_are_not_overwritten(store: StorageCase) -> None:
    scripted = ScriptedProvider(hold=asyncio.Event())
    await put(store.storage, scripted_session())
    async with managed(store.storage, scripted, rules=NO_CHECKS) as made:

        async def is_asked() -> bool:
            return bool(scripted.asked)

        await until(is_asked)
        theirs = scripted_session()
        theirs.oauth_token.refresh_token = "theirs"
        theirs.oauth_token.expires_at.CopyFrom(timestamp_of(CLOCK.now_s() + 3600))
        await put(store.storage, theirs)
        assert scripted.hold is not None
        scripted.hold.set()
        made.stop.set()
    assert await made.session() == theirs


async def test_a_session_that_was_signed_out_meanwhile_does_not_come_back(
    store: StorageCase,
) -> None:
    scripted = ScriptedProvider(hold=asyncio.Event())
    await put(store.storage, scripted_session())
    async with managed(store.storage, scripted, rules=NO_CHECKS) as made:

        async def is_asked() -> bool:
            return bool(scripted.asked)

        await until(is_asked)
        record = await store.storage.get(SESSION, "s1")
        assert record is not None
        await store.storage.write(Reap((record,)))
        assert scripted.hold is not None
        scripted.hold.set()
    assert await made.session() is None


async def test_an_unexpected_error_stays_with_its_session_and_is_not_shown(
    store: StorageCase, log: io.StringIO
) -> None:
    scripted = ScriptedProvider(answer=RuntimeError("a secret is in here"))
    await put(store.storage, scripted_session())
    async with managed(store.storage, scripted, rules=NO_CHECKS) as made:

        async def is_asked_again() -> bool:
            return len(scripted.asked) > 1

        await until(is_asked_again)
        assert await made.session() is not None
    assert "RuntimeError" in log.getvalue()
    assert "secret" not in log.getvalue()


async def test_a_call_under_way_at_the_stop_is_finished_and_stored(store: StorageCase) -> None:
    scripted = ScriptedProvider(hold=asyncio.Event())
    await put(store.storage, scripted_session())
    async with managed(store.storage, scripted, rules=NO_CHECKS) as made:

        async def is_asked() -> bool:
            return bool(scripted.asked)

        await until(is_asked)
        made.stop.set()
        await asyncio.sleep(0)
        assert scripted.hold is not None
        scripted.hold.set()
    session = await made.session()
    assert session is not None
    assert session.oauth_token.refresh_token == "next"


@pytest.mark.postgres
async def test_two_processes_share_the_work(tmp_path: Path) -> None:
    """With real leases; how they come to fair shares over time is the simulation's."""
    async with storage_case("postgres", tmp_path) as case:
        for number in range(20):
            session = scripted_session(f"s{number}")
            session.user_id = f"user-{number}"
            await put(case.storage, session)
        one, two = ScriptedProvider(), ScriptedProvider()
        async with (
            managed(case.storage, one, rules=NO_CHECKS, alone=False) as first,
            managed(case.storage, two, rules=NO_CHECKS, alone=False) as second,
        ):

            async def is_all_refreshed() -> bool:
                sessions = [await first.session(f"s{number}") for number in range(20)]
                return all(
                    session is not None and session.oauth_token.refresh_token == "next"
                    for session in sessions
                )

            await until(is_all_refreshed)
            assert len(one.asked) + len(two.asked) == 20
            assert second.runner.tally.failed == 0
