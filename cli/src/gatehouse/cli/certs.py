"""`gatehouse certs`: certificates and secrets for a deployment on networks of your own."""

from __future__ import annotations

import base64
import datetime as dt
import os
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509

from gatehouse.cli.files import write_file
from gatehouse.cli.local_authority import Leaf, LocalAuthority, Scope
from gatehouse.common.clock import SystemClock
from gatehouse.common.errors import FailedPreconditionError
from gatehouse.common.runtime.process import EXIT_CONFIG, EXIT_OK

SERVICES: Final = ("databroker", "authorize", "authenticate", "proxy")
SECRETS: Final = ("shared_secret", "cookie_secret")
_NAME: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")

_REAL_ONES: Final = """
Real certificates instead of these:
  people's side   any wildcard certificate for *.{domain}: put it in the place of external.pem and
                  external-key.pem. mkcert -cert-file external.pem -key-file external-key.pem
                  '*.{domain}' {domain}; an ACME client with a DNS challenge; your company's CA.
  between services  a CA of your own: its certificate as authority.pem, and one leaf for the names
                  {services} with the usages serverAuth and clientAuth.
Replaced files are read again at once; connections go on meanwhile."""


def certs(
    directory: Path, *, domain: str, services: Sequence[str], with_secrets: bool, owner: str
) -> int:
    """Make what is missing or near its end, and say what is there. 0, or 2 with the reason."""
    try:
        uid_gid = _owner(owner)
        _check_names(domain, *services)
        made = _make(directory, domain, tuple(services), with_secrets=with_secrets)
        if uid_gid is not None:
            for path in (directory, *made):
                os.chown(path, *uid_gid)
    except (FailedPreconditionError, OSError) as error:
        print(f"gatehouse certs: {error}", file=sys.stderr)
        return EXIT_CONFIG
    for path, meaning in made.items():
        print(f"{path}\n    {meaning}")
    print(_REAL_ONES.format(domain=domain, services=", ".join(services)))
    return EXIT_OK


def _make(
    directory: Path, domain: str, services: tuple[str, ...], *, with_secrets: bool
) -> dict[Path, str]:
    authority = LocalAuthority(
        directory,
        name=f"Gatehouse local authority for {domain}",
        scope=Scope((domain, *services)),
        now_s=SystemClock().now_s(),
    )
    external = authority.leaf("external", (domain, f"*.{domain}"), client=False)
    internal = authority.leaf("services", services, client=True)
    made = {
        authority.path: "the authority: trust it in browsers and as certificate_authority_file",
        authority.path.with_name("authority-key.pem"): "its key: needed here alone, to renew",
        **_described(external, f"{domain} and *.{domain}, what browsers see"),
        **_described(internal, f"{', '.join(services)}: what services show each other"),
    }
    if with_secrets:
        for name in SECRETS:
            path = directory / name
            fresh = base64.b64encode(secrets.token_bytes(32))
            write_file(path, fresh, mode=0o600, replace=False)
            made[path] = f"for {name}_file: 32 random bytes in base64"
    return made


def _described(leaf: Leaf, meaning: str) -> dict[Path, str]:
    certificate = x509.load_pem_x509_certificate(leaf.certificate.read_bytes())
    ends: dt.datetime = certificate.not_valid_after_utc
    return {
        leaf.certificate: f"{meaning}; until {ends:%Y-%m-%d}, renewed by running this again",
        leaf.key: "its key",
    }


def _check_names(*names: str) -> None:
    for name in names:
        if _NAME.fullmatch(name) is None:
            raise FailedPreconditionError(
                f"{name!r} is no DNS name: write it in lower case, without scheme or port"
            )


def _owner(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        raise FailedPreconditionError(
            f"--owner {text!r} should be UID:GID, for example 65532:65532"
        )
    return int(match[1]), int(match[2])
