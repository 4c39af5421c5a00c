"""The faults: what is done to the deployment, and what the load may notice of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from tests.compose.deployment import (
    HEALTHY_WITHIN_S,
    SERVICES,
    CommandError,
    Container,
    Deployment,
    may_cut,
)
from tests.compose.people import Site
from tests.support.load import Load, Outcome

QUIET_S: Final = 3.0  # without a failure before a fault counts as over
CUT_S: Final = 12.0
NOTICED_S: Final = 0.5  # until every proxy, on a busy machine too, sees that connections ended
OUTAGE_S: Final = 60.0
SCALE_WITHIN_S: Final = 35.0

NEED_ROOT: Final = frozenset({"kills", "envoy", "cuts", "provider"})

# A cut between these leaves some kinds of request without anybody who could decide or answer.
NEEDED: Final = frozenset(
    {("proxy", "authorize"), ("balancer", "proxy"), ("proxy", "authenticate")}
)


@dataclass
class Row:
    """One line of the table."""

    fault: str
    requests: int = 0
    wrong: int = 0
    failed: int = 0
    may_fail: int | None = 0  # None: the fault takes away what every request needs
    recovered_s: float = 0.0  # from the fault, or from its end when it lasts, to the last failure
    notes: list[str] = field(default_factory=list)
    details: dict[str, int] = field(default_factory=dict)
    hit_s: tuple[float, float] | None = None  # what was under way then may fail, nothing else
    problem: str = ""

    @property
    def good(self) -> bool:
        enough = self.may_fail is None or self.failed <= self.may_fail
        return self.wrong == 0 and enough and not self.problem

    def as_json(self) -> dict[str, Any]:
        kept = asdict(self) | {"good": self.good}
        del kept["hit_s"]
        return kept


class Scenarios:
    """Runs faults one after another; each leaves the deployment whole."""

    def __init__(
        self, deployment: Deployment, site: Site, load: Load, tell: Callable[[Row], None]
    ) -> None:
        self._deployment = deployment
        self._site = site
        self._load = load
        self._tell = tell
        self.rows: list[Row] = []

    @contextmanager
    def _fault(self, name: str, *, may_fail: int | None = 0) -> Iterator[Row]:
        """Watch what the load gets from here until it has been quiet for a while."""
        row = Row(name, may_fail=may_fail)
        begun_s = time.monotonic()
        healed_s = begun_s
        try:
            yield row
            if row.may_fail is None:
                healed_s = time.monotonic()
            self._wait_quiet()
            self._deployment.wait_healthy()
            self._site.signed_in("ada")
        except (AssertionError, CommandError, TimeoutError) as error:
            row.problem = str(error)[:500] or type(error).__name__
        answers = self._load.since(begun_s)
        row.requests = len(answers)
        row.wrong = sum(one.outcome is Outcome.WRONG for one in answers)
        failures = [one for one in answers if one.outcome is Outcome.FAILED]
        row.failed = len(failures)
        if row.hit_s is not None:
            begun, done = row.hit_s
            lost = [one for one in answers if one.begun_s <= done and one.ended_s >= begun]
            row.may_fail = len(lost)
            if not set(failures) <= set(lost):
                row.problem = row.problem or "requests failed that were not under way"
        last_s = max((one.ended_s for one in failures), default=healed_s)
        row.recovered_s = max(0.0, round(last_s - healed_s, 1))
        for one in answers:
            if one.outcome is not Outcome.RIGHT:
                key = f"{one.outcome} {one.person}: {one.detail}"[:200]
                row.details[key] = row.details.get(key, 0) + 1
        if failures:
            row.details |= self._deployment.refusals(time.monotonic() - begun_s)
        self.rows.append(row)
        self._tell(row)

    def _wait_quiet(self, within_s: float = 90.0) -> None:
        deadline = time.monotonic() + within_s
        while True:
            since_s = time.monotonic()
            time.sleep(QUIET_S)
            answers = self._load.since(since_s)
            if answers and all(one.outcome is not Outcome.FAILED for one in answers):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"requests still fail after {within_s:.0f} s")

    # -- the faults

    def nothing(self) -> None:
        with self._fault("nothing"):
            time.sleep(8)

    def scale(self) -> None:
        """authorize 1 -> 5 -> 2, then as before."""
        usual = {name: len(self._deployment.replicas(name)) for name in SERVICES}
        for count in (1, 5, 2, usual["authorize"]):
            with self._fault(f"authorize scaled to {count}") as row:
                before = {one.id for one in self._deployment.replicas("authorize")}
                self._deployment.up(**usual | {"authorize": count})
                new = [
                    one
                    for one in self._deployment.replicas("authorize")
                    if one.id not in before and one.running
                ]
                if new:
                    row.notes.append(f"used {self._used_after_s(new):.1f} s after it was ready")

    def _used_after_s(self, new: Sequence[Container]) -> float:
        """The longest time between "ready" in a replica's log and its first decision.

        The name has its address since before it was ready.
        """
        ready_s: dict[str, float] = {}
        used_s: dict[str, float] = {}
        deadline = time.monotonic() + HEALTHY_WITHIN_S
        while len(used_s) < len(new):
            now_s = time.monotonic()
            for one in new:
                log = self._deployment.log(one)
                if '"message": "ready"' in log:
                    ready_s.setdefault(one.id, now_s)
                if "authorize check" in log:
                    used_s.setdefault(one.id, now_s)
            late = [
                one.name
                for one in new
                if one.id in ready_s
                and used_s.get(one.id, now_s) - ready_s[one.id] > SCALE_WITHIN_S
            ]
            if late or now_s > deadline:
                names = ", ".join(late) or "ones that never became ready"
                raise TimeoutError(f"not used within {SCALE_WITHIN_S:.0f} s: {names}")
            time.sleep(0.2)
        return max(used_s[one.id] - ready_s.get(one.id, used_s[one.id]) for one in new)

    def kills(self) -> None:
        for service in SERVICES:
            for number in range(len(self._deployment.replicas(service))):
                one = self._deployment.replicas(service)[number]
                with self._fault(f"kill -9 {one.name}") as row:
                    hit = self._hit(self._deployment.kill, one)
                    # These have requests of people in their hands; the others are asked again.
                    row.hit_s = hit if service in {"proxy", "authenticate"} else None

    def envoy_kills(self) -> None:
        for one in self._deployment.replicas("proxy"):
            with self._fault(f"kill -9 Envoy of {one.name}") as row:
                row.hit_s = self._hit(self._deployment.kill_envoy, one)

    def _hit(self, blow: Callable[[Container], None], one: Container) -> tuple[float, float]:
        """From when to when it fell, and a moment until clients may know."""
        begun_s = time.monotonic()
        blow(one)
        return begun_s, time.monotonic() + NOTICED_S

    def cuts(self) -> None:
        """Each pair of services: wholly, and one replica from all others of the pair."""
        pairs = (
            ("proxy", "authorize"),
            ("proxy", "databroker"),
            ("proxy", "authenticate"),
            ("authorize", "databroker"),
            ("authenticate", "databroker"),
            ("authorize", "authenticate"),
            ("databroker", "postgres"),
            ("balancer", "proxy"),
        )
        for first, second in pairs:
            ones, others = self._deployment.replicas(first), self._deployment.replicas(second)
            limit = None if (first, second) in NEEDED else 0
            self._cut(f"no network: {first} - {second}", ones, others, limit)
            if len(others) > 1:
                lost = others[0]
                # What was sent to people's side or to sign-in is not sent again: one request each.
                limit = len(self._load.people) if second in {"proxy", "authenticate"} else 0
                self._cut(f"no network: {first} - {lost.name}", ones, [lost], limit)

    def _cut(
        self,
        name: str,
        ones: Sequence[Container],
        others: Sequence[Container],
        may_fail: int | None,
    ) -> None:
        with self._fault(name, may_fail=may_fail), self._deployment.cut(ones, others):
            time.sleep(CUT_S)

    def postgres_outage(self) -> None:
        with self._fault(f"postgres stopped for {OUTAGE_S:.0f} s"):
            self._deployment.compose("stop", "postgres")
            time.sleep(OUTAGE_S)
            self._deployment.compose("start", "postgres")

    def restarts(self) -> None:
        """Every replica, one after another, each awaited."""
        for service in (*SERVICES, "balancer"):
            for number in range(len(self._deployment.replicas(service))):
                one = self._deployment.replicas(service)[number]
                limit = None if service == "balancer" else 0  # there is one
                with self._fault(f"restart {one.name}", may_fail=limit):
                    self._deployment.restart(one)

    def all_of(self) -> dict[str, Callable[[], None]]:
        """By the name that --only takes."""
        return {
            "nothing": self.nothing,
            "scale": self.scale,
            "kills": self.kills,
            "envoy": self.envoy_kills,
            "cuts": self.cuts,
            "postgres": self.postgres_outage,
            "restarts": self.restarts,
        }

    def run(self, only: Sequence[str]) -> None:
        """In order; what cannot be done here is named."""
        for name, scenario in self.all_of().items():
            if only and name not in only:
                continue
            if name in NEED_ROOT and (why := may_cut()):
                self.rows.append(Row(name, notes=[f"left out: {why}"]))
                self._tell(self.rows[-1])
                continue
            scenario()
