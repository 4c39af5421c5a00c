"""Answers which certificates the demo serves: a local authority made once, and a leaf it signs."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gatehouse.cli.local_authority import LocalAuthority, Scope
from gatehouse.common.clock import Clock, SystemClock

# OpenSSL accepts no wildcard right below a single label, so each host stands here by name; the
# wildcard serves browsers for hosts that nobody thought of.
DEMO_HOSTS: Final = (
    "localhost",
    "*.localhost",
    "app.localhost",
    "admin.localhost",
    "public.localhost",
    "authenticate.localhost",
)
_THIS_MACHINE: Final = Scope(
    ("localhost",), (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
)


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files, all PEM. `certificate` holds the leaf alone; clients trust `authority`."""

    authority: Path
    certificate: Path
    key: Path
    authority_made: bool  # by this call: a browser has not seen it yet


def ensure_certificates(
    directory: Path, *, hosts: Sequence[str] = DEMO_HOSTS, clock: Clock | None = None
) -> Certificates:
    """Make what is missing, about to expire or short of a name; leave the rest as it is.

    `hosts` are localhost and names below it. Raises FailedPreconditionError for other names, and
    when a file there is not what it should be.
    """
    authority = LocalAuthority(
        directory,
        name="Gatehouse demo authority (this machine only)",
        scope=_THIS_MACHINE,
        now_s=(clock or SystemClock()).now_s(),
    )
    leaf = authority.leaf("localhost", hosts, ("127.0.0.1", "::1"), client=False)
    return Certificates(authority.path, leaf.certificate, leaf.key, authority_made=authority.made)
