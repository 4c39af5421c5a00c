"""House rules that no linter knows. `make check` runs this file alone."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE_ROOTS = ("libs/common/src", "cli/src", "services/*/src")
MOST_LINES = 600


@cache
def tracked() -> tuple[Path, ...]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return tuple(ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file())


def python_files(*folders: str) -> list[Path]:
    return [
        path
        for path in tracked()
        if path.suffix == ".py" and str(path.relative_to(ROOT)).startswith(folders or ("",))
    ]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_root_of_the_namespace_has_an_init() -> None:
    """An editable install would lose every other root."""
    found = [
        shown(path)
        for pattern in NAMESPACE_ROOTS
        for path in ROOT.glob(f"{pattern}/gatehouse/__init__.py")
    ]
    assert found == []


def test_every_module_says_which_question_it_answers() -> None:
    bare = [
        shown(path)
        for path in python_files("libs/", "services/", "cli/", "proto/")
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert bare == []


def test_modules_are_short() -> None:
    long = {
        shown(path): count
        for path in python_files()
        if (count := len(path.read_text().splitlines())) > MOST_LINES
    }
    assert long == {}


def test_no_unfinished_marks() -> None:
    mark = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError")
    found = [
        f"{shown(path)}:{number}"
        for path in python_files()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if mark.search(line)
    ]
    assert found == []


def test_generated_code_is_not_committed() -> None:
    assert [shown(path) for path in tracked() if "_pb2" in path.name] == []


def test_every_dependency_is_pinned_with_hashes() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *project["dependency-groups"]["build"],
        *project["dependency-groups"]["dev"],
    ]
    pinned = {
        match.group(1).lower().replace("_", "-")
        for match in re.finditer(r"^([A-Za-z0-9_.-]+)==", lock, re.MULTILINE)
    }
    missing = [
        name
        for item in wanted
        if (name := re.split(r"[\[><=! ;]", item, maxsplit=1)[0].lower().replace("_", "-"))
        not in pinned
    ]
    assert missing == []
    assert "://" not in re.sub(r"^\s*#.*$", "", lock, flags=re.MULTILINE)


def test_changelog_names_the_version_or_what_comes_next() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{version}]" in changelog or "## [Unreleased]" in changelog


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_documents_link_to_what_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_architecture_names_modules_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`((?:libs|services|cli|proto|tests)/[\w./-]+\.(?:py|proto))`", text))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
