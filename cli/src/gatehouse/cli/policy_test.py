"""`gatehouse policy test`: cases that people keep beside their policies.

A file is a mapping with `cases`, and with `policy` or `config` and `route` for all cases:

    policy: {allow: {or: [{domain: example.com}]}}
    cases:
      - name: colleagues get in
        facts: {email: ann@example.com}
        expect: allowed
      - name: others do not
        facts: {email: eve@evil.example, time: "2027-01-31T12:00:00Z"}
        expect: {outcome: denied, status: 403, reasons: [domain-unauthorized]}

A case may have a `policy` of its own. Facts are those of `authorize.core.supposition.suppose`.
`expect` is allowed, denied, sign-in or device, or a status, or a mapping of outcome, status,
reasons (exactly these), allow and deny.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from gatehouse.authorize.core.chosen_route import chosen_route, usual_facts
from gatehouse.authorize.core.evaluator import Deny
from gatehouse.authorize.core.explain import Explanation, explain
from gatehouse.authorize.core.supposition import suppose
from gatehouse.cli.explain import show
from gatehouse.common.config.documents import DocumentError, parse_yaml_value
from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.resolve import load_and_resolve
from gatehouse.common.errors import GatehouseError
from gatehouse.common.policy.ast import Policy
from gatehouse.common.policy.errors import PolicyError
from gatehouse.common.policy.parser import parse_policy

EXIT_PASSED: Final = 0
EXIT_FAILED: Final = 1
EXIT_UNUSABLE: Final = 2

_MAX_FILE: Final = 4 * 1024 * 1024
_OUTCOMES: Final = ("allowed", "denied", "sign-in", "device")
_EXPECTED: Final = ("outcome", "status", "reasons", "allow", "deny")
_FILE_KEYS: Final = frozenset({"policy", "config", "route", "cases"})
_CASE_KEYS: Final = frozenset({"name", "policy", "facts", "expect"})
_READS_TIME: Final = frozenset({"date", "day_of_week", "time_of_day"})


@dataclass(frozen=True, slots=True)
class Case:
    """One case. `expected` holds only what was asked for."""

    name: str
    place: tuple[str | int, ...]
    line: int
    policy: Policy
    facts: Mapping[str, object]
    expected: Mapping[str, object]


@dataclass(slots=True)
class _Document:
    """Where in the file things stand."""

    lines: Mapping[tuple[str | int, ...], int] = field(default_factory=dict)
    broken_at: int | None = None  # the line from which on it is no YAML

    def line_of(self, path: tuple[str | int, ...]) -> str:
        """`:line` of the place, or of the nearest around it that has one."""
        if self.broken_at is not None:
            return f":{self.broken_at}"
        for length in range(len(path), 0, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return f":{line}"
        return ""


@dataclass(frozen=True, slots=True)
class _Common:
    """A policy, and what holds for every request to its route."""

    policy: Policy
    facts: Mapping[str, object] = field(default_factory=dict)


def policy_test(
    file: Path,
    environ: Mapping[str, str],
    *,
    verbose: bool = False,
    console: Console | None = None,
) -> int:
    """Run the cases of a file: 0 all pass, 1 some fail, 2 the file cannot be used.

    `environ`: for the configuration that the file may name. `verbose` explains every failure.
    """
    console = console or Console()
    document = _Document()
    try:
        cases = read_cases(file, environ, document)
        answers = [(case, _ask(case)) for case in cases]
    except PolicyError as error:
        for problem in error.problems:
            where = f"{file}{document.line_of(problem.path)}"
            console.print(f"{where}: {problem}", style="red", markup=False, soft_wrap=True)
        return EXIT_UNUSABLE
    except (GatehouseError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        console.print(f"{file}: {why}", style="red", markup=False, soft_wrap=True)
        return EXIT_UNUSABLE
    failures = 0
    for case, answer in answers:
        differences = _differences(case.expected, answer)
        if not differences:
            if verbose:
                console.print("[green]pass[/]", end="  ")
                console.print(case.name, markup=False)
            continue
        failures += 1
        console.print("[bold red]fail[/]", end="  ")
        console.print(f"{case.name} ({file}:{case.line})", markup=False, soft_wrap=True)
        for name, expected, found in differences:
            console.print(f"    - {name}: {expected}", style="red", markup=False)
            console.print(f"    + {name}: {found}", style="green", markup=False)
        if verbose:
            show(answer, console, title=case.name)
    console.print(f"{len(answers) - failures} passed, {failures} failed")
    return EXIT_FAILED if failures else EXIT_PASSED


def read_cases(file: Path, environ: Mapping[str, str], document: _Document) -> tuple[Case, ...]:
    """The cases of a file. PolicyError with the place of what is wrong; OSError."""
    raw = file.read_bytes()
    if len(raw) > _MAX_FILE:
        raise PolicyError(f"the file is larger than {_MAX_FILE} bytes")
    try:
        value, document.lines = parse_yaml_value(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise PolicyError("the file is not UTF-8 text") from None
    except DocumentError as error:
        document.broken_at = error.line
        raise PolicyError(str(error)) from None
    whole = _mapping(value, (), _FILE_KEYS)
    cases = whole.get("cases")
    if not isinstance(cases, list) or not cases:
        raise PolicyError("expected a list of one case or more", ("cases",))
    common = _common_policy(whole, file, environ)
    return tuple(
        _case(item, index, common, document.lines.get(("cases", index), 1))
        for index, item in enumerate(cases)
    )


def _common_policy(
    whole: Mapping[str, Any], file: Path, environ: Mapping[str, str]
) -> _Common | None:
    if "policy" in whole:
        if "config" in whole or "route" in whole:
            raise PolicyError("use either policy, or config and route")
        return _Common(_policy(whole["policy"], ("policy",)))
    if "config" not in whole and "route" not in whole:
        return None
    config, route = whole.get("config"), whole.get("route")
    if not isinstance(config, str) or not isinstance(route, str):
        raise PolicyError("config and route belong together, both strings")
    throwaway = secrets.token_bytes(32)
    try:
        settings, _ = load_and_resolve(
            file.parent / config, environ, random_secret=lambda: throwaway
        )
    except ConfigError as error:
        raise PolicyError(f"the configuration cannot be used: {error}", ("config",)) from None
    found = chosen_route(settings.routes, route)
    if found is None:
        raise PolicyError(f"no single route has the id, name or URL {route}", ("route",))
    return _Common(settings.policy_in_force(found), usual_facts(settings, found))


def _case(item: object, index: int, common: _Common | None, line: int) -> Case:
    here = ("cases", index)
    case = _mapping(item, here, _CASE_KEYS)
    if "policy" in case:
        common = _Common(_policy(case["policy"], (*here, "policy")))
    if common is None:
        raise PolicyError("there is no policy: give the case one, or the file", here)
    policy = common.policy
    facts = case.get("facts", {})
    if not isinstance(facts, Mapping):
        raise PolicyError("expected an object", (*here, "facts"))
    if "time" not in facts and any(c.name in _READS_TIME for c in policy.criteria()):
        raise PolicyError(
            "the policy depends on the time, so the case must say time", (*here, "facts")
        )
    if "expect" not in case:
        raise PolicyError("the case expects nothing: add expect", here)
    return Case(
        name=str(case.get("name", f"case {index + 1}")),
        place=here,
        line=line,
        policy=policy,
        facts={**common.facts, **facts},
        expected=_expected(case["expect"], (*here, "expect")),
    )


def _expected(value: object, here: tuple[str | int, ...]) -> Mapping[str, object]:
    if isinstance(value, str):
        value = {"outcome": value}
    elif isinstance(value, int) and not isinstance(value, bool):
        value = {"status": value}
    found = dict(_mapping(value, here, frozenset(_EXPECTED)))
    if not found:
        raise PolicyError("the case expects nothing", here)
    if found.get("outcome", _OUTCOMES[0]) not in _OUTCOMES:
        raise PolicyError(f"expected one of {', '.join(_OUTCOMES)}", (*here, "outcome"))
    status = found.get("status", 0)
    if isinstance(status, bool) or not isinstance(status, int):
        raise PolicyError("expected a number such as 403", (*here, "status"))
    for name in ("allow", "deny"):
        if not isinstance(found.get(name, True), bool):
            raise PolicyError("expected true or false", (*here, name))
    if "reasons" in found:
        reasons = found["reasons"]
        if not isinstance(reasons, list) or not all(isinstance(item, str) for item in reasons):
            raise PolicyError("expected a list of reason codes", (*here, "reasons"))
        found["reasons"] = sorted(set(reasons))
    return found


def _ask(case: Case) -> Explanation:
    try:
        described = suppose(case.facts, case.policy, now_s=0.0)
    except PolicyError as error:
        raise error.below(*case.place, "facts") from None
    return explain(case.policy, described.request, described.identity)


def _differences(
    expected: Mapping[str, object], answer: Explanation
) -> list[tuple[str, object, object]]:
    outcome = answer.outcome
    found: dict[str, object] = {
        "outcome": answer.summary.partition(" ")[0],
        "status": _status(answer),
        "reasons": sorted(outcome.reasons),
        "allow": answer.evaluation.allow.value,
        "deny": answer.evaluation.deny.value,
    }
    return [
        (name, expected[name], found[name])
        for name in _EXPECTED
        if name in expected and expected[name] != found[name]
    ]


def _status(answer: Explanation) -> int:
    """What a browser would get; 200 stands for whatever the application answers."""
    if isinstance(answer.outcome, Deny):
        return answer.outcome.status
    return 200 if answer.summary == "allowed" else 302


def _policy(value: object, here: tuple[str | int, ...]) -> Policy:
    try:
        return parse_policy(value)
    except PolicyError as error:
        raise error.below(*here) from None


def _mapping(
    value: object, here: tuple[str | int, ...], known: frozenset[str]
) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise PolicyError(f"expected an object with some of {', '.join(sorted(known))}", here)
    unknown = sorted(str(key) for key in value if key not in known)
    if unknown:
        raise PolicyError(
            f"unknown key {', '.join(unknown)}, expected some of {', '.join(sorted(known))}", here
        )
    return value
