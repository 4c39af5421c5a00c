"""What of a request may change a route's decision or the headers that come with it.

The proxy finds remembered decisions by these facts, authorize lets only such decisions be
remembered: both ask here, and neither has a list of its own. Route, host, scheme and every
credential always count and are not named; records and time are held against the decision's own
dependencies.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from gatehouse.common.config.header_templates import Reference, Source, parse_template
from gatehouse.common.config.resolved import ResolvedRoute, ResolvedSettings
from gatehouse.common.policy.errors import PolicyError
from gatehouse.common.policy.facts import NOTHING, Fact, policy_reads

# Facts that the search key, the dependencies or the lifetime of a decision stand for.
_COVERED: Final = (
    *(Fact.SESSION, Fact.USER, Fact.DIRECTORY, Fact.DEVICE, Fact.RECORDS, Fact.TIME),
    *(Fact.METHOD, Fact.PATH, Fact.CORS_HEADERS, Fact.SOURCE_IP),
    *(Fact.CLIENT_CERTIFICATE, Fact.CERTIFICATE_VALIDITY),
)
_UNCOVERED: Final = ~functools.reduce(operator.or_, _COVERED)
_CERTIFICATE: Final = frozenset(
    {Source.CERTIFICATE_FINGERPRINT, Source.CERTIFICATE_DNS_NAMES, Source.CERTIFICATE_EMAILS}
)
# Tokens of others, which end when those others say.
_TOKENS: Final = frozenset({Source.ACCESS_TOKEN, Source.ID_TOKEN})
_CORS: Final = ("access-control-request-method", "origin")


@dataclass(frozen=True, slots=True)
class DecisionInputs:
    """The request attributes that count for one route."""

    method: bool = False
    path: bool = False  # never the query
    source: bool = False  # the client's address
    forwarded: bool = False  # which is read from X-Forwarded-For too
    certificate: bool = False
    headers: tuple[str, ...] = ()  # lower case, in order


class DecisionDeclarations:
    """The declarations of one configuration. Asked for every route: what they share is kept."""

    def __init__(self, resolved: ResolvedSettings) -> None:
        self._resolved = resolved
        settings = resolved.settings
        self._is_on = settings.decision_cache
        self._forwarded = settings.xff_num_trusted_hops > 0
        # Envoy then no longer shows a script the address that authorize falls back to.
        self._hides_peer = (
            self._forwarded and settings.skip_xff_append and settings.use_proxy_protocol
        )

    def of(self, route: ResolvedRoute) -> DecisionInputs | None:
        """What counts for a route; None when its decisions are never remembered."""
        options = route.settings
        if (
            not self._is_on
            or options.mcp is not None  # its decisions read the body
            or options.enable_google_cloud_serverless_authentication
            or route.from_url.scheme == "ssh"
        ):
            return None
        try:
            reads = policy_reads(self._resolved.policy_in_force(route))
        except (PolicyError, KeyError):
            return None  # a policy that nothing can be decided by
        by_policy = _of_policy(reads)
        if by_policy is None or (by_policy.source and self._hides_peer):
            return None
        if by_policy.source and self._forwarded:
            by_policy = replace(by_policy, forwarded=True)
        references = tuple(_references(route))
        return _with_references(by_policy, references) if references else by_policy


@functools.lru_cache(maxsize=4096)  # thousands of routes mostly read the same
def _of_policy(reads: Fact) -> DecisionInputs | None:
    """What counts where a policy reads this; None when its decisions cannot be remembered."""
    if reads & _UNCOVERED != NOTHING:
        return None
    return DecisionInputs(
        method=Fact.METHOD in reads,
        path=Fact.PATH in reads,
        source=Fact.SOURCE_IP in reads,
        certificate=bool(reads & (Fact.CLIENT_CERTIFICATE | Fact.CERTIFICATE_VALIDITY)),
        headers=_CORS if Fact.CORS_HEADERS in reads else (),
    )


def _with_references(
    inputs: DecisionInputs, references: tuple[Reference, ...]
) -> DecisionInputs | None:
    """What counts besides, for the headers that a route sets; None as above."""
    sources = {reference.source for reference in references}
    if not _TOKENS.isdisjoint(sources):
        return None
    headers = {
        reference.name
        for reference in references
        if reference.source is Source.REQUEST_HEADER and reference.name
    }
    return replace(
        inputs,
        certificate=inputs.certificate or not _CERTIFICATE.isdisjoint(sources),
        headers=tuple(sorted(headers.union(inputs.headers))),
    )


def _references(route: ResolvedRoute) -> Iterator[Reference]:
    """What the route's own headers refer to."""
    for text in (route.settings.set_request_headers or {}).values():
        yield from parse_template(text).references
