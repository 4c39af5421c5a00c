"""`gatehouse databroker` status, types, get, query, clear and bump-version."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gatehouse.cli.operator import EXIT_FAILED, with_databroker
from gatehouse.cli.record_text import document, plain
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.errors import InvalidArgumentError, NotFoundError
from gatehouse.common.ids import TypeUrl
from gatehouse.common.runtime.process import EXIT_CONFIG, EXIT_OK
from gatehouse.pb.databroker_pb2 import Record

PREFIX: Final = "type.googleapis.com/"
CLEARING_S: Final = 60.0
PAGE: Final = 500
MAX_SHOWN: Final = 10_000

Ask = Callable[[str], bool]


def type_url(name: str) -> TypeUrl:
    """The type of records as they carry it; `session.Session` will do for messages."""
    is_message = "/" not in name and "." in name
    return TypeUrl(f"{PREFIX}{name}" if is_message else name)


async def counts(client: DatabrokerClient) -> dict[str, int]:
    """How many live records there are, by type."""
    found = {}
    for name in await client.list_types():
        found[name] = int((await client.query(TypeUrl(name), limit=0)).total_count)
    return found


def status(
    config: Path | None, environ: Mapping[str, str], *, as_json: bool, console: Console
) -> int:
    """Print what the databroker that answers says of itself."""

    async def work(client: DatabrokerClient, settings: ResolvedSettings) -> int:
        answer = await client.status()
        found = {
            "urls": list(settings.databroker_urls),
            "storage": answer.storage,
            "server_version": str(answer.server_version),  # JSON numbers end at 2**53
            "latest_record_version": answer.latest_record_version,
            "earliest_record_version": answer.earliest_record_version,
            "records": sum((await counts(client)).values()),
            "types_with_options": [one.typeURL for one in answer.options],
        }
        if as_json:
            _print(found)
            return EXIT_OK
        table = Table(box=None, show_header=False)
        for name, value in found.items():
            shown = ", ".join(value) if isinstance(value, list) else str(value)
            table.add_row(_cell(name.replace("_", " ")), _cell(shown))
        console.print(table)
        return EXIT_OK

    return with_databroker(config, environ, work)


def types(
    config: Path | None, environ: Mapping[str, str], *, as_json: bool, console: Console
) -> int:
    """Print every type that has records, how many, and the options that were set."""

    async def work(client: DatabrokerClient, settings: ResolvedSettings) -> int:
        del settings
        options = {one.typeURL: one.options for one in (await client.status()).options}
        found = await counts(client)
        table = Table("type", "records", "capacity", "time to live", "indexed", box=None)
        for name in sorted({*found, *options}):
            held = options.get(name)
            capacity = held.capacity if held and held.HasField("capacity") else None
            ttl_s = held.ttl.seconds if held and held.HasField("ttl") else None
            indexed = list(held.indexable_fields) if held else []
            if as_json:
                _print(
                    {
                        "type": name,
                        "records": found.get(name, 0),
                        "capacity": capacity,
                        "ttl_s": ttl_s,
                        "indexed": indexed,
                    }
                )
            shown = [name, found.get(name, 0), capacity, ttl_s and f"{ttl_s} s", ", ".join(indexed)]
            table.add_row(*("" if one is None else _cell(one) for one in shown))
        if not as_json:
            console.print(table)
        return EXIT_OK

    return with_databroker(config, environ, work)


def get(
    config: Path | None,
    environ: Mapping[str, str],
    *,
    record_type: str,
    record_id: str,
    show_secrets: bool,
    as_json: bool,
) -> int:
    """Print one record. 1 when there is none."""

    async def work(client: DatabrokerClient, settings: ResolvedSettings) -> int:
        del settings
        record = await client.get(type_url(record_type), record_id)
        if record is None:
            raise NotFoundError(
                f"there is no record {record_id!r} of type {record_type!r}; "
                "gatehouse databroker query lists those there are"
            )
        _print(document(record, show_secrets=show_secrets), indent=None if as_json else 2)
        return EXIT_OK

    return with_databroker(config, environ, work)


def query(
    config: Path | None,
    environ: Mapping[str, str],
    *,
    record_type: str,
    text: str,
    where: str,
    limit: int,
    show_secrets: bool,
    as_json: bool,
    console: Console,
) -> int:
    """Print the records of a type that hold `text` and fit the filter `where` (JSON)."""
    if not 0 < limit <= MAX_SHOWN:
        print(f"--limit {limit}: from 1 to {MAX_SHOWN} records are shown", file=sys.stderr)
        return EXIT_CONFIG
    try:
        filter_ = _filter(where)
    except InvalidArgumentError as error:
        print(str(error), file=sys.stderr)
        return EXIT_CONFIG

    async def work(client: DatabrokerClient, settings: ResolvedSettings) -> int:
        del settings
        table = Table("id", "version", "modified", "data", box=None)
        offset, total = 0, 0
        while offset < limit:
            size = min(PAGE, limit - offset)
            answer = await client.query(type_url(record_type), filter_, size, offset, text)
            total = answer.total_count
            for record in answer.records:
                if as_json:
                    _print(document(record, show_secrets=show_secrets))
                else:
                    table.add_row(*_row(record, show_secrets=show_secrets))
            offset += len(answer.records)
            if len(answer.records) < size:
                break
        if not as_json:
            console.print(table)
        print(f"{offset} of {total} records", file=sys.stderr)
        return EXIT_OK

    return with_databroker(config, environ, work)


def clear(config: Path | None, environ: Mapping[str, str], *, ask: Ask | None) -> int:
    """Delete every record. `ask` is put the question first; None: no question."""

    async def work(client: DatabrokerClient, settings: ResolvedSettings) -> int:
        del settings
        there = sum((await counts(client)).values())
        if ask is not None and not ask(
            f"Delete all {there} records and their options? Everybody must sign in again, and "
            "service accounts, routes and policies made in the console are gone."
        ):
            print("nothing was deleted", file=sys.stderr)
            return EXIT_FAILED
        answer = await client.clear()
        print(
            f"deleted {there} records; server version {answer.old_server_version} is now "
            f"{answer.new_server_version}",
            file=sys.stderr,
        )
        return EXIT_OK

    return with_databroker(config, environ, work, call_s=CLEARING_S)


def bump_version(config: Path | None, environ: Mapping[str, str], *, ask: Ask | None) -> int:
    """Make every client take a new copy. `ask` is put the question first; None: no question."""

    async def work(client: DatabrokerClient, settings: ResolvedSettings) -> int:
        del settings
        there = sum((await counts(client)).values())
        if ask is not None and not ask(
            f"Change the server version? Every client copies all {there} records again."
        ):
            print("nothing was changed", file=sys.stderr)
            return EXIT_FAILED
        answer = await client.change_server_version()
        print(
            f"server version {answer.old_server_version} is now {answer.new_server_version}",
            file=sys.stderr,
        )
        return EXIT_OK

    return with_databroker(config, environ, work)


def _filter(where: str) -> Mapping[str, object] | None:
    if not where:
        return None
    try:
        found = json.loads(where)
    except ValueError as error:
        raise InvalidArgumentError(f"--filter is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidArgumentError('--filter must be a JSON object, such as \'{"user_id": "u1"}\'')
    return found


def _row(record: Record, *, show_secrets: bool) -> tuple[Text, ...]:
    found = document(record, show_secrets=show_secrets)
    data = json.dumps(found["data"], ensure_ascii=False, separators=(", ", ": "))
    return tuple(map(_cell, (record.id, record.version, found["modified_at"], data)))


def _cell(value: object) -> Text:
    return Text(plain(value))


def _print(value: Any, indent: int | None = None) -> None:
    print(json.dumps(value, indent=indent))
