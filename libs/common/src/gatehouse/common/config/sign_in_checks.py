"""Whether people can come back signed in: cookies that reach their hosts, places to return to.

Spec: configuration.md section 3. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from gatehouse.common.config.issues import Finding, Severity
from gatehouse.common.config.model import Settings
from gatehouse.common.config.values import shorten

_MOST_NAMED: Final = 3
_HOST: Final = re.compile(r"[A-Za-z0-9_\-]+(?:\.[A-Za-z0-9_\-]+)*")
_SIGNED_IN: Final = (
    "allow_any_authenticated_user",
    "allowed_users",
    "allowed_domains",
    "allowed_idp_claims",
)


def check_sign_in(settings: Settings) -> Iterator[Finding]:
    """Warnings: each of these ends in sign-ins that never arrive."""
    domain = settings.cookie_domain.strip(".").lower()
    outside = [host for host in _hosts(settings) if not f".{host}".endswith(f".{domain}")]
    if _HOST.fullmatch(domain) and outside:
        others = f" and {len(outside) - _MOST_NAMED} more" if len(outside) > _MOST_NAMED else ""
        yield Finding(
            Severity.WARNING,
            ("cookie_domain",),
            f"browsers refuse a cookie for {shorten(domain)} from "
            f"{', '.join(outside[:_MOST_NAMED])}{others}: nobody stays signed in there",
            "a domain that all hosts share, or none",
        )
    for index, entry in enumerate(settings.programmatic_redirect_domain_whitelist):
        if not _HOST.fullmatch(entry) and not _is_ip(entry):
            yield Finding(
                Severity.WARNING,
                ("programmatic_redirect_domain_whitelist", index),
                f"{shorten(entry)} is no host name: nothing matches it",
                "a host alone, such as app.example.com",
            )


def _hosts(settings: Settings) -> list[str]:
    """Where cookies of ours are set for sure: at the sign-in, and on routes for the signed-in."""
    urls = [settings.authenticate_service_url]
    urls += [
        route.from_
        for route in settings.all_routes
        if any(getattr(route, key) for key in _SIGNED_IN)
    ]
    found: dict[str, None] = {}
    for url in urls:
        try:
            parts = urlsplit(url)
        except ValueError:  # told about elsewhere
            continue
        host = (parts.hostname or "").rstrip(".")
        if host and "*" not in host and parts.scheme in {"http", "https"}:
            found[host] = None
    return list(found)


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
