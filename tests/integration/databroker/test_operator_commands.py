"""`gatehouse databroker` against real databrokers over all three stores."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as ProtoAny
from google.protobuf.struct_pb2 import Struct
from rich.console import Console

from gatehouse.cli import databroker_inspect as inspecting
from gatehouse.cli import databroker_transfer as transfer
from gatehouse.cli.archive import FIRST_LINE
from gatehouse.databroker.core.options import TypeRules
from gatehouse.databroker.core.records import Incoming
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User
from tests.support.storage import SECRET, Served, StorageCase, incoming, served, storage_case

USER = "type.googleapis.com/user.User"
SESSION = "type.googleapis.com/session.Session"
ODD = "example.org/odd"
TOKENS = ("raw-id-token-value", "access-token-value", "refresh-token-value")
UNKNOWN_FIELD = b"\xfa\x7f\x05later"  # number 2047, a string: of a newer release


@dataclass
class Desk:
    """A databroker, and the configuration file of its operator."""

    case: StorageCase
    broker: Served
    config: Path

    async def run(self, command: Callable[..., int], **options: Any) -> int:
        """The commands run an event loop of their own: in a thread."""
        return await asyncio.to_thread(command, self.config, {}, **options)


@contextlib.asynccontextmanager
async def desk_of(backend: str, directory: Path) -> AsyncIterator[Desk]:
    directory.mkdir()  # noqa: ASYNC240 - once, before anything runs
    async with storage_case(backend, directory) as case, served(case.storage) as broker:
        config = directory / "config.yaml"
        config.write_text(
            "services: authorize\n"
            f"shared_secret: {base64.b64encode(SECRET).decode()}\n"
            "authenticate_service_url: https://authenticate.example.com\n"
            f"databroker_service_url: http://127.0.0.1:{broker.port}\n"
        )
        yield Desk(case, broker, config)


@pytest.fixture
async def desk(backend: str, tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk_of(backend, tmp_path / "desk") as made:
        yield made


def session(id_: str) -> Incoming:
    made = Session(id=id_, user_id="u1")
    made.id_token.raw, made.oauth_token.access_token, made.oauth_token.refresh_token = TOKENS
    payload = ProtoAny(type_url=SESSION, value=made.SerializeToString() + UNKNOWN_FIELD)
    return Incoming(SESSION, id_, payload.SerializeToString())


async def fill(case: StorageCase, users: int = 700) -> None:
    await case.storage.set_options(ODD, TypeRules(capacity=1_000, indexed=("name",)))
    for first in range(0, users, 500):
        ids = [f"u{n:05}" for n in range(first, min(first + 500, users))]
        await case.put(*(incoming(USER, id_, User(id=id_, name="Ann")) for id_ in ids))
    unknown = ProtoAny(type_url="type.googleapis.com/no.such.Message", value=b"\xff\x00\x01")
    odd = Struct()
    odd.update({"name": "Å", "client_secret": "hidden-value", "$index": {"cidr": "10.0.0.0/8"}})
    await case.put(
        session("s1"),
        session("s2"),
        incoming(ODD, "a/b ü", odd),
        Incoming("no.such", "x", unknown.SerializeToString()),
    )
    await case.put(incoming(USER, "u00000"))  # a deletion
    await case.storage.put_access_times({(SESSION, "s1"): 1_700_000_000_000_000})


async def contents(case: StorageCase) -> dict[tuple[str, str], bytes]:
    found: dict[tuple[str, str], bytes] = {}
    after, is_last = None, False
    while not is_last:
        page = await case.storage.head("", after, limit=500)
        found |= {record.key: record.data for record in page.records}
        after, is_last = page.records[-1].key if page.records else after, page.is_last
    return found


PAIRS = [
    pytest.param(
        source,
        target,
        id=f"{source}-{target}",
        marks=[pytest.mark.postgres] if "postgres" in {source, target} else [],
    )
    for source, target in (
        *(("memory", "file"), ("file", "postgres"), ("postgres", "memory")),
        *(("memory", "postgres"), ("postgres", "file"), ("file", "memory")),
    )
]


@pytest.mark.parametrize(("source", "target"), PAIRS)
async def test_records_move_between_stores_without_loss(
    source: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "records.archive"
    async with desk_of(source, tmp_path / "old") as old, desk_of(target, tmp_path / "new") as new:
        await fill(old.case)
        assert await old.run(transfer.export, target=str(archive), overwrite=False) == 0
        assert stat.S_IMODE(archive.stat().st_mode) == 0o600
        options = {"source": str(archive), "merge": False, "replace": False, "ask": None}
        assert await new.run(transfer.import_, **options) == 0
        moved = await contents(new.case)
        assert moved == await contents(old.case)
        assert len(moved) == 703
        assert moved[SESSION, "s1"].endswith(UNKNOWN_FIELD)
        assert await new.case.storage.options(ODD) == TypeRules(1_000, indexed=("name",))
        assert (await new.case.storage.access_times(SESSION, ["s1", "s2"])) == {
            "s1": 1_700_000_000_000_000
        }
        said = capsys.readouterr()
        assert "there: 703 of 703 records, 0 others" in said.err
        assert not any(token in said.err + said.out for token in TOKENS)

        # Once more: only when told to, and then nothing is written twice.
        assert await new.run(transfer.import_, **options) == 1
        assert "--merge" in capsys.readouterr().err
        before = await new.case.storage.position()
        assert await new.run(transfer.import_, **{**options, "merge": True}) == 0
        assert (await new.case.storage.position()).latest == before.latest
        await new.case.put(incoming(USER, "other", User(id="other")))
        assert await new.run(transfer.import_, **{**options, "replace": True}) == 0
        assert await contents(new.case) == moved


async def test_changes_during_an_export_are_in_it(tmp_path: Path) -> None:
    """Records change behind the place that the copy has reached."""
    archive = tmp_path / "records.archive"
    async with (
        desk_of("memory", tmp_path / "old") as old,
        desk_of("memory", tmp_path / "new") as new,
    ):
        await fill(old.case, 2_000)
        real_head = old.case.storage.head

        async def head(type_: str, after: Any, *, limit: int) -> Any:
            page = await real_head(type_, after, limit=limit)
            if page.is_last:  # everything has been read by now
                await old.case.put(
                    incoming(ODD, "0 new", Struct()),
                    incoming(USER, "u00001"),
                    incoming(USER, "u00002", User(id="u00002", name="Bea")),
                )
            return page

        old.case.storage.head = head  # type: ignore[method-assign]
        assert await old.run(transfer.export, target=str(archive), overwrite=False) == 0
        old.case.storage.head = real_head  # type: ignore[method-assign]
        options = {"source": str(archive), "merge": False, "replace": False, "ask": None}
        assert await new.run(transfer.import_, **options) == 0
        assert await contents(new.case) == await contents(old.case)


async def test_what_is_not_whole_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "records.archive"
    async with desk_of("memory", tmp_path / "old") as old:
        await fill(old.case, 20)
        assert await old.run(transfer.export, target=str(archive), overwrite=False) == 0
        assert await old.run(transfer.export, target=str(archive), overwrite=False) == 2
        assert "--overwrite" in capsys.readouterr().err
        before = await old.case.storage.position()
        whole = archive.read_bytes()
        damaged = {
            "cut": whole[: len(whole) // 2],
            "without its end": whole[:-1],
            "longer": whole + b"\x00",
            "altered": whole.replace(b"Ann", b"Eve", 1),
            "empty": b"",
            "no archive": b"Gatehouse something else\n",
            "first line": FIRST_LINE,
        }
        for what, data in damaged.items():
            archive.write_bytes(data)
            options = {"source": str(archive), "merge": False, "replace": True, "ask": None}
            assert await old.run(transfer.import_, **options) == 2, what
            assert str(archive) in capsys.readouterr().err
        assert await old.case.storage.position() == before


async def test_an_answer_of_no_changes_nothing(desk: Desk) -> None:
    await fill(desk.case, 3)
    before = await desk.case.storage.position()
    asked: list[str] = []

    def no(question: str) -> bool:
        asked.append(question)
        return False

    assert await desk.run(inspecting.clear, ask=no) == 1
    assert await desk.run(inspecting.bump_version, ask=no) == 1
    assert await desk.case.storage.position() == before
    assert "6 records" in asked[0]
    assert await desk.run(inspecting.bump_version, ask=None) == 0
    after = await desk.case.storage.position()
    assert after.server_version != before.server_version
    assert len(await contents(desk.case)) == 6
    assert await desk.run(inspecting.clear, ask=None) == 0
    assert await contents(desk.case) == {}


async def test_looking_at_records_shows_no_secrets(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    await fill(desk.case, 3)
    console = Console(file=io.StringIO(), width=500)
    capsys.readouterr()

    assert await desk.run(inspecting.status, as_json=True, console=console) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["storage"], found["records"]) == (desk.case.storage.name, 6)

    assert await desk.run(inspecting.types, as_json=True, console=console) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["type"]: line["records"] for line in lines} == {
        USER: 2,
        SESSION: 2,
        ODD: 1,
        "no.such": 1,
    }

    get = {"record_type": "session.Session", "record_id": "s1", "as_json": True}
    assert await desk.run(inspecting.get, **get, show_secrets=False) == 0
    said = capsys.readouterr().out
    assert json.loads(said)["data"]["user_id"] == "u1"
    assert not any(token in said for token in TOKENS)
    assert await desk.run(inspecting.get, **get, show_secrets=True) == 0
    said = capsys.readouterr().out
    assert all(token in said for token in TOKENS)
    assert await desk.run(inspecting.get, **{**get, "record_id": "s9"}, show_secrets=False) == 1

    for record_type in (ODD, "no.such", SESSION):
        query: dict[str, Any] = {"record_type": record_type, "text": "", "where": "", "limit": 5}
        query |= {"show_secrets": False, "console": console}
        for as_json in (True, False):
            assert await desk.run(inspecting.query, **query, as_json=as_json) == 0
    said = capsys.readouterr().out + console.file.getvalue()  # type: ignore[attr-defined]
    assert not any(secret in said for secret in (*TOKENS, "hidden-value"))
    assert "Å" in said
    assert await desk.run(inspecting.query, **{**query, "where": "[1]"}, as_json=True) == 2


async def test_query_takes_filters_and_pages(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    await fill(desk.case, 700)
    capsys.readouterr()
    options: dict[str, Any] = {"record_type": "user.User", "show_secrets": False, "as_json": True}
    options |= {"console": Console(file=io.StringIO()), "text": "", "where": "", "limit": 10_000}
    assert await desk.run(inspecting.query, **options) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 699
    assert "699 of 699" in said.err
    where = json.dumps({"$or": [{"id": "u00005"}, {"id": "u00006"}]})
    assert await desk.run(inspecting.query, **{**options, "where": where}) == 0
    ids = [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()]
    assert ids == ["u00005", "u00006"]
