"""Databrokers and replicas over one log: what must hold whatever happens, by thousands of seeds.

A failing seed is printed; `make sim SEED=n` repeats it.
"""

from __future__ import annotations

import os

import pytest

from gatehouse.common.databroker.sync_core import Phase
from tests.sim.log_world import IDS, World
from tests.support.model_broker import TYPE, UNREADABLE

SEEDS = 2_000
BLOCK = 100  # of seeds to a test, so that a report has some lines and not thousands
TROUBLED_S = 12.0
# The longest way back: a stream that hangs, then the longest back-off, twice.
SETTLED_S = TROUBLED_S + 200.0
BLOCKS = (
    [range(int(os.environ["SEED"]), int(os.environ["SEED"]) + 1)]
    if os.environ.get("SEED")
    else [range(first, first + BLOCK) for first in range(0, SEEDS, BLOCK)]
)
TROUBLES = {
    *("answer lost", "rolled back", "writers waited", "black hole", "slow stream"),
    *("clear", "version reset", "restore", "clock jump", "store away"),
    *("broker restart", "cold replica", "copy gone on with", "shown by a reader"),
}


def is_settled(world: World) -> bool:
    """Everybody shows what is in the store, and takes it for the same history."""
    contents, history = world.store.contents(), world.store.committed[-1][1]
    return all(
        node.state.phase is Phase.FOLLOWING
        and node.shown() == contents
        and node.replica.state(TYPE).server_version == history
        for node in world.nodes
    )


def live(seed: int, *, skips: bool = False) -> World:
    """One run, checked at every step; raises what does not hold."""
    world = World(seed, skips=skips)
    world.run_until(TROUBLED_S)
    world.heal()
    world.run_until(SETTLED_S, lambda: is_settled(world))
    assert is_settled(world), "replicas do not converge"
    store = world.store
    contents = store.contents()
    for id_, version in store.acknowledged.items():
        newest = store.newest[id_]
        assert newest.version >= version, f"the acknowledged write of {id_} is lost"
        if newest.text not in {None, UNREADABLE}:
            assert contents[id_] == (newest.version, newest.text)
    return world


@pytest.mark.parametrize("seeds", BLOCKS, ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_nothing_is_lost_skipped_or_repeated(seeds: range) -> None:
    for seed in seeds:
        try:
            live(seed)
        except Exception as error:
            raise AssertionError(f"make sim SEED={seed}: {error}") from error


def test_a_seed_replays() -> None:
    first, second = live(7), live(7)
    assert first.store.committed == second.store.committed
    assert first.now_s == second.now_s


def test_the_runs_meet_the_trouble_they_are_made_for() -> None:
    met: set[str] = set()
    versions = 0
    for seed in range(60):
        world = live(seed)
        met |= world.seen
        versions += world.store.committed[-1][2]
    assert met >= TROUBLES
    assert versions > 60 * len(IDS)


def test_the_checkers_notice_a_store_that_skips() -> None:
    """A change that shows after later ones, as identity columns without a sequencer have it."""
    noticed = 0
    for seed in range(20):
        try:
            live(seed, skips=True)
        except AssertionError:
            noticed += 1
    assert noticed >= 15
