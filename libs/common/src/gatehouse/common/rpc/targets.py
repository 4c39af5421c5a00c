"""What service URLs mean to a gRPC client (spec: databroker §10; pure).

A URL gives one target. Targets that can share a channel form a group: all plaintext ones, all TLS
ones that verify the same name, and each Unix socket alone.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from gatehouse.common.errors import InvalidArgumentError

DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """An IP address in canonical text, and a port."""

    ip: str
    port: int


@dataclass(frozen=True, slots=True)
class Target:
    """One service URL."""

    url: str
    scheme: str  # http, https, unix
    host: str  # lower case, no brackets, no trailing dot; "" for unix
    port: int  # 0 for unix
    path: str = ""  # the socket, for unix

    @property
    def literal(self) -> Address | None:
        """The address, when the host is one."""
        return literal_address(self.host, self.port)

    @property
    def authority(self) -> str:
        """host:port as an HTTP/2 authority."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class GroupKey:
    """What targets must share to share a channel."""

    scheme: str
    verify_name: str  # TLS: the name the server's certificate must carry
    path: str  # unix: the socket


@dataclass(frozen=True, slots=True)
class Group:
    """A channel to be: where to connect and as whom to address the servers."""

    key: GroupKey
    authority: str
    addresses: tuple[Address, ...]  # sorted, no duplicates; empty for unix

    @property
    def weight(self) -> int:
        """Share of the calls: the number of addresses."""
        return 1 if self.key.scheme == "unix" else len(self.addresses)


def literal_address(host: str, port: int) -> Address | None:
    """The address `host` spells, if it does."""
    try:
        return Address(str(ipaddress.ip_address(host)), port)
    except ValueError:
        return None


def parse_target(url: str) -> Target:
    """One of `http://host[:port]`, `https://host[:port]`, `unix:///path`.

    Raises InvalidArgumentError that says what would be right.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _bad(url, str(error)) from error
    if parts.username is not None or parts.password is not None:
        raise InvalidArgumentError("a service URL must not hold a user name or password")
    if parts.scheme == "unix":
        path = unquote(parts.path)
        if parts.netloc or not path.startswith("/"):
            raise _bad(url, "a Unix socket needs an absolute path")
        return Target(url, "unix", "", 0, path)
    if parts.scheme not in DEFAULT_PORTS:
        raise _bad(url, f"the scheme {parts.scheme!r} is not known")
    host = (parts.hostname or "").lower().rstrip(".")
    if not host:
        raise _bad(url, "there is no host")
    if port == 0:
        raise _bad(url, "port 0 cannot be connected to")
    return Target(url, parts.scheme, host, port or DEFAULT_PORTS[parts.scheme])


def group_targets(
    targets: Sequence[Target],
    addresses: Mapping[Target, Sequence[Address]],
    override_name: str,
) -> tuple[Group, ...]:
    """The channels needed now. A group without an address is left out.

    `override_name`, when given, is the name every TLS server must prove, whatever its URL says. For
    one with a star it is a name under it, which only a certificate with that star proves.
    """
    override_name = override_name.replace("*", "example")
    merged: dict[GroupKey, tuple[str, set[Address]]] = {}
    for target in targets:
        found = addresses.get(target, ())
        if not found and target.scheme != "unix":
            continue
        verify_name = (override_name or target.host) if target.scheme == "https" else ""
        key = GroupKey(target.scheme, verify_name, target.path)
        authority = "localhost" if target.scheme == "unix" else target.authority
        if target.scheme == "https" and override_name:
            authority = override_name
        _, known = merged.setdefault(key, (authority, set()))
        known.update(found)
    return tuple(
        Group(key, authority, tuple(sorted(found))) for key, (authority, found) in merged.items()
    )


def grpc_target(group: Group) -> str:
    """The literal target of a group: `ipv4:a:p,b:p`, `ipv6:[a]:p,[b]:p` or `unix:path`.

    An `ipv4:` target cannot hold an IPv6 address, so mixed families use the mapped form.
    """
    if group.key.scheme == "unix":
        return f"unix:{group.key.path}"
    if all(":" not in address.ip for address in group.addresses):
        return "ipv4:" + ",".join(f"{one.ip}:{one.port}" for one in group.addresses)
    spelled = (
        f"[{one.ip if ':' in one.ip else '::ffff:' + one.ip}]:{one.port}" for one in group.addresses
    )
    return "ipv6:" + ",".join(spelled)


def _bad(url: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"service URL {url[:200]!r}: {why}; write http://host[:port], https://host[:port] "
        "or unix:///path"
    )
