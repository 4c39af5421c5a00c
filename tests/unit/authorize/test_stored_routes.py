"""Routes that were made in the databroker: their mistakes are their own."""

from __future__ import annotations

import dataclasses

import pytest

from gatehouse.authorize.core.route_plan import compile_plans
from gatehouse.common.config.issues import ConfigError
from gatehouse.common.policy.ast import Criterion, Policy, Rule
from tests.support.check import Desk, resolved_settings, route, status_of
from tests.support.policy import policy_of

PUBLIC = policy_of("allow: {or: [{accept: true}]}")


def test_a_bad_policy_of_a_stored_route_concerns_that_route_alone() -> None:
    """One in the file refuses the whole configuration."""
    bad = Policy((Rule("allow", or_=(Criterion("nonsense", "", "x"),)),))
    good = route(PUBLIC, route_id="a" * 16)
    stored = dataclasses.replace(route(bad, route_id="b" * 16), is_stored=True)
    settings = resolved_settings(good, stored)
    (issue,) = compile_plans(settings).left_out
    assert issue.key == "route bbbbbbbbbbbbbbbb (https://app.example.com).policy"
    assert "unknown policy criterion: nonsense" in issue.message
    one = Desk(settings)
    assert status_of(one.check(route_id="a" * 16)) == 200
    assert status_of(one.check(route_id="b" * 16)) == 404
    with pytest.raises(ConfigError, match="unknown policy criterion: nonsense"):
        compile_plans(resolved_settings(good, dataclasses.replace(stored, is_stored=False)))
