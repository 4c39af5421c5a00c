"""Which subcommands `gatehouse databroker` has and what they take.

Each command imports its own module when it runs, as those of `__main__` do.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gatehouse.cli.databroker_inspect import Ask

databroker_app = typer.Typer(
    help=(
        "The databroker's records: look at them, move them to another store, make clients copy "
        "them anew. Needs the settings of the services, shared_secret above all."
    ),
    no_args_is_help=True,
)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Configuration file of the services.")
]
LinesOption = Annotated[
    bool, typer.Option("--json", help="Print JSON, one object on each line, for scripts.")
]
SecretsOption = Annotated[
    bool, typer.Option("--show-secrets", help="Do not hide tokens, keys and unknown payloads.")
]
YesOption = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")]


def _ask(yes: bool) -> Ask | None:
    return None if yes else lambda question: typer.confirm(question, err=True)


@databroker_app.command("status")
def status(config: ConfigOption = None, as_json: LinesOption = False) -> None:
    """Which store there is, and where it stands.

    The server version names the history of the store; clients whose copy is of another one start
    over. With several databrokers one of them answers.

    Example:  gatehouse databroker status --config config.yaml
    """
    from rich.console import Console

    from gatehouse.cli import databroker_inspect

    raise typer.Exit(
        databroker_inspect.status(config, os.environ, as_json=as_json, console=Console())
    )


@databroker_app.command("types")
def types(config: ConfigOption = None, as_json: LinesOption = False) -> None:
    """Every type that has records: how many, and the options that were set for it.

    Example:  gatehouse databroker types --json | jq -r 'select(.records > 1000) | .type'
    """
    from rich.console import Console

    from gatehouse.cli import databroker_inspect

    raise typer.Exit(
        databroker_inspect.types(config, os.environ, as_json=as_json, console=Console())
    )


@databroker_app.command("get")
def get(
    record_type: Annotated[str, typer.Argument(help="Its type, as user.User.", metavar="TYPE")],
    record_id: Annotated[str, typer.Argument(help="Its id.", metavar="ID")],
    config: ConfigOption = None,
    show_secrets: SecretsOption = False,
    as_json: LinesOption = False,
) -> None:
    """One record as JSON, tokens hidden. Exit 1: there is none.

    Example:  gatehouse databroker get session.Session 0b0c4c9e-8f9c-4c6b-a3a7-3f2b8a1f9d10
    """
    from gatehouse.cli import databroker_inspect

    raise typer.Exit(
        databroker_inspect.get(
            config,
            os.environ,
            record_type=record_type,
            record_id=record_id,
            show_secrets=show_secrets,
            as_json=as_json,
        )
    )


@databroker_app.command("query")
def query(
    record_type: Annotated[str, typer.Argument(help="Their type.", metavar="TYPE")],
    text: Annotated[
        str, typer.Argument(help="What some field must hold, in any case.", metavar="[TEXT]")
    ] = "",
    config: ConfigOption = None,
    where: Annotated[
        str, typer.Option("--filter", help="JSON: a field and its value; $and, $or, $not.")
    ] = "",
    limit: Annotated[int, typer.Option("--limit", help="At most so many.")] = 100,
    show_secrets: SecretsOption = False,
    as_json: LinesOption = False,
) -> None:
    """Records of a type, by a text in any field or by the values of fields.

    Example:  gatehouse databroker query user.User ada@example.com

    Example:  gatehouse databroker query session.Session --filter '{"user_id": "u1"}' --json
    """
    from rich.console import Console

    from gatehouse.cli import databroker_inspect

    raise typer.Exit(
        databroker_inspect.query(
            config,
            os.environ,
            record_type=record_type,
            text=text,
            where=where,
            limit=limit,
            show_secrets=show_secrets,
            as_json=as_json,
            console=Console(),
        )
    )


@databroker_app.command("export")
def export(
    target: Annotated[str, typer.Argument(help="A new file; - for standard output.")],
    config: ConfigOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="The file may exist.")] = False,
) -> None:
    """Write all records with their options into one file, for `import` into any store.

    The file is there when it is whole, and not before. It holds tokens in clear: it belongs to its
    owner alone (mode 0600), and should not outlive its purpose.

    Example:  gatehouse databroker export records.archive --config old.yaml

    Example:  gatehouse databroker export - | age -r age1... > records.age
    """
    from gatehouse.cli import databroker_transfer

    raise typer.Exit(
        databroker_transfer.export(config, os.environ, target=target, overwrite=overwrite)
    )


@databroker_app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="What export wrote; - for standard input.")],
    config: ConfigOption = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Add to the records there are; the file's win.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Delete the records there are first.")
    ] = False,
    yes: YesOption = False,
) -> None:
    """Write the records of a file into the store, then check each of them.

    Nothing is written unless the file is whole. After a failure the same command with --merge goes
    on: what is there already is not written twice. To change the store, stop the services except
    databroker, export, start databroker on the new store, import, start the others.

    Example:  gatehouse databroker import records.archive --config new.yaml
    """
    from gatehouse.cli import databroker_transfer

    raise typer.Exit(
        databroker_transfer.import_(
            config, os.environ, source=source, merge=merge, replace=replace, ask=_ask(yes)
        )
    )


@databroker_app.command("clear")
def clear(config: ConfigOption = None, yes: YesOption = False) -> None:
    """Delete every record of every type. Asks first, unless --yes.

    Example:  gatehouse databroker clear --config staging.yaml
    """
    from gatehouse.cli import databroker_inspect

    raise typer.Exit(databroker_inspect.clear(config, os.environ, ask=_ask(yes)))


@databroker_app.command("bump-version")
def bump_version(config: ConfigOption = None, yes: YesOption = False) -> None:
    """Change the server version, so that every client forgets its copy and takes a new one.

    For after the store was changed behind the databroker's back, as by restoring some of its
    tables. Records stay, and nobody has to sign in again. Asks first, unless --yes.

    Example:  gatehouse databroker bump-version --yes
    """
    from gatehouse.cli import databroker_inspect

    raise typer.Exit(databroker_inspect.bump_version(config, os.environ, ask=_ask(yes)))
