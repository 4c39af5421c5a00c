"""What was probably meant where a file cannot be read at all.

Parsers say which of their rules was broken; this says what to do about it. Pure.
"""

from __future__ import annotations

import re
from typing import Final

_AS_DEEP: Final = "indent it like its neighbours"
_YAML: Final[tuple[tuple[str, str], ...]] = (
    (
        "did not find expected '-' indicator",
        "a dash for the next element; keys of one element are indented as far as its first key",
    ),
    ("did not find expected key", f"key: value, {_AS_DEEP}; or a quote above is not closed"),
    ("did not find expected ',' or", "{opened}separate elements by commas and close it"),
    (
        "mapping values are not allowed",
        f"one key on a line, {_AS_DEEP}; a value that holds ': ' stands in quotes",
    ),
    ("could not find expected ':'", "{opened}key: value, with a blank after the colon"),
    ("found unexpected end of stream", "{opened}close the quote"),
    ("found unknown escape character", "single quotes, in which a backslash is only itself"),
    ("did not find expected alphabetic", "quotes around a value that begins with * or &"),
    ("found undefined alias", "quotes around a value that begins with *"),
    ("did not find expected <document start>", "one map of keys to values, and nothing after it"),
    ("block sequence entries are not allowed", "the list on lines of its own, below its key"),
    ("control characters are not allowed", "UTF-8 text without control characters"),
    ("found a tab character", "blanks instead of tabs"),
    ("found character that cannot start", "quotes around a value that begins with @, ` or %"),
)
_OTHERS: Final[tuple[tuple[str, str], ...]] = (
    ("key in double quotes", 'keys as "key": value; no comma after the last one'),
    ("Expecting value", "a string in double quotes, a number, true, false, null, {} or []"),
    ("a , is missing", "a comma between elements, and each { and [ closed"),
    ("a : is missing", '"key": value'),
    ("Unterminated string", "close the double quote on the same line"),
    ("Invalid control character", r"close the double quote on the same line, or write \n"),
    ("Illegal character '\\n'", "close the quote on the same line"),
    ("Expected '=' after a key", "key = value"),
    ("Invalid value", 'strings in double quotes: key = "value"'),
    ("Cannot overwrite a value", "each key once"),
)


def yaml_help(
    problem: str, line: str, *, opened_on: int | None = None, problem_on: int | None = None
) -> tuple[str, str]:
    """A better message, or "", and what would be right. `line` is where the parser stopped."""
    if re.match(r"[ ]*\t", line) and ("cannot start any token" in problem or "tab" in problem):
        return "the line is indented by a tab", "blanks instead of tabs"
    fix = next((fix for part, fix in _YAML if part in problem), "")
    opened = ""
    if opened_on is not None and opened_on != problem_on:
        opened = f"it begins on line {opened_on}: "
    return "", fix.replace("{opened}", opened)


def other_help(message: str) -> str:
    """What would be right in JSON or TOML; "" when nobody knows."""
    return next((fix for part, fix in _OTHERS if part in message), "")
