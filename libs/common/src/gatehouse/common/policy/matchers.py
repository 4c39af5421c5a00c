"""What the data of a criterion means: matchers checked once, at load, into typed values.

Operators and their traps are described with the fields. Every operand is checked here, so that
evaluation cannot meet one of the wrong type.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from gatehouse.common.policy.ast import Data, FrozenObject, type_name
from gatehouse.common.policy.errors import PolicyError

StringOperator: TypeAlias = Literal[
    "is", "not", "starts_with", "ends_with", "contains", "in", "not_in"
]
ListOperator: TypeAlias = Literal["has", "is", "exclude"]
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

ANY_DEVICE: Final = "any"

_STRING_OPERATORS: Final[Mapping[str, StringOperator]] = {
    "is": "is",
    "not": "not",
    "starts_with": "starts_with",
    "ends_with": "ends_with",
    "contains": "contains",
    "in": "in",
    "not_in": "not_in",
}
_LIST_OPERATORS: Final[Mapping[str, ListOperator]] = {
    "has": "has",
    "is": "is",
    "exclude": "exclude",
}
_LOWER_HEX: Final = re.compile(r"[0-9a-f]{64}")
_UPPER_PAIRS: Final = re.compile(r"[0-9A-F]{2}(:[0-9A-F]{2}){31}")
_NETWORK: Final = re.compile(r"[0-9A-Fa-f:.]+(/[0-9]{1,3})?")
_MAPPED_PREFIX: Final = 96  # ::ffff:0:0/96


@dataclass(frozen=True, slots=True)
class StringTest:
    """One operator of a string matcher; `in` and `not_in` have a tuple as operand."""

    operator: StringOperator
    operand: Data


@dataclass(frozen=True, slots=True)
class StringMatcher:
    """All tests must hold. No tests: everything matches."""

    tests: tuple[StringTest, ...]


@dataclass(frozen=True, slots=True)
class ListTest:
    """`has`: some element equals; `is`: the only element equals; `exclude`: none equals."""

    operator: ListOperator
    operand: Data


@dataclass(frozen=True, slots=True)
class ListMatcher:
    """All tests must hold. No tests: everything matches."""

    tests: tuple[ListTest, ...]


@dataclass(frozen=True, slots=True)
class CertificateMatcher:
    """All given (not None) parts must hold for the leaf. An empty set matches nothing."""

    fingerprints: frozenset[str] | None = None  # SHA-256 of the DER, lower-case hex
    spki_hashes: frozenset[str] | None = None  # SHA-256 of the key info, base64
    san_dns: StringMatcher | None = None
    san_email: StringMatcher | None = None
    san_uri: StringMatcher | None = None


@dataclass(frozen=True, slots=True)
class DeviceMatcher:
    """All given (not None) parts must hold for the session's credential of `type`."""

    type: str  # which of the session's credentials is looked at
    approved: bool | None = None
    credential_id: str | None = None
    must_exist: bool = False  # the type was asked for by name


def parse_string_matcher(data: Data, *, strings_only: bool = False) -> StringMatcher:
    """A bare value is `is`. With `strings_only`, `is` and `not` take nothing but a string."""
    if not isinstance(data, FrozenObject):
        data = FrozenObject({"is": data})
    tests: list[StringTest] = []
    for key, operand in data.items():
        operator = _STRING_OPERATORS.get(key)
        if operator is None:
            raise PolicyError(
                f"unknown string matcher operator: {key}, "
                f"expected one of {', '.join(_STRING_OPERATORS)}"
            )
        if operator in {"in", "not_in"} and not isinstance(operand, tuple):
            raise PolicyError(
                f"{key} matcher requires an array of strings, got {type_name(operand)}", (key,)
            )
        if operator in {"starts_with", "ends_with", "contains"} and not isinstance(operand, str):
            raise PolicyError(f"{key} matcher requires a string, got {type_name(operand)}", (key,))
        if strings_only and operator in {"is", "not"} and not isinstance(operand, str):
            raise PolicyError(
                f"{key} matcher requires a string here, got {type_name(operand)}"
                + ("; use in for several values" if isinstance(operand, tuple) else ""),
                (key,),
            )
        tests.append(StringTest(operator, operand))
    return StringMatcher(tuple(tests))


def parse_list_matcher(data: Data) -> ListMatcher:
    """A bare value is `has`."""
    if not isinstance(data, FrozenObject):
        data = FrozenObject({"has": data})
    tests: list[ListTest] = []
    for key, operand in data.items():
        operator = _LIST_OPERATORS.get(key)
        if operator is None:
            raise PolicyError(
                f"unknown string list matcher operator: {key}, "
                f"expected one of {', '.join(_LIST_OPERATORS)}"
            )
        tests.append(ListTest(operator, operand))
    return ListMatcher(tuple(tests))


def parse_networks(data: Data) -> tuple[Network, ...]:
    """IP addresses and CIDR ranges, one or a list.

    Host bits are ignored, a bare address is one host, and an IPv4-mapped IPv6 range is the IPv4
    range it stands for.
    """
    if isinstance(data, str):
        return (_network(data),)
    if not isinstance(data, tuple):
        raise PolicyError(f"expected string or array of strings, got: {type_name(data)}")
    networks: list[Network] = []
    for index, item in enumerate(data):
        if not isinstance(item, str):
            raise PolicyError(f"expected string value, got: {type_name(item)}", (index,))
        try:
            networks.append(_network(item))
        except PolicyError as error:
            raise error.below(index) from None
    return tuple(networks)


def parse_certificate_matcher(data: Data) -> CertificateMatcher:
    """What the leaf certificate must be. `{}`: any that parses."""
    if not isinstance(data, FrozenObject):
        raise PolicyError(f"expected object for certificate matcher, got: {type_name(data)}")
    fingerprints: frozenset[str] | None = None
    spki_hashes: frozenset[str] | None = None
    names: dict[str, StringMatcher] = {}
    for key, operand in data.items():
        try:
            match key:
                case "fingerprint":
                    fingerprints = _texts(operand, "certificate fingerprint", _fingerprint)
                case "spki_hash":
                    spki_hashes = _texts(operand, "certificate SPKI hash", _spki_hash)
                case "san_dns" | "san_email" | "san_uri":
                    names[key] = _name_matcher(operand)
                case _:
                    raise PolicyError(  # noqa: TRY301 - the path is added below
                        f"unsupported certificate matcher condition: {key}, expected "
                        "fingerprint, spki_hash, san_dns, san_email or san_uri"
                    )
        except PolicyError as error:
            raise error.below(key) from None
    return CertificateMatcher(
        fingerprints,
        spki_hashes,
        names.get("san_dns"),
        names.get("san_email"),
        names.get("san_uri"),
    )


def parse_device_matcher(data: Data) -> DeviceMatcher:
    """`{approved, is, type}`. `{}` imposes nothing: it is true for everybody."""
    if not isinstance(data, FrozenObject):
        raise PolicyError(f"expected object for device criterion, got: {type_name(data)}")
    approved: bool | None = None
    texts: dict[str, str] = {}
    for key, operand in data.items():
        if key == "approved":
            # Arrays and objects are true whatever is in them.
            approved = isinstance(operand, tuple | FrozenObject) or bool(operand)
        elif key not in {"is", "type"}:
            raise PolicyError(
                f"unexpected field in device criterion: {key}, expected approved, is or type"
            )
        elif not isinstance(operand, str):
            raise PolicyError(
                f"expected string for device criterion {key} operator, got: {type_name(operand)}",
                (key,),
            )
        else:
            texts[key] = operand
    return DeviceMatcher(
        type=texts.get("type", ANY_DEVICE),
        approved=approved,
        credential_id=texts.get("is"),
        must_exist="type" in texts,
    )


def _network(text: str) -> Network:
    # ipaddress also takes netmasks and zones; neither belongs in a policy.
    if _NETWORK.fullmatch(text):
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            pass
        else:
            return _unmap(network)
    raise PolicyError(f'expected IP or CIDR range, got: "{text}"')


def _unmap(network: Network) -> Network:
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED_PREFIX:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_PREFIX))
    return network


def _name_matcher(operand: Data) -> StringMatcher:
    matcher = parse_string_matcher(operand)
    if any(test.operator == "not_in" for test in matcher.tests):
        raise PolicyError("not_in cannot be used on certificate names", ("not_in",))
    return matcher


def _texts(operand: Data, what: str, parse: Callable[[str], str]) -> frozenset[str]:
    if isinstance(operand, str):
        return frozenset({parse(operand)})
    if not isinstance(operand, tuple):
        raise PolicyError(f"{what} condition expects a string or array of strings")
    found: set[str] = set()
    for item in operand:
        if not isinstance(item, str):
            raise PolicyError(f"{what} must be a string (was {type_name(item)})")
        found.add(parse(item))
    return frozenset(found)


def _fingerprint(text: str) -> str:
    if not text:
        raise PolicyError("certificate fingerprint must not be empty")
    if _LOWER_HEX.fullmatch(text):
        return text
    if _UPPER_PAIRS.fullmatch(text):
        return text.replace(":", "").lower()
    raise PolicyError(
        f"unsupported certificate fingerprint format ({text}), expected SHA-256 as 64 lower-case "
        "hex digits, or as upper-case pairs joined by colons"
    )


def _spki_hash(text: str) -> str:
    if not text:
        raise PolicyError("certificate SPKI hash must not be empty")
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if len(decoded) != 32:
        raise PolicyError(
            f"certificate SPKI hash must be a base64-encoded SHA-256 hash (was {text})"
        )
    return text
