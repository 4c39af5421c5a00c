"""Finding *.localhost over real TLS, and a smoke run that meets a site which is no Gatehouse."""

from __future__ import annotations

import io

import httpx
import pytest
from rich.console import Console

from gatehouse.cli.demo.assertion import keys_from
from gatehouse.cli.demo.certificates import ensure_certificates
from gatehouse.cli.demo.local_client import is_local_name, local_client
from gatehouse.cli.demo.smoke import StepFailedError, choice_of, run_smoke
from tests.support.local_site import local_site


@pytest.fixture
async def site(tmp_path):
    async with local_site(tmp_path / "ca") as made:
        yield made


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("localhost", True),
        ("a.b.localhost", True),
        ("notlocalhost", False),
        ("localhost.example.com", False),
        ("127.0.0.1", False),
    ],
)
def test_which_names_are_local(name, local):
    assert is_local_name(name) is local


async def test_local_names_lead_here_and_keep_their_name(site):
    async with local_client(site.certificates.authority) as client:
        for name in ("app.localhost", "admin.localhost", "app.localhost", "localhost"):
            seen = (await client.get(site.url(name))).json()
            assert seen == {"host": f"{name}:{site.port}", "sni": name}
    assert site.connections == 3  # each name has its own, and keeps it


async def test_a_certificate_of_somebody_else_is_refused(site, tmp_path):
    other = ensure_certificates(tmp_path / "other")
    async with local_client(other.authority) as client:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await client.get(site.url("app.localhost"))


async def test_keys_are_fetched_over_tls_and_bounded(site):
    site.pages = {
        "/keys": (200, '{"keys": []}'),
        "/list": (200, "[]"),
        "/gone": (404, ""),
        "/large": (200, "x" * 300_000),
    }

    async def fetch(path):
        return await keys_from(site.url("app.localhost", path), site.certificates.authority)()

    assert await fetch("/keys") == {"keys": []}
    with pytest.raises(httpx.HTTPStatusError):
        await fetch("/gone")
    with pytest.raises(ValueError, match="no JSON object"):
        await fetch("/list")
    with pytest.raises(ValueError, match="larger than"):
        await fetch("/large")


# Smoke: it must be able to fail. That it passes is shown end to end.


async def smoke(site, base_url: str | None = None) -> tuple[bool, str]:
    output = io.StringIO()
    console = Console(file=output, width=200, color_system=None)
    passed = await run_smoke(
        base_url or site.url("app.localhost", ""),
        authority=site.certificates.authority,
        provider_url="http://localhost:1",
        console=console,
    )
    return passed, output.getvalue()


async def test_smoke_fails_when_nothing_listens(site):
    passed, shown = await smoke(site, "https://app.localhost:1")
    assert not passed
    assert "✗  1 Gatehouse answers over HTTPS" in shown
    assert "ConnectError" in shown


async def test_smoke_stops_at_the_first_wrong_answer(site):
    site.pages = {
        "/ping": (200, "OK\n"),
        "/json": (200, '{"identity": {"standing": "absent"}, "headers": []}'),
    }
    passed, shown = await smoke(site)
    assert not passed
    assert "✓  2 A public page needs no sign-in" in shown
    assert "✗  3 A program without a session is refused" in shown
    assert "/json answered 200, expected 401" in shown
    assert "sent to sign in" not in shown


@pytest.mark.parametrize(
    ("ping", "said"), [((503, ""), "answered 503, expected 200"), ((200, "OK"), "JSON")]
)
async def test_smoke_names_what_was_wrong(site, ping, said):
    site.pages = {"/ping": ping, "/json": (200, "no JSON at all")}
    passed, shown = await smoke(site)
    assert not passed
    assert said in shown


def test_the_choice_is_the_form_of_the_page():
    page = (
        '<form action="/choose"><input type="hidden" name="request" value="a&amp;b">'
        '<input type="text" name="shown" value="no"></form><form action="/second"></form>'
    )
    assert choice_of(page, "http://localhost:1/authorize?x", "g@x") == (
        "http://localhost:1/choose",
        {"request": "a&b", "user": "g@x"},
    )
    with pytest.raises(StepFailedError, match="shows no form"):
        choice_of("<p>", "http://localhost:1/", "g@x")
