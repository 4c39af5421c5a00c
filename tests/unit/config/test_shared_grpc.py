"""gRPC on the address of the proxy: what it needs, what cannot hold there, and what it takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatehouse.common.config.restart import restart_needed
from tests.support.client_pki import Issued
from tests.support.configuration import LOGIN, problems, resolved
from tests.unit.config.test_route_records import config, route_message, settings_of, told

SHARED = "address: ':8443'\ngrpc_address: ':8443'\n"
URLS = "databroker_service_url: https://broker.example.com\n"
ALL_URLS = f"""{URLS}databroker_storage_type: postgres
databroker_storage_connection_string: postgresql://broker@database/broker
databroker_service_urls: ["https://Broker-2.example.com:8443", ""]
databroker_internal_service_url: https://broker.internal
authorize_service_url: https://authorize.example.com
authorize_internal_service_url: https://authorize.internal
"""
ROUTE = """routes:
- from: {from_}
  to: http://a
  allow_public_unauthenticated_access: true
"""
TAKEN = (
    "is the host of a service URL, and grpc_address is that of address: gRPC calls to it are for "
    "Gatehouse itself (another host, or a grpc_address of its own)"
)


def test_the_urls_of_the_services_that_run_here_are_taken(tmp_path: Path) -> None:
    settings, warnings = resolved(tmp_path, LOGIN + SHARED + ALL_URLS)
    assert settings.shared_grpc_urls == (
        "https://authorize.example.com",
        "https://authorize.internal",
        "https://broker.example.com",
        "https://Broker-2.example.com:8443",
        "https://broker.internal",
    )
    assert not [warning for warning in warnings if "internal" in warning.key]
    split = LOGIN + SHARED + ALL_URLS + "services: proxy,databroker\n"
    assert resolved(tmp_path, split)[0].shared_grpc_urls == (
        "https://broker.example.com",
        "https://Broker-2.example.com:8443",
        "https://broker.internal",
    )


def test_an_address_of_its_own_shares_nothing(tmp_path: Path) -> None:
    settings, warnings = resolved(tmp_path, LOGIN + ALL_URLS)
    assert settings.shared_grpc_urls == ()
    assert "databroker_internal_service_url" in [warning.key for warning in warnings]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "",
            (
                "grpc_address: is that of address, where gRPC is told apart by its host, and no "
                "service URL names one (authorize_service_url or databroker_service_url as others "
                "call this process, or another port)"
            ),
        ),
        (
            "services: proxy,authorize\nauthorize_service_url: ''\n" + URLS,
            (
                "grpc_address: is that of address, where gRPC is told apart by its host, and no "
                "service URL names one (authorize_service_url as others call this process, or "
                "another port)"
            ),
        ),
        (
            URLS + "grpc_client_ca_file: /ca.pem\n",
            (
                "grpc_client_ca_file: callers of gRPC cannot be asked for certificates on the "
                "listener of address, which grpc_address names too: browsers would be asked there "
                "(a grpc_address of its own)"
            ),
        ),
        (
            URLS + "codec_type: http1\n",
            (
                "codec_type: gRPC needs HTTP/2, and grpc_address is that of address (auto, http2 "
                "or http3, or a grpc_address of its own)"
            ),
        ),
        (
            URLS + "insecure_server: true\ngrpc_insecure: false\n",
            (
                "grpc_insecure: grpc_address is that of address, which insecure_server makes plain "
                "text (a grpc_address of its own, or grpc_insecure: true)"
            ),
        ),
        (
            URLS + ROUTE.format(from_="https://Broker.example.com:444"),
            f"routes[0].from: broker.example.com {TAKEN}",
        ),
        (
            "authorize_service_url: https://authorize.example.com\n"
            + ROUTE.format(from_="https://pomerium-authorize"),
            f"routes[0].from: pomerium-authorize {TAKEN}",
        ),
        (
            "services: proxy\nauthorize_service_url: https://a\n" + URLS,
            "grpc_address: *:8443 is the address of address too (another port)",
        ),
        (
            "services: authenticate,databroker\n" + URLS,
            "grpc_address: *:8443 is the address of address too (another port)",
        ),
    ],
)
def test_what_cannot_hold_there_is_refused(tmp_path: Path, text: str, found: str) -> None:
    files = {"/ca.pem": Issued.root().pem.encode()}
    (error,) = problems(tmp_path, LOGIN + SHARED + text, files=files)
    assert error.partition(": ")[2] == found or error == found


def test_an_overlapping_address_is_no_shared_one(tmp_path: Path) -> None:
    text = LOGIN + URLS + "address: ':8443'\ngrpc_address: '127.0.0.1:8443'\n"
    (issue,) = problems(tmp_path, text)
    assert "127.0.0.1:8443 is the address of address too" in issue


def test_a_stored_route_may_not_take_the_host_either(tmp_path: Path) -> None:
    route = route_message(id="r", **{"from": "https://broker.example.com"})
    settings = settings_of(tmp_path, config(route), text=SHARED + URLS)
    assert settings.routes == ()
    assert any("is the host of a service URL" in line for line in told(settings))


def test_only_a_restart_makes_or_unmakes_the_listener(tmp_path: Path) -> None:
    shared = resolved(tmp_path, LOGIN + SHARED + URLS)[0]
    other = SHARED.replace("address: ':8443'", "address: ':1'", 1)
    moved = resolved(tmp_path, LOGIN + other + URLS)[0]
    for first, new, before, after in (
        (shared, moved, ":8443", ":1"),
        (moved, shared, ":1", ":8443"),
    ):
        (issue,) = restart_needed(first, new)
        assert str(issue).startswith(
            f"error: address: cannot change while running: {before} is in force, {after} is asked"
        )
    more = resolved(tmp_path, LOGIN + SHARED + ALL_URLS)[0]
    assert restart_needed(shared, more) == ()
