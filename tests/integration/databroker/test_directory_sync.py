"""The directory's records follow a file or a URL, and survive whatever happens to it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.config.resolved import ResolvedSettings, ServiceName
from gatehouse.common.errors import GatehouseError
from gatehouse.common.ids import DIRECTORY_USER
from gatehouse.common.observability.metrics import DIRECTORY_ERRORS, DIRECTORY_SYNC_TIME
from gatehouse.databroker.edge import directory_source
from gatehouse.databroker.edge.backends.base import Storage, running
from gatehouse.databroker.edge.backends.memory import MemoryStorage
from gatehouse.databroker.edge.directory_source import read_source
from gatehouse.databroker.edge.directory_sync import DirectorySync
from gatehouse.databroker.service import build as build_databroker
from tests.integration.authorize.conftest import Node, running_authorize, writer_to
from tests.support.check import SECRET, check_request, handle_token, resolved_settings, route
from tests.support.check import status_of as http_status
from tests.support.policy import policy_of, session_record, user_record
from tests.support.tls import Authority

GOOD = {"users": [{"id": "u1", "groups": ["eng"]}, {"id": "u2", "groups": []}]}


class Round:
    """A synchroniser over a store, and what it shows."""

    def __init__(self, storage: Storage, settings: ResolvedSettings) -> None:
        self.settings = settings
        self.shown: dict[str, str] = {}
        self.sync = DirectorySync(
            storage,
            lambda: self.settings,
            SystemClock(),
            SystemRng(),
            show=self.shown.__setitem__,
            look_s=0.01,
        )
        self.stop = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Round]:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.sync.run(self.stop))
            try:
                yield self
            finally:
                self.stop.set()

    @property
    def state(self) -> str:
        return self.shown.get("state", "")


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.005)


def settings(source: str, **keys: Any) -> ResolvedSettings:
    keys.setdefault("directory_refresh_interval", "10s")
    made = resolved_settings(directory_source=source, **keys)
    quick = made.settings.model_copy(update={"directory_refresh_interval": 0.02})
    return dataclasses.replace(made, settings=quick)


async def users(storage: Storage) -> dict[str, int]:
    page = await storage.head(DIRECTORY_USER, None, limit=1000)
    return {record.id: record.version for record in page.records}


@pytest.fixture
async def storage() -> AsyncIterator[Storage]:
    async with running(MemoryStorage(SystemClock(), SystemRng())) as made:
        yield made


async def test_follows_a_file_and_keeps_the_last_good_one(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "directory.json"
    source.write_text(json.dumps(GOOD))
    one = Round(storage, settings(str(source)))
    async with one.running():
        await until(lambda: one.state == "synchronised")
        first = await users(storage)
        assert first.keys() == {"u1", "u2"}
        assert float(one.shown["last_success"]) == pytest.approx(
            DIRECTORY_SYNC_TIME._value.get(), abs=30
        )
        source.write_text("id,groups\nu1,eng\nu3,sales\n")

        async def has_changed() -> bool:
            return (await users(storage)).keys() == {"u1", "u3"}

        await until(has_changed)
        now = await users(storage)
        for bad, why in (
            ('{"users": [', "line 1"),
            ("id,groups\nu1,eng\nu1,eng\n", "line 3: user 'u1' is there twice"),
            ('{"users": []}', "would be removed"),
        ):
            errors = DIRECTORY_ERRORS._value.get()
            source.write_text(bad)
            await until(lambda why=why: why in one.state)  # type: ignore[misc]
            assert "the last good directory stays" in one.state
            assert DIRECTORY_ERRORS._value.get() > errors
            assert await users(storage) == now
        source.unlink()
        await until(lambda: "cannot be read" in one.state)
        assert await users(storage) == now
        source.write_text('{"users": []}')
        one.settings = settings(str(source), directory_max_shrink=1)
        await until(lambda: one.state == "synchronised")
        assert await users(storage) == {}
        one.settings = settings("")
        await until(lambda: one.state.startswith("off"))


async def test_one_of_two_does_it_and_the_other_takes_over(
    storage: Storage, tmp_path: Path
) -> None:
    source = tmp_path / "directory.json"
    source.write_text(json.dumps(GOOD))
    first, second = (Round(storage, settings(str(source))) for _ in range(2))
    async with first.running():
        await until(lambda: first.state == "synchronised")
        async with second.running():
            await until(lambda: second.state == "another databroker synchronises")
            first.stop.set()
            await until(lambda: second.state == "synchronised")


class Site:
    """An https server with a document, and the requests that it got."""

    def __init__(self) -> None:
        self.status, self.body, self.headers = 200, json.dumps(GOOD).encode(), {}  # type: ignore[var-annotated]
        self.asked: list[dict[str, str]] = []
        self.url = ""
        self.ca_pem = b""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(made.status)
            for name, value in made.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(made.body)))
            self.end_headers()
            self.wfile.write(made.body)

        def log_message(self, *_arguments: object) -> None:
            pass

    authority = Authority(tmp_path / "ca")
    leaf = authority.leaf("localhost")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(leaf.certificate, leaf.key)
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    made.url = f"https://localhost:{server.server_port}/people.json"
    made.ca_pem = authority.path.read_bytes()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_reads_a_url_over_verified_tls(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "token-of-the-directory"
    data = await read_source(site.url, token=token, ca_bundle_pem=site.ca_pem)
    assert json.loads(data) == GOOD
    assert site.asked[0]["authorization"] == f"Bearer {token}"
    other_name = site.url.replace("localhost", "127.0.0.1")
    for url, ca_pem in ((site.url, None), (other_name, site.ca_pem)):
        with pytest.raises(GatehouseError, match=r"(?i)certificate.verify"):
            await read_source(url, token=token, ca_bundle_pem=ca_pem)
    site.status = 500
    with pytest.raises(GatehouseError, match="answered 500") as caught:
        await read_source(f"{site.url}?key=hidden", token=token, ca_bundle_pem=site.ca_pem)
    assert "hidden" not in str(caught.value)
    assert token not in str(caught.value)
    site.status, site.headers = 302, {"location": site.url + "?elsewhere"}
    asked = len(site.asked)
    with pytest.raises(GatehouseError, match="answered 302"):
        await read_source(site.url, token=token, ca_bundle_pem=site.ca_pem)
    assert len(site.asked) == asked + 1  # and nobody else was given the token
    site.status, site.headers = 200, {}
    monkeypatch.setattr(directory_source, "MAX_DOCUMENT_BYTES", 10)
    with pytest.raises(GatehouseError, match="MiB"):
        await read_source(site.url, ca_bundle_pem=site.ca_pem)


async def test_only_regular_files_of_some_size_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, why in (("pipe", "no regular file"), (".", "cannot be read"), ("none", "No such")):
        with pytest.raises(GatehouseError, match=why):
            await read_source(str(tmp_path / name), ca_bundle_pem=None)
    (tmp_path / "large").write_bytes(b"x" * 11)
    monkeypatch.setattr(directory_source, "MAX_DOCUMENT_BYTES", 10)
    with pytest.raises(GatehouseError, match="MiB"):
        await read_source(str(tmp_path / "large"), ca_bundle_pem=None)


async def test_r43_groups_decide_as_the_document_says(tmp_path: Path) -> None:
    source = tmp_path / "directory.csv"
    source.write_text("id,groups\nu1,eng\n")
    services = frozenset({ServiceName.DATABROKER})
    broker = Node(settings(str(source), services=services), tmp_path / "d")
    async with broker.running(build_databroker), writer_to(broker.port) as client:
        await client.put(
            [
                user_record("u1", "ann@example.com"),
                session_record("s1", "u1", expires_at_s=4_000_000_000),
            ]
        )
        made = resolved_settings(
            route(policy_of("allow: {and: [{groups: {has: eng}}]}")),
            databroker_urls=(f"http://127.0.0.1:{broker.port}",),
        )
        async with running_authorize(tmp_path / "a", made) as authorize:
            headers = {"cookie": f"_pomerium={handle_token(SECRET, 's1')}"}

            async def is_allowed() -> bool:
                return http_status(await authorize.check(check_request(headers=headers))) == 200

            async def is_refused() -> bool:
                return not await is_allowed()

            await until(is_allowed)
            source.write_text("id,groups\nu1,sales\n")
            await until(is_refused)
