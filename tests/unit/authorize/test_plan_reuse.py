"""Plans made with those of an earlier configuration at hand are the ones made without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gatehouse.authorize.core.route_plan import Plans, RoutePlan, compile_plans
from gatehouse.common.config.resolved import ResolvedRoute
from gatehouse.common.ids import RouteId
from tests.support.check import OTHER_SECRET, resolved_settings, route
from tests.support.client_pki import Issued
from tests.support.policy import policy_of

POLICIES = tuple(
    policy_of(text)
    for text in (
        "allow: {or: [{accept: true}]}",
        "allow: {or: [{email: {is: ada@example.com}}]}",
        "allow: {and: [{http_method: {is: GET}}, {source_ip: 203.0.113.7}]}",
    )
)
GLOBALS: tuple[dict[str, Any], ...] = (
    {},
    {"cookie_name": "_x"},
    {"pass_identity_headers": True},
)
AUTHORITY = Issued.root().pem.encode()


def pool() -> list[ResolvedRoute]:
    keys: tuple[dict[str, Any], ...] = ({}, {"pass_identity_headers": True})
    found = [
        route(policy, route_id=f"{number:016x}", **more)
        for number, (policy, more) in enumerate((p, k) for p in POLICIES for k in keys)
    ]
    # One that adds the default rule on client certificates to all others.
    return [*found, replace(found[0], id=RouteId("f" * 16), tls_downstream_client_ca_pem=AUTHORITY)]


def shown(plan: RoutePlan) -> tuple[object, ...]:
    """All of a plan that can be compared; closures by what they were made of."""
    groups = [
        (group.action, [criterion for criterion, _ in group.criteria])
        for group in plan.policy.groups
    ]
    return (
        plan.checksum,
        plan.idp_id,
        plan.depends_on,
        repr(plan.headers),
        plan.policy.reads,
        repr(groups),
        plan.inputs,
        plan.client_trust is None,
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 6), unique=True), st.sampled_from(GLOBALS)),
        min_size=2,
        max_size=6,
    )
)
def test_earlier_plans_change_no_result(steps: list[tuple[list[int], dict[str, Any]]]) -> None:
    routes = pool()
    before: Plans | None = None
    for numbers, keys in steps:
        chosen = [routes[number] for number in numbers]
        found = resolved_settings(*chosen, **keys)
        fresh, reused = compile_plans(found), compile_plans(found, before)
        assert reused.routes.keys() == fresh.routes.keys()
        for route_id, plan in reused.routes.items():
            assert shown(plan) == shown(fresh.routes[route_id])
        assert reused.idp_id_by_host == fresh.idp_id_by_host
        assert reused.record_types == fresh.record_types
        assert reused.made is not None
        assert len(reused.made.plans) == len(chosen)
        before = reused


def test_a_route_keeps_its_plan_as_long_as_all_else_is_equal() -> None:
    one, two, *_, asking = pool()
    first = compile_plans(resolved_settings(one, two))
    changed = replace(two, checksum=two.checksum + 1)
    second = compile_plans(resolved_settings(one, changed), first)
    assert second.routes[one.id] is first.routes[one.id]
    assert second.routes[two.id] is not first.routes[two.id]
    for other in (
        resolved_settings(one, two, cookie_name="_other"),
        resolved_settings(one, two, secrets=(OTHER_SECRET,)),
        resolved_settings(one, two, asking),
    ):
        third = compile_plans(other, first)
        assert third.routes[one.id] is not first.routes[one.id]
