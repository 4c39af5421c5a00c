"""The audit log: one line for every decision, with the fields that were asked for.

A line goes straight to the common handler. The common chain searches every field for secrets, which
costs several times what the decision itself does; here only the fields that hold free text from a
client are searched, and all others are ours by construction.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gatehouse.authorize.core.check_request import RequestFacts
from gatehouse.authorize.core.claims import claim_text
from gatehouse.authorize.core.evaluator import Evaluation
from gatehouse.authorize.core.identity import Identity
from gatehouse.authorize.core.route_plan import RoutePlan
from gatehouse.common.config.model import AUTHORIZE_LOG_FIELDS
from gatehouse.common.observability.logging import get_logger, write_line
from gatehouse.common.observability.redaction import (
    REDACTED,
    is_secret_name,
    redact_query,
    redact_text,
)
from gatehouse.common.pages import safe_request_id

MESSAGE: Final = "authorize check"

_SHORT: Final = 128  # characters

_VERSION_FIELDS: Final = ("databroker-server-version", "databroker-record-version")
_NOT_HERE: Final = frozenset(
    # Known names with nothing to show for them in this build: bodies and tokens are not kept.
    {"body", "id-token", "mcp-tool-parameters"}
)


@dataclass(frozen=True, slots=True)
class Line:
    """What one line can tell."""

    facts: RequestFacts
    identity: Identity
    plan: RoutePlan | None
    evaluation: Evaluation
    versions: tuple[int, int]  # of the copy of sessions: server, record
    now_s: float  # Unix time of the decision
    removed_groups: int = 0  # kept from the upstream by the groups filter


Getter = Callable[[Line], object]  # None: the field does not apply


class AuthorizeLog:
    """Writes lines with a fixed choice of fields."""

    def __init__(self, fields: Sequence[str], new_id: Callable[[], str]) -> None:
        """`new_id` names calls of Check, which come without a name of their own."""
        self._stdlib = logging.getLogger("gatehouse.authorize")
        names = tuple(fields)
        if names == AUTHORIZE_LOG_FIELDS:
            names += _VERSION_FIELDS
        self._fields: list[tuple[str, Getter]] = []
        self._headers: dict[str, Getter] = {}  # chosen one by one, by their names as chosen
        self.unknown: list[str] = []
        for name in names:
            prefix, dot, header = name.partition(".")
            getter = _GETTERS.get(name)
            if name == "request-id":
                self._fields.append((name, lambda _line: new_id()))
            elif prefix == "headers" and dot and header:
                self._headers[header] = _header_getter(header.lower())
            elif getter is not None:
                self._fields.append((name, getter))
            elif name not in _NOT_HERE:
                self.unknown.append(name)

    def report_unknown(self) -> None:
        """Say which field names mean nothing; they are otherwise ignored."""
        for name in self.unknown:
            get_logger("authorize").error("unknown field in authorize_log_fields", field=name)

    def write(self, line: Line) -> None:
        """Write one line."""
        if self._stdlib.isEnabledFor(logging.INFO):
            write_line(
                {
                    "level": "info",
                    "time": _timestamp(int(line.now_s)),
                    "service": "authorize",
                    **self.values(line),
                    "message": MESSAGE,
                }
            )

    def values(self, line: Line) -> dict[str, object]:
        """The fields of one line, in order."""
        found: dict[str, object] = {}
        for name, getter in self._fields:
            value = getter(line)
            if value is not None:
                found[name] = value
        if self._headers:
            chosen = {name: getter(line) for name, getter in self._headers.items()}
            found["headers"] = {**_all_headers(line), **chosen} if "headers" in found else chosen
        allow, deny = line.evaluation.allow, line.evaluation.deny
        found["allow"] = allow.value
        found["allow-why-true" if allow.value else "allow-why-false"] = sorted(allow.reasons)
        found["deny"] = deny.value
        found["deny-why-true" if deny.value else "deny-why-false"] = sorted(deny.reasons)
        return found


def _header_getter(header: str) -> Getter:
    if is_secret_name(header):
        return lambda line: REDACTED if header in line.facts.headers else ""
    return lambda line: redact_text(line.facts.headers.get(header, ""))


def _all_headers(line: Line) -> Mapping[str, str]:
    return {
        name: REDACTED if is_secret_name(name) else redact_text(value)
        for name, value in line.facts.headers.items()
    }


def _redacted(text: str) -> str:
    """Hosts and short paths come again and again; long ones are not kept."""
    return _short(text) if len(text) <= _SHORT else redact_text(text)


@functools.lru_cache(maxsize=4096)
def _short(text: str) -> str:
    return redact_text(text)


@functools.lru_cache(maxsize=2)
def _timestamp(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))


def _claims(line: Line) -> dict[str, object]:
    return {
        name: REDACTED if is_secret_name(name) else redact_text(claim_text(values))
        for name, values in line.identity.session_claims.items()
    }


def _session_id(line: Line) -> str | None:
    return None if line.identity.is_service_account else line.identity.session_id or None


def _service_account_id(line: Line) -> str | None:
    return line.identity.session_id if line.identity.is_service_account else None


def _impersonated(name: str) -> Getter:
    def getter(line: Line) -> object:
        impersonation = line.identity.impersonation
        return getattr(impersonation, name) if impersonation is not None else None

    return getter


_GETTERS: Final[Mapping[str, Getter]] = {
    # The user's request: the access log has the same value as its request-id.
    "check-request-id": lambda line: safe_request_id(line.facts.request_id),
    "method": lambda line: line.facts.method,
    "path": lambda line: _redacted(line.facts.raw_path),
    "query": lambda line: redact_query(line.facts.query),
    "host": lambda line: _redacted(line.facts.host),
    "ip": lambda line: line.facts.ip,
    "headers": _all_headers,
    "session-id": _session_id,
    "service-account-id": _service_account_id,
    "impersonate-session-id": _impersonated("session_id"),
    "impersonate-user-id": _impersonated("user_id"),
    "impersonate-email": _impersonated("email"),
    "user": lambda line: line.identity.log_user_id,
    "email": lambda line: line.identity.log_email,
    "cluster-stat-name": lambda line: (line.plan.name or None) if line.plan is not None else None,
    # What Envoy sent, and what this configuration has: they differ while the two disagree.
    "envoy-route-id": lambda line: line.facts.route_id,
    "envoy-route-checksum": lambda line: line.facts.route_checksum,
    "route-id": lambda line: (line.plan.id or None) if line.plan is not None else None,
    "route-checksum": lambda line: (line.plan.checksum or None) if line.plan is not None else None,
    "mcp-method": lambda line: redact_text(line.facts.mcp.method) if line.facts.mcp else None,
    "mcp-tool": lambda line: (redact_text(line.facts.mcp.tool) or None) if line.facts.mcp else None,
    "removed-groups-count": lambda line: line.removed_groups or None,
    "id-token-claims": lambda line: _claims(line) or None,
    "databroker-server-version": lambda line: line.versions[0],
    "databroker-record-version": lambda line: line.versions[1],
}
