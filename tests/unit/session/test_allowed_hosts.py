from __future__ import annotations

import pytest

from gatehouse.common.session.allowed_hosts import served_hosts, whitelisted_hosts
from tests.support.web_settings import route, settings


def test_routes_their_companions_and_authenticate_are_served():
    allowed = served_hosts(
        settings(
            routes=(
                route("https://app.example.com", depends_on=["b.example.com:8443"]),
                route("https://*.apps.example.com"),
                route("https://pre-*.example.com:8443"),
            ),
            internal_url="https://authenticate.internal:9443",
        )
    )
    for host in (
        "app.example.com",
        "b.example.com",
        "x.apps.example.com",
        "x.y.apps.example.com",
        "pre-1.example.com",
        "authenticate.example.com",
        "authenticate.internal",
    ):
        assert allowed(host), host
    for host in (
        "",
        "example.com",
        "apps.example.com",
        "xapps.example.com",
        "pre-.example.com",
        "x.apps.example.com.evil.net",
        "app.example.com.evil.net",
        "xapp.example.com",
        "appxexample.com",
    ):
        assert not allowed(host), host


def test_a_process_without_routes_leaves_it_to_the_signature():
    assert served_hosts(settings(routes=()))("anything.example.org")


@pytest.mark.parametrize(
    ("host", "whitelist", "allowed"),
    [
        ("localhost", ["localhost"], True),
        ("127.0.0.1", ["localhost"], True),
        ("127.8.9.10", ["LOCALHOST"], True),
        ("::1", ["localhost"], True),
        ("127.0.0.1", ["cli.example.com"], False),
        ("cli.example.com", ["cli.example.com"], True),
        ("x.cli.example.com", ["cli.example.com"], False),
        ("localhost.evil.net", ["localhost"], False),
        ("127.0.0.1.evil.net", ["localhost"], False),
        ("128.0.0.1", ["localhost"], False),
        ("a.example.com", ["*.example.com"], False),
        ("localhost", [], False),
    ],
)
def test_the_programmatic_whitelist_is_exact(host, whitelist, allowed):
    assert whitelisted_hosts(whitelist)(host) is allowed
