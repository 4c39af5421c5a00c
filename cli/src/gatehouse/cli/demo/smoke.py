"""Answers whether a running demo does its job, without a browser: signs in, is refused, signs out.

Real HTTPS, verified against the local authority; the sign-in goes through the provider's own page.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import httpx
from rich.console import Console

from gatehouse.cli.demo.local_client import local_client

ADA: Final = "ada@example.com"
GRACE: Final = "grace@example.com"

_HTML: Final = {"accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}
_JSON: Final = {"accept": "application/json"}
_REVOKED_WITHIN_S: Final = 2.0
_FORGED: Final = {
    "x-pomerium-jwt-assertion": "forged.by.client",
    "x-pomerium-claim-email": "root@example.com",
}


class StepFailedError(Exception):
    """A step found something other than what it should."""


@dataclass
class _Form(HTMLParser):
    """The first form of a page: where it goes and its hidden fields."""

    action: str | None = None
    fields: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "form" and self.action is None:
            self.action = values.get("action", "")
        elif tag == "input" and values.get("type") == "hidden":
            self.fields[values.get("name", "")] = values.get("value", "")


def choice_of(page: str, url: str, email: str) -> tuple[str, dict[str, str]]:
    """Return where and what to POST to sign in as `email` at the development provider's page.

    Raises StepFailedError when the page has no form.
    """
    form = _Form()
    form.feed(page)
    if form.action is None:
        raise StepFailedError(f"{url} shows no form to sign in with")
    return urljoin(url, form.action), {**form.fields, "user": email}


async def run_smoke(
    base_url: str = "https://app.localhost:8443",
    *,
    authority: Path,
    provider_url: str = "http://localhost:8444",
    console: Console | None = None,
) -> bool:
    """Walk through the demo and print each step with its result; True when all went well.

    `base_url` is the application for any signed-in person; `admin.localhost` and
    `public.localhost` are expected at the same port. Stops at the first step that fails.
    """
    walk = _Walk(base_url, authority, provider_url)
    shown = console or Console()
    started_s = time.monotonic()
    for number, (title, step) in enumerate(walk.steps(), 1):
        step_s = time.monotonic()
        try:
            found = await step()
        except (StepFailedError, httpx.HTTPError, ValueError) as error:
            shown.print(f"[bold red]✗[/] {number:2} {title}")
            shown.print(f"     {_plain(error)}", style="red", markup=False)
            shown.print("[bold red]The demo does not work as it should.[/]")
            return False
        took_ms = (time.monotonic() - step_s) * 1000
        shown.print(f"[bold green]✓[/] {number:2} {title} [dim]({took_ms:.0f} ms)[/]")
        shown.print(f"     {found}", style="dim", markup=False)
    took_s = time.monotonic() - started_s
    shown.print(f"[bold green]All {number} steps passed[/] in {took_s:.1f} s.")
    return True


class _Walk:
    """The steps, in order; later ones build on earlier ones."""

    def __init__(self, base_url: str, authority: Path, provider_url: str) -> None:
        parts = urlsplit(base_url)
        port = f":{parts.port}" if parts.port else ""
        self._app = f"https://{parts.hostname}{port}"
        self._admin = f"https://admin.localhost{port}"
        self._public = f"https://public.localhost{port}"
        self._provider = provider_url.rstrip("/")
        self._authority = authority
        self._cookies = httpx.Cookies()
        self._old_cookie = ""

    def steps(self) -> list[tuple[str, Callable[[], Awaitable[str]]]]:
        """Return title and action of each step; an action returns what it found."""
        return [
            ("Gatehouse answers over HTTPS", self._answers),
            ("A public page needs no sign-in", self._public_page),
            ("A program without a session is refused", self._program_refused),
            ("A person without a session is sent to sign in", self._sent_to_sign_in),
            ("Grace signs in and gets the page", self._grace_signs_in),
            ("The application is told who is asking", self._told_who),
            ("Identity headers forged by a client do not arrive", self._forged_headers),
            ("Policy refuses Grace the admin page", self._grace_refused),
            ("Grace signs out", self._signs_out),
            ("The session is gone, also for an old cookie", self._session_gone),
            ("Ada signs in and gets the admin page", self._ada_at_admin),
        ]

    def _client(self, *, cookies: httpx.Cookies | None = None) -> httpx.AsyncClient:
        return local_client(
            self._authority, cookies=cookies, follow_redirects=True, max_redirects=15
        )

    async def _answers(self) -> str:
        async with self._client() as client:
            answer = await client.get(f"{self._app}/ping")
        _expect(answer, 200)
        return f"{self._app}/ping says {answer.text.strip()!r}"

    async def _public_page(self) -> str:
        async with self._client() as client:
            answer = await client.get(f"{self._public}/json", headers=_JSON)
        _expect(answer, 200)
        standing = answer.json()["identity"]["standing"]
        _require(standing == "absent", f"the application should know nobody, but {standing!r}")
        return "200, and the application knows nobody"

    async def _program_refused(self) -> str:
        async with self._client() as client:
            answer = await client.get(f"{self._app}/json", headers=_JSON)
        _expect(answer, 401)
        return "401, not a redirect"

    async def _sent_to_sign_in(self) -> str:
        async with self._client() as client:
            page = await client.get(f"{self._app}/", headers=_HTML)
        self._expect_provider(page)
        return f"after {len(page.history)} redirects at {self._provider}"

    async def _grace_signs_in(self) -> str:
        async with self._client() as client:
            page = await self._sign_in(client, f"{self._app}/", GRACE)
            self._cookies = client.cookies
        _require("Grace Hopper" in page.text, "the page does not greet Grace Hopper")
        return f"{page.url} greets Grace Hopper"

    async def _told_who(self) -> str:
        identity = (await self._seen())["identity"]
        _require(identity["standing"] == "verified", f"it is told: {identity}")
        _require(identity["email"] == GRACE, f"it is told {identity['email']!r}, not {GRACE}")
        return f"{identity['email']}, with a signature that it verified"

    async def _forged_headers(self) -> str:
        seen = await self._seen(_FORGED)
        values = [value for _, value in seen["headers"]]
        arrived = sorted(name for name, value in _FORGED.items() if value in values)
        _require(not arrived, f"these arrived as the client sent them: {', '.join(arrived)}")
        _require(seen["identity"]["email"] == GRACE, "the application was misled")
        return f"the application still knows {GRACE}"

    async def _grace_refused(self) -> str:
        async with self._client(cookies=self._cookies) as client:
            page = await client.get(f"{self._admin}/", headers=_HTML)
            if str(page.url).startswith(f"{self._provider}/"):
                page = await self._choose(client, page, GRACE)
            self._cookies = client.cookies
        _expect(page, 403)
        return f"403 at {page.url.copy_with(query=None)}"

    async def _signs_out(self) -> str:
        host = urlsplit(self._app).hostname or ""
        pairs = [
            f"{cookie.name}={cookie.value}"
            for cookie in self._cookies.jar
            if cookie.domain.lstrip(".") == host and cookie.value
        ]
        _require(bool(pairs), f"there is no session cookie for {host}")
        self._old_cookie = "; ".join(pairs)
        async with self._client(cookies=self._cookies) as client:
            page = await client.get(f"{self._app}/.pomerium/sign_out", headers=_HTML)
            self._cookies = client.cookies
        _expect(page, 200)
        return f"ends at {page.url.copy_with(query=None)}"

    async def _session_gone(self) -> str:
        async with self._client(cookies=self._cookies) as client:
            page = await client.get(f"{self._app}/", headers=_HTML)
        self._expect_provider(page)
        started_s = time.monotonic()
        async with self._client() as client:
            while True:
                answer = await client.get(
                    f"{self._app}/json", headers={**_JSON, "cookie": self._old_cookie}
                )
                took_s = time.monotonic() - started_s
                if answer.status_code == 401:
                    return f"401 for a copy of the old cookie, after {took_s * 1000:.0f} ms"
                _require(
                    took_s < _REVOKED_WITHIN_S,
                    f"a copy of the old cookie still gets {answer.status_code} "
                    f"{took_s:.1f} s after sign-out",
                )
                await asyncio.sleep(0.05)

    async def _ada_at_admin(self) -> str:
        async with self._client() as client:
            page = await self._sign_in(client, f"{self._admin}/", ADA)
        _require("Ada Lovelace" in page.text, "the page does not greet Ada Lovelace")
        return f"{page.url} greets Ada Lovelace"

    async def _sign_in(self, client: httpx.AsyncClient, url: str, email: str) -> httpx.Response:
        page = await client.get(url, headers=_HTML)
        self._expect_provider(page)
        page = await self._choose(client, page, email)
        _expect(page, 200)
        _require(str(page.url) == url, f"signing in ends at {page.url}, not at {url}")
        return page

    async def _choose(
        self, client: httpx.AsyncClient, page: httpx.Response, email: str
    ) -> httpx.Response:
        target, form = choice_of(page.text, str(page.url), email)
        return await client.post(target, data=form, headers=_HTML)

    async def _seen(self, headers: dict[str, str] | None = None) -> dict[str, Any]:
        async with self._client(cookies=self._cookies) as client:
            answer = await client.get(f"{self._app}/json", headers={**_JSON, **(headers or {})})
        _expect(answer, 200)
        seen: dict[str, Any] = answer.json()
        return seen

    def _expect_provider(self, page: httpx.Response) -> None:
        _expect(page, 200)
        _require(
            str(page.url).startswith(f"{self._provider}/"),
            f"the way to sign in should end at {self._provider}, not at {page.url}",
        )


def _expect(answer: httpx.Response, status: int) -> None:
    if answer.status_code != status:
        url = answer.url.copy_with(query=None)
        raise StepFailedError(f"{url} answered {answer.status_code}, expected {status}")


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise StepFailedError(otherwise)


def _plain(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if isinstance(error, StepFailedError) else f"{type(error).__name__}: {text}"
