"""The registry: what ready, started and serving mean in each state."""

from __future__ import annotations

import pytest

from gatehouse.common.runtime.health import HealthRegistry, ServiceStatus, Status
from tests.support.clock import FakeClock


@pytest.fixture
def health() -> HealthRegistry:
    registry = HealthRegistry(FakeClock(100.0))
    registry.add_service("databroker", ("storage.backend",))
    registry.add_service("authorize", ("authorize.service",))
    return registry


def statuses(health: HealthRegistry) -> tuple[bool, bool, str, str, str]:
    return (
        health.snapshot().started,
        health.ready(),
        health.service_status("databroker").value,
        health.service_status("authorize").value,
        health.service_status("").value,
    )


def test_from_start_to_stop(health: HealthRegistry) -> None:
    assert statuses(health) == (False, False, *["not-serving"] * 3)
    health.set_running("storage.backend", backend="sqlite")
    assert statuses(health) == (False, False, "serving", "not-serving", "not-serving")
    health.set_running("authorize.service")
    assert statuses(health) == (True, True, *["serving"] * 3)
    health.set_error("storage.backend", "disk full")
    assert statuses(health) == (True, False, "not-serving", "serving", "not-serving")
    health.set_running("storage.backend")
    assert statuses(health) == (True, True, *["serving"] * 3)
    health.terminate()
    assert statuses(health) == (True, False, *["not-serving"] * 3)


def test_names_of_services(health: HealthRegistry) -> None:
    health.set_running("storage.backend")
    for name in ("databroker", "pomerium-databroker"):
        assert health.service_status(name) is ServiceStatus.SERVING
    for name in ("proxy", "pomerium-proxy", "pomerium-", "storage.backend", "DATABROKER"):
        assert health.service_status(name) is ServiceStatus.UNKNOWN


def test_the_empty_name_can_rest_on_checks_of_its_own(health: HealthRegistry) -> None:
    health.add_service("", ("storage.backend",))
    health.set_running("storage.backend")
    assert health.service_status("") is ServiceStatus.SERVING
    assert not health.ready()


def test_an_error_before_the_first_success_is_not_started(health: HealthRegistry) -> None:
    health.set_error("storage.backend", "no such host")
    record = health.snapshot().records["storage.backend"]
    assert (record.status, record.error) == (Status.UNKNOWN, "no such host")
    assert not health.snapshot().started


def test_checks_that_are_not_expected_do_not_count(health: HealthRegistry) -> None:
    health.set_running("storage.backend")
    health.set_running("authorize.service")
    health.set_error("xds.listener", "refused")
    assert health.ready()


def test_an_attribute_is_not_an_error(health: HealthRegistry) -> None:
    health.set_running("storage.backend")
    health.set_running("authorize.service")
    health.set_attribute("authorize.service", "databroker", "away for 31 s")
    assert health.ready()
    assert health.snapshot().records["authorize.service"].attributes == {
        "databroker": "away for 31 s"
    }


def test_attributes_are_kept_and_merged(health: HealthRegistry) -> None:
    health.set_running("storage.backend", backend="sqlite")
    health.set_error("storage.backend", "busy", path="x.db")
    health.set_running("storage.backend")
    assert health.snapshot().records["storage.backend"].attributes == {
        "backend": "sqlite",
        "path": "x.db",
    }


def test_nothing_comes_back_after_the_stop_began(health: HealthRegistry) -> None:
    health.terminate()
    health.set_running("storage.backend")
    health.set_running("authorize.service")
    assert not health.ready()
    assert health.service_status("") is ServiceStatus.NOT_SERVING
    assert health.snapshot().records["storage.backend"].status is Status.TERMINATING


def test_subscribers_hear_changes_only(health: HealthRegistry) -> None:
    heard: list[bool] = []
    unsubscribe = health.subscribe(lambda: heard.append(health.ready()))
    health.set_running("storage.backend")
    health.set_running("storage.backend")
    health.set_running("authorize.service")
    assert heard == [False, True]
    health.terminate()
    health.terminate()
    assert heard == [False, True, False]
    unsubscribe()
    unsubscribe()
    health.set_error("storage.backend", "x")
    assert len(heard) == 3


def test_a_subscriber_may_unsubscribe_while_called(health: HealthRegistry) -> None:
    calls: list[str] = []

    def first() -> None:
        calls.append("first")
        unsubscribe()

    unsubscribe = health.subscribe(first)
    health.subscribe(lambda: calls.append("second"))
    health.set_running("storage.backend")
    health.set_running("authorize.service")
    assert calls == ["first", "second", "second"]


def test_changed_at_moves_with_status_and_error_only() -> None:
    clock = FakeClock(100.0)
    health = HealthRegistry(clock)
    health.set_running("x")
    clock.advance(5)
    health.set_attribute("x", "lag", "1")
    assert health.snapshot().records["x"].changed_at_s == 100.0
    health.set_error("x", "gone")
    assert health.snapshot().records["x"].changed_at_s == 105.0


def test_a_snapshot_does_not_move(health: HealthRegistry) -> None:
    before = health.snapshot()
    health.set_running("storage.backend")
    assert "storage.backend" not in before.records
