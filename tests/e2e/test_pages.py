"""The pages about oneself, through Envoy and authorize, in both topologies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import httpx
import pytest

from tests.e2e.conftest import ADA, GRACE, World
from tests.support.sign_in import sign_in

pytestmark = pytest.mark.e2e

HTML = {"accept": "text/html"}
JSON = {"accept": "application/json"}


def test_the_portal_shows_what_each_person_may_open(world: World) -> None:
    portal = world.stack.url("app.localhost", "/.pomerium/routes")
    api = world.stack.url("app.localhost", "/.pomerium/api/v1/routes")
    with world.client() as ada, world.client() as grace, world.client() as none:
        found = {}
        for client, user in ((ada, ADA), (grace, GRACE)):
            assert sign_in(client, portal, user)[-1].status_code == 200
            found[user] = {
                entry["from"] for entry in client.get(api, headers=JSON).json()["routes"]
            }
        assert found[ADA] - found[GRACE] == {"https://admin.localhost"}
        assert "https://app.localhost" in found[GRACE]
        page = ada.get(f"{portal}?q=ADMIN", headers=HTML)
        assert f'href="{world.stack.url("admin.localhost")}"' in page.text
        assert none.get(portal, headers=HTML).status_code == 302
        assert none.get(api, headers=JSON).status_code == 401
        script = none.get(world.stack.url("app.localhost", "/.pomerium/index.js"))
        assert script.headers["content-type"].startswith("text/javascript")


def test_who_am_i_as_page_and_as_json(world: World) -> None:
    info = world.stack.url("app.localhost", "/.pomerium/")
    with world.client() as client:
        assert client.get(info, headers=JSON).json()["isImpersonated"] is False
        sign_in(client, world.stack.url("app.localhost"), ADA)
        document = client.get(info, headers=JSON).json()
        assert document["session"]["userId"] == ADA
        assert "token" not in json.dumps(document).lower()
        page = client.get(info, headers=HTML).text
        assert "Sign out on all devices" in page
        assert f'href="{world.stack.authenticate_url}/.pomerium/sign_out"' in page


def gatehouse(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as an operator runs it beside the services."""
    stack = world.stack
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")} | {
        "SERVICES": "authorize",
        "GRPC_INSECURE": "true",
        "DATABROKER_SERVICE_URL": f"http://127.0.0.1:{stack.grpc_ports['databroker']}",
    }
    if not stack.split:
        environment["DATABROKER_SERVICE_URL"] = f"http://127.0.0.1:{stack.grpc_ports['proxy']}"
    return subprocess.run(
        [sys.executable, "-m", "gatehouse.cli", *arguments, "--config", str(stack.config_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_r44_an_operator_ends_a_session_and_all_of_a_user(world: World) -> None:
    app = world.stack.url("app.localhost")
    with world.client() as first, world.client() as second, world.client() as o:
        for client, user in ((first, ADA), (second, ADA), (o, GRACE)):
            assert sign_in(client, app, user)[-1].status_code == 200

        def session_id() -> str:
            info = first.get(f"{app}.pomerium/", headers=JSON).json()
            return str(info["session"]["id"])

        def wait_refused(client: httpx.Client) -> None:
            started_s = time.monotonic()
            while client.get(app, headers=HTML).status_code != 302:
                assert time.monotonic() - started_s < 20
                time.sleep(0.01)

        one = session_id()
        if not world.stack.split:  # where the command runs makes no difference to its question
            refused = gatehouse(world, "sessions", "revoke", one)
            assert refused.returncode == 1, "nobody answered the question"
            assert first.get(app, headers=HTML).status_code == 200
        ended = gatehouse(world, "sessions", "revoke", one, "--yes")
        assert ended.returncode == 0, ended.stderr
        wait_refused(first)
        assert second.get(app, headers=HTML).status_code == 200
        assert gatehouse(world, "sessions", "revoke", "--user", ADA, "--yes").returncode == 0
        wait_refused(second)
        assert o.get(app, headers=HTML).status_code == 200
