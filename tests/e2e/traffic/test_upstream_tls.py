"""TLS to upstreams: whom Envoy trusts, how it names itself and the server, which HTTP follows."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.envoy import short_directory
from tests.support.tls import Authority, Leaf
from tests.support.traffic import Product, eventually, https
from tests.support.traffic_upstreams import (
    Application,
    Background,
    Http2Application,
    Seen,
    server_tls,
)

pytestmark = pytest.mark.e2e

NAME = "app.internal"
JSON = [("Accept", "application/json")]


@dataclass
class Servers:
    """TLS servers whose certificates are from one authority, and a stranger to it."""

    trusted: Authority
    foreign: Authority
    named: Application  # app.internal and localhost
    numbered: Application  # 127.0.0.1
    strict: Application  # as `named`, wants a client certificate
    second: Http2Application  # as `named`, offers h2 alone
    either: Application  # as `named`, prefers h2 but speaks HTTP/1.1
    old: Application  # as `named`, speaks TLS 1.2 alone
    pipe: Application  # as `named`, on a Unix socket
    client: Leaf
    stranger: Leaf

    @property
    def applications(self) -> list[Application]:
        return [self.named, self.numbered, self.strict, self.either, self.old, self.pipe]


@pytest.fixture(scope="module")
def servers(background: Background, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    directory = tmp_path_factory.mktemp("upstream-tls")
    trusted, foreign = Authority(directory / "trusted"), Authority(directory / "foreign", "Foreign")
    leaf = trusted.leaf(NAME, "localhost", stem="named")
    address = trusted.leaf("127.0.0.1", stem="numbered")
    old_tls = server_tls(leaf)
    old_tls.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        short_directory() as sockets,
        Application(background, tls=server_tls(leaf)).running() as named,
        Application(background, tls=server_tls(address)).running() as numbered,
        Application(
            background, tls=server_tls(leaf, client_authority=trusted.path)
        ).running() as strict,
        Http2Application(background, tls=server_tls(leaf, alpn=("h2",))).running() as second,
        Application(background, tls=server_tls(leaf, alpn=("h2", "http/1.1"))).running() as either,
        Application(background, tls=old_tls).running() as old,
        Application(background, path=f"{sockets}/s", tls=server_tls(leaf)).running() as pipe,
    ):
        client = trusted.leaf("proxy.internal", stem="client")
        stranger = foreign.leaf("proxy.internal", stem="stranger")
        yield Servers(
            trusted,
            foreign,
            *(named, numbered, strict, second, either, old, pipe),
            client,
            stranger,
        )


@dataclass(frozen=True)
class Case:
    """A route and whether it reaches its upstream; `{...}` in values are files of `Servers`."""

    name: str
    server: str
    reached: bool
    keys: dict[str, Any] = field(default_factory=dict)
    host: str = "127.0.0.1"
    server_name: str | None = None
    client_names: tuple[str, ...] = ()


TRUST = {"tls_custom_ca_file": "{trusted}"}
FOREIGN = {"tls_custom_ca_file": "{foreign}"}
AS_NAME = {"tls_upstream_server_name": NAME}
CLIENT = {"tls_client_cert_file": "{client.certificate}", "tls_client_key_file": "{client.key}"}
CLIENT_TEXT = {
    "tls_client_cert": "{client.certificate|base64}",
    "tls_client_key": "{client.key|base64}",
}
STRANGER = {
    "tls_client_cert_file": "{stranger.certificate}",
    "tls_client_key_file": "{stranger.key}",
}

CHECK: dict[str, Any] = {
    "timeout": "5s",
    "interval": "0.2s",
    "no_traffic_interval": "0.2s",
    "unhealthy_threshold": 1,
    "healthy_threshold": 1,
    "http_health_check": {"path": "/health"},
}
IN_HTTP2 = {"path": "/health", "codec_client_type": "HTTP2"}

CASES = (
    Case("ca-file", "named", True, TRUST | AS_NAME, server_name=NAME),
    Case(
        "ca-text", "named", True, {"tls_custom_ca": "{trusted|base64}"} | AS_NAME, server_name=NAME
    ),
    Case("own-name", "named", True, TRUST, host="localhost", server_name="localhost"),
    Case("by-address", "numbered", True, TRUST, server_name=""),
    Case("old-name", "named", True, TRUST | {"tls_server_name": NAME}, server_name=NAME),
    Case(
        "both-names",
        "named",
        True,
        TRUST | AS_NAME | {"tls_server_name": "other.internal"},
        server_name=NAME,
    ),
    Case(
        "star",
        "named",
        True,
        TRUST | {"tls_upstream_server_name": "*.internal"},
        server_name="example.internal",
    ),
    Case("wrong-name", "named", False, TRUST | {"tls_upstream_server_name": "other.internal"}),
    Case("wrong-star", "named", False, TRUST | {"tls_upstream_server_name": "*.app.internal"}),
    Case("wrong-address", "named", False, TRUST),
    Case("name-for-address", "numbered", False, TRUST | AS_NAME),
    Case("foreign", "named", False, FOREIGN | AS_NAME),
    Case("system", "named", False, AS_NAME),
    Case("skip", "named", True, {"tls_skip_verify": True}, server_name=""),
    Case(
        "skip-named",
        "named",
        True,
        FOREIGN | {"tls_skip_verify": True, "tls_upstream_server_name": "other.internal"},
        server_name="other.internal",
    ),
    Case(
        "client",
        "strict",
        True,
        TRUST | AS_NAME | CLIENT,
        server_name=NAME,
        client_names=("proxy.internal",),
    ),
    Case(
        "client-text",
        "strict",
        True,
        TRUST | AS_NAME | CLIENT_TEXT,
        server_name=NAME,
        client_names=("proxy.internal",),
    ),
    Case(
        "client-text-and-file",
        "strict",
        True,
        TRUST | AS_NAME | STRANGER | CLIENT_TEXT,
        server_name=NAME,
        client_names=("proxy.internal",),
    ),
    Case(
        "ca-file-and-text",
        "named",
        True,
        TRUST | AS_NAME | {"tls_custom_ca": "{foreign|base64}"},
        server_name=NAME,
    ),
    Case("old-tls", "old", True, TRUST | AS_NAME, server_name=NAME),
    Case("pipe", "pipe", True, TRUST | AS_NAME, server_name=NAME),
    Case("pipe-wrong-name", "pipe", False, TRUST | {"tls_upstream_server_name": "b.internal"}),
    Case("client-none", "strict", False, TRUST | AS_NAME),
    Case("client-strange", "strict", False, TRUST | AS_NAME | STRANGER),
    Case("client-skip", "strict", False, {"tls_skip_verify": True}),
)


def filled(servers: Servers, value: Any) -> Any:
    """`value` with the files it names."""
    if not isinstance(value, str) or not value.startswith("{"):
        return value
    files = {
        "trusted": servers.trusted.path,
        "foreign": servers.foreign.path,
        "client.certificate": servers.client.certificate,
        "client.key": servers.client.key,
        "stranger.certificate": servers.stranger.certificate,
        "stranger.key": servers.stranger.key,
    }
    name, _, form = value.strip("{}").partition("|")
    if form == "base64":
        return base64.b64encode(files[name].read_bytes()).decode()
    return str(files[name])


def routes(servers: Servers, application: Application) -> list[dict[str, Any]]:
    made = []
    for case in CASES:
        server: Application = getattr(servers, case.server)
        keys = {name: filled(servers, value) for name, value in case.keys.items()}
        url = server.url if server.path else f"https://{case.host}:{server.port}"
        made.append(https(case.name, to=url, **keys))
    trust = {name: filled(servers, value) for name, value in (TRUST | AS_NAME).items()}
    named, either = servers.named, servers.either
    return [
        *made,
        https("second", to=servers.second.url, **trust),
        https("second-spdy", to=servers.second.url, allow_spdy=True, **trust),
        https("either", to=either.url, allow_websockets=True, **trust),
        https("either-mixed", to=[either.url, application.url], **trust),
        https("checked", name="checked", to=either.url, health_checks=[CHECK], **trust),
        https(
            "checked-second",
            name="checked-second",
            to=servers.second.url,
            health_checks=[{**CHECK, "http_health_check": IN_HTTP2}],
            **trust,
        ),
        https("clear", to=application.url.replace("http://", "h2c://"), allow_websockets=True),
        https("clear-mixed", to=[application.url, application.url.replace("http://", "h2c://")]),
        https("first", to=named.url, **trust),
        https("mixed", to=[named.url, application.url], **trust),
        https("mixed-bad", to=[named.url, application.url], **AS_NAME),
    ]


@pytest.fixture(scope="module")
def world(shared: Product, servers: Servers, application: Application) -> Product:
    shared.reload(routes(servers, application))
    return shared


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_upstream_is_verified_as_the_route_says(
    world: Product, servers: Servers, case: Case
) -> None:
    server: Application = getattr(servers, case.server)
    before = len(server.seen)
    reply = world.get(case.name, headers=JSON)
    if not case.reached:
        assert reply.status == 503
        assert json.loads(reply.body)["status"] == 503
        assert len(server.seen) == before  # not one request got there
        return
    assert reply.status == 200, reply.body
    (seen,) = server.seen[before:]
    assert (seen.server_name or "") == case.server_name
    assert seen.client_names == case.client_names


@pytest.mark.parametrize(
    ("host", "version", "settled"),
    [
        ("second", "HTTP/2", "h2"),
        ("second-spdy", "HTTP/2", "h2"),
        ("first", "HTTP/1.1", None),
        ("either", "HTTP/1.1", "http/1.1"),
        ("clear", "HTTP/1.1", None),
        ("clear-mixed", "HTTP/1.1", None),
    ],
)
def test_the_server_chooses_the_http_version(
    world: Product, host: str, version: str, settled: str | None
) -> None:
    seen = world.get(host).seen
    assert (seen["version"], seen["protocol"]) == (version, settled)


def test_secure_and_plain_upstreams_share_a_route(
    world: Product, servers: Servers, application: Application
) -> None:
    urls = {world.get("mixed").value("x-upstream") for _ in range(6)}
    assert urls == {servers.named.url, application.url}
    # The one that does not verify is no reason to reach it in clear text.
    before = len(servers.named.seen)
    statuses = {world.get("mixed-bad").status for _ in range(6)}
    assert statuses == {200}  # what could not be sent goes to the other one instead
    assert len(servers.named.seen) == before


def test_secure_and_plain_upstreams_of_one_route_are_spoken_to_alike(
    world: Product, servers: Servers, application: Application
) -> None:
    """In HTTP/1.1, whatever the secure one would rather speak."""
    replies = [world.get("either-mixed") for _ in range(6)]
    assert {reply.value("x-upstream") for reply in replies} == {
        servers.either.url,
        application.url,
    }
    seen = {(reply.seen["version"], reply.seen["protocol"]) for reply in replies}
    assert seen == {("HTTP/1.1", "http/1.1"), ("HTTP/1.1", None)}


def test_a_check_asks_tls_for_what_it_speaks(world: Product, servers: Servers) -> None:
    """Else a server that prefers HTTP/2 answers in it, and nobody is ever well."""
    asked: dict[str, tuple[list[Seen], str]] = {
        "checked": (servers.either.checks, "http/1.1"),
        "checked-second": (servers.second.seen, "h2"),
    }

    def are_well() -> bool:
        found = world.stats(r"cluster\.checked(-second)?\.membership_healthy")
        return len(found) == 2 and set(found.values()) == {1}

    eventually(are_well, 20.0)
    for host, (seen, settled) in asked.items():
        found = {each.protocol for each in seen if each.target == "/health"}
        assert found == {settled}, host


def test_the_global_authority_is_used_unless_a_route_has_its_own(
    world: Product, servers: Servers, application: Application
) -> None:
    made = routes(servers, application)
    world.reload(made, certificate_authority_file=str(servers.trusted.path))
    assert world.get("system").status == 200
    assert world.get("foreign").status == 503
    text = base64.b64encode(servers.trusted.path.read_bytes()).decode()
    world.reload(made, certificate_authority=text)
    assert world.get("system").status == 200
    world.reload(made)
    assert world.get("system").status == 503


def test_a_changed_authority_file_takes_effect(
    world: Product, servers: Servers, application: Application, tmp_path: Path
) -> None:
    path = tmp_path / "authority.pem"
    path.write_bytes(servers.trusted.path.read_bytes())
    route = https("watched", to=servers.named.url, tls_custom_ca_file=str(path), **AS_NAME)
    world.reload([route])
    assert world.get("watched").status == 200
    beside = tmp_path / "next.pem"
    beside.write_bytes(servers.foreign.path.read_bytes())
    beside.replace(path)
    eventually(lambda: world.get("watched").status == 503)
    path.write_bytes(servers.trusted.path.read_bytes())
    eventually(lambda: world.get("watched").status == 200)
