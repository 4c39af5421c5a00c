"""Stored routes that cannot take effect cost neither the file's changes nor each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gatehouse.common.config.hub import Commit, ConfigHub
from gatehouse.common.config.refused_routes import MOST_TRIES, OUT_OF_SERVICE, without_refused
from gatehouse.common.config.resolved import ResolvedRoute, ResolvedSettings
from tests.unit.config.test_route_records import config, route_message, settings_of

FILE = "routes: [{from: 'https://file.example.com', to: 'http://u', allowed_users: [a@b.c]}]\n"
Refuses = Callable[[list[ResolvedRoute]], str]


def site(folder: Path, stored: int, *, text: str = FILE) -> ResolvedSettings:
    """One route of the file and some of the databroker."""
    routes = [
        route_message(**{"from": f"https://h{number:04}.example.com"}) for number in range(stored)
    ]
    return settings_of(folder, config(*routes), text=text)


def hub_of(folder: Path, refuses: Refuses) -> ConfigHub:
    """A hub with one part, which has something against some routes."""
    hub = ConfigHub(site(folder, 0))

    async def prepare(new: ResolvedSettings) -> Commit:
        upstreams = [route for route in new.routes if route.upstreams]
        if reason := refuses(upstreams):
            raise ValueError(reason)
        return lambda: None

    hub.join("picky", prepare)
    return hub


def hosts(routes: list[ResolvedRoute]) -> set[str]:
    return {route.from_url.host for route in routes}


def poisoned(*numbers: int) -> Refuses:
    bad = {f"h{number:04}.example.com" for number in numbers}
    return lambda routes: ", ".join(sorted(hosts(routes) & bad))


@pytest.mark.parametrize("bad", [(), (0,), (6,), (2, 3), (0, 1, 2, 3, 4, 5, 6)])
async def test_refused_ones_answer_503_in_their_place(tmp_path: Path, bad: tuple[int, ...]) -> None:
    settings = site(tmp_path, 7)
    hub = hub_of(tmp_path, poisoned(*bad))
    found = await without_refused(settings, hub.rehearse)
    await hub.apply(found)
    for index, (route, before) in enumerate(zip(found.routes, settings.routes, strict=True)):
        assert (route.id, route.from_url) == (before.id, before.from_url)
        if index - 1 in bad:
            assert route.settings.response is not None
            assert (route.settings.response.status, route.settings.response.body) == (
                503,
                OUT_OF_SERVICE,
            )
        else:
            assert route is before
    told = [issue.key for issue in found.left_out]
    assert told == [f"route {settings.routes[n + 1].id} (https://h{n:04}.example.com)" for n in bad]
    for issue, number in zip(found.left_out, bad, strict=True):
        assert issue.message.endswith(f"cannot take effect: h{number:04}.example.com")


async def test_of_two_that_cannot_be_together_the_second_goes(tmp_path: Path) -> None:
    def refuses(routes: list[ResolvedRoute]) -> str:
        both = {"h0001.example.com", "h0004.example.com"} <= hosts(routes)
        return "both" if both else ""

    found = await without_refused(site(tmp_path, 6), hub_of(tmp_path, refuses).rehearse)
    (issue,) = found.left_out
    assert "h0004" in issue.key


async def test_where_a_stand_in_cannot_be_either_nothing_answers(tmp_path: Path) -> None:
    hub = ConfigHub(site(tmp_path, 0))

    async def prepare(new: ResolvedSettings) -> Commit:
        if "h0001.example.com" in hosts(list(new.routes)):
            raise ValueError("not this host")
        return lambda: None

    hub.join("picky", prepare)
    found = await without_refused(site(tmp_path, 3), hub.rehearse)
    assert "h0001.example.com" not in hosts(list(found.routes))
    assert len(found.left_out) == 1


async def test_the_files_own_mistakes_are_not_put_on_stored_routes(tmp_path: Path) -> None:
    hub = hub_of(tmp_path, lambda routes: ", ".join(hosts(routes) & {"file.example.com"}))
    with pytest.raises(ValueError, match="file"):
        await without_refused(site(tmp_path, 3), hub.rehearse)


async def test_the_search_is_bounded(tmp_path: Path) -> None:
    tries = 0

    def refuses(routes: list[ResolvedRoute]) -> str:
        nonlocal tries
        tries += 1
        return "no" if any(route.is_stored for route in routes) else ""

    found = await without_refused(site(tmp_path, 100), hub_of(tmp_path, refuses).rehearse)
    assert tries <= 2 + MOST_TRIES
    assert len(found.left_out) == 100
    assert [route.from_url.host for route in found.routes if route.upstreams] == [
        "file.example.com"
    ]
