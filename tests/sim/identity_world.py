"""The world of the identity manager's simulation: the real managers over one store in memory, a
model provider that rotates tokens and fails, links that delay, fail and come late, virtual time.

One seeded generator decides about everything, so a seed is a complete description of a run.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from random import Random  # noqa: TID251 - a simulation must replay from its seed
from typing import Any

from gatehouse.common.databroker.records import record_of, seconds_of, timestamp_of
from gatehouse.common.identity.errors import (
    ACCESS_REFUSED,
    GRANT_REFUSED,
    IdentityProviderError,
    IdentityRefusedError,
)
from gatehouse.common.identity.tokens import OAuthTokens, RefreshedIdentity
from gatehouse.common.ids import SESSION, USER
from gatehouse.databroker.core.records import Put, StoredRecord, accept
from gatehouse.databroker.core.refresh import Rules
from gatehouse.databroker.edge.backends.memory import MemoryStorage
from gatehouse.databroker.edge.change_hub import ChangeHub
from gatehouse.databroker.edge.refresh_runner import RefreshRunner, Surroundings
from gatehouse.databroker.edge.tasks import background
from gatehouse.databroker.errors import StorageUnavailableError
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User
from tests.support.clock import SeededRng
from tests.support.virtual_time import BASE_S, VirtualClock

IDP = "idp"
SUBJECTS = 6
RULES = Rules(rate=2.0, burst=4.0, in_flight=3)
TOKEN_LIVES_S = (90.0, 300.0, 900.0)


def now_s() -> float:
    """The true time."""
    return BASE_S + asyncio.get_running_loop().time()


@dataclass
class Grant:
    """What the provider knows of one session."""

    session_id: str
    subject: str
    life_s: float
    serial: int = 0  # of the refresh token that is good
    revoked_s: float | None = None
    excused: bool = False  # its newest token was lost on the way: nobody's fault
    issued_to: str = ""

    @property
    def token(self) -> str:
        return f"{self.session_id}.{self.serial}"


@dataclass
class Call:
    """One request to the provider."""

    manager: str
    begun_s: float
    cost: int
    ended_s: float | None = None


class Provider:
    """The provider's side; each manager talks to it through a `Line`."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.rotates = random.random() < 0.75
        self.punishes_reuse = self.rotates and random.random() < 0.4
        self.sends_id_times = random.random() < 0.8
        self.grants: dict[str, Grant] = {}
        self.groups: dict[str, str] = {f"user-{n}": "first" for n in range(SUBJECTS)}
        self.mood = "well"  # well, busy (429), broken (503), gone
        self.calls: list[Call] = []
        self.pauses: list[tuple[str, float, float]] = []  # manager, from, until
        self.on_refresh: Callable[[str], None] = lambda _manager: None

    def tokens(self, grant: Grant) -> OAuthTokens:
        return OAuthTokens(
            access_token=f"access.{grant.token}.{len(self.calls)}",
            token_type="Bearer",
            refresh_token=grant.token,
            expires_at_s=now_s() + grant.life_s,
        )

    def refresh(self, token: str, manager: str) -> OAuthTokens:
        session_id, serial = token.rsplit(".", 1)
        grant = self.grants[session_id]
        if grant.revoked_s is None and int(serial) != grant.serial and self.punishes_reuse:
            grant.revoked_s = now_s()
        if grant.revoked_s is not None or int(serial) != grant.serial:
            raise IdentityRefusedError("refused", reason=GRANT_REFUSED)
        grant.serial += self.rotates
        grant.issued_to = manager
        self.on_refresh(manager)
        return self.tokens(grant)

    def claims(self, subject: str) -> dict[str, Any]:
        return {"sub": subject, "email": f"{subject}@example.com", "groups": [self.groups[subject]]}


class Line:
    """One manager's line to the provider."""

    def __init__(self, world: World, manager: str) -> None:
        self.world = world
        self.manager = manager

    def ids(self) -> frozenset[str]:
        return frozenset({IDP})

    def get(self, idp_id: str) -> Line | None:
        return self if idp_id == IDP else None

    async def refresh(self, refresh_token: str, *, subject: str) -> RefreshedIdentity:
        provider = self.world.provider
        call = await self._begin(2)
        try:
            tokens = provider.refresh(refresh_token, self.manager)
            await self._travel()
            claims = {
                name: value if isinstance(value, list) else [value]
                for name, value in provider.claims(subject).items()
                if name != "sub"
            }
            return RefreshedIdentity(tokens, None, "", "", claims, {})
        finally:
            call.ended_s = now_s()

    async def userinfo(self, access_token: str, *, subject: str) -> dict[str, Any]:
        provider = self.world.provider
        call = await self._begin(1)
        try:
            grant = provider.grants[access_token.split(".")[1]]
            if grant.revoked_s is not None:
                raise IdentityRefusedError("refused", reason=ACCESS_REFUSED)
            await self._travel()
            return provider.claims(subject)
        finally:
            call.ended_s = now_s()

    async def _begin(self, cost: int) -> Call:
        provider = self.world.provider
        call = Call(self.manager, now_s(), cost)
        provider.calls.append(call)
        try:
            await self._travel()
            await self._suffer(provider)
        except BaseException:
            call.ended_s = now_s()
            raise
        return call

    async def _suffer(self, provider: Provider) -> None:
        match provider.mood:
            case "busy":
                retry_s = self.world.random.choice([None, 20.0, 90.0])
                if retry_s is not None:
                    provider.pauses.append((self.manager, now_s(), now_s() + retry_s))
                raise IdentityProviderError("too many requests", retry_after_s=retry_s)
            case "broken":
                raise IdentityProviderError("answered 503")
            case "gone":
                await asyncio.sleep(10)
                raise IdentityProviderError("gave no complete answer in 10 s")

    async def _travel(self) -> None:
        random = self.world.random
        slow = self.world.broken and random.random() < 0.03
        await asyncio.sleep(random.uniform(5, 10) if slow else random.expovariate(10.0))


class Link:
    """One manager's way to the store: slow, cut at times; what is given up may still happen."""

    name = "memory"

    def __init__(self, world: World) -> None:
        self.world = world
        self.is_cut = False

    def on_change(self, wake: Callable[[], None]) -> None:
        """Leave the reader to its polling."""

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.world.storage, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            random = self.world.random
            if self.is_cut or self.world.chance(0.01):
                await asyncio.sleep(random.choice([0.0, 1.0, 20.0]))
                raise StorageUnavailableError("cut off")
            late = self.world.chance(0.01)
            delay_s = random.uniform(4, 40) if late else random.expovariate(200.0)
            done = self.world.spawn(self._later(delay_s, method, arguments, options))
            result = await asyncio.shield(done)
            if self.world.chance(0.01):
                raise StorageUnavailableError("the answer was lost")
            return result

        return call

    async def _later(self, delay_s: float, method: Any, arguments: Any, options: Any) -> Any:
        await asyncio.sleep(delay_s)
        return await method(*arguments, **options)


@dataclass
class Manager:
    """One running manager."""

    name: str
    link: Link
    clock: VirtualClock
    stop: asyncio.Event
    task: asyncio.Task[None]
    runner: RefreshRunner = field(repr=False)


class World:
    """Everything there is, and what happens to it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.seed = seed
        self.broken = True
        self.provider = Provider(self.random)
        self.clock = VirtualClock()
        self.storage = MemoryStorage(self.clock, SeededRng(seed))
        self.managers: list[Manager] = []
        self.made = 0
        self.started = 0
        self.stored: dict[str, Session] = {}  # the last live version of each session
        self.ends: dict[str, float] = {}
        self.seen = 0  # versions checked
        self.events: set[str] = set()
        self._group: asyncio.TaskGroup

    def chance(self, probability: float) -> bool:
        """True that often; never once the faults are over."""
        return self.broken and self.random.random() < probability

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Let something go on by itself."""
        return self._group.create_task(work)

    @contextlib.asynccontextmanager
    async def going(self) -> Any:
        """Let the world go on beside the block."""
        async with background(self._host(), self._watch()):
            await asyncio.sleep(0)
            yield

    async def _host(self) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            await asyncio.Event().wait()

    # Managers

    def start_manager(self) -> None:
        """Start one more."""
        self.started += 1
        name = f"manager-{self.started}"
        link, clock, stop = Link(self), VirtualClock(), asyncio.Event()
        storage: Any = link
        rng = SeededRng(self.seed * 1000 + self.started)
        hub = ChangeHub(storage, clock, rng, poll_s=5.0)
        runner = RefreshRunner(
            Surroundings(
                storage, hub, Line(self, name), clock, rng, alone=False, rules_of=lambda: RULES
            )
        )

        async def life() -> None:
            async with background(hub.run()):
                await runner.run(stop)

        task = self.spawn(life())
        self.managers.append(Manager(name, link, clock, stop, task, runner))

    async def stop_manager(self, manager: Manager, *, gracefully: bool) -> None:
        """End one. What it has been given and not stored is lost with it."""
        self.managers.remove(manager)
        manager.stop.set()
        if not gracefully:
            manager.task.cancel()
        await asyncio.wait([manager.task])
        for grant in self.provider.grants.values():
            session = self.stored.get(grant.session_id)
            if grant.issued_to == manager.name and session is not None:
                grant.excused |= session.oauth_token.refresh_token != grant.token

    # Sessions

    async def sign_in(self) -> None:
        """Somebody signs in."""
        self.made += 1
        random, provider = self.random, self.provider
        subject = f"user-{random.randrange(SUBJECTS)}"
        grant = Grant(f"session-{self.made}", subject, random.choice(TOKEN_LIVES_S))
        provider.grants[grant.session_id] = grant
        tokens = provider.tokens(grant)
        session = Session(id=grant.session_id, user_id=subject, idp_id=IDP)
        session.expires_at.CopyFrom(timestamp_of(now_s() + random.choice([1_500, 50_000])))
        session.oauth_token.access_token = tokens.access_token
        session.oauth_token.refresh_token = tokens.refresh_token
        session.oauth_token.expires_at.CopyFrom(timestamp_of(tokens.expires_at_s or 0))
        session.claims["sub"].extend([subject])
        if random.random() < 0.1:
            session.refresh_disabled = True
        user = User(id=subject)
        await self.storage.write(
            Put(accept([record_of(user, subject), record_of(session, session.id)]))
        )

    async def touch(self) -> None:
        """Somebody else changes a session: its version moves under a manager's feet."""
        if not self.stored:
            return
        record = await self.storage.get(SESSION, self.random.choice(sorted(self.stored)))
        session = Session()
        if record is not None and record.to_message().data.Unpack(session):
            session.accessed_at.CopyFrom(timestamp_of(now_s()))
            await self.storage.write(Put(accept([record_of(session, session.id)])))

    def revoke(self) -> None:
        """An administrator ends a session at the provider."""
        live = [grant for grant in self.provider.grants.values() if grant.revoked_s is None]
        if live:
            self.random.choice(live).revoked_s = now_s()

    # What is checked whenever the log grows

    async def _watch(self) -> None:
        while True:
            await self.check_log()
            await asyncio.sleep(1.0)

    async def check_log(self) -> None:
        """Check every new version of every session."""
        page = await self.storage.changes(self.seen, type_=SESSION, limit=10_000)
        for record in page.changes:
            self._check(record)
        self.seen = page.end

    def _check(self, record: StoredRecord) -> None:
        before = self.stored.get(record.id)
        grant = self.provider.grants[record.id]
        if record.deleted_at_us is not None:
            assert before is not None
            del self.stored[record.id]
            self.ends[record.id] = record.deleted_at_us / 1e6
            is_over = record.deleted_at_us / 1e6 >= seconds_of(before.expires_at)
            self.events.add("expired" if is_over else "refused")
            assert is_over or grant.revoked_s is not None or grant.excused, (
                f"SEED={self.seed}: {record.id} ended without a definitive answer"
            )
            return
        session = Session()
        assert record.to_message().data.Unpack(session)
        if before is not None:
            old = int(before.oauth_token.refresh_token.rsplit(".", 1)[1])
            new = int(session.oauth_token.refresh_token.rsplit(".", 1)[1])
            assert new >= old, f"SEED={self.seed}: {record.id} went back to a spent token"
            assert session.expires_at == before.expires_at, "a session was extended"
        self.stored[record.id] = session

    async def user(self, subject: str) -> User | None:
        """The user's record."""
        record = await self.storage.get(USER, subject)
        user = User()
        if record is None or not record.to_message().data.Unpack(user):
            return None
        return user
