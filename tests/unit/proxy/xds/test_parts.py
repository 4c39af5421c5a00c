"""A snapshot built on an earlier one is the one built from nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from envoy.config.route.v3 import route_components_pb2, route_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.proxy.core.xds.resource import CLUSTER, ROUTE_CONFIGURATION, embedded, serialize
from gatehouse.proxy.core.xds.snapshot import Snapshot, build_snapshot
from gatehouse.proxy.errors import SnapshotError
from tests.support.envoy import environment, resolved
from tests.support.golden_settings import CERTIFICATE, KEY
from tests.support.route_strategies import routes

ENVIRONMENT = environment("/run/gatehouse", system_ca_pem=CERTIFICATE.read_bytes())
TLS = {"certificate_file": str(CERTIFICATE), "certificate_key_file": str(KEY)}
GLOBALS = st.sampled_from(
    (
        {},
        {"set_response_headers": {"X-A": "1"}},
        {"allow_upgrades": ["websocket"]},
        {"runtime_flags": {"match_any_incoming_port": False}},
        {"cookie_name": "_other"},
        {"services": "proxy", "authorize_service_url": "http://127.0.0.1:5443"},
    )
)


def settings_of(written: list[dict[str, Any]], keys: dict[str, Any]) -> ResolvedSettings | None:
    try:
        return resolved({"address": "127.0.0.1:443", **TLS, **keys, "routes": written})
    except ConfigError:
        return None


def built(found: ResolvedSettings, before: Snapshot | None) -> Snapshot | str:
    try:
        return build_snapshot(found, ENVIRONMENT, before)
    except SnapshotError as error:
        return str(error)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(
    st.lists(routes(most_keys=3), min_size=1, max_size=5),
    st.lists(st.tuples(st.lists(st.integers(0, 4), max_size=6), GLOBALS), min_size=2, max_size=4),
)
def test_an_earlier_snapshot_changes_no_result(
    pool: list[dict[str, Any]], steps: list[tuple[list[int], dict[str, Any]]]
) -> None:
    """Each step takes some of the routes, in some order, as the very objects of the step before."""
    before: Snapshot | None = None
    known: dict[str, Any] = {}
    for chosen, keys in steps:
        picked = [(n, pool[n]) for n in dict.fromkeys(chosen) if n < len(pool)]
        written = [{**each, "from": each["from"].format(n)} for n, each in picked]
        found = settings_of(written, keys)
        if found is None:
            continue
        kept = tuple(known.setdefault(repr((keys, each)), each) for each in found.routes)
        found = replace(found, routes=kept)
        fresh, reused = built(found, None), built(found, before)
        assert reused == fresh
        if isinstance(reused, Snapshot):
            assert reused.parts is not None
            assert len(reused.parts.clusters) <= len(found.routes)
            before = reused


def public(host: str, **keys: Any) -> dict[str, Any]:
    return {
        "from": f"https://{host}.example.com",
        "to": "http://127.0.0.1:1",
        "allow_public_unauthenticated_access": True,
        **keys,
    }


def test_only_what_is_new_is_made() -> None:
    first = resolved({**TLS, "routes": [public("a"), public("b"), public("c")]})
    one = build_snapshot(first, ENVIRONMENT)
    other = resolved({**TLS, "routes": [public("a"), public("b", prefix="/x"), public("c")]})
    routes = (first.routes[0], other.routes[1], first.routes[2])
    two = build_snapshot(replace(first, routes=routes), ENVIRONMENT, one)
    assert one.parts is not None
    assert two.parts is not None
    earlier = {id(part) for part in one.parts.routes.values()}
    assert [id(part) in earlier for part in two.parts.routes.values()] == [True, False, True]
    assert two.resources[CLUSTER] == one.resources[CLUSTER]
    assert two.resources[ROUTE_CONFIGURATION] != one.resources[ROUTE_CONFIGURATION]
    renewed = replace(ENVIRONMENT, authorize_jwt="another")
    three = build_snapshot(replace(first, routes=routes), renewed, two)
    assert three.parts is not None
    assert three.parts.routes == two.parts.routes
    moved = replace(ENVIRONMENT, secrets_dir="/elsewhere")
    four = build_snapshot(replace(first, routes=routes), moved, two)
    assert four.parts is not None
    now = {id(part) for part in two.parts.routes.values()}
    assert not any(id(part) in now for part in four.parts.routes.values())


def test_parts_are_put_together_as_protobuf_would() -> None:
    for size in (0, 1, 127, 128, 20_000, 3_000_000):
        route = route_components_pb2.Route(name="x" * size)
        whole = route_components_pb2.VirtualHost(routes=[route])
        number = route_components_pb2.VirtualHost.ROUTES_FIELD_NUMBER
        assert embedded(number, serialize(route)) == serialize(whole)
    found = build_snapshot(resolved({**TLS, "routes": [public("a"), public("b")]}), ENVIRONMENT)
    body = found.resources[ROUTE_CONFIGURATION]["main"].body
    message = route_pb2.RouteConfiguration.FromString(body)
    assert serialize(message) == body
