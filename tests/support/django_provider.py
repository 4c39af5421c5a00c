"""Django OAuth Toolkit, an identity provider that nobody here wrote, as a process of its own.

It rests on oauthlib and jwcrypto, which Gatehouse does not use. `django_provider` starts it with
one person and two clients, that differ in how they prove themselves; `visit` is what a person does
there: name, password, consent, and the same for signing out.
"""

from __future__ import annotations

import contextlib
import html
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Final
from urllib.parse import urljoin, urlsplit

import httpx

from tests.support.ports import free_ports

USER: Final = "ada"
PASSWORD: Final = "correct horse battery staple"
EMAIL: Final = "ada@example.com"
CLIENTS: Final = {"client-basic": "basic s3cret: +%", "client-post": "post s3cret/&="}
REDIRECT_URI: Final = "https://authenticate.example.com/oauth2/callback"
SIGNED_OUT: Final = "https://authenticate.example.com/.pomerium/signed_out"
START_TIMEOUT_S: Final = 60.0

_MAX_PAGES: Final = 8
_INPUT: Final = re.compile(r"<input\b[^>]*>")
_ATTRIBUTE: Final = re.compile(r"""([\w-]+)=["']([^"']*)["']""")


@contextlib.contextmanager
def django_provider() -> Iterator[str]:
    """Run it; gives its issuer URL."""
    (port,) = free_ports(1)
    issuer = f"http://127.0.0.1:{port}/o"
    with tempfile.TemporaryDirectory(prefix="gh-idp-") as directory:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.django_server", str(port), directory],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while True:
                try:
                    url = f"{issuer}/.well-known/openid-configuration"
                    httpx.get(url, timeout=5, trust_env=False).raise_for_status()
                    break
                except httpx.HTTPError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
            yield issuer
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def visit(http: httpx.AsyncClient, url: str, *, button: str = "allow") -> str:
    """Follow redirects and fill in forms until the provider sends the browser away; where to.

    `button` is pressed on the page that asks for consent, if it is there; else the form is sent
    without one, which means no.
    """
    own = urlsplit(url).netloc
    answer = await http.get(url)
    for _ in range(_MAX_PAGES):
        while answer.is_redirect:
            target = urljoin(str(answer.url), answer.headers["location"])
            if urlsplit(target).netloc != own:
                return target
            answer = await http.get(target)
        assert answer.status_code == 200, (str(answer.url), answer.text[-3000:])
        fields, named = _fields(answer.text)
        if "password" in named:
            fields |= {"username": USER, "password": PASSWORD}
        elif button in named:
            fields[button] = named[button] or "yes"
        answer = await http.post(str(answer.url), data=fields)
    raise AssertionError(f"no way on from {answer.url}: {answer.text[:2000]}")


def _fields(page: str) -> tuple[dict[str, str], dict[str, str]]:
    """Hidden fields, and all named ones, of a page's form."""
    hidden: dict[str, str] = {}
    named: dict[str, str] = {}
    for tag in _INPUT.findall(page):
        attributes = dict(_ATTRIBUTE.findall(tag))
        if "name" in attributes:
            value = html.unescape(attributes.get("value", ""))
            named[attributes["name"]] = value
            if attributes.get("type") == "hidden":
                hidden[attributes["name"]] = value
    return hidden, named
