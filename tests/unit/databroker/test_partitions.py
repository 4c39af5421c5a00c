"""Leases of the identity manager: fair shares, hand-over, and what a failing store changes."""

from __future__ import annotations

import pytest

from gatehouse.databroker.core import leases
from gatehouse.databroker.core.partitions import (
    LEASE_S,
    MEMBERS,
    PARTITIONS,
    Ask,
    Shares,
    partition_of,
    share_of,
)


class LeaseStore:
    """Leases as a store keeps them; `answers` False: it cannot be reached."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.held: dict[str, leases.Lease] = {}
        self.asked = 0
        self.answers = True
        self.is_counting = False  # a count goes on: its probes have not been given back

    def ask(self, ask: Ask) -> bool | None:
        self.asked += 1
        if not self.answers:
            return None
        duration_us = int(ask.duration_s * 1e6)
        match ask.verb:
            case "acquire":
                change = leases.acquisition(ask.name, ask.lease_id, duration_us)
                return self._change(ask.name, change)
            case "release":
                self._change(ask.name, leases.giving_back(ask.lease_id))
                return True
        done = self._change(ask.name, leases.renewal(ask.name, ask.lease_id, duration_us))
        if done and ask.verb == "probe" and not self.is_counting:
            self._change(ask.name, leases.giving_back(ask.lease_id))
        return done

    def _change(self, name: str, change: leases.Change) -> bool:
        lease = change(self.held.get(name), int(self.now_s * 1e6))
        if lease is not None:
            self.held[name] = lease
        return lease is not None

    def holders(self) -> dict[str, str]:
        now_us = int(self.now_s * 1e6)
        return {name: one.id for name, one in self.held.items() if one.expires_at_us > now_us}


class Cluster:
    """Processes over one lease store, in virtual time."""

    def __init__(self, count: int, *, alone: bool = False) -> None:
        self.store = LeaseStore()
        self.shares = [Shares(f"process-{n}", alone) for n in range(count)]
        self.wake_s = {id(one): 0.01 * n for n, one in enumerate(self.shares)}
        self.busy: set[int] = set()
        self.turns = 0

    def join(self, one: Shares) -> None:
        self.shares.append(one)
        self.wake_s[id(one)] = self.store.now_s

    def leave(self, one: Shares) -> None:
        self.shares.remove(one)

    def run(self, seconds: float) -> None:
        end_s = self.store.now_s + seconds
        while True:
            one = min(self.shares, key=lambda item: self.wake_s[id(item)])
            if self.wake_s[id(one)] > end_s:
                self.store.now_s = end_s
                return
            self.turns += 1
            self.store.now_s = max(self.store.now_s, self.wake_s[id(one)])
            for ask in one.asks(self.store.now_s, self.busy):
                one.answer(ask, self.store.ask(ask), self.store.now_s)
            self.check()
            self.wake_s[id(one)] = one.wake_s(self.store.now_s)

    def check(self) -> None:
        """Nobody works on a partition whose lease is not theirs."""
        holders = self.store.holders()
        for one in self.shares:
            for number, until_s in one.held().items():
                if until_s > self.store.now_s:
                    assert holders.get(f"identity_manager/{number}") == one.holder

    def held(self) -> list[set[int]]:
        return [set(one.held()) for one in self.shares]


def test_the_hash_is_frozen() -> None:
    """Every process of a rolling update must agree."""
    assert [partition_of(key) for key in ("", "alice", "user-1", "ü")] == [2, 16, 9, 14]
    assert share_of("alice") == pytest.approx(0.4125, abs=1e-4)
    assert share_of("alice", 1) != share_of("alice", 2)


def test_shares_are_spread_evenly() -> None:
    shares = sorted(share_of(f"session-{n}") for n in range(10_000))
    assert all(abs(share - n / 10_000) < 0.03 for n, share in enumerate(shares))
    counts = [0] * PARTITIONS
    for n in range(10_000):
        counts[partition_of(f"user-{n}")] += 1
    assert min(counts) > 200


def test_alone_it_takes_everything_at_once() -> None:
    cluster = Cluster(1, alone=True)
    cluster.run(0.1)
    assert cluster.held() == [set(range(PARTITIONS))]
    cluster.run(600)
    assert cluster.held() == [set(range(PARTITIONS))]
    assert not [name for name in cluster.store.held if "member" in name]


def test_alone_after_a_crash_it_waits_for_the_old_leases() -> None:
    cluster = Cluster(1, alone=True)
    cluster.run(5)
    crashed = cluster.shares[0]
    cluster.join(Shares("restarted", alone=True))
    cluster.leave(crashed)
    cluster.run(LEASE_S - 10)
    assert cluster.held() == [set()]
    cluster.run(15)
    assert cluster.held() == [set(range(PARTITIONS))]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 16])
def test_processes_that_start_together_share_all_partitions(count: int) -> None:
    cluster = Cluster(count)
    cluster.run(90)
    held = cluster.held()
    assert sum(map(len, held)) == PARTITIONS
    assert set().union(*held) == set(range(PARTITIONS))
    assert max(map(len, held)) <= -(-PARTITIONS // count)
    before = cluster.held()
    cluster.run(300)
    assert cluster.held() == before  # nothing moves without a reason


def test_processes_that_count_at_the_same_moment_do_not_count_each_other() -> None:
    cluster = Cluster(2)
    cluster.store.is_counting = True
    cluster.run(1.5)
    assert {one.fair_share for one in cluster.shares} <= {16, PARTITIONS}


def test_a_newcomer_gets_its_share_and_a_leaver_gives_it_back() -> None:
    cluster = Cluster(1)
    cluster.run(60)
    assert len(cluster.held()[0]) == PARTITIONS
    cluster.join(Shares("newcomer"))
    cluster.run(150)
    assert sorted(map(len, cluster.held())) == [16, 16]
    first = cluster.shares[0]
    for ask in first.releases(cluster.store.now_s):
        cluster.store.ask(ask)
    cluster.leave(first)
    cluster.run(150)
    assert cluster.held() == [set(range(PARTITIONS))]


def test_a_crashed_process_is_replaced() -> None:
    cluster = Cluster(3)
    cluster.run(90)
    cluster.leave(cluster.shares[1])
    cluster.run(150)
    assert sorted(map(len, cluster.held())) == [16, 16]


def test_more_processes_than_member_leases_stand_by() -> None:
    cluster = Cluster(MEMBERS + 2)
    cluster.run(200)
    held = cluster.held()
    assert sum(map(len, held)) == PARTITIONS
    assert sorted(map(len, held))[:2] == [0, 0]
    idle = [one for one in cluster.shares if not one.held()]
    cluster.leave(next(one for one in cluster.shares if one.held()))
    cluster.run(200)
    assert any(one.held() for one in idle)


def test_what_is_being_worked_on_is_given_back_only_afterwards() -> None:
    cluster = Cluster(1)
    cluster.run(60)
    cluster.busy = set(range(PARTITIONS))
    cluster.join(Shares("newcomer"))
    cluster.run(100)
    first, second = cluster.held()
    assert len(first) == 16  # it begins nothing new in the others
    assert second == set()
    cluster.busy = set()
    cluster.run(100)
    assert sorted(map(len, cluster.held())) == [16, 16]


def test_a_lease_that_cannot_be_renewed_ends_before_the_store_says_so() -> None:
    cluster = Cluster(2)
    cluster.run(90)
    cluster.store.answers = False
    cluster.run(LEASE_S + 1)
    assert cluster.held() == [set(), set()]
    cluster.store.answers = True
    cluster.run(120)
    assert sum(map(len, cluster.held())) == PARTITIONS


def test_a_lease_that_another_has_taken_is_lost_at_the_next_renewal() -> None:
    cluster = Cluster(1, alone=True)
    cluster.run(5)
    name = "identity_manager/7"
    cluster.store.held[name] = leases.Lease(name, "thief", int(1e12), 2)
    cluster.shares[0].answer(Ask("renew", name, "process-0", LEASE_S, 5.0), False, 5.0)
    assert 7 not in cluster.shares[0].held()


def test_leases_are_not_asked_for_in_a_hurry() -> None:
    cluster = Cluster(3)
    cluster.run(120)
    cluster.store.asked = cluster.turns = 0
    cluster.run(600)
    # 32 + 3 renewals in 10 s, 15 probes by each in 30 s, and a look for what a share has room for
    assert cluster.store.asked < 600 * (3.5 + 1.5 + 1.5)
    assert cluster.turns < 600 * 3 * 4
