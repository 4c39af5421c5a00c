"""Whose address a policy sees behind a balancer that is trusted, and in which spelling."""

from __future__ import annotations

import socket
import ssl
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
        mapped = {"x-forwarded-for": "198.51.100.7, ::ffff:203.0.113.9"}
        assert client.get(stack.url("app.localhost"), headers=mapped).status_code == 200
        assert client.get(stack.url("admin.localhost"), headers=mapped).status_code == 403
        assert len(upstream.requests) == 2
        # What is no address is nobody's: policy is asked, refuses, and nothing breaks.
        before = upstream.received
        for line in ("a", "a, a", "203.0.113.9, a", "203.0.113.9:1, 198.51.100.7", ", ,", "," * 99):
            answer = client.get(stack.url("app.localhost"), headers={"x-forwarded-for": line})
            assert answer.status_code == 403, line
        assert upstream.received == before


def test_r20_an_ipv4_mapped_address_is_the_ipv4_address(
    fresh_stack: Callable[..., tuple[Stack, EchoUpstream]],
) -> None:
    """As a balancer tells it that listens on IPv6 for both."""
    stack, upstream = fresh_stack(extra={"use_proxy_protocol": True})
    office = {"source_ip": "10.1.0.0/16"}
    stack.routes = [
        {
            "from": "https://app.localhost",
            "to": upstream.url,
            "policy": {"allow": {"and": [office]}},
        },
        {
            "from": "https://public.localhost",
            "to": upstream.url,
            "policy": {"allow": {"or": [{"accept": True}]}, "deny": {"or": [office]}},
        },
        {
            "from": "https://admin.localhost",
            "to": upstream.url,
            "policy": {"allow": {"and": [{"source_ip": "::ffff:10.1.0.0/112"}]}},
        },
    ]
    stack.write_config()
    stack.start()
    for version, address, statuses in (
        ("TCP6", "::ffff:10.1.2.3", (200, 403, 200)),
        ("TCP6", "::ffff:a01:203", (200, 403, 200)),
        ("TCP4", "10.1.2.3", (200, 403, 200)),
        ("TCP6", "::ffff:10.2.2.3", (403, 200, 403)),
        ("TCP6", "::10.1.2.3", (403, 200, 403)),  # another address: nothing is mapped by it
        ("TCP6", "fd00::a01:203", (403, 200, 403)),
    ):
        found = tuple(
            status_behind(stack, host, f"PROXY {version} {address} {address} 1 1")
            for host in ("app.localhost", "public.localhost", "admin.localhost")
        )
        assert found == statuses, address
    assert len(upstream.requests) == 9


def status_behind(stack: Stack, host: str, line: str) -> int:
    """The answer to a request over a connection that begins with this line of a balancer."""
    context = ssl.create_default_context(cafile=stack.certificates.authority)
    with socket.create_connection(("127.0.0.1", stack.port), timeout=15) as plain:
        plain.sendall(f"{line}\r\n".encode())
        with context.wrap_socket(plain, server_hostname=host) as connection:
            connection.sendall(
                f"GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode()
            )
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
    return int(answer.split(b" ", 2)[1])
