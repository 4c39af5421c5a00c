"""Several upstreams: who gets what share, who leaves rotation and who comes back."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse

from tests.support.dns import DnsServer, Zone
from tests.support.sign_in import sign_in
from tests.support.traffic import DOMAIN, Connection, Product, eventually, https
from tests.support.traffic_grpc import grpc_client, grpc_upstream, method
from tests.support.traffic_upstreams import Application, Background, Farm, farm

pytestmark = pytest.mark.e2e

NAME = "farm.internal"
QUICK: dict[str, Any] = {
    "timeout": "1s",
    "interval": "0.1s",
    "no_traffic_interval": "0.1s",
    "unhealthy_threshold": 1,
    "healthy_threshold": 1,
}
HTTP_CHECK = {"http_health_check": {"path": "/health"}}
PING, PONG = {"text": "50494E47"}, {"text": "504F4E47"}


def checked(**check: Any) -> dict[str, Any]:
    """A health check ten times a second, and no panic, so that each verdict can be seen."""
    return {"health_checks": [{**QUICK, **check}], "healthy_panic_threshold": 0}


OUTLIERS: dict[str, Any] = {
    "outlier_detection": {
        "consecutive_5xx": 3,
        "interval": "0.1s",
        "base_ejection_time": "0.8s",
        "max_ejection_percent": 100,
    },
    "healthy_panic_threshold": 0,
}


@dataclass
class World:
    """The product and what it balances over."""

    product: Product
    steady: Farm  # its members stay as they are
    fragile: Farm  # its members are hurt by tests
    zone: Zone
    named: Farm  # one port on several addresses, behind one name
    checks: list[HealthServicer]  # of the gRPC upstreams

    def share(self, host: str, count: int, of: Farm, path: str = "/") -> list[int]:
        """Who got how many of `count` requests sent one after the other on one connection."""
        of.clear()
        with self.product.connection() as connection:
            for _ in range(count):
                assert connection.request(path, host=f"{host}.{DOMAIN}").status == 200
        return of.counts

    def statuses(self, host: str, count: int, path: str = "/") -> list[int]:
        with self.product.connection() as connection:
            return [connection.request(path, host=f"{host}.{DOMAIN}").status for _ in range(count)]

    def healthy(self, host: str) -> int:
        """How many members the cluster of a named route has in rotation."""
        (value,) = self.product.stats(rf"cluster\.{host}\.membership_healthy").values()
        return value

    def wait_healthy(self, host: str, count: int) -> None:
        """Until the verdicts are there; workers learn of them within a second (merge window)."""
        eventually(lambda: self.healthy(host) == count)

    def wait_rotation(self, host: str, of: Farm, members: set[int]) -> None:
        """Until requests on several connections reach these members alone, each as often."""

        def settled() -> bool:
            of.clear()
            statuses = [status for _ in range(4) for status in self.statuses(host, 6)]
            used = {index for index, count in enumerate(of.counts) if count}
            return set(statuses) == {200} and used == members

        eventually(settled, every_s=0.1)
        counts = self.share(host, 30, of)
        assert {counts[index] for index in members} == {30 // len(members)}, counts


def routes(steady: Farm, fragile: Farm, port: int, grpc_ports: list[int]) -> list[dict[str, Any]]:
    a, b, c = steady.urls
    signed_in = {"allow_public_unauthenticated_access": False, "allow_any_authenticated_user": True}
    limited = {"max_requests": 2}
    table: Mapping[str, dict[str, Any]] = {
        "plain": {"to": steady.urls},
        "weights": {"to": [f"{a},1", f"{b},3", f"{c},6"]},
        "random": {"to": [a, b], "load_balancing_policy": "RANDOM"},
        "least-weights": {"to": [f"{a},3", f"{b},1"], "load_balancing_policy": "LEAST_REQUEST"},
        "maglev-weights": {"to": [f"{a},1", f"{b},50000"], "load_balancing_policy": "MAGLEV"},
        "ring-weights": {"to": [f"{a},1", f"{b},50000"], "load_balancing_policy": "RING_HASH"},
        "least": {
            "to": [a, b],
            "lb_policy": "least_request",
            "least_request_lb_config": {"choice_count": 16},
        },
        "ring": {"to": steady.urls, "load_balancing_policy": "RING_HASH"},
        "maglev": {"to": steady.urls, "lb_policy": "MAGLEV"},
        "ring-user": {"to": steady.urls, "load_balancing_policy": "RING_HASH", **signed_in},
        "maglev-user": {"to": steady.urls, "load_balancing_policy": "MAGLEV", **signed_in},
        "dns": {"to": f"http://{NAME}:{port}"},
        "limited": {"to": a, "circuit_breaker_thresholds": limited},
        # -- those whose members are hurt
        "http": {"to": fragile.urls, **checked(**HTTP_CHECK)},
        "http-host": {
            "to": fragile.urls[0],
            **checked(http_health_check={"path": "/health", "host": "probe.internal"}),
        },
        "http-status": {
            "to": fragile.urls,
            **checked(
                http_health_check={
                    "path": "/health",
                    "expected_statuses": [{"start": 503, "end": 504}],
                }
            ),
        },
        "tcp": {"to": fragile.urls, **checked(tcp_health_check={"send": PING, "receive": [PONG]})},
        "connect": {"to": fragile.urls, **checked(tcp_health_check={})},
        "outlier": {"to": fragile.urls, **OUTLIERS},
        "none": {"to": fragile.urls},
        "panic": {"to": fragile.urls, **checked(**HTTP_CHECK), "healthy_panic_threshold": 50},
        "calm": {"to": fragile.urls, **checked(**HTTP_CHECK), "healthy_panic_threshold": 20},
        "grpc": {
            "to": [f"h2c://127.0.0.1:{each}" for each in grpc_ports],
            **checked(grpc_health_check={"service_name": "traffic"}),
        },
    }
    return [https(host, name=host, **keys) for host, keys in table.items()]


SETTINGS: dict[str, Any] = {"dns_lookup_family": "V4_ONLY", "dns_refresh_rate": "0.2s"}


@pytest.fixture(scope="module")
def world(shared: Product, background: Background) -> Iterator[World]:
    zone = Zone(ttl=1)
    dns = DnsServer(zone)
    checks = [HealthServicer(), HealthServicer()]
    for check in checks:
        check.set("traffic", HealthCheckResponse.SERVING)
    with contextlib.ExitStack() as stack:
        steady = stack.enter_context(farm(background, 3))
        fragile = stack.enter_context(farm(background, 3))
        first = stack.enter_context(Application(background).running())
        others = [
            stack.enter_context(
                Application(background, address=f"127.0.0.{n}", port=first.port).running()
            )
            for n in (2, 3)
        ]
        named = Farm([first, *others])
        zone.a[f"{NAME}."] = [member.address for member in named.members]
        background.run(dns.start())
        stack.callback(lambda: background.run(dns.stop()))
        ports = [
            stack.enter_context(grpc_upstream(health=check, name=str(index)))
            for index, check in enumerate(checks)
        ]
        settings = {**SETTINGS, "dns_resolvers": [f"udp://127.0.0.1:{dns.port}"]}
        made = routes(steady, fragile, first.port, ports)
        shared.reload(made, **settings)
        yield World(shared, steady, fragile, zone, named, checks)


@pytest.fixture
def fragile(world: World) -> Iterator[Farm]:
    """The farm to hurt; afterwards it is whole again, and known to be."""
    yield world.fragile
    world.fragile.recover()
    for check in world.checks:
        check.set("traffic", HealthCheckResponse.SERVING)
    for host in ("http", "tcp", "connect", "outlier", "panic", "calm"):
        world.wait_healthy(host, 3)


def near(counts: list[int], expected: list[int], by: int) -> bool:
    return all(abs(one - other) <= by for one, other in zip(counts, expected, strict=True))


# -- shares


def test_round_robin_takes_everyone_in_turn(world: World) -> None:
    assert world.share("plain", 30, world.steady) == [10, 10, 10]


def test_weights_are_kept(world: World) -> None:
    counts = world.share("weights", 200, world.steady)
    assert near(counts, [20, 60, 120], by=3), counts


def test_least_request_keeps_weights(world: World) -> None:
    counts = world.share("least-weights", 80, world.steady)
    assert near(counts, [60, 20, 0], by=6), counts


def test_random_uses_everyone(world: World) -> None:
    counts = world.share("random", 200, world.steady)
    assert counts[2] == 0
    assert near(counts[:2], [100, 100], by=43), counts  # six standard deviations


def test_least_request_avoids_the_busy_one(world: World) -> None:
    world.steady.clear()
    with world.product.connection() as busy:
        busy.send("/?wait=", host=f"least.{DOMAIN}")
        eventually(lambda: sum(world.steady.counts) == 1)
        chosen = world.steady.counts.index(1)
        try:
            assert world.share("least", 12, world.steady)[chosen] == 0
        finally:
            world.steady.members[chosen].open_gate()
        assert busy.answer().read()
    world.steady.members[chosen].close_gate()


@pytest.mark.parametrize("host", ["ring", "maglev"])
def test_a_client_without_a_session_sticks_by_its_address(world: World, host: str) -> None:
    world.steady.clear()
    for _ in range(12):
        assert world.product.get(host).status == 200
    assert sorted(world.steady.counts) == [0, 0, 12]


@pytest.mark.parametrize("host", ["ring", "maglev"])
def test_clients_without_a_session_are_spread_by_their_addresses(world: World, host: str) -> None:
    used: dict[str, set[str | None]] = {}
    for number in range(2, 18):
        source = f"127.0.0.{number}"
        for _ in range(2):
            with world.product.connection(source=source) as connection:
                reply = connection.request(host=f"{host}.{DOMAIN}")
            used.setdefault(source, set()).add(reply.value("x-upstream"))
            assert reply.arrived("x-pomerium-routing-key") == []
    assert {len(found) for found in used.values()} == {1}
    assert len(set.union(*used.values())) > 1


@pytest.mark.parametrize("host", ["ring-weights", "maglev-weights"])
def test_hashing_keeps_weights(world: World, host: str) -> None:
    for number in range(2, 7):
        world.steady.clear()
        with world.product.connection(source=f"127.0.0.{number}") as connection:
            assert connection.request(host=f"{host}.{DOMAIN}").status == 200
        assert world.steady.counts == [0, 1, 0]


def test_a_signed_in_user_sticks_by_session(world: World) -> None:
    used: dict[str, set[str]] = {"ring-user": set(), "maglev-user": set()}
    for index in range(12):
        with world.product.browser(*used) as browser:
            for host in used:
                page = sign_in(browser, world.product.url(host), f"user{index}@example.com")[-1]
                upstreams = {page.headers["x-upstream"]}
                for _ in range(3):
                    answer = browser.get(world.product.url(host))
                    assert answer.status_code == 200
                    upstreams.add(answer.headers["x-upstream"])
                assert len(upstreams) == 1
                used[host] |= upstreams
    for host, found in used.items():
        assert len(found) > 1, host


def test_every_address_behind_a_name_is_used_as_long_as_it_is_there(world: World) -> None:
    """The name is asked again when its time to live is over."""
    name, host = f"{NAME}.", "dns"
    addresses = list(world.zone.a[name])
    assert world.share(host, 30, world.named) == [10, 10, 10]
    seen = world.named.members[0].seen[-1]
    assert seen.value("host") == f"{NAME}:{world.named.members[0].port}"
    try:
        world.zone.a[name] = addresses[1:]
        eventually(lambda: world.share(host, 4, world.named)[0] == 0)
        assert world.share(host, 30, world.named) == [0, 15, 15]
    finally:
        world.zone.a[name] = addresses
    eventually(lambda: world.share(host, 6, world.named) == [2, 2, 2])


# -- health


def leaves_and_returns(world: World, hosts: tuple[str, ...], victim: int, whole: Farm) -> None:
    """The victim has left the rotation of `hosts`; once well again it comes back."""
    for host in hosts:
        world.wait_rotation(host, whole, {0, 1, 2} - {victim})
    whole.recover()
    for host in hosts:
        world.wait_rotation(host, whole, {0, 1, 2})


def test_a_killed_upstream_leaves_rotation_and_returns(world: World, fragile: Farm) -> None:
    hosts = ("http", "tcp", "connect")
    for host in hosts:
        world.wait_rotation(host, fragile, {0, 1, 2})
    fragile.members[0].kill()
    leaves_and_returns(world, hosts, 0, fragile)


def test_an_upstream_that_says_it_is_unwell_leaves_rotation(world: World, fragile: Farm) -> None:
    fragile.members[1].healthy = False
    leaves_and_returns(world, ("http", "tcp"), 1, fragile)


def test_a_check_asks_as_it_is_told(world: World, fragile: Farm) -> None:
    def hosts() -> set[str | None]:
        return {each.value("host") for each in fragile.members[0].checks}

    eventually(lambda: "probe.internal" in hosts())
    sent = fragile.members[0].checks[-1]
    assert sent.method == "GET"
    assert [name for name, _ in sent.headers if "pomerium" in name.lower()] == []
    # Only 503 counts as well here.
    world.wait_healthy("http-status", 0)
    fragile.members[2].healthy = False
    world.wait_rotation("http-status", fragile, {2})


def test_grpc_upstreams_are_checked_over_grpc(world: World, fragile: Farm) -> None:
    def names(count: int) -> set[str]:
        with grpc_client(world.product.port, world.product.authority.path, "grpc") as channel:
            call = channel.unary_unary(method("Name"))
            return {call(b"", timeout=60).decode() for _ in range(count)}

    def settle(expected: set[str]) -> None:
        eventually(lambda: [names(4) for _ in range(3)] == [expected] * 3)

    settle({"0", "1"})
    world.checks[0].set("traffic", HealthCheckResponse.NOT_SERVING)
    settle({"1"})
    world.checks[0].set("traffic", HealthCheckResponse.SERVING)
    settle({"0", "1"})


def test_failing_answers_eject_an_upstream_for_a_while(world: World, fragile: Farm) -> None:
    world.wait_rotation("outlier", fragile, {0, 1, 2})
    fragile.members[2].failing = 500
    assert world.statuses("outlier", 9).count(500) == 3
    world.wait_rotation("outlier", fragile, {0, 1})
    fragile.recover()
    world.wait_rotation("outlier", fragile, {0, 1, 2})


def test_a_killed_upstream_is_ejected_too(world: World, fragile: Farm) -> None:
    def ejections() -> int:
        name = r"cluster\.outlier\.outlier_detection\.ejections_enforced_total"
        return sum(world.product.stats(name).values())

    world.wait_rotation("outlier", fragile, {0, 1, 2})
    before = ejections()
    fragile.members[0].kill()
    # Nobody notices: what its address refuses is sent to the next one.
    assert world.statuses("outlier", 9) == [200] * 9
    eventually(lambda: ejections() == before + 1)
    world.wait_rotation("outlier", fragile, {1, 2})


def test_without_checks_nobody_leaves_rotation(world: World, fragile: Farm) -> None:
    fragile.members[0].failing = 500
    assert world.statuses("none", 30).count(500) == 10


def test_panic_spreads_requests_over_all(world: World, fragile: Farm) -> None:
    """Below the threshold unhealthy members are used as well, above it they are not."""
    for member in fragile.members[1:]:
        member.healthy = False
    world.wait_rotation("http", fragile, {0})
    world.wait_rotation("calm", fragile, {0})
    world.wait_rotation("panic", fragile, {0, 1, 2})
    fragile.members[0].healthy = False
    world.wait_rotation("calm", fragile, {0, 1, 2})
    eventually(lambda: world.statuses("http", 3) + world.statuses("http", 3) == [503] * 6)
    fragile.clear()
    assert world.statuses("http", 3) == [503] * 3
    assert fragile.counts == [0, 0, 0]


# -- circuit breakers


def crowd(world: World, host: str, count: int) -> list[int]:
    """Statuses of requests that are in flight together, all to the first member.

    One is sent after the other, so that authorize never has several to decide at once.
    """
    upstream = world.steady.members[0]
    upstream.seen.clear()
    statuses = []
    with contextlib.ExitStack() as stack:
        stack.callback(upstream.close_gate)
        stack.callback(upstream.open_gate)
        held: list[Connection] = []
        for _ in range(count):
            connection = stack.enter_context(world.product.connection())
            connection.send("/?wait=", host=f"{host}.{DOMAIN}")
            while len(upstream.seen) == len(held) and not answered(connection):
                time.sleep(0.01)
            if len(upstream.seen) > len(held):
                held.append(connection)
            else:
                statuses.append(connection.answer().status)
        upstream.open_gate()
        statuses += [connection.answer().status for connection in held]
    return statuses


def answered(connection: Connection) -> bool:
    return bool(select.select([connection.socket], [], [], 0)[0])


def test_too_many_requests_at_once_are_refused(world: World) -> None:
    assert crowd(world, "limited", 6) == [503] * 4 + [200] * 2
    assert world.statuses("limited", 3) == [200] * 3


def test_a_routes_limit_beats_the_global_one(world: World) -> None:
    up = world.steady.urls[0]
    own = https("own", to=up, circuit_breaker_thresholds={"max_requests": 4})
    partly = https("partly", to=up, circuit_breaker_thresholds={"max_connections": 100})
    world.product.reload(
        [own, partly, https("global", to=up)], circuit_breaker_thresholds={"max_requests": 2}
    )
    assert crowd(world, "own", 6) == [503] * 2 + [200] * 4
    for host in ("partly", "global"):
        assert crowd(world, host, 4) == [503] * 2 + [200] * 2, host


def test_upstreams_are_reached_from_the_address_that_is_set(world: World) -> None:
    upstream = world.steady.members[0]
    route = https("from-here", to=upstream.url)
    for keys, address in (
        ({}, "127.0.0.1"),
        ({"envoy_bind_config_source_address": "127.0.0.9"}, "127.0.0.9"),
        (
            {
                "envoy_bind_config_source_address": "127.0.0.10",
                "envoy_bind_config_freebind": True,
            },
            "127.0.0.10",
        ),
    ):
        world.product.reload([route], **SETTINGS, **keys)
        assert world.product.get("from-here").status == 200
        assert upstream.seen[-1].peer == address


def test_names_are_asked_over_tcp_where_the_settings_say_so(
    world: World, background: Background
) -> None:
    async def silence_udp() -> None:
        assert dns._udp is not None
        dns._udp.close()

    dns = DnsServer(world.zone)
    background.run(dns.start())
    try:
        background.run(silence_udp())
        route = https("dns-tcp", to=f"http://{NAME}:{world.named.members[0].port}")
        settings = {**SETTINGS, "dns_resolvers": [f"tcp://127.0.0.1:{dns.port}"]}
        world.product.reload([route], **settings, dns_use_tcp=True)
        eventually(lambda: world.statuses("dns-tcp", 1) == [200])
        assert world.share("dns-tcp", 6, world.named) == [2, 2, 2]
    finally:
        background.run(dns.stop())
