"""`gatehouse explain`: what a route's policy says about a request, and what would change it."""

from __future__ import annotations

import datetime as dt
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from gatehouse.authorize.core.chosen_route import chosen_route, usual_facts
from gatehouse.authorize.core.explain import CriterionAnswer, Explanation
from gatehouse.authorize.core.explain import explain as explain_policy
from gatehouse.authorize.core.explain_answer import document, explain_answer
from gatehouse.authorize.core.supposition import suppose
from gatehouse.common.clock import Clock, SystemClock
from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.resolve import load_and_resolve
from gatehouse.common.policy.errors import PolicyError
from gatehouse.common.runtime.process import EXIT_CONFIG, EXIT_OK, report_issues

_COLOURS: Final = {"allowed": "green", "sign-in": "yellow", "device": "yellow"}
_SHOWN_ROUTES: Final = 20


def explain(
    config: Path | None,
    environ: Mapping[str, str],
    *,
    route: str,
    facts: Mapping[str, object],
    as_json: bool = False,
    console: Console | None = None,
    clock: Clock | None = None,
) -> int:
    """Print what the policy of one route says; 0 when it could be asked, 2 when it could not.

    `route`: its id, name, `from` URL, or its number in the configuration (from 0). `facts`: see
    `facts_of` for those of the command line, and `authorize.core.supposition.suppose` for all.
    Without `time` it is now.
    """
    console = console or Console()
    throwaway = secrets.token_bytes(32)
    try:
        settings, _ = load_and_resolve(config, environ, random_secret=lambda: throwaway)
    except ConfigError as error:
        report_issues(error.issues)
        return EXIT_CONFIG
    chosen = chosen_route(settings.routes, route)
    if chosen is None:
        console.print(f"no single route is {route!r}; there are:", style="red", markup=False)
        for number, one in enumerate(settings.routes[:_SHOWN_ROUTES]):
            console.print(f"  {number}  {one.id}  {one.settings.from_}", markup=False)
        return EXIT_CONFIG
    now_s = (clock or SystemClock()).now_s()
    try:
        policy = settings.policy_in_force(chosen)
        described = suppose({**usual_facts(settings, chosen), **facts}, policy, now_s=now_s)
    except PolicyError as error:
        console.print(str(error), style="red", markup=False)
        return EXIT_CONFIG
    found = explain_policy(policy, described.request, described.identity)
    if as_json:
        console.print_json(data=document(explain_answer(found, chosen, described.identity)))
    else:
        show(found, console, title=f"{chosen.settings.name or chosen.id} {chosen.settings.from_}")
    return EXIT_OK


def facts_of(
    *,
    user: str = "",
    email: str = "",
    groups: str = "",
    claims: Sequence[str] = (),
    method: str = "",
    path: str = "",
    ip: str = "",
    time: str = "",
    facts: str = "",
) -> dict[str, object]:
    """The facts of the command line's options; options that are empty say nothing.

    `groups`: ids joined by commas. `claims`: name=value, each value JSON or else text. `facts`: a
    JSON object with any further facts (devices, records, headers, certificate, ...). PolicyError.
    """
    found: dict[str, object] = {}
    if facts:
        try:
            further = json.loads(facts)
        except json.JSONDecodeError as error:
            raise PolicyError(f"not JSON: {error}", ("facts",)) from None
        if not isinstance(further, dict):
            raise PolicyError("expected a JSON object", ("facts",))
        found.update(further)
    texts = {"user": user, "email": email, "method": method, "path": path, "ip": ip, "time": time}
    found.update({name: text for name, text in texts.items() if text})
    if groups:
        found["groups"] = [group.strip() for group in groups.split(",") if group.strip()]
    if claims:
        found["claims"] = dict(_claim(text) for text in claims)
    return found


def show(found: Explanation, console: Console, *, title: str) -> None:
    """Print an explanation for people."""
    colour = _COLOURS.get(found.summary, "red")
    console.print(f"[bold {colour}]{found.summary}[/]  [dim]{escape(title)}[/]")
    for action, verdict in (("allow", found.evaluation.allow), ("deny", found.evaluation.deny)):
        reasons = ", ".join(sorted(verdict.reasons)) or "no rules"
        console.print(f"  {action}: {_word(value=verdict.value)} ({escape(reasons)})")
    if not found.operators:
        console.print("  The policy has no rules, so nobody gets in.")
    for number, operator in enumerate(found.operators, 1):
        head = f"{number}. {operator.action} {operator.operator}: {_word(value=operator.value)}"
        tree = Tree(head)
        for criterion in operator.criteria:
            tree.add(_table(criterion))
        console.print(tree)
    if found.evaluation.valid_until_s != float("inf"):
        until = dt.datetime.fromtimestamp(found.evaluation.valid_until_s, dt.UTC).isoformat()
        console.print(f"Time alone may change this at {until}.")
    if found.summary == "sign-in":
        console.print("Nothing is decided before the user has signed in.")
    for change in found.changes:
        console.print(f"It would be [bold]{change.outcome}[/] with:")
        for need in change.needs:
            console.print(f"  {need.place}: {need.instead} instead of {need.now}", markup=False)


def _table(criterion: CriterionAnswer) -> Table:
    table = Table.grid(padding=(0, 1))
    mark = "*" if criterion.decides else " "
    data = escape(json.dumps(criterion.data, ensure_ascii=False))
    table.add_row(mark, f"[bold]{escape(criterion.key)}[/]: {data}", _word(value=criterion.value))
    facts = ", ".join(
        f"{name} = {json.dumps(value, ensure_ascii=False)}"
        for name, value in criterion.facts.items()
    )
    table.add_row("", f"[dim]{escape(facts)}[/]", f"[dim]{escape(criterion.reason)}[/]")
    return table


def _word(*, value: bool) -> str:
    return "[green]true[/]" if value else "[red]false[/]"


def _claim(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise PolicyError("expected name=value", ("claims",))
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
