"""Who uses the deployment of compose/, how they reach it, and what each must be answered."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.load import Person, cookies_of
from tests.support.localhost import localhost_client
from tests.support.sign_in import follow, mock_provider_form, query_of, sign_in

APP = "https://app.gatehouse.localhost"
ADMIN = "https://admin.gatehouse.localhost"
AUTHENTICATE = "https://authenticate.gatehouse.localhost"


@dataclass
class Site:
    """How the deployment is reached from here."""

    authority: Path
    port: int
    idp_port: int

    def client(self) -> httpx.Client:
        hosts = {
            "app.gatehouse.localhost": self.port,
            "admin.gatehouse.localhost": self.port,
            "authenticate.gatehouse.localhost": self.port,
            "idp.gatehouse.localhost": self.idp_port,
        }
        return localhost_client(self.authority, hosts=hosts)

    def wait_reached(self, within_s: float = 30.0) -> None:
        """Until a proxy answers: the balancer finds them a moment after they are healthy."""
        deadline = time.monotonic() + within_s
        with self.client() as client:
            while True:
                try:
                    if client.get(f"{APP}/ping").status_code == 200:
                        return
                except httpx.HTTPError:
                    if time.monotonic() > deadline:
                        raise
                assert time.monotonic() < deadline, "the proxies answer, and not as they should"
                time.sleep(0.2)

    def signed_in(self, user: str) -> list[tuple[str, str, str]]:
        """The cookies of a fresh session, good for both applications. AssertionError otherwise."""
        with self.client() as client:
            for url in (APP, ADMIN):
                last = sign_in(client, f"{url}/json", user)[-1]
                expected = 403 if url == ADMIN and user != "ada" else 200
                assert last.status_code == expected, (last.status_code, str(last.url))
            return cookies_of(client)

    def back_from_provider(self, client: httpx.Client, user: str) -> str:
        """Sign in up to the provider's answer; where it sends the browser, not yet followed."""
        page = follow(client, client.get(f"{APP}/json", headers={"accept": "text/html"}))[-1]
        answer = mock_provider_form(client, page, user)
        assert answer.status_code == 302, answer.status_code
        return answer.headers["location"]

    def signed_out(self, user: str) -> list[tuple[str, str, str]]:
        """The cookies of a session that worked and was ended."""
        with self.client() as client:
            assert sign_in(client, f"{APP}/json", user)[-1].status_code == 200
            kept = cookies_of(client)
            page = follow(client, client.get(f"{APP}/.pomerium/sign_out"))[-1]
            assert page.status_code == 200, page.status_code
            return kept


def shows(email: str) -> Callable[[httpx.Response], bool]:
    """The application answers and knows exactly this person, by a verified assertion."""

    def is_right(response: httpx.Response) -> bool:
        if response.status_code != 200:
            return False
        identity = response.json()["identity"]
        return bool(identity["email"] == email)

    return is_right


def is_refused(response: httpx.Response) -> bool:
    return response.status_code == 403


def must_sign_in(response: httpx.Response) -> bool:
    return (
        response.status_code == 302
        and response.headers["location"].startswith(f"{AUTHENTICATE}/")
        and "pomerium_redirect_uri" in query_of(response.headers["location"])
    )


def is_alive(response: httpx.Response) -> bool:
    return response.status_code == 200


def people(site: Site) -> list[Person]:
    """Each twice, so that both proxies have connections of each kind."""
    ada, grace = site.signed_in("ada"), site.signed_in("grace")
    gone = site.signed_out("grace")
    kinds = [
        Person("ada at app", f"{APP}/json", ada, shows("ada@example.com")),
        Person("ada at admin", f"{ADMIN}/json", ada, shows("ada@example.com")),
        Person("grace at app", f"{APP}/json", grace, shows("grace@example.com")),
        Person("grace at admin", f"{ADMIN}/json", grace, is_refused),
        Person("stranger at app", f"{APP}/json", (), must_sign_in),
        Person("signed out at app", f"{APP}/json", gone, must_sign_in),
        Person("anybody at sign-in", f"{AUTHENTICATE}/ping?turn=", (), is_alive),
    ]
    return kinds * 2
