"""Reload, stop, crash: what happens to requests while the product changes under them."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.e2e.conftest import GRACE
from tests.support.envoy_processes import envoy_of, envoys_of
from tests.support.sign_in import sign_in
from tests.support.stack import Stack
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

Fresh = Callable[..., tuple[Stack, EchoUpstream]]


class Hammer(threading.Thread):
    """Sends requests one after the other and keeps what was not a 200."""

    def __init__(self, stack: Stack, url: str) -> None:
        super().__init__()
        self.stack, self.url = stack, url
        self.sent = 0
        self.failures: list[str] = []
        self.done = threading.Event()

    def run(self) -> None:
        with self.stack.client() as client:
            while not self.done.is_set():
                try:
                    answer = client.get(self.url)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                else:
                    if answer.status_code != 200:
                        self.failures.append(f"{answer.status_code} {answer.text[:200]}")
                self.sent += 1

    def wait_for_more(self, count: int = 20) -> None:
        """Until it has sent `count` more requests."""
        wanted = self.sent + count
        wait_for(lambda: self.sent >= wanted, 20)

    def finish(self) -> None:
        self.done.set()
        self.join(20)


def wait_for(check: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_reload_takes_effect_without_dropping_a_request(fresh_stack: Fresh) -> None:
    stack, upstream = fresh_stack()
    stack.start()
    hammer = Hammer(stack, stack.url("public.localhost"))
    hammer.start()
    try:
        with stack.client() as client:
            assert client.get(stack.url("new.localhost")).status_code == 404
            stack.routes = [
                *copy.deepcopy(stack.routes),
                {
                    "from": "https://new.localhost",
                    "to": upstream.url,
                    "allow_public_unauthenticated_access": True,
                },
            ]
            stack.write_config()
            wait_for(lambda: client.get(stack.url("new.localhost")).status_code == 200)
            hammer.wait_for_more()
            stack.routes = stack.routes[:-1]
            stack.write_config()
            wait_for(lambda: client.get(stack.url("new.localhost")).status_code == 404)
            hammer.wait_for_more()
    finally:
        hammer.finish()
    assert hammer.failures == []


def test_policy_change_takes_effect_for_a_signed_in_user(fresh_stack: Fresh) -> None:
    stack, _ = fresh_stack()
    stack.start()
    with stack.client() as client:
        assert sign_in(client, stack.url("app.localhost"), GRACE)[-1].status_code == 200
        stack.routes = copy.deepcopy(stack.routes)
        del stack.routes[0]["allow_any_authenticated_user"]
        stack.routes[0]["policy"] = {"allow": {"and": [{"domain": "other.test"}]}}
        stack.write_config()
        wait_for(lambda: client.get(stack.url("app.localhost")).status_code == 403)


def test_bad_reload_is_reported_and_changes_nothing(fresh_stack: Fresh) -> None:
    stack, _ = fresh_stack()
    stack.start()
    process = stack.processes["proxy"]
    good = stack.config()
    bad: dict[str, Any] = copy.deepcopy(good)
    bad["routes"][0]["regex"] = "("
    bad["timeout_read"] = "soon"
    stack.write_config(yaml.safe_dump(bad, sort_keys=False))
    process.wait_log("timeout_read")
    log = process.log()
    assert "routes[0].regex" in log
    assert "config.yaml:" in log
    assert stack.client_secret not in log
    with stack.client() as client:
        assert client.get(stack.url("public.localhost")).status_code == 200
        assert process.probe("/readyz").status_code == 200
        stack.write_config("routes: [")
        time.sleep(0.6)
        assert client.get(stack.url("public.localhost")).status_code == 200
        stack.routes = stack.routes[:4]
        stack.write_config()
        wait_for(lambda: client.get(stack.url("rewrite.localhost", "/r/1")).status_code == 404)


def test_sigterm_drains_and_exits_zero(fresh_stack: Fresh) -> None:
    stack, _ = fresh_stack()
    stack.start()
    process = stack.processes["proxy"]
    assert "databroker sync" not in process.log()  # nobody asks our own before it answers
    with stack.client() as client:
        assert client.get(stack.url("public.localhost")).status_code == 200
        began = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - began < 25.0
    assert "Traceback" not in process.log()
    assert "stopped" in process.log()


def test_sessions_survive_a_restart_on_the_file_store(fresh_stack: Fresh) -> None:
    stack, _ = fresh_stack()
    stack.start()
    with stack.client() as client:
        assert sign_in(client, stack.url("app.localhost"), GRACE)[-1].status_code == 200
        stack.processes["proxy"].process.kill()
        stack.processes["proxy"].process.wait(10)
        stack.start()
        again = client.get(stack.url("app.localhost"))
        assert again.status_code == 200, again.text[:500]


def test_a_killed_envoy_is_restarted(fresh_stack: Fresh) -> None:
    stack, _ = fresh_stack()
    stack.start()
    process = stack.processes["proxy"]
    os.kill(envoy_of(stack), signal.SIGKILL)

    def answers() -> bool:
        try:
            with stack.client() as client:
                return client.get(stack.url("public.localhost")).status_code == 200
        except httpx.HTTPError:
            return False

    wait_for(answers)
    assert process.process.poll() is None


def test_a_killed_gatehouse_leaves_no_envoy(fresh_stack: Fresh) -> None:
    stack, _ = fresh_stack()
    stack.start()
    process = stack.processes["proxy"].process
    envoy = envoy_of(stack)
    process.kill()
    process.wait(10)

    def gone() -> bool:
        try:
            os.kill(envoy, 0)
        except ProcessLookupError:
            return True
        stat = Path(f"/proc/{envoy}/stat").read_text()
        return stat.rsplit(")", 1)[1].split()[0] == "Z"

    wait_for(gone)


def test_bad_configuration_at_start_names_everything_at_once(fresh_stack: Fresh) -> None:
    stack, _ = fresh_stack()
    config = stack.config()
    config["address"] = 12
    config["routes"][0]["from"] = "ftp://app.localhost"
    config["routes"][1]["to"] = "nonsense"
    config["routes"][2]["policy"] = {"allow": {"and": [{"no_such_criterion": 1}]}}
    config["shared_secret"] = "c2hvcnQ="
    config["client_ca"] = "x"
    config["databroker_storage_typ"] = "file"
    stack.write_config(yaml.safe_dump(config, sort_keys=False))
    for command in ("serve", "check"):
        done = subprocess.run(
            [sys.executable, "-m", "gatehouse.cli", command, "--config", stack.config_path],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        for expected in (
            "routes[0].from",
            "routes[1].to",
            "routes[2].policy",
            "shared_secret",
            "client_ca",
            "databroker_storage_type",
        ):
            assert expected in done.stderr, done.stderr
        assert "c2hvcnQ=" not in done.stderr
        assert stack.client_secret not in done.stderr
        numbered = [line for line in done.stderr.splitlines() if "config.yaml:" in line]
        assert len(numbered) >= 5, done.stderr


def test_authorize_away_is_503_and_recovers(fresh_stack: Fresh, postgres_dsn: str) -> None:
    asks = {"decision_cache": False}  # a remembered decision needs no authorize
    stack, upstream = fresh_stack(split=True, postgres=postgres_dsn, extra=asks)
    stack.start()
    with stack.client() as client:
        assert sign_in(client, stack.url("app.localhost"), GRACE)[-1].status_code == 200
        assert stack.processes["authorize"].stop() == 0
        before = len(upstream.requests)
        for path in ("/", "/other"):
            answer = client.get(stack.url("app.localhost", path), headers={"accept": "text/html"})
            assert answer.status_code == 503
            assert answer.headers["x-request-id"] in answer.text
        assert client.get(stack.url("public.localhost")).status_code == 503
        assert len(upstream.requests) == before
        assert client.get(stack.url("app.localhost", "/ping")).status_code == 200
        stack.spawn("authorize").wait_ready()
        wait_for(lambda: client.get(stack.url("app.localhost")).status_code == 200, 20)


def test_databroker_away_keeps_signed_in_users_working(
    fresh_stack: Fresh, postgres_dsn: str
) -> None:
    stack, _ = fresh_stack(split=True, postgres=postgres_dsn)
    stack.start()
    with stack.client() as client, stack.client() as stranger:
        assert sign_in(client, stack.url("app.localhost"), GRACE)[-1].status_code == 200
        assert stack.processes["databroker"].stop() == 0
        assert client.get(stack.url("app.localhost")).status_code == 200
        first = stranger.get(stack.url("app.localhost"))
        assert first.status_code == 302
        refused = stranger.get(first.headers["location"], headers={"accept": "text/html"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        stack.spawn("databroker").wait_ready()

        # Authenticate and proxy each find it again by themselves, within their back-off.
        wait_for(
            lambda: sign_in(stranger, stack.url("app.localhost"), GRACE)[-1].status_code == 200,
            15,
        )


def test_every_process_tells_its_health_over_grpc_and_only_a_proxy_has_an_envoy(
    fresh_stack: Fresh, postgres_dsn: str
) -> None:
    stack, _ = fresh_stack(split=True, postgres=postgres_dsn)
    stack.start()
    for name, port in stack.grpc_ports.items():
        for service in ("", name, f"pomerium-{name}"):
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "gatehouse.cli",
                    "health",
                    "--grpc",
                    f"127.0.0.1:{port}",
                    "--service",
                    service,
                ],
                check=False,
                capture_output=True,
                text=True,
                timeout=30,
            )
            assert done.returncode == 0, (name, service, done.stdout, done.stderr)
    statuses = json.loads(stack.processes["proxy"].probe("/status").text)
    assert "envoy.server" in statuses["statuses"]
    for name, started in stack.processes.items():
        assert len(envoys_of(started.process.pid)) == (name == "proxy"), name
    assert stack.stop() == {"proxy": 0, "authenticate": 0, "authorize": 0, "databroker": 0}
