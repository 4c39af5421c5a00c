"""Tables for people of things that they name by id in the next command."""

from __future__ import annotations

from rich.table import Column, Table
from rich.text import Text


def listing(*names: str) -> Table:
    """An empty table; of the first column, an id, nothing is ever left out, however narrow."""
    first, *others = names
    return Table(
        Column(first, no_wrap=True, overflow="ignore"),
        *(Column(name, overflow="fold") for name in others),
        box=None,
    )


def cell(value: object) -> Text:
    """Text as it stands: what comes from elsewhere has no say over the terminal."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(value))
    return Text(text or "-")
