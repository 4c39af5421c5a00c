"""Which routes of the databroker come into force, and what is said of those that do not.

A bad one is left out alone and reported; the others are not touched. Where its host and path are
sound they answer 503, so that its requests do not fall through to a wider route.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

from pydantic import ValidationError

from gatehouse.common.config.derive import needs_login
from gatehouse.common.config.issues import Issue, Severity
from gatehouse.common.config.load import KeyPath, LoadedSettings, Origin, Origins, plain_problem
from gatehouse.common.config.model import Route
from gatehouse.common.config.refused_routes import out_of_service
from gatehouse.common.config.resolve_routes import RouteResolver, route_label
from gatehouse.common.config.resolved import ResolvedRoute
from gatehouse.common.config.route_records import SOURCE, RecordRoute
from gatehouse.common.config.routes import UNIX_SCHEMES
from gatehouse.common.config.shadowing import shadow_remark
from gatehouse.common.ids import RouteId

_TOP: Final = "records"  # the first step of paths into a record's route
_IN_FILE: Final = "the file has it, too"
_MATCHER: Final = ("from", "path", "prefix", "regex")
_WEB: Final = ("http", "https")


@dataclass(frozen=True, slots=True)
class AddedRoutes:
    """What became of the databroker's routes."""

    routes: tuple[ResolvedRoute, ...]  # in order; they come after those of the file
    issues: tuple[Issue, ...]  # errors: the route is left out; warnings


def resolve_added(
    resolver: RouteResolver,
    added: Sequence[RecordRoute],
    local: Sequence[ResolvedRoute],
    *,
    can_sign_in: bool,
) -> AddedRoutes:
    """Check each route as one of a file is; those that `local` has already are dropped."""
    if not added:
        return AddedRoutes((), ())
    decision = resolver.decision_settings()
    taken = {str(route.id): _IN_FILE for route in local}
    routes: list[ResolvedRoute] = []
    places: list[str] = []
    issues: list[Issue] = []
    for number, record in enumerate(added):
        one = _One(resolver, record, number, can_sign_in=can_sign_in)
        made = one.resolve(decision)
        if made is not None and str(made.id) in taken:
            known = taken[str(made.id)]
            severity = Severity.WARNING if known is _IN_FILE else Severity.ERROR
            place = f"{record.place}.from"
            message = f"route {made.id} is left out: {known}"
            fix = "another match, destination or id, or remove one of them"
            issues += [*one.issues, Issue(severity, place, message, fix, SOURCE)]
            continue
        issues += one.issues
        if made is None:
            made = one.stand_in(decision)
        if made is not None:
            taken.setdefault(str(made.id), f"{record.place} is the same")
            routes.append(made)
            places.append(record.place)
    issues += _shadowed(resolver, local, routes, places)
    return AddedRoutes(tuple(routes), tuple(issues))


def _shadowed(
    resolver: RouteResolver,
    local: Sequence[ResolvedRoute],
    added: Sequence[ResolvedRoute],
    places: Sequence[str],
) -> Iterator[Issue]:
    """Warnings of what stored routes hide, and of what hides them."""
    found = [
        shadow
        for shadow in resolver.shadows((*local, *added))
        if max(shadow.route, -1 if shadow.by is None else shadow.by) >= len(local)
    ]
    if not found:
        return
    own = (route_label(place, one.settings) for place, one in zip(places, added, strict=True))
    labels = [*resolver.labels(local), *own]
    for shadow in found:
        remark = shadow_remark(shadow, labels)
        index = remark.route - len(local)
        if index >= 0:
            where = f"{places[index]}.from"
            yield Issue(Severity.WARNING, where, remark.message, remark.fix, SOURCE)
            continue
        # A host of the file hides a stored wildcard, whose writer may not see the file.
        where = f"{places[shadow.route - len(local)]}.from"
        message = f"is hidden on {shadow.host} by {labels[remark.route]}: other paths answer 404"
        yield Issue(Severity.WARNING, where, message, remark.fix, SOURCE)


class _One:
    """One route of a record on its way."""

    def __init__(
        self, resolver: RouteResolver, record: RecordRoute, number: int, *, can_sign_in: bool
    ) -> None:
        self._record = record
        self._path: KeyPath = (_TOP, number)
        self._origins = Origins()
        self._origins.set_elsewhere(self._path, Origin(SOURCE, None, record.place))
        self._resolver = resolver
        self._can_sign_in = can_sign_in
        self.issues: list[Issue] = []

    def resolve(self, decision: bytes) -> ResolvedRoute | None:
        """The route, or None with errors among `issues`."""
        for key, message, fix in self._record.problems:
            self._error((*self._path, key), message, fix)
        route = self._route(self._record.keys)
        if route is None:
            return None
        resolver = self._apart(route)
        made = resolver.resolve_one(self._path, route, decision)
        self.issues += [*resolver.inputs.errors, *resolver.inputs.warnings]
        if made is not None and self._is_for_sign_in(made):
            message = "is the host of authenticate_service_url, which only the file may route"
            self._error((*self._path, "from"), message, "another host")
        if made is not None and any(one.scheme in UNIX_SCHEMES for one in made.upstreams):
            # Our own are among them, Envoy's administration too, and container engines'.
            message = "leads to a Unix socket, which only the configuration file may"
            self._error((*self._path, "to"), message, "a host and a port")
        if made is not None and not self._can_sign_in and needs_login(made.policy):
            message = "needs a sign-in, but authenticate_service_url is not set"
            self._error((*self._path, "from"), message, "set it, or make the route public")
        if made is None or any(issue.severity is Severity.ERROR for issue in self.issues):
            return None
        own_id = RouteId(self._record.id) if self._record.id else made.id
        return replace(made, id=own_id, stat_name=self._record.stat_name, is_stored=True)

    def stand_in(self, decision: bytes) -> ResolvedRoute | None:
        """What answers in the route's place; None when it is unclear for which requests."""
        keys = {key: self._record.keys[key] for key in _MATCHER if key in self._record.keys}
        try:
            matcher = Route.model_validate(keys)
        except ValidationError:
            return None
        route = out_of_service(matcher)
        resolver = self._apart(route)
        made = resolver.resolve_one(self._path, route, decision)
        if made is None or resolver.inputs.errors or self._is_for_sign_in(made):
            return None
        return replace(made, is_stored=True)

    def _is_for_sign_in(self, made: ResolvedRoute) -> bool:
        """Whether the upstream would get what browsers send to where people sign in.

        On any port: cookies do not tell ports apart.
        """
        sign_in = urlsplit(self._resolver.settings.authenticate_service_url).hostname
        host = made.from_url.host.lower().removesuffix(".")
        return made.from_url.scheme in _WEB and host == (sign_in or "").removesuffix(".")

    def _apart(self, route: Route) -> RouteResolver:
        """The resolver with a place of its own for mistakes."""
        settings = self._resolver.settings.model_copy(update={"policy": (), "routes": (route,)})
        loaded = LoadedSettings(settings=settings, origins=self._origins)
        return replace(self._resolver, inputs=self._resolver.inputs.apart(loaded))

    def _route(self, keys: object) -> Route | None:
        try:
            return Route.model_validate(keys)
        except ValidationError as error:
            for details in error.errors(include_input=False, include_url=False):
                context = details.get("ctx", {})
                message, fix = (
                    (context["message"], context["fix"])
                    if details["type"] == "config"
                    else plain_problem(details["type"], details["msg"])
                )
                self._error((*self._path, *details["loc"]), message, fix)
            return None

    def _error(self, path: KeyPath, message: str, fix: str) -> None:
        self.issues.append(self._origins.issue(Severity.ERROR, path, message, fix))
