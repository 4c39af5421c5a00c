"""Sign in through Gatehouse as a browser would: follow redirects, fill the provider's form."""

from __future__ import annotations

from typing import Protocol
from urllib.parse import parse_qs, urlsplit

import httpx

MAX_HOPS = 15


class ProviderForm(Protocol):
    """How a person picks an account at a provider's sign-in page."""

    def __call__(self, client: httpx.Client, page: httpx.Response, user: str) -> httpx.Response: ...


def mock_provider_form(client: httpx.Client, page: httpx.Response, user: str) -> httpx.Response:
    """The third-party mock provider: one form field, the subject."""
    return client.post(page.url, data={"sub": user})


def follow(client: httpx.Client, response: httpx.Response) -> list[httpx.Response]:
    """Follow redirects by hand; every response in order, the last one is no redirect."""
    hops = [response]
    while hops[-1].is_redirect:
        assert len(hops) < MAX_HOPS, [str(hop.url) for hop in hops]
        target = hops[-1].next_request
        assert target is not None
        hops.append(client.send(target))
    return hops


def sign_in(
    client: httpx.Client, url: str, user: str, *, form: ProviderForm = mock_provider_form
) -> list[httpx.Response]:
    """Open `url`, sign in as `user`, and return every response up to the final page."""
    hops = follow(client, client.get(url, headers={"accept": "text/html"}))
    page = hops[-1]
    if page.status_code == 503 or urlsplit(str(page.url)).netloc == urlsplit(url).netloc:
        return hops
    assert page.status_code == 200, (str(page.url), page.status_code, page.text[:2000])
    return [*hops, *follow(client, form(client, page, user))]


def query_of(url: str) -> dict[str, str]:
    """Query parameters; asserts that none is repeated."""
    values = parse_qs(urlsplit(url).query, keep_blank_values=True)
    assert all(len(items) == 1 for items in values.values()), values
    return {name: items[0] for name, items in values.items()}
