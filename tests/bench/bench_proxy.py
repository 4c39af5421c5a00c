"""P1 and P3: what deciding costs a request, against Envoy alone with the same listener.

Measured in turn, several rounds: bare Envoy, the product with remembered decisions, the product
that asks authorize about every request. Each Envoy has one worker on one CPU; the load, the
upstream and the Python services share the others.
"""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import load
from tests.bench.apache import apache_peer, has_apache
from tests.bench.envoys import answering, bare_of, cpu_s, resident_bytes
from tests.bench.figures import Figure, percentile
from tests.bench.progress import attempted, missed, progress, whole
from tests.bench.worlds import Cpus, Product, host, product, sign_in_all

BARE, REMEMBERED, CHECKED, APACHE = "bare Envoy", "remembered", "every request checked", "Apache"
FULL = bool(os.environ.get("FULL"))
ROUTES = (1, 100, 1_000, 10_000) if FULL else (1, 1_000)
SESSIONS = (1, 1_000, 100_000) if FULL else (1, 1_000)
ROUNDS = 4 if FULL else 3
SECONDS = int(os.environ.get("SECONDS_EACH", "2"))
MOST_SENDERS = 100_000
TARGETS = {1: 0.65, 1_000: 0.60}
CACHE_BYTES = 64 << 20
MIB = 1 << 20


@dataclass
class Contender:
    """Where requests go and whose CPU is counted (None: not counted)."""

    port: int
    process: int | None
    product: Product | None = None
    cookies: Sequence[str] = ("",)

    def target(self, routes: int, sessions: int) -> load.Target:
        """Each request of another session, and to another route, where there are several."""
        count = min(max(routes, sessions), MOST_SENDERS)
        senders = [
            (host(number % routes), self.cookies[number % sessions % len(self.cookies)])
            for number in range(count)
        ]
        return load.Target(self.port, senders)


@dataclass
class Rounds:
    """What one contender did, round by round."""

    per_s: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    p50_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)
    refused: int = 0


Measure = Callable[[Contender, Rounds], None]


def in_turn(contenders: dict[str, Contender], measure: Measure, what: str) -> dict[str, Rounds]:
    """Measure all of them in every round, so that a busy minute hits all alike."""
    results = {name: Rounds() for name in contenders}
    steps = ROUNDS * len(contenders)
    with progress(what, steps) as advance:
        for _ in range(ROUNDS):
            for name, contender in contenders.items():
                measure(contender, results[name])
                advance()
    return results


def pressed(routes: int, sessions: int) -> Measure:
    def measure(contender: Contender, rounds: Rounds) -> None:
        target = contender.target(routes, sessions)
        before_s = cpu_s(contender.process) if contender.process else 0.0
        done = load.press(target, SECONDS)
        rounds.per_s.append(done.per_s)
        rounds.refused += done.refused
        if contender.process:
            spent_s = cpu_s(contender.process) - before_s
            rounds.cpu_us.append(spent_s / max(1, done.requests) * 1e6)

    return measure


def pressed_http2(contender: Contender, rounds: Rounds) -> None:
    done = load.press_http2(contender.target(1, 1), SECONDS)
    rounds.per_s.append(done.per_s)
    rounds.refused += done.refused


def paced(rate: float) -> Measure:
    def measure(contender: Contender, rounds: Rounds) -> None:
        done = load.pace(contender.target(1, 1), SECONDS, rate)
        rounds.p50_us.append(percentile(done.latencies_us, 50))
        rounds.p99_us.append(percentile(done.latencies_us, 99))
        rounds.refused += done.refused

    return measure


def counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def ratios(ours: Sequence[float], yardstick: Sequence[float]) -> tuple[float, ...]:
    """Round by round."""
    return tuple(our / other for our, other in zip(ours, yardstick, strict=True) if other)


def added(ours: Sequence[float], yardstick: Sequence[float]) -> tuple[float, ...]:
    """Round by round."""
    return tuple(our - other for our, other in zip(ours, yardstick, strict=True))


def throughput_figures(
    results: dict[str, Rounds], label: str, target: float | None
) -> list[Figure]:
    """Requests a second of each, and the ratios to bare Envoy."""
    bare = results[BARE]
    yardstick = statistics.median(bare.per_s)
    found = [Figure(f"{label}: {BARE}", "req/s", tuple(bare.per_s))]
    for name, rounds in results.items():
        if name == BARE:
            continue
        found += [
            Figure(f"{label}: {name}", "req/s", tuple(rounds.per_s), None, "bare Envoy", yardstick),
            Figure(
                f"{'P1 ' if name == REMEMBERED and target else ''}{label}: {name}, share of bare",
                "",
                ratios(rounds.per_s, bare.per_s),
                target if name == REMEMBERED else None,
                at_least=True,
            ),
        ]
        if name == REMEMBERED and rounds.cpu_us and bare.cpu_us:
            used = (
                per_s * cpu_us / 1e4 for per_s, cpu_us in zip(bare.per_s, bare.cpu_us, strict=True)
            )
            found.append(Figure(f"{label}: {BARE}, share of its CPU in use", "%", tuple(used)))
        if rounds.cpu_us and bare.cpu_us:
            yardstick_us = statistics.median(bare.cpu_us)
            found += [
                Figure(
                    f"{label}: {name}, Envoy's CPU of one request",
                    "µs",
                    tuple(rounds.cpu_us),
                    None,
                    "bare Envoy",
                    yardstick_us,
                ),
                Figure(
                    f"{label}: {name}, share of bare by Envoy's CPU",
                    "",
                    ratios(bare.cpu_us, rounds.cpu_us),
                ),
            ]
    refused = sum(rounds.refused for rounds in results.values())
    found.append(Figure(f"{label}: refused or failed", "", (float(refused),), 0.0))
    return found


def latency_figures(results: dict[str, Rounds], rate: float) -> list[Figure]:
    bare = results[BARE]
    found: list[Figure] = []
    for name, rounds in results.items():
        if name == BARE:
            continue
        for share, ours, theirs, target in (
            ("p50", rounds.p50_us, bare.p50_us, 50.0),
            ("p99", rounds.p99_us, bare.p99_us, 300.0),
        ):
            is_target = name == REMEMBERED
            found.append(
                Figure(
                    f"{'P3 ' if is_target else ''}HTTP/1.1 at {rate:,.0f} req/s: {name},"
                    f" {share} added over bare",
                    "µs",
                    added(ours, theirs),
                    target if is_target else None,
                    f"bare Envoy's {share}",
                    statistics.median(theirs),
                )
            )
    return found


@contextlib.contextmanager
def contenders(
    directory: Path, routes: int, sessions: int, upstream: int, cpus: Cpus
) -> Iterator[dict[str, Contender]]:
    """All three with the same routes, and everybody signed in at both products."""
    with contextlib.ExitStack() as stack:
        found: dict[str, Contender] = {}
        for name, remember in ((REMEMBERED, True), (CHECKED, False)):
            running = stack.enter_context(
                product(
                    directory / f"{routes}-{remember}",
                    routes=routes,
                    upstream=upstream,
                    remember=remember,
                    cpus=cpus,
                )
            )
            cookies = sign_in_all(running.stack, sessions)
            found[name] = Contender(running.stack.port, running.envoy, running, cookies)
        config = found[REMEMBERED].product
        assert config is not None
        port, process = stack.enter_context(
            bare_of(config.stack.config_path, directory / f"{routes}-bare", cpus.measured)
        )
        # The same requests, cookie and all; nobody looks at it.
        yield {BARE: Contender(port, process, None, found[REMEMBERED].cookies), **found}


def warm(running: dict[str, Contender], routes: int, sessions: int) -> None:
    """Each sender at least once where that takes no more than some seconds."""
    seconds = min(20, 2 + max(routes, sessions) // 500)
    for name, contender in running.items():
        load.press(contender.target(routes, sessions), seconds if name == REMEMBERED else 1)


def cache_figures(contender: Contender, label: str, before: dict[str, float]) -> list[Figure]:
    assert contender.product is not None
    now = contender.product.counters()
    hits = now["hits"] - before["hits"]
    asked = hits + now["misses"] - before["misses"]
    return [
        Figure(f"{label}: decisions found in the cache", "%", (100 * hits / max(1.0, asked),)),
        Figure(
            f"{label}: memory of a worker's cache, its interpreter as a whole",
            "MiB",
            (now["heap"] / MIB,),
            CACHE_BYTES / MIB,
        ),
    ]


def with_routes(directory: Path, routes: int, upstream: int, cpus: Cpus) -> list[Figure]:
    found: list[Figure] = []
    sessions_of_it = SESSIONS if routes == 1 else (1,)
    with contenders(directory, routes, max(sessions_of_it), upstream, cpus) as running:
        resident = resident_bytes(running[REMEMBERED].process or 0)
        for sessions in sessions_of_it:
            label = f"HTTP/1.1, {counted(routes, 'route')}, {counted(sessions, 'session')}"
            found += attempted(label, functools.partial(cell, running, routes, sessions, label))
        grown = resident_bytes(running[REMEMBERED].process or 0) - resident
        found.append(
            Figure(
                f"{counted(routes, 'route')}, {counted(max(sessions_of_it), 'session')}:"
                " Envoy's memory grew by",
                "MiB",
                (grown / MIB,),
            )
        )
    return found


def cell(running: dict[str, Contender], routes: int, sessions: int, label: str) -> list[Figure]:
    warm(running, routes, sessions)
    remembering = running[REMEMBERED].product
    assert remembering is not None
    before = dict(remembering.counters())
    results = in_turn(running, pressed(routes, sessions), label)
    target = TARGETS.get(routes) if sessions == 1 else None
    found = throughput_figures(results, label, target)
    found += cache_figures(running[REMEMBERED], label, before)
    if (routes, sessions) == (1, 1):
        found += attempted("HTTP/2 and latency", functools.partial(single, running, results))
    return found


def single(running: dict[str, Contender], results: dict[str, Rounds]) -> list[Figure]:
    """What is measured with one route and one session only: HTTP/2, and latency at half load."""
    found: list[Figure] = []
    if load.has_h2load():
        http2 = in_turn(running, pressed_http2, "HTTP/2, 1 route")
        found += throughput_figures(http2, "HTTP/2, 1 route, 1 session", None)
    else:
        missed("HTTP/2: h2load is not installed")
    rate = statistics.median(results[REMEMBERED].per_s) / 2
    # Python cannot answer that many checks, so its latency would be that of a queue.
    fast = {name: running[name] for name in (BARE, REMEMBERED)}
    at_half = in_turn(fast, paced(rate), "latency at half load, 1 route")
    return found + latency_figures(at_half, rate)


def peer(directory: Path, upstream: int, cpus: Cpus) -> list[Figure]:
    """Apache with mod_auth_openidc against a bare Envoy, a signed-in request."""
    with (
        contenders(directory, 1, 1, upstream, cpus) as running,
        apache_peer(directory / "apache", upstream, cpus.measured) as apache,
    ):
        both = {
            BARE: running[BARE],
            REMEMBERED: running[REMEMBERED],
            APACHE: Contender(apache.port, None, None, (apache.cookie,)),
        }
        results = in_turn(both, pressed(1, 1), "Apache with mod_auth_openidc")
    return throughput_figures(results, "Beside Apache with mod_auth_openidc", None)


def run() -> list[Figure]:
    cpus = Cpus.of_this_machine()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with answering(directory / "upstream", cpus.others) as upstream:
            found: list[Figure] = []
            for routes in ROUTES:
                part = functools.partial(with_routes, directory, routes, upstream, cpus)
                found += attempted(counted(routes, "route"), part)
            if has_apache():
                part = functools.partial(peer, directory / "peer", upstream, cpus)
                found += attempted("Apache with mod_auth_openidc", part)
            else:
                missed("Apache with mod_auth_openidc: its Debian packages are not installed")
    return whole(found)
