"""Answers how the demo runs: the real product in one process, and beside it what it needs.

Logs are kept to warnings so that what to open stays in sight; LOG_LEVEL=info shows every decision.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from gatehouse.cli.demo import identity_provider, upstream
from gatehouse.cli.demo.assertion import AssertionVerifier, keys_from
from gatehouse.cli.demo.settings import APPLICATION_HOSTS, Demo, ports_from, prepare
from gatehouse.cli.demo.smoke import run_smoke
from gatehouse.cli.serve import BUILDERS
from gatehouse.common.errors import GatehouseError
from gatehouse.common.runtime.process import (
    EXIT_CONFIG,
    EXIT_CRASH,
    EXIT_OK,
    ProcessControl,
    ProcessOptions,
    run_process,
)

_WHAT = {
    "app.localhost": "any signed-in person; shows who it was told is asking",
    "admin.localhost": "only ada@example.com; everybody else is refused",
    "public.localhost": "no sign-in at all",
}


class _Companions:
    """The provider and the application, and what is said when everything is up."""

    def __init__(self, demo: Demo, console: Console) -> None:
        self.demo = demo
        self.console = console

    async def provider(self, control: ProcessControl) -> None:
        """The development identity provider."""
        await identity_provider.serve(
            control.stopping, "localhost", self.demo.ports.provider_port, [self.demo.client]
        )

    async def application(self, control: ProcessControl) -> None:
        """The sample application."""
        verifier = AssertionVerifier(
            keys_from(self.demo.keys_url, self.demo.certificates.authority), APPLICATION_HOSTS
        )
        await upstream.serve(control.stopping, "127.0.0.1", self.demo.ports.upstream_port, verifier)

    async def greeter(self, control: ProcessControl) -> None:
        """Say what to open, once there is something to open."""
        if not await _ready(control):
            return
        say = self.console.print
        say("\n[bold green]Gatehouse is up.[/] Open:\n")
        for host in APPLICATION_HOSTS:
            say(f"  [bold]{self.demo.application_url(host)}[/]")
            say(f"      {_WHAT[host]}")
        authority = escape(str(self.demo.certificates.authority))
        say("\nSample users: ada@example.com, grace@example.com, mallory@elsewhere.test")
        say(f"Your browser will not know the certificates. Go on anyway, or trust {authority}")
        say("(it is good for names below .localhost only).")
        say(f"Configuration: {escape(str(self.demo.config))}")
        say("\n[bold]Ctrl-C[/] stops everything.\n")


class _Smoke(_Companions):
    """Walks through the demo instead of greeting, and then stops it."""

    passed = False

    async def walk(self, control: ProcessControl) -> None:
        """Run the steps once everything is up."""
        if not await _ready(control):
            return
        try:
            self.passed = await run_smoke(
                self.demo.application_url("app.localhost"),
                authority=self.demo.certificates.authority,
                provider_url=self.demo.provider_url,
                console=self.console,
            )
        finally:
            control.request_stop()


async def _ready(control: ProcessControl) -> bool:
    """Wait until everything is up; False when the process stops first."""
    async with asyncio.TaskGroup() as tasks:
        waits = [
            tasks.create_task(control.ready.wait()),
            tasks.create_task(control.stopping.wait()),
        ]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
    return control.ready.is_set() and not control.stopping.is_set()


def run(state: Path, environ: Mapping[str, str]) -> int:
    """Run the demo until Ctrl-C; return the exit status."""
    console = Console()
    demo = _prepare(state, environ, console)
    if demo is None:
        return EXIT_CONFIG
    beside = _Companions(demo, console)
    return run_process(
        ProcessOptions(
            demo.config,
            _environment(environ),
            BUILDERS,
            companions=(beside.provider, beside.application, beside.greeter),
        )
    )


def smoke(state: Path, environ: Mapping[str, str]) -> int:
    """Start the demo, walk through it, stop it; return 0 when every step passed."""
    console = Console()
    demo = _prepare(state, environ, console)
    if demo is None:
        return EXIT_CONFIG
    beside = _Smoke(demo, console)
    status = run_process(
        ProcessOptions(
            demo.config,
            _environment(environ),
            BUILDERS,
            companions=(beside.provider, beside.application, beside.walk),
        )
    )
    if status != EXIT_OK:
        return status
    return EXIT_OK if beside.passed else EXIT_CRASH


def _prepare(state: Path, environ: Mapping[str, str], console: Console) -> Demo | None:
    console.print("[dim]preparing certificates, secrets and configuration ...[/]")
    try:
        demo = prepare(state, ports_from(environ))
    except GatehouseError as error:
        console.print(f"[bold red]The demo cannot start:[/] {escape(str(error))}")
        return None
    if demo.certificates.authority_made:
        console.print(f"[dim]made a local authority: {escape(str(state / 'certificates'))}[/]")
    console.print("[dim]starting databroker, authorize, authenticate, proxy and Envoy ...[/]")
    return demo


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Only what a process needs: stray settings of the shell must not change the demo."""
    kept = {
        name: value
        for name, value in environ.items()
        if name in ("PATH", "HOME", "TMPDIR", "XDG_RUNTIME_DIR", "LANG", "LOG_LEVEL")
    }
    return {"LOG_LEVEL": "warn", **kept}
