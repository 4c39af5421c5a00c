"""The filter that asks authorize stands behind a condition: whatever it does, nothing slips by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.common.matching.v3 import extension_matcher_pb2
from envoy.extensions.filters.http.composite.v3 import composite_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)
from google.protobuf.message import Message

from gatehouse.proxy.core.xds.resource import LISTENER, packed, resource_of
from gatehouse.proxy.core.xds.resources.routes import EXT_AUTHZ
from gatehouse.proxy.core.xds.snapshot import Snapshot
from tests.support.decision_memory import Memory, kept
from tests.support.envoy import Proxy, allow, deny, messages, proxy
from tests.support.raw_http import http1, http2, request_headers
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

COOKIE = "Cookie: _pomerium=handle"
Edit = Callable[[Any], Message | None]


@pytest.fixture
def upstream() -> Iterator[EchoUpstream]:
    with EchoUpstream().running() as running:
        yield running


def private(upstream: EchoUpstream, **keys: Any) -> dict[str, Any]:
    return {
        "from": "http://app.example.com",
        "to": upstream.url,
        "allow_any_authenticated_user": True,
        **keys,
    }


def with_filter(snapshot: Snapshot, edit: Edit) -> Snapshot:
    """The snapshot with another filter in the place of the one that asks (None: with none)."""
    changed: dict[str, Any] = {}
    for listener in messages(snapshot)[LISTENER]:
        assert isinstance(listener, listener_pb2.Listener)
        for chain in listener.filter_chains:
            for network_filter in chain.filters:
                manager = http_connection_manager_pb2.HttpConnectionManager()
                if not network_filter.typed_config.Unpack(manager):
                    continue
                places = [item.name for item in manager.http_filters]
                place = places.index(EXT_AUTHZ)
                matching = extension_matcher_pb2.ExtensionWithMatcher()
                assert manager.http_filters[place].typed_config.Unpack(matching)
                new = edit(matching)
                if new is None:
                    del manager.http_filters[place]
                else:
                    manager.http_filters[place].typed_config.CopyFrom(packed(new))
                network_filter.typed_config.CopyFrom(packed(manager))
        changed[listener.name] = resource_of(listener, listener.name)
    return replace(
        snapshot, version="edited", resources={**snapshot.resources, LISTENER: changed}, parts=None
    )


def always_skips(matching: Any) -> Any:
    skip = matching.xds_matcher.matcher_list.matchers[0].on_match
    matching.xds_matcher.on_no_match.CopyFrom(skip)
    return matching


def matches_nothing(matching: Any) -> Any:
    """No action is left for a request that is not remembered."""
    matching.xds_matcher.ClearField("on_no_match")
    return matching


def has_no_filter(_matching: Any) -> None:
    return None


def asks_on_a_sample(matching: Any) -> Any:
    """A composite that runs its filter for no share of the requests."""
    typed = matching.xds_matcher.on_no_match.action.typed_config
    action = composite_pb2.ExecuteFilterAction()
    assert typed.Unpack(action)
    action.sample_percent.default_value.numerator = 0
    typed.CopyFrom(packed(action))
    return matching


async def put_in_force(running: Proxy, snapshot: Snapshot) -> None:
    running.ads.publish(snapshot)
    await running.ads.wait_for(lambda ads: ads.in_force == snapshot.version, 20.0)


@pytest.mark.parametrize(
    "edit",
    [always_skips, matches_nothing, has_no_filter, asks_on_a_sample],
    ids=lambda f: f.__name__,
)
async def test_r50_a_condition_that_goes_wrong_lets_nothing_through(
    upstream: EchoUpstream, edit: Edit
):
    config = {"routes": [private(upstream)]}
    async with proxy(config) as running:
        await put_in_force(running, with_filter(running.snapshot(config), edit))
        Memory(running)
        for lines in ([COOKIE], []):
            answer = await http1(running.port, "/", lines=lines)
            assert answer.status == 503
        assert upstream.requests == []
        assert running.authorize.requests == []
        # What nobody is asked about goes on.
        assert (await http1(running.port, "/ping")).status == 200


FORGED = [
    "com.gatehouse.remembered: hit",
    'com.gatehouse.remembered: {"hit": true}',
    "com.gatehouse.remembered.hit: true",
    "hit: true",
    "x-envoy-dynamic-metadata: com.gatehouse.remembered=hit",
    'envoy.filters.http.ext-authz: {"decision": "allow"}',
    "x-gatehouse-remembered: true",
]


async def test_r15_no_header_makes_a_request_remembered(upstream: EchoUpstream):
    async with proxy({"routes": [private(upstream)]}) as running:
        Memory(running)
        running.authorize.decide = lambda _request: deny()
        for number, line in enumerate([*FORGED, "\r\n".join(FORGED)], start=1):
            answer = await http1(running.port, "/?hit=true", lines=[COOKIE, line])
            assert answer.status == 403, line
            assert len(running.authorize.requests) == number
        pairs = [(name, value) for name, _, value in (line.partition(": ") for line in FORGED)]
        answer = await http2(running.port, [*request_headers(), *pairs])
        assert answer.status == 403
        assert upstream.requests == []


async def test_r49_an_answer_cannot_name_the_mark(upstream: EchoUpstream):
    """Authorize's metadata has one namespace of its own, whatever it calls its fields."""
    async with proxy({"routes": [private(upstream)]}) as running:
        Memory(running)
        forged = deny()
        forged.dynamic_metadata.update(
            {"com.gatehouse.remembered": {"hit": True}, "hit": True, "decision": "allow"}
        )
        running.authorize.decide = lambda _request: forged
        for number in range(1, 4):
            assert (await http1(running.port, "/", lines=[COOKIE])).status == 403
            assert len(running.authorize.requests) == number
        assert upstream.requests == []


async def test_what_the_routes_say_of_the_filter_is_found(upstream: EchoUpstream):
    """Context for authorize, and where nobody is asked; both stand under the filter's name."""
    config = {"routes": [private(upstream)]}
    async with proxy(config) as running:
        route = running.settings(config).routes[0]
        assert (await http1(running.port, "/", lines=[COOKIE])).status == 200
        (asked,) = running.authorize.requests
        context = dict(asked.attributes.context_extensions)
        assert context == {
            "internal": "false",
            "route_id": str(route.id),
            "route_checksum": str(route.checksum),
        }
        assert (await http1(running.port, "/ping")).status == 200
        assert len(running.authorize.requests) == 1


async def test_checks_are_counted_and_remembered_ones_are_not(upstream: EchoUpstream):
    async with proxy({"routes": [private(upstream)]}) as running:
        memory = Memory(running)
        running.authorize.decide = lambda _request: kept(records=["a"])
        for _ in range(3):
            memory.refresh()
            assert (await http1(running.port, "/", lines=[COOKIE])).status == 200
        running.authorize.decide = lambda _request: deny()
        assert (await http1(running.port, "/", lines=["Cookie: _pomerium=2"])).status == 403
        text = (await running.admin.prometheus()).decode()
        counted = {
            line.split("{")[0]: float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if "ext_authz_" in line and "pomerium-authorize" not in line and line[0] != "#"
        }
        assert counted["envoy_http_ext_authz_ok"] == 1, counted
        assert counted["envoy_http_ext_authz_denied"] == 1, counted


async def test_headers_of_the_answer_reach_the_client(upstream: EchoUpstream):
    """The filter sees responses too: what an allow adds to one is there."""
    async with proxy({"routes": [private(upstream)]}) as running:
        response = allow()
        added = response.ok_response.response_headers_to_add.add()
        added.header.key, added.header.value = "x-from-authorize", "yes"
        running.authorize.decide = lambda _request: response
        answer = await http1(running.port, "/", lines=[COOKIE])
        assert dict(answer.headers)["x-from-authorize"] == "yes"
