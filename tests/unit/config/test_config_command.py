"""`gatehouse config schema | defaults | reference`, and that docs/reference has not drifted."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gatehouse.cli.config_commands import config_app
from gatehouse.cli.config_reference import defaults
from gatehouse.common.config.choices import FLAGS
from gatehouse.common.config.model import Route, Settings
from gatehouse.common.config.reference import key_references
from gatehouse.common.config.reference_pages import ROUTE_SECTIONS, SETTINGS_SECTIONS, pages

REFERENCE = Path(__file__).resolve().parents[3] / "docs" / "reference"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", sorted(pages()))
def test_the_pages_have_not_drifted(name: str) -> None:
    written = (REFERENCE / name).read_text(encoding="utf-8")
    assert written == pages()[name], "run: gatehouse config reference docs/reference"


def test_the_pages_hold_every_key_once() -> None:
    settings, routes = pages()["settings.md"], pages()["routes.md"]
    for reference in key_references():
        name = reference.path.removeprefix("routes[].")
        page = routes if reference.path.startswith("routes[].") else settings
        assert page.count(f"\n| `{name}` |") == 1, reference.path
    for flag in FLAGS:
        assert f"| `{flag}` |" in settings


def test_every_section_begins_with_a_key() -> None:
    assert set(SETTINGS_SECTIONS) <= set(Settings.model_fields)
    assert set(ROUTE_SECTIONS) <= {info.alias or name for name, info in Route.model_fields.items()}


def test_tables_are_whole() -> None:
    for page in pages().values():
        width = 0
        for line in page.splitlines():
            if not line.startswith("|"):
                width = 0
                continue
            cells = line.replace(r"\|", "").count("|")
            assert width in {0, cells}, line
            width = cells


def test_reference_writes_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "reference"
    first = CliRunner().invoke(config_app, ["reference", str(folder)])
    assert first.exit_code == 0
    assert first.output.count("written") == len(pages())
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict(pages())
    assert CliRunner().invoke(config_app, ["reference", str(folder)]).output.count("unchanged") == 2


def test_reference_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(config_app, ["reference", str(tmp_path / "file")])
    assert result.exit_code == 1
    assert "cannot be written" in result.output


def test_schema_is_printed_as_json() -> None:
    result = CliRunner().invoke(config_app, ["schema"])
    assert result.exit_code == 0
    assert json.loads(result.output)["title"] == "Gatehouse settings"


def test_defaults_as_lines() -> None:
    result = CliRunner().invoke(config_app, ["defaults"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) == len(list(key_references()))
    assert "timeout_read\t30s\tduration\tTIMEOUT_READ\t" in result.output
    assert all(line.count("\t") == 4 for line in lines)


def test_defaults_as_json() -> None:
    result = CliRunner().invoke(config_app, ["defaults", "--json", "cookie_expire"])
    (key,) = json.loads(result.output)
    assert (key["path"], key["default"], key["type"]) == ("cookie_expire", "14h", "duration")


def test_defaults_as_a_table() -> None:
    out = Terminal()
    assert defaults(out, match="health_checks[].timeout") == 0
    assert "Meaning" in out.getvalue()
    assert "required" in out.getvalue()


def test_defaults_of_nothing() -> None:
    result = CliRunner().invoke(config_app, ["defaults", "zzz"])
    assert result.exit_code == 1
    assert "no key holds 'zzz'" in result.output
