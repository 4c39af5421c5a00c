"""Where `--config` may stand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gatehouse.cli.__main__ import app, main


@pytest.mark.parametrize(
    "arguments",
    [
        ("--config", "{file}", "databroker", "clear", "--yes"),
        ("databroker", "clear", "--config", "{file}", "--yes"),
        ("--config", "{other}", "databroker", "clear", "--config", "{file}", "--yes"),
    ],
    ids=["before the command", "after it", "both: the nearer one"],
)
def test_a_command_takes_the_file_that_is_named(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passed over, the environment's databroker would be cleared."""
    monkeypatch.setenv("SHARED_SECRET", "aGVsbG8gaGVsbG8gaGVsbG8gaGVsbG8gaGVsbG8gaGU=")
    paths = {name: tmp_path / f"{name}.yaml" for name in ("file", "other")}
    given = [argument.format(**paths) for argument in arguments]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2
    assert str(paths["file"]) in result.output.replace("\n", "")  # there is no such file
    assert str(paths["other"]) not in result.output.replace("\n", "")


@pytest.mark.parametrize("form", ["-config {file}", "-config={file}"])
def test_one_dash_is_taken_for_two_with_a_warning(
    form: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As scripts written for Pomerium have it."""
    file = tmp_path / "sound.yaml"
    file.write_text("insecure_server: true\n")
    monkeypatch.setattr(sys, "argv", ["gatehouse", "check", *form.format(file=file).split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    said = capsys.readouterr()
    assert "warning: -config" in said.err
    assert "good: services all" in said.out
