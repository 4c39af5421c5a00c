"""What the metrics of a running product show, to whom, and where."""

from __future__ import annotations

import base64
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import GRACE, World
from tests.e2e.test_security_failing import wait_for
from tests.e2e.test_security_paths import http1
from tests.support.ports import free_ports
from tests.support.sign_in import sign_in
from tests.support.stack import Stack, running
from tests.support.tls import Authority
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

Make = Callable[..., tuple[Stack, EchoUpstream]]

USER = ("reader", "not-a-real-password")
BASIC = base64.b64encode(":".join(USER).encode()).decode()


def read(url: str, path: str = "/metrics", **options: object) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=20.0, **options) as client:  # type: ignore[arg-type]
        return client.get(f"{url}{path}")


def samples(page: str) -> dict[str, list[dict[str, str]]]:
    """The labels of each sample, by name; the page parses as a whole."""
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, provider: str) -> Iterator[World]:
    """Everything in one process, its metrics behind a password."""
    (port,) = free_ports(1)
    with EchoUpstream().running() as upstream:
        stack = Stack(
            directory=tmp_path_factory.mktemp("measured"),
            issuer=provider,
            client_id="gatehouse",
            client_secret="not-a-real-secret",
            routes=[
                {
                    "from": "https://public.localhost",
                    "to": upstream.url,
                    "name": "public",
                    "allow_public_unauthenticated_access": True,
                },
                {
                    "from": "https://app.localhost",
                    "to": upstream.url,
                    "allow_any_authenticated_user": True,
                },
            ],
            extra={
                "metrics_address": f"127.0.0.1:{port}",
                "metrics_basic_auth": BASIC,
                "installation_id": "here",
            },
        )
        with running(stack):
            yield World(stack, upstream, provider)


def url_of(world: World) -> str:
    return f"http://{world.stack.extra['metrics_address']}"


def test_the_page_shows_our_numbers_and_envoys(measured: World):
    assert http1(measured).status == 200
    assert http1(measured, "/ping").status == 200
    with measured.stack.client() as client:
        sign_in(client, measured.stack.url("app.localhost"), GRACE)
    page = read(url_of(measured), auth=USER)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(page.text)
    own = {"service": "pomerium", "hostname": socket.gethostname(), "installation_id": "here"}
    for name in (
        "pomerium_build_info",
        "pomerium_policy_count_total",
        "pomerium_config_checksum_decimal",
        "pomerium_config_last_reload_success",
        "pomerium_config_last_reload_success_timestamp",
        "pomerium_certificate_expires_timestamp",
        "pomerium_health_status",
        "pomerium_authorize_evaluator_evaluations_total",
        "pomerium_authorize_evaluator_evaluation_duration_bucket",
        "pomerium_authorize_header_evaluator_evaluations_total",
        "pomerium_authorize_header_evaluator_evaluation_duration_bucket",
        "pomerium_authorize_log_duration_bucket",
        "pomerium_grpc_server_requests_total",
        "pomerium_grpc_server_request_duration_ms_bucket",
        "pomerium_grpc_client_requests_total",
        "pomerium_http_server_requests_total",
        "pomerium_http_server_response_size_bytes_bucket",
        "pomerium_http_client_requests_total",
        "pomerium_http_client_request_duration_ms_bucket",
        "pomerium_storage_operation_duration_ms_bucket",
        "pomerium_databroker_syncer_sync_latest_total",
        "pomerium_envoy_process_resident_memory_bytes",
        "pomerium_envoy_cgroup_memory_saturation",
        "pomerium_envoy_overload_action_state",
        "process_resident_memory_bytes",
        "envoy_server_uptime",
        "envoy_http_downstream_rq_completed_total",  # as the parser spells counters
        "envoy_http_ext_authz_ok_total",
    ):
        assert name in found, name
        for labels in found[name]:
            assert labels.items() >= own.items(), (name, labels)
    (build,) = found["pomerium_build_info"]
    assert build["envoy_version"].startswith("1.")
    checks = [
        labels["grpc_server_status"]
        for labels in found["pomerium_grpc_server_requests_total"]
        if labels["grpc_service"] == "envoy.service.auth.v3.Authorization"
    ]
    assert checks == ["OK"]
    pages = found["pomerium_http_server_requests_total"]
    own_page = {"host": "proxy-http", "http_method": "GET", "http_status": "200"}
    assert any(labels.items() >= own_page.items() for labels in pages)
    provider = urlsplit(measured.issuer).hostname
    assert provider in {labels["host"] for labels in found["pomerium_http_client_requests_total"]}
    assert {"public"} <= {
        labels.get("envoy_cluster_name") for labels in found["envoy_cluster_membership_total"]
    }


def test_both_paths_want_the_password(measured: World):
    wrong = [
        None,
        ("reader", "wrong"),
        ("", ""),
        (USER[1], USER[0]),
    ]
    for path in ("/metrics", "/metrics/envoy"):
        for credentials in wrong:
            answer = read(url_of(measured), path, auth=credentials)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Basic ")
            assert answer.text == ""
        for header in (f"Bearer {BASIC}", f"Basic {BASIC}x", "Basic", f"Basic !{BASIC}"):
            answer = read(url_of(measured), path, headers={"authorization": header})
            assert answer.status_code == 401
    envoy = read(url_of(measured), "/metrics/envoy", auth=USER)
    assert "envoy_server_uptime" in envoy.text
    assert "pomerium_build_info" not in envoy.text


def test_nothing_else_is_served_there(measured: World):
    for path in ("/", "/stats", "/config_dump", "/quitquitquit", "/metrics/", "/metrics/../stats"):
        assert read(url_of(measured), path, auth=USER).status_code == 404


def test_r59_metrics_are_not_on_public_hosts(measured: World):
    before = len(measured.upstream.requests)
    for host in ("authenticate.localhost", "nobody.localhost"):
        for path in ("/metrics", "/metrics/envoy", "/stats/prometheus"):
            answer = http1(measured, path, host=host, lines=[f"Authorization: Basic {BASIC}"])
            assert answer.status == 404, (host, path)
            assert b"envoy_server" not in answer.body
            assert b"pomerium_build" not in answer.body
    assert len(measured.upstream.requests) == before
    # On a route's host the path is the application's own.
    assert b"pomerium_build" not in http1(measured, "/metrics").body


def test_metrics_hold_no_secret_and_no_word_of_a_client(measured: World):
    http1(measured, "/very-private-path?token=very-private", lines=["X-Word: very-private"])
    page = read(url_of(measured), auth=USER).text
    stack = measured.stack
    for secret in (stack.shared_secret, stack.cookie_secret, stack.client_secret, USER[1], BASIC):
        assert secret not in page
    assert "very-private" not in page


def test_a_new_password_and_a_removed_listener_apply_at_once(fresh_stack: Make, provider: str):
    (port,) = free_ports(1)
    stack, _ = fresh_stack(
        extra={"metrics_address": f"127.0.0.1:{port}", "metrics_basic_auth": BASIC}
    )
    url = f"http://127.0.0.1:{port}"
    with running(stack):
        assert read(url, auth=USER).status_code == 200
        stack.extra["metrics_basic_auth"] = base64.b64encode(b"other:word").decode()
        stack.write_config()
        wait_for(lambda: read(url, auth=("other", "word")).status_code == 200)
        assert read(url, auth=USER).status_code == 401
        stack.extra = {}
        stack.write_config()

        def is_gone() -> bool:
            try:
                read(url, auth=("other", "word"))
            except httpx.ConnectError:
                return True
            return False

        wait_for(is_gone)
        stack.stop()


def test_a_process_without_envoy_asks_for_certificates_itself(
    fresh_stack: Make, provider: str, tmp_path: Path
):
    authority = Authority(tmp_path / "metrics")
    server = authority.leaf("127.0.0.1", stem="server")
    reader = authority.leaf("reader.example.com", stem="reader")
    (port,) = free_ports(1)
    stack, _ = fresh_stack(
        split=True,
        extra={
            "metrics_certificate_file": str(server.certificate),
            "metrics_certificate_key_file": str(server.key),
            "metrics_client_ca_file": str(authority.path),
            "metrics_basic_auth": BASIC,
        },
    )
    databroker = stack.spawn("databroker", {"METRICS_ADDRESS": f"127.0.0.1:{port}"})
    databroker.wait_ready()
    url = f"https://127.0.0.1:{port}"
    anonymous = ssl.create_default_context(cafile=str(authority.path))
    with pytest.raises(httpx.TransportError):
        read(url, verify=anonymous, auth=USER)
    known = ssl.create_default_context(cafile=str(authority.path))
    known.load_cert_chain(reader.certificate, reader.key)
    assert read(url, verify=known).status_code == 401
    page = read(url, verify=known, auth=USER)
    found = samples(page.text)
    assert {labels["service"] for labels in found["pomerium_build_info"]} == {"pomerium-databroker"}
    assert "pomerium_storage_operation_duration_ms_bucket" in found
    assert not [name for name in found if name.startswith("envoy_")]
    assert read(url, "/metrics/envoy", verify=known, auth=USER).text == ""
    assert re.fullmatch(r"[\x20-\x7e\n]+", page.text)
    assert stack.stop() == {"databroker": 0}
