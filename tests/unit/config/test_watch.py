"""Reload: good changes are applied, bad ones reported, the last good one stays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gatehouse.common.config.hub import Commit, ConfigHub
from gatehouse.common.config.resolve import load_and_resolve
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.config.watch import ConfigWatcher
from tests.support.configuration import CERTIFICATE, KEY, LOGIN, pem_pair

PATIENCE_S = 20.0


@dataclass
class Site:
    """A configuration on disk and what the watcher says about it."""

    path: Path
    hub: ConfigHub
    watcher: ConfigWatcher
    applied: list[ResolvedSettings] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def write(self, extra: str) -> None:
        self.path.write_text(text(self.path.parent, extra))

    async def until(self, *, applied: int = 0, errors: int = 0, served: bytes = b"") -> None:
        def reached() -> bool:
            certificate = self.hub.current.certificates[0].certificate_pem
            return (
                len(self.applied) >= applied
                and len(self.errors) >= errors
                and (not served or certificate == served)
            )

        async with asyncio.timeout(PATIENCE_S), self.changed:
            await self.changed.wait_for(reached)

    async def quiet(self) -> None:
        """Three polls go by."""
        await asyncio.sleep(0.1)


def text(folder: Path, extra: str) -> str:
    return LOGIN.replace("/tls/", f"{folder}/") + extra + "\n"


@contextlib.asynccontextmanager
async def site(folder: Path, extra: str = "", *, late: str | None = None) -> AsyncIterator[Site]:
    path = folder / "config.yaml"
    (folder / "cert.pem").write_bytes(CERTIFICATE)
    (folder / "key.pem").write_bytes(KEY)
    path.write_text(text(folder, extra))

    def load():
        return load_and_resolve(path, {}, random_secret=lambda: b"r" * 32)

    hub = ConfigHub(load()[0])
    if late is not None:
        path.write_text(text(folder, late))
    tell: list[Site] = []

    def on_applied(new: ResolvedSettings) -> None:
        tell[0].applied.append(new)
        wake()

    def on_error(error: Exception) -> None:
        tell[0].errors.append(str(error))
        wake()

    def wake() -> None:
        tasks.create_task(notify())

    async def notify() -> None:
        async with tell[0].changed:
            tell[0].changed.notify_all()

    watcher = ConfigWatcher(
        hub, path=path, load=load, on_error=on_error, on_applied=on_applied, poll_s=0.03
    )
    tell.append(Site(path, hub, watcher))
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watcher.run(stop))
        try:
            yield tell[0]
        finally:
            stop.set()


async def test_a_good_change_is_applied(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        here.write("cookie_name: changed")
        await here.until(applied=1)
        assert here.hub.current.settings.cookie_name == "changed"
        assert here.errors == []


async def test_a_change_made_before_watching_began_counts(tmp_path: Path) -> None:
    async with site(tmp_path, late="cookie_name: late") as here:
        await here.until(applied=1)
        assert here.hub.current.settings.cookie_name == "late"


async def test_a_bad_change_is_reported_once_and_a_later_good_one_applied(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        first = here.hub.current
        here.write("timeout_read: 30")
        await here.until(errors=1)
        await here.quiet()
        assert here.hub.current is first
        (error,) = here.errors
        assert "timeout_read: 30 has no unit" in error
        assert f"{here.path}:" in error
        here.write("timeout_read: 31s")
        await here.until(applied=1)
        assert here.hub.current.settings.timeout_read == 31


async def test_going_back_to_the_good_one_ends_the_failure(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        here.write("timeout_read: 30")
        await here.until(errors=1)
        here.write("")
        await here.until(applied=1)
        assert len(here.errors) == 1


async def test_a_referenced_file_is_followed(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        certificate, key = pem_pair("*.example.org")
        (tmp_path / "cert.pem").write_bytes(certificate)
        (tmp_path / "key.pem").write_bytes(key)
        await here.until(served=certificate)


async def test_a_missing_file_that_appears_mends_the_configuration(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        here.write(f"certificates: [{{cert: {tmp_path}/new.pem, key: {tmp_path}/key.pem}}]")
        await here.until(errors=1)
        assert "new.pem cannot be read" in here.errors[0]
        (tmp_path / "new.pem").write_bytes(CERTIFICATE)
        await here.until(applied=1)
        assert len(here.hub.current.certificates) == 2


async def test_a_missing_main_file_is_an_error_and_its_return_mends_it(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        here.path.unlink()
        await here.until(errors=1)
        here.write("cookie_name: back")
        await here.until(applied=1)


async def test_a_refusing_participant_keeps_the_last_good_one(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        first = here.hub.current

        async def refuse(new: ResolvedSettings) -> Commit:
            raise ValueError(f"not {new.settings.cookie_name}")

        here.hub.join("stubborn", refuse)
        here.write("cookie_name: changed")
        await here.until(errors=1)
        assert here.errors == ["not changed"]
        assert here.hub.current is first


async def test_without_hot_reload_only_a_request_loads(tmp_path: Path) -> None:
    async with site(tmp_path, "runtime_flags: {config_hot_reload: false}") as here:
        here.write("cookie_name: changed")
        await here.quiet()
        assert here.applied == []
        here.watcher.request_reload()
        await here.until(applied=1)
        assert here.hub.current.settings.cookie_name == "changed"


async def test_a_request_with_nothing_changed_applies_nothing(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        first = here.hub.current
        here.watcher.request_reload()
        await here.quiet()
        assert here.hub.current is first
        assert here.applied == []
        assert here.errors == []


async def test_loading_does_not_hold_up_the_event_loop(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        here.write("cookie_name: changed")
        ticks = 0
        while not here.applied:
            await asyncio.sleep(0)
            ticks += 1
        assert ticks > 10


@pytest.mark.parametrize("content", ["", "services: nonsense"])
async def test_a_truncated_file_does_not_take_down_the_good_one(
    tmp_path: Path, content: str
) -> None:
    async with site(tmp_path) as here:
        first = here.hub.current
        here.path.write_text(content)
        here.write("cookie_name: whole")
        await here.until(applied=1)
        assert here.hub.current is not first
        assert here.hub.current.settings.cookie_name == "whole"
