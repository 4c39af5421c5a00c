"""Where each route stands in the text of a YAML file, so that one can be read without the others.

Pure. A text is only split where its pieces say, each read alone, what they say together: pieces
begin at a dash in the column of the list, and the caller must refuse the split when a piece is not
exactly one complete list item or the rest does not end where the list begins. What spans pieces (an
open quote, an alias of elsewhere, a second document) fails that test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

ROUTES: Final = "routes"

_HEAD: Final = re.compile(r"^routes:[ \t]*(?:#[^\n]*)?\r?\n", re.MULTILINE)
# Line breaks that YAML knows besides the line feed: with them, lines cannot be counted here.
_OTHER_BREAKS: Final = re.compile("\r(?!\n)|[\x85\u2028\u2029]")
_MARKER: Final = re.compile(r"^(?:---|\.\.\.|%)", re.MULTILINE)
_DASH: Final = re.compile(r"( *)-[ \t\r\n]")
_BLANK: Final = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\r?\n)*")


@dataclass(frozen=True, slots=True)
class RouteText:
    """One list item as it is written."""

    line: int  # its first, counted from 0
    text: str


@dataclass(frozen=True, slots=True)
class SplitText:
    """A file cut into its routes and the rest, in which their lines are left blank."""

    rest: str
    line: int  # of the key `routes`, counted from 1
    routes: tuple[RouteText, ...]


def split_routes(text: str) -> SplitText | None:
    """Cut out the block list under `routes`; None when there is none that can be cut."""
    heads = list(_HEAD.finditer(text))
    if len(heads) != 1 or _OTHER_BREAKS.search(text):
        return None
    start = heads[0].end()
    blank = _BLANK.match(text, start)
    assert blank is not None  # it matches nothing at all, too
    first = _DASH.match(text, blank.end())
    if first is None:
        return None
    indent = first.group(1)
    # The list ends where something stands in its column, or left of it, that is no item.
    after = re.compile(
        rf"^(?!{indent}-[ \t\r\n]) {{0,{len(indent)}}}[^ \t\r\n#]", re.MULTILINE
    ).search(text, first.start())
    end = len(text) if after is None else after.start()
    item = re.compile(rf"^{indent}-[ \t\r\n]", re.MULTILINE)
    begins = [match.start() for match in item.finditer(text, first.start(), end)]
    line = text.count("\n", 0, first.start())
    routes = []
    for begin, finish in zip(begins, [*begins[1:], end], strict=True):
        piece = text[begin:finish]
        if _MARKER.search(piece):
            return None
        routes.append(RouteText(line, piece))
        line += piece.count("\n")
    gap = "\n" * text.count("\n", first.start(), end)
    rest = text[: first.start()] + gap + text[end:]
    return SplitText(rest, text.count("\n", 0, heads[0].start()) + 1, tuple(routes))
