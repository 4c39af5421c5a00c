"""What one client holds of one resource type, and what it must still be sent.

A pure state machine for one type of one delta discovery stream. The protocol is Envoy's "xDS REST
and gRPC protocol" page, chapter "Incremental xDS"; the comments below name its sections. At most
one response is in flight at a time, so a nonce is either the one awaited or stale.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from gatehouse.common.ids import TypeUrl
from gatehouse.proxy.core.xds.resource import Resource, ResourceMap

WILDCARD: Final = "*"
_UNKNOWN_VERSION: Final = ""
_MAX_REASON: Final = 2000


@dataclass(frozen=True, slots=True)
class Request:
    """A DeltaDiscoveryRequest without its wire form. `error` is None in an ACK."""

    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    initial_versions: Mapping[str, str] = field(default_factory=dict)
    nonce: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """What the client lacks: resources it must be sent, names it must forget."""

    upserts: tuple[Resource, ...] = ()
    removals: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.upserts or self.removals)


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A request without a nonce, or with one that is no longer awaited: nothing was answered."""


@dataclass(frozen=True, slots=True)
class Acked:
    """The client took everything in the last response."""

    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Nacked:
    """The client refused the last response, or a part of it, and keeps what it had."""

    names: frozenset[str]
    reason: str


Outcome = Subscribed | Acked | Nacked


@dataclass(frozen=True, slots=True)
class _InFlight:
    nonce: str
    versions: Mapping[str, str]
    removals: frozenset[str]


class Subscription:
    """One type of one stream. Not safe for use from several tasks at once; cheap to keep."""

    def __init__(self, type_url: TypeUrl) -> None:
        self.type_url = type_url
        self._started = False
        self._wildcard = False
        self._names: set[str] = set()
        # name -> version the client is known to hold or to have refused
        self._known: dict[str, str] = {}
        # names asked for that the client was told do not exist
        self._absent: set[str] = set()
        self._in_flight: _InFlight | None = None
        # name -> version, of what the last refusal spoke of and no answer has mended since
        self._refused: dict[str, str] = {}
        self._refused_exactly = False
        self._reason = ""

    def __repr__(self) -> str:
        state = "idle" if self._in_flight is None else "awaiting"
        what = "wildcard" if self._wildcard else ",".join(sorted(self._names)) or "nothing"
        return f"Subscription({what}, {state}, knows {len(self._known)}, refused {self.refused!r})"

    @property
    def started(self) -> bool:
        """True once the client asked for this type on this stream."""
        return self._started

    @property
    def awaiting(self) -> bool:
        """True while a response is neither ACKed nor NACKed."""
        return self._in_flight is not None

    @property
    def refused(self) -> str:
        """Why the client refused something; empty once it took what came instead."""
        return self._reason

    @property
    def refused_versions(self) -> Mapping[str, str]:
        """What the last refusal spoke of, by name; "" for a removal."""
        return dict(self._refused)

    def try_again(self, resources: ResourceMap) -> None:
        """Have sent once more what was refused, as far as `resources` still hold that version."""
        for name, version in self._refused.items():
            if name in resources and resources[name].version == version:
                self._known[name] = _UNKNOWN_VERSION

    def refuses(self, resources: ResourceMap) -> bool:
        """True when `resources` hold a version that the client refused.

        Of a refusal that named nothing, a change to any part may be what mends it.
        """
        still = [
            name in resources and resources[name].version == version
            for name, version in self._refused.items()
        ]
        return any(still) if self._refused_exactly else bool(still) and all(still)

    def wants(self, name: str) -> bool:
        """True when the client subscribed to `name`, by name or by wildcard."""
        return self._wildcard or name in self._names

    def holds(self, name: str) -> bool:
        """True when the client has some version of `name`, as far as is known."""
        return name in self._known

    @property
    def holds_any(self) -> bool:
        """True when the client has some resource of this type, as far as is known."""
        return bool(self._known)

    def on_request(self, request: Request) -> Outcome:
        """Take a request in; say what it tells about the response in flight."""
        first = not self._started
        self._started = True
        self._subscribe(request.subscribe, first=first)
        if first:
            # initial_resource_versions: what the client kept from a former stream; equal versions
            # need not be sent again.
            for name, version in request.initial_versions.items():
                if self.wants(name):
                    self._known[name] = version
        self._unsubscribe(request.unsubscribe)
        return self._answer(request)

    def _subscribe(self, names: tuple[str, ...], *, first: bool) -> None:
        # "How the client specifies what resources to return": a first request that names nothing
        # subscribes to everything, unless names follow (then it is as if "*" had been named).
        if WILDCARD in names or (first and not names):
            self._wildcard = True
        for name in names:
            if name == WILDCARD:
                continue
            self._names.add(name)
            self._absent.discard(name)
            # A name asked for (again) is sent whether or not it changed.
            self._known.pop(name, None)

    def _unsubscribe(self, names: Iterable[str]) -> None:
        for name in names:
            if name == WILDCARD:
                self._wildcard = False
                for known in [known for known in self._known if known not in self._names]:
                    del self._known[known]
                continue
            self._names.discard(name)
            self._absent.discard(name)
            if self._wildcard:
                # "Unsubscribing From Resources": still covered by the wildcard, so the server must
                # send it again or say that it is gone. An unknown version makes either happen.
                self._known[name] = _UNKNOWN_VERSION
            else:
                self._known.pop(name, None)

    def _answer(self, request: Request) -> Outcome:
        in_flight = self._in_flight
        # "ACK/NACK and resource type instance version": a nonce that is not the latest speaks of a
        # response that was overtaken. It must not be credited with what was sent since.
        if in_flight is None or not request.nonce or request.nonce != in_flight.nonce:
            return Subscribed()
        self._in_flight = None
        # Refused versions count as known too: sending them again would only be refused again.
        # `try_again` is for those that may be taken later.
        for name, version in in_flight.versions.items():
            if self.wants(name) and name not in request.subscribe:
                self._known[name] = version
        for name in in_flight.removals:
            self._known.pop(name, None)
        if request.error is None:
            names = frozenset(in_flight.versions) | in_flight.removals
            self._clear_refusal(names)
            return Acked(names)
        return self._refuse(in_flight, request.error)

    def _refuse(self, in_flight: _InFlight, error: str) -> Nacked:
        versions = {**dict.fromkeys(in_flight.removals, _UNKNOWN_VERSION), **in_flight.versions}
        named = {name: version for name, version in versions.items() if _mentions(error, name)}
        kept: dict[str, str] = {}
        if self._refused_exactly and named:
            kept = {name: v for name, v in self._refused.items() if name not in versions}
        self._refused = {**kept, **(named or versions)}
        self._refused_exactly = bool(named)
        self._reason = (error.strip() or "refused without a reason")[:_MAX_REASON]
        return Nacked(frozenset(named or versions), self._reason)

    def _clear_refusal(self, names: frozenset[str]) -> None:
        # Envoy takes the good clusters and listeners of a response and names the bad ones. While
        # the names are known, taking others does not mend them; if not, any ACK is good news.
        if not self._refused_exactly:
            self._refused.clear()
        for name in names & self._refused.keys():
            del self._refused[name]
        if not self._refused:
            self._refused_exactly = False
            self._reason = ""

    def needed(self, resources: ResourceMap) -> Delta:
        """What the client must be sent to hold `resources`, as far as it subscribed to them."""
        if not self._started:
            return Delta()
        wanted = resources if self._wildcard else self._names & resources.keys()
        upserts = tuple(
            resources[name]
            for name in sorted(wanted)
            if self._known.get(name) != resources[name].version
        )
        gone = self._known.keys() - resources.keys()
        # "Unknown resources": a name that does not exist is answered as removed, once.
        missing = self._names - resources.keys() - self._absent
        return Delta(upserts, tuple(sorted(gone | missing)))

    def sent(self, nonce: str, delta: Delta) -> None:
        """Note that `delta` left under `nonce`. Nothing else may be in flight."""
        assert self._in_flight is None, "one response at a time"
        assert nonce
        self._in_flight = _InFlight(
            nonce=nonce,
            versions={resource.name: resource.version for resource in delta.upserts},
            removals=frozenset(delta.removals),
        )
        self._absent.update(name for name in delta.removals if name in self._names)
        self._absent.difference_update(resource.name for resource in delta.upserts)


def _mentions(text: str, name: str) -> bool:
    """True when `name` stands in `text` as a whole, not as a part of a longer name."""
    pattern = rf"(?<![\w.-]){re.escape(name)}(?![\w-])"
    return re.search(pattern, text) is not None
