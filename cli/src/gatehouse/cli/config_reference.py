"""`gatehouse config`: which settings there are, for people, editors and the documentation."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gatehouse.common.config.reference import KeyReference, key_references
from gatehouse.common.config.reference_pages import pages
from gatehouse.common.config.schema import settings_schema
from gatehouse.common.runtime.process import EXIT_OK

EXIT_FAILED = 1


def schema(out: TextIO) -> int:
    """Write the JSON schema (draft 7) and return the exit status."""
    json.dump(settings_schema(), out, indent=2, ensure_ascii=False)
    out.write("\n")
    return EXIT_OK


def defaults(out: TextIO, *, match: str = "", as_json: bool = False) -> int:
    """Write all keys that hold `match`: a table on a terminal, tab-separated lines elsewhere."""
    wanted = match.lower()
    found = [
        item
        for item in key_references()
        if wanted in item.path.lower()
        or wanted in item.meaning.lower()
        or wanted in item.variable.lower()
    ]
    if not found:
        print(f"no key holds {match!r}; without an argument all are printed", file=sys.stderr)
        return EXIT_FAILED
    if as_json:
        json.dump([dataclasses.asdict(item) for item in found], out, indent=2)
        out.write("\n")
    elif out.isatty():
        _print_table(found, out)
    else:
        out.writelines("\t".join(_row(item)) + "\n" for item in found)
    return EXIT_OK


def reference(folder: Path) -> int:
    """Write the pages, say which changed, and return the exit status."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in pages().items():
            path = folder / name
            same = path.exists() and path.read_text(encoding="utf-8") == text
            if not same:
                path.write_text(text, encoding="utf-8")
            print(f"{path}: {'unchanged' if same else 'written'}")
    except OSError as error:
        print(f"{error.filename or folder}: cannot be written: {error.strerror}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def _row(item: KeyReference) -> tuple[str, str, str, str, str]:
    form = f" ({item.variable_form})" if item.variable_form else ""
    return item.path, item.default, item.type, f"{item.variable}{form}", item.meaning


def _print_table(found: Sequence[KeyReference], out: TextIO) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Key", style="cyan", no_wrap=False, overflow="fold", ratio=3)
    table.add_column("Default", overflow="fold", ratio=2)
    table.add_column("Type", ratio=2)
    table.add_column("Variable", overflow="fold", ratio=3)
    table.add_column("Meaning", ratio=4)
    for item in found:
        table.add_row(*(escape(cell) for cell in _row(item)))
    Console(file=out).print(table)
