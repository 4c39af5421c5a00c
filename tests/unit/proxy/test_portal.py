"""What the portal says about routes, whoever may open them."""

from __future__ import annotations

import dataclasses

import pytest

from gatehouse.common.config.resolved import ResolvedRoute
from gatehouse.common.ids import RouteId
from gatehouse.common.pages.refusal import RefusedRequestError
from gatehouse.proxy.core.portal import (
    PortalEntry,
    portal_entries,
    portal_page,
    search_text,
    searched,
)
from tests.support.web_settings import route, settings


def entries(*routes: ResolvedRoute) -> tuple[PortalEntry, ...]:
    numbered = tuple(
        dataclasses.replace(one, id=RouteId(str(number))) for number, one in enumerate(routes)
    )
    return portal_entries(settings(routes=numbered))


def test_each_kind_of_route() -> None:
    web, port, tunnel, chained, wild, exact = entries(
        route("https://app.example.com"),
        route("https://app.example.com:8443", prefix="/a b"),
        route("tcp+https://db.example.com:5432"),
        route("tcp+https://proxy.example.com/ssh.internal:22"),
        route("https://*.example.com"),
        route("https://app.example.com", path="/only", name="Only"),
    )
    assert (web.kind, web.name, web.href("")) == (
        "http",
        "app.example.com",
        "https://app.example.com/",
    )
    assert web.href(":9443") == "https://app.example.com:9443/"
    assert port.href(":9443") == "https://app.example.com:8443/a%20b"
    assert (tunnel.kind, tunnel.href("")) == ("tcp", "")
    assert tunnel.connect_command == "pomerium-cli tcp db.example.com:5432"
    assert chained.connect_command == (
        "pomerium-cli tcp tcp+https://proxy.example.com/ssh.internal:22"
    )
    assert wild.href("") == ""
    assert (exact.name, exact.href("")) == ("Only", "https://app.example.com/only")


def test_of_equal_ids_the_first_is_in_force() -> None:
    same = (route(name="first"), route(name="second"))
    assert [entry.name for entry in portal_entries(settings(routes=same))] == ["first"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ["Wiki", "Billing"]),
        ("WIKI", ["Wiki"]),
        ("notes everybody", ["Wiki"]),
        ("notes nobody", []),
        ("example.com", ["Wiki", "Billing"]),
        ("/pay", ["Billing"]),
        ("stra\u00dfe", ["Billing"]),
        ("STRASSE", ["Billing"]),
    ],
)
def test_a_search_finds_all_its_words_anywhere(text: str, found: list[str]) -> None:
    every = entries(
        route("https://w.example.com", name="Wiki", description="Everybody's notes"),
        route("https://b.example.com", name="Billing", prefix="/pay", description="Stra\u00dfe 1"),
    )
    assert [entry.name for entry in searched(every, text)] == found


def test_a_search_has_a_bound() -> None:
    assert search_text({"q": "  wiki "}) == "wiki"
    assert search_text({}) == ""
    with pytest.raises(RefusedRequestError):
        search_text({"q": "x" * 201})


@pytest.mark.parametrize(
    ("asked", "number"),
    [("1", 1), ("2", 2), ("9", 2), ("0", 1), ("-1", 1), ("x", 1), ("\u0663", 1)],
)
def test_page_numbers_stay_within(asked: str, number: int) -> None:
    many = entries(*(route(f"https://r{index}.example.com") for index in range(61)))
    page = portal_page(
        many, search="", page=asked, host="a.example.com:1", devices=frozenset(), is_cut=False
    )
    assert (page.number, page.pages, page.total) == (number, 2, 61)
    assert page.summary == f"61 applications, page {number} of 2"
    assert len(page.cards) == (60 if number == 1 else 1)
