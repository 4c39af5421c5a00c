"""Whether this process, and each service in it, can do its work (spec: observability §5).

One registry per process. Parts report named checks; probes, grpc.health.v1 and systemd read them.
Everything here belongs to the event loop's thread: report from elsewhere with
`loop.call_soon_threadsafe`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from gatehouse.common.clock import Clock

Unsubscribe = Callable[[], None]


class Status(enum.StrEnum):
    """What a check last said of itself, apart from its error."""

    UNKNOWN = "UNKNOWN"
    RUNNING = "RUNNING"
    TERMINATING = "TERMINATING"


class ServiceStatus(enum.Enum):
    """The answer to a grpc.health.v1 question."""

    SERVING = "serving"
    NOT_SERVING = "not-serving"
    UNKNOWN = "unknown"  # no such service in this process


@dataclass(frozen=True, slots=True)
class CheckRecord:
    """The last report of one check. `error` never holds a secret: it is shown on `/status`."""

    status: Status = Status.UNKNOWN
    error: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    changed_at_s: float = 0.0  # Unix time of the last change of status or error

    @property
    def healthy(self) -> bool:
        """RUNNING and without error."""
        return self.status is Status.RUNNING and not self.error


@dataclass(frozen=True, slots=True)
class HealthSnapshot:
    """All checks at one moment."""

    records: Mapping[str, CheckRecord]
    expected: tuple[str, ...]  # sorted
    terminating: bool

    @property
    def started(self) -> bool:
        """Every expected check has reported a status; errors are tolerated."""
        return all(self._record(check).status is not Status.UNKNOWN for check in self.expected)

    @property
    def ready(self) -> bool:
        """Every expected check is running without error, and no stop has begun."""
        return not self.terminating and all(self._record(check).healthy for check in self.expected)

    def _record(self, check: str) -> CheckRecord:
        return self.records.get(check, _NEVER_REPORTED)


_NEVER_REPORTED = CheckRecord()


class HealthRegistry:
    """Checks by name, and which of them a service's health rests on."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: dict[str, CheckRecord] = {}
        self._expected: set[str] = set()
        self._services: dict[str, tuple[str, ...]] = {}
        self._subscribers: dict[object, Callable[[], None]] = {}
        self._terminating = False

    # -- declared by the process and its services

    def expect(self, check: str) -> None:
        """Readiness waits for `check`; until it reports, the process is not ready."""
        if check not in self._expected:
            self._expected.add(check)
            self._notify()

    def add_service(self, name: str, checks: tuple[str, ...]) -> None:
        """Answer gRPC health for `<name>` and `pomerium-<name>` from `checks`.

        `checks` are also expected. Adding a name again replaces its checks. The empty name, all
        services of the process, rests on every expected check unless it is added too.
        """
        self._services[name.removeprefix("pomerium-")] = checks
        self._expected.update(checks)
        self._notify()

    # -- reported by the parts

    def set_running(self, check: str, **attributes: str) -> None:
        """`check` works: clears its error. Attributes are merged over earlier ones."""
        self._update(check, status=Status.RUNNING, error="", attributes=attributes)

    def set_error(self, check: str, error: str, **attributes: str) -> None:
        """`check` does not work; its status stays what it was."""
        assert error, "an error needs words"
        self._update(check, status=None, error=error, attributes=attributes)

    def set_attribute(self, check: str, name: str, value: str) -> None:
        """Show `name` on `/status` without touching the check's status or error."""
        self._update(check, status=None, error=None, attributes={name: value})

    def terminate(self) -> None:
        """The stop has begun: not ready, NOT_SERVING everywhere, still alive. Cannot be undone."""
        if self._terminating:
            return
        self._terminating = True
        now_s = self._clock.now_s()
        for check in self._expected | self._records.keys():
            record = self._records.get(check, _NEVER_REPORTED)
            self._records[check] = replace(record, status=Status.TERMINATING, changed_at_s=now_s)
        self._notify()

    # -- asked by probes and servers

    @property
    def terminating(self) -> bool:
        """True once `terminate` was called."""
        return self._terminating

    def snapshot(self) -> HealthSnapshot:
        """All checks now."""
        return HealthSnapshot(dict(self._records), tuple(sorted(self._expected)), self._terminating)

    def ready(self) -> bool:
        """True when every expected check runs without error and no stop has begun."""
        return not self._terminating and self._all_healthy(self._expected)

    def service_status(self, name: str) -> ServiceStatus:
        """Status of "" (every service of the process), `<service>` or `pomerium-<service>`."""
        checks: Collection[str] | None = self._services.get(name.removeprefix("pomerium-"))
        if checks is None and name == "":
            checks = self._expected
        if checks is None:
            return ServiceStatus.UNKNOWN
        if not self._terminating and self._all_healthy(checks):
            return ServiceStatus.SERVING
        return ServiceStatus.NOT_SERVING

    def subscribe(self, callback: Callable[[], None]) -> Unsubscribe:
        """Call `callback` after each change, synchronously; it must neither block nor raise."""
        key = object()
        self._subscribers[key] = callback

        def unsubscribe() -> None:
            self._subscribers.pop(key, None)

        return unsubscribe

    def _all_healthy(self, checks: Collection[str]) -> bool:
        return all(self._records.get(check, _NEVER_REPORTED).healthy for check in checks)

    def _update(
        self, check: str, *, status: Status | None, error: str | None, attributes: Mapping[str, str]
    ) -> None:
        old = self._records.get(check, _NEVER_REPORTED)
        new_status = old.status if status is None else status
        if self._terminating:
            new_status = Status.TERMINATING
        new_error = old.error if error is None else error
        merged = {**old.attributes, **attributes}
        changed = (new_status, new_error) != (old.status, old.error)
        if not changed and merged == old.attributes and check in self._records:
            return
        changed_at_s = self._clock.now_s() if changed else old.changed_at_s
        self._records[check] = CheckRecord(new_status, new_error, merged, changed_at_s)
        self._notify()

    def _notify(self) -> None:
        for callback in list(self._subscribers.values()):
            callback()
