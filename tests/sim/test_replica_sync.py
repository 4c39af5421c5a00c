"""Replicas under a broker that restarts, forgets and hangs: what must hold at every moment.

`SEED=n make sim` repeats one run; without it a fixed set of seeds is tried.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from gatehouse.common.databroker.replica import Change
from gatehouse.common.databroker.sync_core import Phase
from tests.sim.replica_world import CANARY, IDS, KEEPALIVE_S, World
from tests.support.model_broker import TYPE

SEEDS = [int(os.environ["SEED"])] if os.environ.get("SEED") else list(range(25))
TROUBLED_S = 240.0
# The longest way back: a hung stream is noticed by keepalive, then comes the longest back-off (60 s
# and half), then Aborted and one more back-off before the copy.
SETTLED_S = TROUBLED_S + KEEPALIVE_S + 90 + 90 + 30


class Checker:
    """Compares, after every event, what each replica shows with what was ever true."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.positions: dict[int, tuple[int, int]] = {}
        self.versions: dict[tuple[int, int, str], int] = {}
        self.checks = 0

    def __call__(self) -> None:
        self.checks += 1
        for number, node in enumerate(self.world.nodes):
            self._check(number, node)

    def _check(self, number, node) -> None:
        state = node.replica.state(TYPE)
        before = self.positions.get(number, (0, 0))
        now = (state.server_version, state.record_version)
        if not state.ready:
            assert before == (0, 0), "a copy was lost"
            return
        assert state.server_version != 0
        if now[0] == before[0]:
            assert now[1] >= before[1], "the position went back"
        self.positions[number] = now
        assert node.replica.get(TYPE, CANARY) is not None, "a look-up missed during a resync"
        for record_id in (CANARY, *IDS):
            held = node.replica.get(TYPE, record_id)
            if held is None:
                continue
            key = (number, state.server_version, record_id)
            assert held.version >= self.versions.get(key, 0), "a record went back"
            self.versions[key] = held.version
            wrote = self.world.broker.written[state.server_version, TYPE, record_id, held.version]
            assert held.value == wrote, "a replica holds what nobody wrote"


@pytest.mark.parametrize("seed", SEEDS)
def test_replicas_converge_and_never_lie(seed):
    world = World(seed)
    check = Checker(world)
    world.run_until(TROUBLED_S, check)
    world.broken = False
    world.run_until(SETTLED_S, check)
    assert check.checks > 1000
    for node in world.nodes:
        shown = {
            record_id: (held.version, held.value)
            for record_id in (CANARY, *IDS)
            if (held := node.replica.get(TYPE, record_id)) is not None
        }
        assert shown == world.broker.contents(), f"SEED={seed} did not converge"
        state = node.replica.state(TYPE)
        assert node.state.phase is Phase.FOLLOWING
        assert state.server_version == world.broker.server_version
        if world.heartbeats:
            assert state.record_version == world.broker.latest
            assert (node.replica.staleness_s(world.now_s) or 0) < 12
        # Streams are not reopened in a hurry: back-off starts at 0.25 s, and an Aborted stream
        # may be followed by one copy at once.
        assert node.opened < 4 * SETTLED_S


def _collect(swaps: list[str]) -> Callable[[Change], None]:
    return lambda change: swaps.append(type(change).__name__)


def test_the_simulation_meets_the_trouble_it_is_made_for():
    """Else a bug in the world would make every run an easy one."""
    histories, resyncs, opened, resumed = set(), 0, 0, 0
    for seed in range(5):
        world = World(seed)
        swaps: list[str] = []
        for node in world.nodes:
            node.replica.subscribe(_collect(swaps))
        world.run_until(TROUBLED_S, lambda: None)
        histories |= {key[0] for key in world.broker.written}
        resyncs += swaps.count("Replaced")
        opened += sum(node.opened for node in world.nodes)
        resumed += world.resumed
    assert len(histories) > 5
    assert resyncs > 50
    assert resumed > 5
    assert opened > 2 * resyncs  # streams broke in between, too
