"""Whatever routes the loader lets through, a real Envoy takes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.resolved import ResolvedSettings
from tests.support.envoy_verdict import route, settings_of, unchecked, verdict
from tests.support.route_strategies import routes

pytestmark = pytest.mark.e2e


def accepted(candidates: list[dict[str, Any]]) -> ResolvedSettings | None:
    """Settings with those routes that nothing is wrong with; None when there are none."""
    left = [{**one, "from": one["from"].format(index)} for index, one in enumerate(candidates)]
    while left:
        try:
            return settings_of(*left)
        except ConfigError as error:
            found = (re.match(r"routes\[(\d+)\]", issue.key) for issue in error.issues)
            wrong = {int(place[1]) for place in found if place is not None}
            if not wrong:
                raise
            left = [one for index, one in enumerate(left) if index not in wrong]
    return None


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(routes(), min_size=8, max_size=16))
def test_every_route_that_loads_is_one_that_envoy_takes(candidates: list[dict[str, Any]]) -> None:
    found = accepted(candidates)
    event(f"{0 if found is None else len(found.routes)} routes")
    if found is not None:
        assert verdict(found) == "", [one.settings.model_dump_json() for one in found.routes]


def test_a_route_that_envoy_refuses_is_noticed() -> None:
    assert verdict(unchecked(route())) == ""
    assert verdict(unchecked(route(regex_rewrite_pattern="("))) != ""
