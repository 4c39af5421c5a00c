"""`gatehouse check` on files with the mistakes of a new user: the whole output, as people see it.

Beside each file stands what is expected. `UPDATE_GOLDENS=1` rewrites it after a wanted change.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from gatehouse.cli.check import check

FOLDER = Path(__file__).parent / "mistakes"
RIGHT = re.compile(r"expected|are allowed|use either")  # the policy language says it in the message
FILES = sorted(FOLDER.glob("*.yaml"))


def shown(file: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Exit status and everything printed; the file has no other readers and a short name."""
    copy = Path(shutil.copy(file, folder))
    copy.chmod(0o600)
    status = check(copy, {})
    printed = capsys.readouterr()
    return f"exit {status}\n{printed.err}{printed.out}".replace(f"{folder}/", "")


def test_there_are_ten() -> None:
    assert len(FILES) >= 10
    assert {file.stem for file in FILES} == {file.stem for file in FOLDER.glob("*.expected")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_check(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = file.with_suffix(".expected")
    found = shown(file, tmp_path, capsys)
    if os.environ.get("UPDATE_GOLDENS"):
        expected.write_text(found)
    assert found == expected.read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_line_says_where_and_what_would_be_right(file: Path) -> None:
    status, *lines = file.with_suffix(".expected").read_text().splitlines()
    assert status in {"exit 0", "exit 2"}
    assert (status == "exit 2") == any(" error: " in line for line in lines)
    for line in lines:
        if not line.startswith("good: "):
            assert line.endswith(")") or RIGHT.search(line), line
            assert line.startswith((f"{file.name}:", "warning: ", "error: ")), line
