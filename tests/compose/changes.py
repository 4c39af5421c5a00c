"""What operators do on purpose: replace secrets, certificates, releases; and what strangers try."""

from __future__ import annotations

import secrets
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import httpx

from tests.compose.deployment import (
    SERVICES,
    CommandError,
    Container,
    Deployment,
    StoreRefusedError,
)
from tests.compose.people import APP, Site
from tests.compose.private import Private, serial_of
from tests.compose.scenarios import Row, Scenarios
from tests.support.load import Load
from tests.support.sign_in import follow

AWAY_S: Final = 15.0
TAKEN_UP_S: Final = 60.0
_MUTUAL = (
    "--tls-cert",
    "/run/secrets/services_certificate",
    "--tls-key",
    "/run/secrets/services_key",
)
_TRUSTING = ("--tls-ca", "/run/secrets/authority")


class Changes(Scenarios):
    """The faults, and changes made in the same way: under load, each leaving the deployment whole.

    `older` is an image of an earlier release that the deployment was started with; "" for none.
    """

    def __init__(
        self,
        deployment: Deployment,
        site: Site,
        load: Load,
        tell: Callable[[Row], None],
        private: Private,
        older: str,
    ) -> None:
        super().__init__(deployment, site, load, tell)
        self._private = private
        self._older = older

    def all_of(self) -> dict[str, Callable[[], None]]:
        return super().all_of() | {
            "strangers": self.strangers,
            "provider": self.provider,
            "password": self.password,
            "certificates": self.certificates,
            "upgrade": self.upgrade,
        }

    def strangers(self) -> None:
        """Who may speak with the services: with compose.mtls.yaml, holders of a certificate."""
        with self._fault("callers of the services' ports") as row:
            proxy = self._deployment.replicas("proxy")[0]
            for service in ("databroker", "authorize"):
                asked = ("gatehouse", "health", "--grpc", f"{service}:5443", "--service", service)
                answers = {
                    "in clear": self._answers(proxy, *asked),
                    "without a certificate": self._answers(proxy, *asked, *_TRUSTING),
                    "with one": self._answers(proxy, *asked, *_TRUSTING, *_MUTUAL),
                }
                let_in = [how for how, yes in answers.items() if yes]
                expected = ["with one"] if self._deployment.is_mutual else ["in clear"]
                assert let_in == expected, (service, answers)
                row.notes.append(f"{service} answers {let_in[0]}")

    def _answers(self, container: Container, *command: str) -> bool:
        try:
            self._deployment.inside(container, *command)
        except CommandError:
            return False
        return True

    def provider(self) -> None:
        """The identity provider silent: before a sign-in begins, and in the middle of one."""
        reaching = [
            *self._deployment.replicas("authenticate"),
            *self._deployment.replicas("databroker"),
        ]
        with self._fault("the provider silent") as row, self._site.client() as person:
            person.timeout = httpx.Timeout(60.0)
            back = self._site.back_from_provider(person, "grace")
            with self._deployment.cut(reaching, self._deployment.replicas("idp")):
                begun_s = time.monotonic()
                page = _page(follow(person, person.get(back)))
                waited_s = time.monotonic() - begun_s
                row.notes.append(f"code not redeemable: {page} after {waited_s:.0f} s")
                with self._site.client() as other:
                    row.notes.append(f"sign-in begun: {self._begun(other)}")
                time.sleep(max(0.0, AWAY_S - (time.monotonic() - begun_s)))

    def _begun(self, client: httpx.Client) -> str:
        """How far somebody comes who has to sign in now."""
        response = client.get(f"{APP}/json", headers={"accept": "text/html"})
        while response.next_request is not None:
            if urlsplit(str(response.next_request.url)).hostname == "idp.gatehouse.localhost":
                return "sent to the provider"
            response = client.send(response.next_request)
        return _page([response])

    def password(self) -> None:
        """As docs/production.md says: the file, the role, and one databroker after another."""
        with self._fault("the database's password replaced") as row:
            fresh, before = secrets.token_hex(24), self._private.path("postgres_dsn").read_text()
            old = before.split(":", 2)[2].split("@", 1)[0]
            postgres = self._deployment.replicas("postgres")[0]
            self._private.overwrite("postgres_dsn", before.replace(old, fresh).encode())
            statement = f"ALTER ROLE gatehouse PASSWORD '{fresh}';"
            psql = ("psql", "--quiet", "--username", "gatehouse", "--dbname", "gatehouse")
            self._deployment.inside(postgres, *psql, text=statement)
            for number in range(len(self._deployment.replicas("databroker"))):
                one = self._deployment.replicas("databroker")[number]
                self._deployment.restart(one)
                self._deployment.wait_healthy()
            row.notes.append("nobody signed out")

    def certificates(self) -> None:
        """New certificates and keys in the old files, people's side and between the services."""
        with self._fault("certificate of people's side replaced") as row:
            serial = self._private.renew("external")
            row.notes.append(self._taken_up(serial, "proxy", 443, proxied=True))
        with self._fault("certificate of the services replaced") as row:
            serial = self._private.renew("services")
            row.notes.append(self._taken_up(serial, "authenticate", 8443))
            if self._deployment.is_mutual:
                for service in ("databroker", "authorize"):
                    row.notes.append(f"{service} {self._taken_up(serial, service, 5443)}")
                # Connections of before go on; new ones need the new certificate on both sides.
                for service in ("databroker", "authorize"):
                    self._deployment.restart(self._deployment.replicas(service)[0])
                    self._deployment.wait_healthy()

    def _taken_up(self, serial: int, service: str, port: int, *, proxied: bool = False) -> str:
        begun_s = time.monotonic()
        waiting = {one.ip for one in self._deployment.replicas(service)}
        while waiting:
            waiting = {ip for ip in waiting if _serial_at(ip, port, proxied=proxied) != serial}
            if time.monotonic() - begun_s > TAKEN_UP_S:
                raise TimeoutError(f"{service} at {waiting} still shows the old certificate")
            time.sleep(0.2)
        return f"shown after {time.monotonic() - begun_s:.1f} s"

    def upgrade(self) -> None:
        """Each service replaced by the new release, and back, one replica after another."""
        if not self._older:
            self.rows.append(Row("upgrade and rollback", notes=["left out: no --older image"]))
            self._tell(self.rows[-1])
            return
        newer = self._deployment.newer_image
        for name, image, services in (
            ("upgraded", newer, SERVICES),
            ("rolled back", self._older, SERVICES[::-1]),
            ("upgraded again", newer, SERVICES),
        ):
            for service in services:
                with self._fault(f"{service} {name}") as row:
                    try:
                        self._deployment.replace(service, image)
                    except StoreRefusedError:
                        row.notes.append("refused: the store is of a later release")


def _page(hops: list[httpx.Response]) -> str:
    title = hops[-1].text.partition("<title>")[2].partition("</title>")[0].strip()
    return f"{hops[-1].status_code} {title!r}"


def _serial_at(ip: str, port: int, *, proxied: bool) -> int:
    """The serial number of the certificate that is shown there; 0 when none is."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((ip, port), timeout=5) as plain:
            if proxied:
                plain.sendall(b"PROXY TCP4 127.0.0.1 127.0.0.1 9 443\r\n")
            with context.wrap_socket(plain, server_hostname="app.gatehouse.localhost") as shown:
                found = shown.getpeercert(binary_form=True)
    except OSError:
        return 0
    return serial_of(ssl.DER_cert_to_PEM_cert(found).encode()) if found else 0
