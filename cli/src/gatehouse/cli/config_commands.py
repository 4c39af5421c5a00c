"""`gatehouse config`: which settings there are, for people, editors and the documentation.

What the commands do is imported when they run; see `__main__`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

config_app = typer.Typer(help=__doc__.partition("\n")[0], no_args_is_help=True)


@config_app.command("schema")
def schema_command() -> None:
    """Print a JSON schema of the configuration file, for editors.

    In VS Code with the YAML extension, put this on the first line of the file:

        # yaml-language-server: $schema=./gatehouse.schema.json
    """
    from gatehouse.cli import config_reference

    raise typer.Exit(config_reference.schema(sys.stdout))


@config_app.command("defaults")
def defaults_command(
    match: Annotated[
        str, typer.Argument(help="Only keys whose name or meaning holds this text.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print every key with its default, type, environment variable and meaning."""
    from gatehouse.cli import config_reference

    raise typer.Exit(config_reference.defaults(sys.stdout, match=match, as_json=as_json))


@config_app.command("reference")
def reference_command(
    folder: Annotated[Path, typer.Argument(help="Where the Markdown pages go.")],
) -> None:
    """Write the pages of docs/reference into a folder."""
    from gatehouse.cli import config_reference

    raise typer.Exit(config_reference.reference(folder))
