"""From decoded JSON or YAML to a policy tree, reporting every mistake at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gatehouse.common.policy.ast import (
    ACTIONS,
    OPERATORS,
    Action,
    Criterion,
    Policy,
    Rule,
    freeze,
    key_text,
    type_name,
)
from gatehouse.common.policy.criteria import check_criterion
from gatehouse.common.policy.errors import PathStep, PolicyError, PolicyProblem

__all__ = ["PolicyError", "PolicyProblem", "parse_policy"]

_PREFIX: Final = "invalid rules in policy: "
_Path = tuple[PathStep, ...]


def parse_policy(value: object) -> Policy:
    """The tree of one embedded policy: an object, or an array of them, as decoded.

    Raises PolicyError holding all mistakes. The absence of a policy (null) is for the caller to
    handle; here it is a mistake.
    """
    parser = _Parser()
    rules = parser.policy(value)
    if parser.problems:
        first = parser.problems[0]
        raise PolicyError(first.message, first.path, problems=tuple(parser.problems))
    return Policy(rules)


class _Parser:
    """Walks the value once; a mistake is noted and its branch left out."""

    def __init__(self) -> None:
        self.problems: list[PolicyProblem] = []

    def policy(self, value: object) -> tuple[Rule, ...]:
        if isinstance(value, Mapping):
            return self._rules(value, ())
        if not isinstance(value, list | tuple):
            self._note(
                f"unsupported type for rule: {type_name(value)}, "
                "expected an object with allow or deny, or an array of such objects",
                (),
            )
            return ()
        rules: list[Rule] = []
        for index, item in enumerate(value):
            if isinstance(item, Mapping):
                rules.extend(self._rules(item, (index,)))
            else:
                self._note(
                    f"unsupported type for rules array: {type_name(item)}, "
                    "expected an object with allow or deny",
                    (index,),
                )
        return tuple(rules)

    def _rules(self, value: Mapping[object, object], path: _Path) -> tuple[Rule, ...]:
        members = self._members(value, path)
        for key in members:
            if key not in ACTIONS:
                self._note(
                    f"invalid action in rule: unsupported action: {key}, expected allow or deny",
                    (*path, key),
                )
        return tuple(
            self._rule(action, members[action], (*path, action))
            for action in ACTIONS
            if action in members
        )

    def _rule(self, action: Action, body: object, path: _Path) -> Rule:
        if not isinstance(body, Mapping):
            self._note(
                f"invalid value for action in rule, expected Object, got {type_name(body)}", path
            )
            return Rule(action)
        members = self._members(body, path)
        for key in members:
            if key not in OPERATORS and key != "action":
                self._note(
                    f'unsupported conditional "{key}", '
                    "only and, or, not, nor and action are allowed",
                    (*path, key),
                )
        criteria = {
            operator: self._criteria(operator, members[operator], (*path, operator))
            for operator in OPERATORS
            if operator in members
        }
        return Rule(
            action,
            and_=criteria.get("and", ()),
            or_=criteria.get("or", ()),
            not_=criteria.get("not", ()),
            nor=criteria.get("nor", ()),
        )

    def _criteria(self, operator: str, value: object, path: _Path) -> tuple[Criterion, ...]:
        stem = f'invalid criteria in "{operator}"): '  # the parenthesis is Pomerium's
        if not isinstance(value, list | tuple):
            self._note(
                f"{stem}unsupported type for criteria: {type_name(value)}, expected an array", path
            )
            return ()
        found: list[Criterion] = []
        for index, item in enumerate(value):
            here = (*path, index)
            if not isinstance(item, Mapping):
                self._note(
                    f"{stem}unsupported type for criteria array: {type_name(item)}, "
                    "expected an object with one criterion",
                    here,
                )
            elif len(item) != 1:
                self._note(
                    f"{stem}each criteria may only contain a single key and value, "
                    f"got {len(item)} keys",
                    here,
                )
            else:
                criterion = self._criterion(item, here)
                if criterion is not None:
                    found.append(criterion)
        return tuple(found)

    def _criterion(self, item: Mapping[object, object], path: _Path) -> Criterion | None:
        raw_key, raw_data = next(iter(item.items()))
        try:
            key = key_text(raw_key)
        except PolicyError as error:
            self._note(error.message, path)
            return None
        name, _, sub_path = key.partition("/")
        try:
            criterion = Criterion(name, sub_path, freeze(raw_data), (*path, key))
            check_criterion(criterion)
        except PolicyError as error:
            self.problems.extend(error.below(*path, key).problems)
            return None
        return criterion

    def _members(self, value: Mapping[object, object], path: _Path) -> dict[str, object]:
        members: dict[str, object] = {}
        for key, item in value.items():
            try:
                members[key_text(key)] = item
            except PolicyError as error:
                self._note(error.message, path)
        return members

    def _note(self, message: str, path: _Path) -> None:
        self.problems.append(PolicyProblem(_PREFIX + message, path))
