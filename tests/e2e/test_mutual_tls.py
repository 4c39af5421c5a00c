"""Four processes that show each other certificates: signing in, strangers, and renewal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.conftest import GRACE
from tests.support.client_pki import CLIENT, DAY, SERVER, Issued
from tests.support.sign_in import sign_in
from tests.support.stack import Stack, running
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

NAME = "services.internal"


class Pki:
    """The files that the processes read, replaced as an operator would."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.root = Issued.root("services")
        self.renew(self.root)

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def write(self, name: str, text: str) -> None:
        beside = self.directory / f"{name}.new"
        beside.write_text(text)
        beside.replace(self.directory / name)

    def trust(self, *roots: Issued) -> None:
        self.write("ca.pem", "".join(root.pem for root in roots))

    def show(self, root: Issued) -> None:
        leaf = root.issue(NAME, names=[x509.DNSName(NAME)], purposes=(*SERVER, *CLIENT))
        self.write("both.pem", leaf.pem + leaf.key_pem)  # one file, so that the halves agree
        self.root = root

    def renew(self, root: Issued) -> None:
        self.trust(root)
        self.show(root)


def mutual_stack(stack: Stack, pki: Pki) -> Stack:
    leaf = {"cert": pki.path("both.pem"), "key": pki.path("both.pem")}
    stack.extra |= {
        "certificates": [leaf],
        "certificate_authority_file": pki.path("ca.pem"),
        "override_certificate_name": NAME,
        "grpc_client_ca_file": pki.path("ca.pem"),
        "grpc_client_certificate_file": leaf["cert"],
        "grpc_client_key_file": leaf["key"],
    }
    stack.environment |= {
        "GRPC_INSECURE": "false",
        "DATABROKER_SERVICE_URL": f"https://127.0.0.1:{stack.grpc_ports['databroker']}",
        "AUTHORIZE_SERVICE_URL": f"https://127.0.0.1:{stack.grpc_ports['authorize']}",
    }
    stack.write_config()
    return stack


def answer(port: int, root: Issued, client: Issued | None) -> grpc.StatusCode:
    """What a caller with that certificate gets of a process's health service."""
    credentials = grpc.ssl_channel_credentials(
        root.pem.encode(),
        None if client is None else client.key_pem.encode(),
        None if client is None else client.pem.encode(),
    )
    options = [("grpc.ssl_target_name_override", NAME)]
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        try:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


class Visitor(threading.Thread):
    """Keeps asking for a page; remembers every answer but 200."""

    def __init__(self, client: Any, url: str) -> None:
        super().__init__()
        self._client, self._url = client, url
        self._ended = threading.Event()
        self.answers = 0
        self.failures: list[str] = []

    def run(self) -> None:
        while not self._ended.is_set():
            # A path of its own each time: none is answered from memory.
            response = self._client.get(f"{self._url}/{self.answers}")
            self.answers += 1
            if response.status_code != 200:
                self.failures.append(f"{response.status_code} {response.text[:200]}")

    def end(self) -> None:
        self._ended.set()
        self.join(30)


def until_applied(stack: Stack, count: int) -> None:
    """Until every process has taken up `count` changes."""
    deadline = time.monotonic() + 20
    while any(
        one.log().count('"configuration applied"') < count for one in stack.processes.values()
    ):
        assert time.monotonic() < deadline, [one.log()[-2000:] for one in stack.processes.values()]
        time.sleep(0.05)


def test_sign_in_strangers_and_renewal(
    tmp_path: Path, fresh_stack: Callable[..., tuple[Stack, EchoUpstream]], postgres_dsn: str
) -> None:
    pki = Pki(tmp_path / "pki")
    stack, upstream = fresh_stack(split=True, postgres=postgres_dsn)
    stack.routes = [
        {
            "from": "https://app.localhost",
            "to": upstream.url,
            "policy": [
                {"allow": {"and": [{"domain": "example.com"}, {"http_path": {"starts_with": "/"}}]}}
            ],
        }
    ]
    with running(mutual_stack(stack, pki)), stack.client() as client:
        assert sign_in(client, stack.url("app.localhost"), GRACE)[-1].status_code == 200
        refused = grpc.StatusCode.UNAVAILABLE
        strangers = (
            None,
            Issued.root("another").issue(purposes=CLIENT),
            pki.root.issue(purposes=SERVER),
            pki.root.issue(purposes=CLIENT, begins=-3 * DAY, ends=-DAY),
        )
        for name, port in stack.grpc_ports.items():
            assert answer(port, pki.root, pki.root.issue(purposes=CLIENT)) is grpc.StatusCode.OK
            for stranger in strangers:
                assert answer(port, pki.root, stranger) is refused, name

        visitor = Visitor(client, stack.url("app.localhost"))
        visitor.start()
        old, new = pki.root, Issued.root("services anew")
        for number, change in enumerate(
            (lambda: pki.trust(old, new), lambda: pki.show(new), lambda: pki.trust(new)), start=1
        ):
            change()
            until_applied(stack, number)
        seen = visitor.answers
        deadline = time.monotonic() + 20
        while visitor.answers < seen + 50 and time.monotonic() < deadline:
            time.sleep(0.05)
        visitor.end()
        assert visitor.failures == []
        assert visitor.answers >= seen + 50
        for name, port in stack.grpc_ports.items():
            assert answer(port, new, old.issue(purposes=CLIENT)) is refused, name
            assert answer(port, new, new.issue(purposes=CLIENT)) is grpc.StatusCode.OK, name
        with stack.client() as another:
            assert sign_in(another, stack.url("app.localhost"), GRACE)[-1].status_code == 200
