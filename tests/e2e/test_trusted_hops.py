"""Whose address a policy sees behind a balancer that is trusted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.stack import Stack
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e


def test_r20_source_ip_is_the_client_that_the_trusted_hop_names(
    fresh_stack: Callable[..., tuple[Stack, EchoUpstream]],
) -> None:
    stack, upstream = fresh_stack(extra={"xff_num_trusted_hops": 1})
    stack.routes = [
        {
            "from": "https://app.localhost",
            "to": upstream.url,
            "policy": {"allow": {"and": [{"source_ip": "203.0.113.9"}]}},
        },
        {
            "from": "https://admin.localhost",
            "to": upstream.url,
            "policy": {"allow": {"and": [{"source_ip": ["127.0.0.0/8", "10.0.0.0/8"]}]}},
        },
    ]
    stack.write_config()
    stack.start()
    behind = {"x-forwarded-for": "198.51.100.7, 203.0.113.9"}
    with stack.client() as client:
        assert client.get(stack.url("app.localhost"), headers=behind).status_code == 200
        assert client.get(stack.url("admin.localhost"), headers=behind).status_code == 403
        spoofed = {"x-forwarded-for": "203.0.113.9, 198.51.100.7"}
        assert client.get(stack.url("app.localhost"), headers=spoofed).status_code == 403
        assert len(upstream.requests) == 1
