"""Files that cannot be read at all: the line, and what to do about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.load import load_settings


def said(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path, {})
    (issue,) = caught.value.issues
    assert issue.file == str(path)
    return f"{issue.line}: {issue.message} ({issue.fix})"


@pytest.mark.parametrize(
    ("text", "line", "right"),
    [
        ("a: 1\n\tb: 2\n", 2, "blanks instead of tabs"),
        ("routes:\n\t- from: x\n", 2, "blanks instead of tabs"),
        ("routes:\n  - from: x\n  to: y\n", 3, "keys of one element are indented as far as its"),
        ("a: 1\n  b: 2\n", 2, "one key on a line, indent it like its neighbours"),
        ("a: {b: 1\nc: 2\n", 2, "it begins on line 1: "),
        ("a: [b,\n c\nd: 2\n", 3, "it begins on line 1: "),
        ("a: note: this\n", 1, "a value that holds ': ' stands in quotes"),
        ("a: 'x\nb: y\n", 3, "it begins on line 1: close the quote"),
        ('a: "C:\\path"\n', 1, "single quotes, in which a backslash is only itself"),
        ("a: *.example.com\n", 1, "quotes around a value that begins with *"),
        ("a: @x\n", 1, "quotes around a value that begins with @"),
        ("a: `x`\n", 1, "quotes around a value that begins with @, ` or %"),
        ("a: 1\nb\n", 3, "key: value, with a blank after the colon"),
        ("a: - b\n", 1, "the list on lines of its own, below its key"),
        ("- a\n", 1, "routes: and the list below it"),
        ("text\n", 1, "key: value"),
    ],
)
def test_yaml(tmp_path: Path, text: str, line: int, right: str) -> None:
    found = said(tmp_path, "config.yaml", text)
    assert found.startswith(f"{line}: failed to read config: ")
    assert right in found.rpartition(" (")[2], found


@pytest.mark.parametrize(
    ("name", "text", "line", "right"),
    [
        ("a.json", '{"a": 1,\n}', 2, "no comma after the last one"),
        ("a.json", "{a: 1}", 1, 'keys as "key": value'),
        ("a.json", '{"a": }', 1, "a string in double quotes, a number, true"),
        ("a.json", '{"a": 1\n "b": 2}', 2, "a comma between elements"),
        ("a.json", '{"a" 1}', 1, '"key": value'),
        ("a.json", '{"a": "x\n"}', 1, "close the double quote on the same line"),
        ("a.json", "{}\n{}", 2, "one { } and no more"),
        ("a.toml", 'a = "x\nb = 1\n', 1, "close the quote on the same line"),
        ("a.toml", "a: 1\n", 1, "key = value"),
        ("a.toml", "a = x\n", 1, "strings in double quotes"),
        ("a.toml", "a = 1\na = 2\n", 2, "each key once"),
        (".env", "a b\n", 1, "KEY=value, or # before a remark"),
    ],
)
def test_other_formats(tmp_path: Path, name: str, text: str, line: int, right: str) -> None:
    found = said(tmp_path, name, text)
    assert found.startswith(f"{line}: failed to read config: ")
    assert right in found, found
