"""Matchers as closures: the one place where a string, a list or an address meets its test."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable, Sequence
from typing import TypeAlias

from gatehouse.common.policy.ast import Data, same
from gatehouse.common.policy.matchers import (
    ListMatcher,
    ListTest,
    Network,
    StringMatcher,
    StringTest,
)

StringPredicate: TypeAlias = Callable[[str], bool]
ListPredicate: TypeAlias = Callable[[Sequence[Data]], bool]
Address: TypeAlias = tuple[int, int]  # version and number


def string_predicate(matcher: StringMatcher) -> StringPredicate:
    """True when the subject passes every test."""
    tests = [string_test(test) for test in matcher.tests]
    if len(tests) == 1:
        return tests[0]

    def passes(subject: str) -> bool:
        return all(test(subject) for test in tests)

    return passes


def string_test(test: StringTest) -> StringPredicate:
    """One operator. A string never equals anything but a string."""
    operand = test.operand
    if test.operator in {"in", "not_in"}:
        assert isinstance(operand, tuple)
        members = frozenset(item for item in operand if isinstance(item, str))
        if test.operator == "in":
            return lambda subject: subject in members
        return lambda subject: subject not in members
    if test.operator == "is":
        return lambda subject: subject == operand
    if test.operator == "not":
        return lambda subject: subject != operand
    assert isinstance(operand, str)
    if test.operator == "starts_with":
        return lambda subject: subject.startswith(operand)
    if test.operator == "ends_with":
        return lambda subject: subject.endswith(operand)
    return lambda subject: operand in subject


def list_predicate(matcher: ListMatcher) -> ListPredicate:
    """True when the values pass every test."""
    tests = [list_test(test) for test in matcher.tests]
    if len(tests) == 1:
        return tests[0]

    def passes(values: Sequence[Data]) -> bool:
        return all(test(values) for test in tests)

    return passes


def list_test(test: ListTest) -> ListPredicate:
    """One operator."""
    operand = test.operand
    if test.operator == "is":
        return lambda values: len(values) == 1 and same(values[0], operand)
    has = _contains(operand)
    if test.operator == "has":
        return has
    return lambda values: not has(values)


def _contains(operand: Data) -> ListPredicate:
    if isinstance(operand, str):
        return lambda values: operand in values
    return lambda values: any(same(value, operand) for value in values)


def network_predicate(networks: Sequence[Network]) -> Callable[[str], bool]:
    """True for the text of an address in any of the networks."""
    ranges: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
    for network in networks:
        first = int(network.network_address)
        ranges[network.version].append((first, first + network.num_addresses - 1))

    def contains(text: str) -> bool:
        address = parse_address(text)
        if address is None:
            return False
        version, number = address
        return any(first <= number <= last for first, last in ranges[version])

    return contains


@functools.lru_cache(maxsize=4096)
def parse_address(text: str) -> Address | None:
    """Version and number of an address; IPv4-mapped IPv6 is IPv4. None for anything else."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.version, int(address)
