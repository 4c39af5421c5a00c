"""How a service calls another one: one balanced channel over all addresses of all its URLs.

Design D7. Names are resolved again and again (`resolver.py`, `address_book.py`); each change makes
a new gRPC channel over a literal list of addresses with round robin and client-side health
checking, which takes over once it is connected. Calls under way stay on the old channel, which is
let go when they have ended. Every call carries the service's credentials.

A connection whose other end is frozen looks sound: its kernel takes everything, and gRPC puts its
keepalive question off as long as calls are sent (seen with 1.85). So calls that get no answer in
time make this connect anew to every address; the frozen one is then left out until it answers.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import grpc
import grpc.aio

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.errors import UnavailableError
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.rpc.address_book import AddressBook, Answer, refresh_delay_s
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.common.rpc.facade import FacadeChannel, Picked
from gatehouse.common.rpc.resolver import Resolution, Resolver
from gatehouse.common.rpc.service_config import channel_options
from gatehouse.common.rpc.targets import (
    Address,
    Group,
    GroupKey,
    Target,
    group_targets,
    grpc_target,
    parse_target,
)
from gatehouse.common.rpc.trust import roots_pem
from gatehouse.common.runtime.supervise import wait_or_stop

if TYPE_CHECKING:
    from gatehouse.common.config.resolved import CertificatePair

CONNECT_WAIT_S: Final = 10.0  # what a new channel gets to connect before it takes over anyway
FAILING_REFRESH_S: Final = 1.0  # at least this between questions asked because nothing answers
SILENT_CALLS: Final = 2  # so many calls without an answer in time
SILENT_S: Final = 60.0  # within so long: connections are made anew
RENEWAL_S: Final = 10.0  # but not more often than this
RECOVERY_POLL_S: Final = 0.1  # how soon it is seen that an address answers again
SYSTEM: Final = Resolution()  # as this machine resolves names

_GENERATIONS: Final = itertools.count()


class _Pool:
    """One group's gRPC channels: the checked one, and one without health checks for bad times.

    No two pools of a process share a connection. gRPC would let equal channels share one, and two
    that begin to ask for health as their connection comes up crash the process (a null pointer in
    `HealthProducer`, seen with 1.85.1).
    """

    def __init__(
        self,
        group: Group,
        health_service: str,
        ca_pem: bytes | None,
        client_certificate: CertificatePair | None,
        *,
        keepalive: bool,
    ) -> None:
        self.group = group
        self._keepalive = keepalive
        self._generation = next(_GENERATIONS)
        self._ca_pem = ca_pem
        self._client_certificate = client_certificate
        self.checked = Picked(self._open(health_service))
        self._unchecked: Picked | None = None

    def pick(self) -> Picked:
        """The channel for one call.

        While no address is both reachable and SERVING, calls go to all of them in turn whatever
        their health says: a wrong health answer must not be worse than none.
        """
        if self.checked.state() is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            return self.checked
        if self._unchecked is None:
            self._unchecked = Picked(self._open(None))
        return self._unchecked

    @property
    def failing(self) -> bool:
        """No address is both reachable and SERVING."""
        return self.checked.state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE

    @property
    def answering(self) -> bool:
        """An address is both reachable and SERVING."""
        return self.checked.state() is grpc.ChannelConnectivity.READY

    def channels(self) -> list[Picked]:
        """All that are open."""
        return [one for one in (self.checked, self._unchecked) if one is not None]

    def _open(self, health_service: str | None) -> grpc.aio.Channel:
        key = self.group.key
        options = channel_options(
            authority=self.group.authority,
            verify_name=key.verify_name,
            health_service=health_service,
            generation=self._generation,
            keepalive=self._keepalive,
        )
        target = grpc_target(self.group)
        if key.scheme != "https":
            return grpc.aio.insecure_channel(target, options=options)
        shown = self._client_certificate
        credentials = grpc.ssl_channel_credentials(
            root_certificates=roots_pem(self._ca_pem),
            private_key=None if shown is None else shown.key_pem,
            certificate_chain=None if shown is None else shown.certificate_pem,
        )
        return grpc.aio.secure_channel(target, credentials, options=options)


class BalancedChannel:
    """Calls to one kind of service ("databroker" or "authorize"), spread over all its replicas.

    `run` keeps the addresses fresh; literal addresses and Unix sockets need no `run`. `channel`
    is safe to ask for each call, and stubs made from it stay good for ever. Belongs to one event
    loop. After `run` has returned calls still work; `close` ends them.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        audience: str,
        health_service: str,
        credentials: ServiceCredentials,
        ca_pem: bytes | None,
        client_certificate: CertificatePair | None = None,
        override_name: str = "",
        resolution: Resolution = SYSTEM,
        clock: Clock,
        rng: Rng,
        resolver: Resolver | None = None,
        keepalive: bool = True,
    ) -> None:
        """`client_certificate` is shown to servers that ask for one, over TLS.

        `keepalive` finds out that a server is gone while nothing is sent.

        Raises InvalidArgumentError for a URL that cannot be used.
        """
        self._targets = tuple(parse_target(url) for url in dict.fromkeys(urls))
        if not self._targets:
            raise UnavailableError(f"no URL is set for {audience}", reason="no-url")
        self._audience = audience
        self._health_service = health_service
        self._credentials = credentials
        self._ca_pem = ca_pem
        self._client_certificate = client_certificate
        self._override_name = override_name
        self._keepalive = keepalive
        self._clock = clock
        self._rng = rng
        self._resolution = resolution
        self._resolver = resolver or resolution.resolver()
        self._log = get_logger(credentials.subject)
        self._addresses: dict[Target, tuple[Address, ...]] = {
            target: (target.literal,) for target in self._targets if target.literal is not None
        }
        self._pools: dict[GroupKey, _Pool] = {}
        self._retired: list[Picked] = []  # each takes itself out when its last call ends
        self._turns: tuple[_Pool, ...] = ()
        self._next_turn = 0
        self._wanted = asyncio.Event()  # the addresses changed
        self._wakes = {
            target: asyncio.Event()
            for target in self._targets
            if target.scheme != "unix" and target.literal is None
        }
        self._refreshed_s = clock.monotonic_s()
        self._usable = asyncio.Event()  # there is at least one pool
        self._closed = False
        self._silences: list[float] = []  # when calls went unanswered lately
        self._renewed_s = clock.monotonic_s() - RENEWAL_S
        self._facade = FacadeChannel(
            self._pick, lambda: credentials.metadata(audience), audience, self._heed
        )
        self._started = False

    async def run(self, stop: asyncio.Event) -> None:
        """Resolve and follow changes until `stop`."""
        self._start()
        async with asyncio.TaskGroup() as group:
            for target, wake in self._wakes.items():
                group.create_task(self._follow(target, wake, stop))
            rebuild = group.create_task(self._rebuild_on_change())
            await stop.wait()
            self.refresh()
            rebuild.cancel()

    def refresh(self) -> None:
        """Ask for all names again now. Done without being told while no address answers."""
        self._refreshed_s = self._clock.monotonic_s()
        for wake in self._wakes.values():
            wake.set()

    def channel(self) -> grpc.aio.Channel:
        """The channel to make stubs from.

        Raises UnavailableError while no name has been resolved yet, and after `close`.
        """
        self._start()
        if self._closed or not self._turns:
            raise self._unavailable()
        return self._facade

    async def ready_channel(self, timeout_s: float) -> grpc.aio.Channel:
        """`channel`, waiting for the first resolution; UnavailableError after `timeout_s`."""
        self._start()
        try:
            async with asyncio.timeout(timeout_s):
                await self._usable.wait()
        except TimeoutError:
            raise self._unavailable() from None
        return self.channel()

    async def wait_recovery(self, most_s: float) -> None:
        """Sleep for `most_s`, or until an address answers again after none did meanwhile.

        For who waits before trying again: what was away is found as soon as it is back.
        """
        until_s = self._clock.monotonic_s() + most_s
        was_away = False
        while (left_s := until_s - self._clock.monotonic_s()) > 0:
            answering = any(pool.answering for pool in self._turns)
            if was_away and answering:
                return
            was_away = was_away or not answering
            await asyncio.sleep(min(left_s, RECOVERY_POLL_S))

    @property
    def addresses(self) -> tuple[Address, ...]:
        """All addresses in use, sorted."""
        return tuple(sorted({one for found in self._addresses.values() for one in found}))

    async def close(self, grace_s: float = 0.0) -> None:
        """End the calls under way after `grace_s` and let go of the connections."""
        self._closed = True
        pools, self._pools, self._turns = list(self._pools.values()), {}, ()
        channels = [*self._retired, *(one for pool in pools for one in pool.channels())]
        async with asyncio.TaskGroup() as group:
            for one in channels:
                group.create_task(one.channel.close(grace_s or None))
        self._retired.clear()

    def __repr__(self) -> str:
        spelled = ",".join(f"{one.ip}:{one.port}" for one in self.addresses)
        return f"BalancedChannel({self._audience}, addresses=[{spelled}])"

    # -- picking

    def _pick(self) -> Picked:
        """The channel of the next call: groups take turns by their number of addresses."""
        turns = self._turns
        if self._closed or not turns:
            raise self._unavailable()
        for _ in turns:
            pool = turns[self._next_turn % len(turns)]
            self._next_turn = (self._next_turn + 1) % len(turns)
            if not pool.failing:
                return pool.pick()
        if self._clock.monotonic_s() - self._refreshed_s >= FAILING_REFRESH_S:
            self.refresh()
        return turns[self._next_turn % len(turns)].pick()

    def _unavailable(self) -> UnavailableError:
        if self._closed:
            return UnavailableError(f"the channel to {self._audience} is closed", reason="closed")
        names = ", ".join(target.url for target in self._targets)
        return UnavailableError(
            f"no address of {self._audience} is known yet ({names})", reason="unresolved"
        )

    def _heed(self, code: grpc.StatusCode) -> None:
        """A call has ended: connect anew when too many get no answer."""
        if code is not grpc.StatusCode.DEADLINE_EXCEEDED or self._closed:
            return
        now_s = self._clock.monotonic_s()
        recent = [at_s for at_s in self._silences if now_s - at_s < SILENT_S]
        self._silences = [*recent, now_s][-SILENT_CALLS:]
        if len(self._silences) < SILENT_CALLS or now_s - self._renewed_s < RENEWAL_S:
            return
        self._silences, self._renewed_s = [], now_s
        for key, old in self._pools.items():
            self._pools[key] = self._new_pool(old.group)
            self._retire(old)
        self._publish()
        self._log.warning("calls get no answer: connecting anew", audience=self._audience)

    # -- resolving

    async def _follow(self, target: Target, wake: asyncio.Event, stop: asyncio.Event) -> None:
        """Ask for one name until `stop`."""
        book = AddressBook()
        failing = False
        while not stop.is_set():
            wake.clear()
            answer: Answer | None = None
            try:
                answer = await self._resolver.resolve(target.host, target.port)
            except Exception as error:  # noqa: BLE001  # a name server's answer may be anything
                if not failing:
                    self._log.warning("name not resolved", url=target.url, error=str(error))
                failing = True
            else:
                if failing:
                    self._log.info("name resolved again", url=target.url)
                failing = False
                if book.learn(answer):
                    self._addresses[target] = book.addresses
                    self._wanted.set()
            delay_s = refresh_delay_s(
                answer,
                known=bool(book.addresses),
                rng=self._rng,
                refresh_s=self._resolution.refresh_s,
                failure_s=self._resolution.failure_refresh_s,
            )
            await wait_or_stop(wake, delay_s)

    # -- swapping

    def _start(self) -> None:
        """Make what needs no resolution usable at once."""
        if self._started or self._closed:
            return
        self._started = True
        for group in self._groups():
            self._pools[group.key] = self._new_pool(group)
        self._publish()

    def _groups(self) -> tuple[Group, ...]:
        return group_targets(self._targets, self._addresses, self._override_name)

    def _new_pool(self, group: Group) -> _Pool:
        return _Pool(
            group,
            self._health_service,
            self._ca_pem,
            self._client_certificate,
            keepalive=self._keepalive,
        )

    async def _rebuild_on_change(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._rebuild()

    async def _rebuild(self) -> None:
        """Bring the pools to the addresses in use; a pool whose addresses are the same stays."""
        groups = {group.key: group for group in self._groups()}
        for key, group in groups.items():
            old = self._pools.get(key)
            if old is not None and old.group == group:
                continue
            new = self._new_pool(group)
            if old is not None:
                await self._connect(new, old)
                self._retire(old)
            self._pools[key] = new
            self._publish()
            self._log.info(
                "addresses changed",
                audience=self._audience,
                addresses=[f"{one.ip}:{one.port}" for one in group.addresses],
            )
        for key in self._pools.keys() - groups.keys():
            self._retire(self._pools.pop(key))
            self._publish()

    async def _connect(self, new: _Pool, old: _Pool) -> None:
        """Wait until `new` can take calls, but not when `old` cannot either."""
        try:
            async with asyncio.timeout(CONNECT_WAIT_S):
                while not old.failing:
                    state = new.checked.channel.get_state(try_to_connect=True)
                    if state is grpc.ChannelConnectivity.READY:
                        return
                    await new.checked.channel.wait_for_state_change(state)
        except TimeoutError:
            return

    def _publish(self) -> None:
        """Make the current pools the ones that calls are spread over."""
        self._turns = interleave(list(self._pools.values()))
        if self._turns:
            self._usable.set()

    def _retire(self, pool: _Pool) -> None:
        """Hold the channels of `pool` until their calls have ended, then drop them.

        Servers that age their connections bound how long a stream can hold on (spec, databroker
        §9).
        """
        for one in pool.channels():
            one.let_go_when_idle(self._retired)


def interleave(pools: Sequence[_Pool]) -> tuple[_Pool, ...]:
    """Each pool as often as it has addresses, spread evenly."""
    slots = [
        ((position + 0.5) / pool.group.weight, order, pool)
        for order, pool in enumerate(pools)
        for position in range(pool.group.weight)
    ]
    slots.sort(key=lambda slot: slot[:2])
    return tuple(pool for _, _, pool in slots)
