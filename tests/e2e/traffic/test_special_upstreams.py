"""Kubernetes APIs with impersonated users, and Google's serverless hosts with its tokens."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gatehouse.common.clock import SystemClock
from tests.support.google_cloud import GoogleCloud
from tests.support.sign_in import sign_in
from tests.support.traffic import DOMAIN, Product, Reply, eventually, https
from tests.support.traffic_upstreams import Application, Background, Seen, Switcher

pytestmark = pytest.mark.e2e

ADA = "ada@example.com"
KUBECTL = ("User-Agent", "kubectl/v1.33 (linux/amd64) kubernetes/abcdef")
FORGED = [
    ("Impersonate-User", "root"),
    ("Impersonate-Group", "system:masters"),
    ("Impersonate_Group", "system:masters"),
    ("Impersonate-Uid", "0"),
    ("Impersonate-Extra-Scopes", "all"),
]


CHECK = {
    "timeout": "5s",
    "interval": "0.2s",
    "no_traffic_interval": "0.2s",
    "unhealthy_threshold": 1,
    "healthy_threshold": 1,
    "http_health_check": {"path": "/health"},
}


@pytest.fixture(scope="module")
def cloud() -> Iterator[GoogleCloud]:
    with GoogleCloud(SystemClock().now_s).running() as running:
        yield running


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kubernetes") / "token"
    path.write_text("file-token-1\n")
    return path


@pytest.fixture(scope="module")
def other(background: Background) -> Iterator[Application]:
    with Application(background).running() as running:
        yield running


@pytest.fixture(scope="module")
def switcher(background: Background) -> Iterator[Switcher]:
    with Switcher(background).running() as running:
        yield running


@pytest.fixture(scope="module")
def world(
    product: Product,
    application: Application,
    other: Application,
    switcher: Switcher,
    cloud: GoogleCloud,
    token_file: Path,
) -> Iterator[Product]:
    dead = "http://127.0.0.1:1"
    signed_in = {"allow_public_unauthenticated_access": False, "allow_any_authenticated_user": True}
    serverless = {"enable_google_cloud_serverless_authentication": True}
    up = application.url
    routes: list[dict[str, Any]] = [
        https("kube", to=up, kubernetes_service_account_token="inline-token", **signed_in),
        https(
            "kube-file", to=up, kubernetes_service_account_token_file=str(token_file), **signed_in
        ),
        https(
            "kube-several",
            to=[f"{up}/base/", f"{other.url}/base/", dead],
            name="kube-several",
            kubernetes_service_account_token="inline-token",
            health_checks=[CHECK],
            healthy_panic_threshold=0,
            **signed_in,
        ),
        https(
            "kube-exec",
            to=switcher.url,
            kubernetes_service_account_token="inline-token",
            **signed_in,
        ),
        https("kube-public", to=up, kubernetes_service_account_token="inline-token"),
        https("run", to=up, **serverless),
        https("run-own", to=up, set_request_headers={"Authorization": "Basic ours"}, **serverless),
        https("plain", to=up),
    ]
    product.stack.environment["GCE_METADATA_HOST"] = cloud.host
    with product.serving(routes):
        yield product


@pytest.fixture(scope="module")
def browser(world: Product) -> Iterator[httpx.Client]:
    with world.browser("kube", "kube-file", "kube-several", "kube-exec") as client:
        hops = sign_in(client, world.url("kube"), ADA)
        assert hops[-1].status_code == 200
        yield client


def arrived(application: Application) -> Seen:
    return application.seen[-1]


# -- Kubernetes


def test_the_api_is_called_on_behalf_of_the_user(
    world: Product, browser: httpx.Client, application: Application
) -> None:
    answer = browser.get(world.url("kube", "/api/v1/pods"), headers=[*FORGED, ("X-A", "b")])
    assert answer.status_code in {200, 400}  # names with underscores may be refused outright
    answer = browser.get(
        world.url("kube", "/api/v1/pods"),
        headers=[pair for pair in FORGED if "_" not in pair[0]]
        + [("Authorization", "Bearer mine")],
    )
    assert answer.status_code == 200
    seen = arrived(application)
    assert seen.values("authorization") == ["Bearer inline-token"]
    assert seen.values("impersonate-user") == [ADA]
    assert seen.values("impersonate-group") == []
    forged = {name.lower() for name, _ in FORGED} - {"impersonate-user"}
    assert not forged & {name.lower() for name, _ in seen.headers}
    assert "system:masters" not in str(seen.headers)
    assert "_pomerium" not in str(seen.headers)


def test_each_group_is_a_line_of_its_own(
    world: Product, application: Application, provider: str
) -> None:
    groups = ["admins", "ops, night shift", "käfer"]
    claims = {"email": "kim@example.com", "groups": groups}
    put = httpx.put(f"{provider}/users/kim@example.com", json=claims, trust_env=False)
    assert put.is_success, put.text
    with world.browser("kube") as client:
        assert sign_in(client, world.url("kube"), "kim@example.com")[-1].status_code == 200
        # Again, from memory.
        for _ in range(2):
            client.get(world.url("kube"), headers={"Impersonate-Group": "system:masters"})
            seen = arrived(application)
            assert seen.values("impersonate-user") == ["kim@example.com"]
            raw = [value.encode("latin-1").decode() for value in seen.values("impersonate-group")]
            assert raw == groups


def test_the_token_file_is_trimmed_and_followed(
    world: Product, browser: httpx.Client, application: Application, token_file: Path
) -> None:
    assert sign_in(browser, world.url("kube-file"), ADA)[-1].status_code == 200
    assert arrived(application).value("authorization") == "Bearer file-token-1"
    beside = token_file.with_name("new")
    beside.write_text("file-token-2\n")
    beside.replace(token_file)

    def renewed() -> bool:
        assert browser.get(world.url("kube-file")).status_code == 200
        return arrived(application).value("authorization") == "Bearer file-token-2"

    eventually(renewed)


def test_kubectl_is_told_in_its_own_way(world: Product, application: Application) -> None:
    before = len(application.seen)
    reply = world.get("kube", headers=[KUBECTL])
    assert reply.status == 401
    status = json.loads(reply.body)
    assert (status["kind"], status["apiVersion"], status["status"]) == ("Status", "v1", "Failure")
    assert (status["reason"], status["code"]) == ("Unauthorized", 401)
    # Without a user the request would act as the service account itself.
    reply = world.get("kube-public", headers=[KUBECTL, *FORGED[:2]])
    assert (reply.status, json.loads(reply.body)["reason"]) == (403, "Forbidden")
    assert len(application.seen) == before


def test_an_api_on_several_servers_is_balanced_and_checked(
    world: Product, browser: httpx.Client, application: Application, other: Application
) -> None:
    healthy = r"cluster\.kube-several\.membership_healthy"
    eventually(lambda: list(world.stats(healthy).values()) == [2], 20.0)
    assert sign_in(browser, world.url("kube-several"), ADA)[-1].status_code == 200
    answers = [browser.get(world.url("kube-several", "/api/v1")) for _ in range(6)]
    assert {answer.headers["x-upstream"] for answer in answers} == {application.url, other.url}
    for answer in answers:
        seen = answer.json()
        assert seen["path"] == "/base/api/v1"  # once
        assert ["authorization", "Bearer inline-token"] in seen["headers"]


@pytest.mark.parametrize(
    ("token", "status"), [("SPDY/3.1", 101), ("websocket", 101), ("own-protocol", 403)]
)
def test_commands_in_containers_take_their_upgrades(
    world: Product, browser: httpx.Client, token: str, status: int
) -> None:
    assert sign_in(browser, world.url("kube-exec"), ADA)[-1].status_code == 200
    cookies = "; ".join(
        f"{each.name}={each.value}"
        for each in browser.cookies.jar
        if each.domain == f"kube-exec.{DOMAIN}"
    )
    assert world.upgraded("kube-exec", token, [("Cookie", cookies)]) == status


# -- Google Cloud


def serverless(reply: Reply, cloud: GoogleCloud) -> dict[str, Any]:
    (value,) = reply.arrived("x-serverless-authorization")
    assert value.startswith("Bearer ")
    return cloud.claims(value.removeprefix("Bearer "))


def test_the_machines_token_goes_along(world: Product, cloud: GoogleCloud) -> None:
    reply = world.get("run", headers=[("X-Serverless-Authorization", "Bearer forged")])
    assert serverless(reply, cloud)["aud"] == "https://127.0.0.1"
    assert reply.arrived("authorization") == reply.arrived("x-serverless-authorization")
    reply = world.get("run", headers=[("Authorization", "Bearer mine")])
    assert reply.arrived("authorization") == ["Bearer mine"]
    assert serverless(reply, cloud)["aud"] == "https://127.0.0.1"
    reply = world.get("run-own", headers=[("Authorization", "Bearer mine")])
    assert reply.arrived("authorization") == ["Basic ours"]
    assert serverless(reply, cloud)["aud"] == "https://127.0.0.1"
    assert len(cloud.asked) == 1
    assert world.get("plain").arrived("x-serverless-authorization") == []


def test_the_accounts_token_goes_along_and_its_loss_is_borne(
    world: Product, cloud: GoogleCloud
) -> None:
    routes = world.stack.routes[1:]

    def put_in_force(text: str) -> None:
        keys: dict[str, Any] = {"google_cloud_serverless_authentication_service_account": text}
        world.reload(routes, **keys)

    put_in_force(base64.b64encode(cloud.account().encode()).decode())
    asked = len(cloud.asked)
    assert serverless(world.get("run"), cloud)["serial"] == asked + 1
    other = json.dumps(json.loads(cloud.account()) | {"client_email": "gone@example.com"})
    cloud.failing = 500
    put_in_force(other)
    reply = world.get("run", headers=[("X-Serverless-Authorization", "Bearer forged")])
    assert reply.status == 200
    assert reply.arrived("x-serverless-authorization") == []
    assert reply.arrived("authorization") == []
    world.stack.processes["proxy"].wait_log("no token of Google Cloud for an upstream")
    log = world.stack.processes["proxy"].log()
    assert "PRIVATE KEY" not in log
    assert "eyJ" not in log
    assert f"run.{DOMAIN}" in log
