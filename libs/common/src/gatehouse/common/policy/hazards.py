"""What a policy says without its author having meant it, most likely.

Nothing here changes a decision: such policies are valid and stay compatible. A hazard says what the
text does and how to write what was probably meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from gatehouse.common.policy.ast import Action, Criterion, Data, FrozenObject, Operator, Policy
from gatehouse.common.policy.errors import PathStep, PolicyError, format_path
from gatehouse.common.policy.matchers import (
    ListMatcher,
    StringMatcher,
    parse_certificate_matcher,
    parse_device_matcher,
    parse_list_matcher,
    parse_networks,
    parse_string_matcher,
)
from gatehouse.common.policy.matching import list_predicate, string_predicate

_STRING_CRITERIA: Final = frozenset(
    {"user", "email", "domain", "http_method", "http_path", "mcp_tool", "ssh_username"}
)
_LIST_CRITERIA: Final = frozenset({"groups", "claim"})
# Without a session these give `user-unauthenticated`, which sends everybody to sign in.
_ABOUT_USER: Final = frozenset(
    {"authenticated_user", "user", "email", "domain", "groups", "claim", "device", "record"}
    | {"ssh_username_matches_email", "ssh_username_matches_claim"}
)
_METHODS: Final = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}
)
_SIGNED_IN_TOO: Final = "add authenticated_user beside it under and"


@dataclass(frozen=True, slots=True)
class Hazard:
    """One passage. `path` leads to it from the policy's root; () where the text has no such place.

    That is so for the policy as a whole, which has no criterion, and for what older keys became.
    """

    path: tuple[PathStep, ...]
    message: str
    fix: str
    criterion: str = ""  # name and sub-path

    @property
    def named(self) -> str:
        """The message, with the criterion it is about: for places that do not name it."""
        return f"{self.criterion}: {self.message}" if self.criterion else self.message

    def __str__(self) -> str:
        what = f"{format_path(self.path)}: {self.message}" if self.path else self.named
        return f"{what} ({self.fix})"


_Found = Iterator[tuple[str, str]]  # message and fix


def hazards(policy: Policy) -> tuple[Hazard, ...]:
    """Every hazard of a policy, in order of appearance, then those of the policy as a whole.

    Give it the whole policy of a route (with older keys and the default certificate rule), so that
    what one rule leaves open and another closes is not reported.
    """
    found: list[Hazard] = []
    for rule in policy.rules:
        for operator, criteria in rule.operators():
            for criterion in criteria:
                guarded = operator == "and" and any(
                    other.name == "authenticated_user" for other in criteria
                )
                told = list(_of_criterion(criterion))
                if not guarded:
                    told.extend(_anonymous(criterion, rule.action, operator))
                found.extend(_hazard(criterion, message, fix) for message, fix in told)
    found.extend(_of_policy(policy))
    return tuple(found)


def _hazard(criterion: Criterion, message: str, fix: str) -> Hazard:
    return Hazard(criterion.path, message, fix, criterion.key)


def _of_criterion(criterion: Criterion) -> _Found:
    name, data = criterion.name, criterion.data
    if name in _STRING_CRITERIA:
        yield from _never_equal(data, "one text")
        yield from _empty_lists(data)
    elif name in _LIST_CRITERIA:
        yield from _list_operands(name, data)
    if name == "claim":
        yield from _claim_names(criterion.sub_path)
    check = _SPECIAL.get(name)
    if check is not None:
        yield from check(data)
    if name == "mcp_tool":
        yield "only calls of MCP tools match, and this route is no MCP server", "leave it out"
    elif name.startswith("ssh_"):
        yield (
            "is about logins over SSH; requests over HTTP have no key, and the user name is empty",
            "leave it out, or write what HTTP requests have",
        )


def _never_equal(data: Data, what: str) -> _Found:
    """Operands that no text equals."""
    for operator, operand in _operators(data, "is"):
        if operator not in {"is", "not"} or isinstance(operand, str):
            continue
        always = "always" if operator == "not" else "never"
        if isinstance(operand, tuple):
            yield (
                (
                    f"{operator} compares with the whole list, which {what} {always} "
                    f"{'differs from' if operator == 'not' else 'equals'}"
                ),
                f"use {'not_in' if operator == 'not' else 'in'} for several values",
            )
        else:
            yield f"{operator} compares with a value that is no text", "put it in quotes"


def _empty_lists(data: Data) -> _Found:
    for operator, operand in _operators(data, "is"):
        if operand == () and operator in {"in", "not_in"}:
            word = "never" if operator == "in" else "always"
            yield f"{operator} with an empty list is {word} true", "name the values"
        elif operator in {"in", "not_in"} and isinstance(operand, tuple):
            odd = [item for item in operand if not isinstance(item, str)]
            if odd:
                yield (
                    f"{operator} holds values that are no text, which nothing equals",
                    ("put them in quotes"),
                )


def _list_operands(name: str, data: Data) -> _Found:
    for operator, operand in _operators(data, "has"):
        if isinstance(operand, tuple | FrozenObject):
            word = "true for everybody" if operator == "exclude" else "never true"
            yield (
                f"{operator} looks for the whole list as one element, so it is {word}",
                "write one criterion for each value, under or (any of them) or and (all of them)",
            )
        elif name == "groups" and not isinstance(operand, str):
            yield f"{operator} compares with a value that is no text", "put the group id in quotes"
        elif operator == "is":
            yield (
                "is holds only for those who have exactly this one value",
                "use has, unless that is meant",
            )


def _claim_names(sub_path: str) -> _Found:
    if not sub_path:
        yield "no claim is named", "write claim/<name>"
    elif "/" in sub_path:
        yield (
            "a / after the first is part of the claim's name, so a nested claim is not found",
            f"write claim/{sub_path.replace('/', '.')} for a nested claim",
        )


def _device(data: Data) -> _Found:
    wanted = parse_device_matcher(data)
    if wanted.credential_id is None and not wanted.must_exist:
        if wanted.approved is None:
            yield (
                "without a condition it is true for everybody, also without a session or device",
                "use device: {approved: true}",
            )
        elif not wanted.approved:
            yield (
                "approved: false is also true without any device, and without a session",
                "add type: any, to ask for a device that is not approved yet",
            )


def _source_ip(data: Data) -> _Found:
    if not parse_networks(data):
        yield "an empty list is never true", "name addresses or ranges"


def _http_method(data: Data) -> _Found:
    for text in _texts(data):
        if text not in _METHODS and text.upper() in _METHODS:
            yield f'"{text}" never comes: methods are upper case', f"write {text.upper()}"


def _http_path(data: Data) -> _Found:
    for operator, operand in _operators(data, "is"):
        values = operand if isinstance(operand, tuple) else (operand,)
        for value in values:
            if not isinstance(value, str):
                continue
            if "?" in value and operator != "not":
                yield "paths are compared without the query", "leave out everything from ? on"
            elif "%" in value:
                yield "paths are compared decoded", "write the characters that % stands for"
            elif operator in {"is", "in", "not_in", "not", "starts_with"} and not (
                value.startswith("/") or value in {"", "*"}
            ):
                yield f'no path is or begins with "{value}"', f"write /{value}"


def _domain(data: Data) -> _Found:
    if any("@" in text for text in _texts(data)):
        yield "a domain holds no @, so this never matches", "leave out everything up to the @"


def _certificate(data: Data) -> _Found:
    wanted = parse_certificate_matcher(data)
    for key, matcher in (
        ("san_dns", wanted.san_dns),
        ("san_email", wanted.san_email),
        ("san_uri", wanted.san_uri),
    ):
        if matcher is None:
            continue
        if len(matcher.tests) > 1:
            yield (
                f"each operator of {key} may be met by another name of the certificate",
                "use one operator, or is",
            )
        if any(test.operator == "not" for test in matcher.tests):
            yield (
                f"not in {key} is true as soon as one name differs",
                "refuse the name under deny instead",
            )
    if wanted.fingerprints == frozenset() or wanted.spki_hashes == frozenset():
        yield "an empty list matches no certificate", "name the certificates"


_SPECIAL: Final[Mapping[str, Callable[[Data], _Found]]] = {
    "device": _device,
    "source_ip": _source_ip,
    "http_method": _http_method,
    "http_path": _http_path,
    "domain": _domain,
    "client_certificate": _certificate,
}


# Requests without a session


def _anonymous(criterion: Criterion, action: Action, operator: Operator) -> _Found:
    if operator in {"not", "nor"}:
        if action == "allow" and criterion.name in _ABOUT_USER:
            yield (
                (
                    f"under {operator} it gives nobody a way in without signing in: "
                    "the missing session decides before the value does"
                ),
                "leave it out, or write what those who may come in have",
            )
        return
    if not _matches_nobody(criterion):
        return
    if action == "allow":
        yield "also true for requests without a session, so the route is open", _SIGNED_IN_TOO
    else:
        yield (
            "also true for requests without a session, which are refused before they can sign in",
            _SIGNED_IN_TOO,
        )


def _matches_nobody(criterion: Criterion) -> bool:
    """True when a request without a session passes though the criterion is about a user."""
    try:
        match criterion.name:
            case "email":
                return _passes(parse_string_matcher(criterion.data))
            case "claim":
                return _passes_empty(parse_list_matcher(criterion.data))
            case "ssh_username_matches_email":
                return True
            case _:
                return False  # device has its own words; the others need a user
    except PolicyError:
        return False


def _passes(matcher: StringMatcher) -> bool:
    return string_predicate(matcher)("")


def _passes_empty(matcher: ListMatcher) -> bool:
    return list_predicate(matcher)(())


# The policy as a whole


def _of_policy(policy: Policy) -> Iterator[Hazard]:
    allows = [rule for rule in policy.rules if rule.action == "allow"]
    denies = [rule for rule in policy.rules if rule.action == "deny"]
    names = {criterion.name for criterion in policy.criteria()}
    if "client_certificate" in names and "invalid_client_certificate" not in names:
        first = next(c for c in policy.criteria() if c.name == "client_certificate")
        yield _hazard(
            first,
            "what a certificate says is compared, not whether it is trusted; anybody can make one "
            "that says the same",
            "set downstream_mtls.ca, or add deny: {or: [{invalid_client_certificate: true}]}",
        )
    is_public = any(criterion.name == "accept" for rule in allows for criterion in rule.or_)
    if is_public:
        for rule in denies:
            for criterion in (*rule.and_, *rule.or_, *rule.not_, *rule.nor):
                if criterion.name in _ABOUT_USER:
                    yield _hazard(
                        criterion,
                        "who is refused depends on the user, so everybody must sign in first, "
                        "though accept lets everybody in",
                        "leave accept out, or refuse by what needs no user",
                    )
    if denies and not any(rule.operators() for rule in allows):
        yield Hazard(
            (),
            "nothing is allowed: there are only deny rules, so nobody gets in",
            "add what is allowed, such as allow: {or: [{authenticated_user: true}]}",
        )


def _operators(data: Data, bare: str) -> Iterator[tuple[str, Data]]:
    if isinstance(data, FrozenObject):
        yield from data.items()
    else:
        yield bare, data


def _texts(data: Data) -> Iterator[str]:
    for _, operand in _operators(data, "is"):
        for item in operand if isinstance(operand, tuple) else (operand,):
            if isinstance(item, str):
                yield item
