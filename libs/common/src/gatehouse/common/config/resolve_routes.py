"""What each route is built from: ids, checksums, policy trees and the contents of route files.

Part of `resolve`; mistakes go to the object that also reads the files.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from gatehouse.common.config import derive
from gatehouse.common.config.documents import DocumentError, parse_yaml_value
from gatehouse.common.config.inputs import Inputs
from gatehouse.common.config.issues import Severity
from gatehouse.common.config.load import KeyPath, format_path
from gatehouse.common.config.memory import KnownRoute, RouteMemory, reads_files
from gatehouse.common.config.model import Route, Settings
from gatehouse.common.config.resolved import (
    CertificatePair,
    FromURL,
    IdentityProviderSettings,
    ResolvedRoute,
    ServiceName,
    Upstream,
    adds_certificate_rule,
)
from gatehouse.common.config.route_checks import check_route
from gatehouse.common.config.routes import (
    RouteURLError,
    parse_from,
    parse_to,
    route_checksum,
    route_id,
)
from gatehouse.common.config.shadowing import Shadow, shadow_remark, shadows
from gatehouse.common.config.unavailable import MESSAGE, unavailable_in_route
from gatehouse.common.jose.keys import SigningKey
from gatehouse.common.policy.ast import Policy, Rule, canonical
from gatehouse.common.policy.errors import PolicyError
from gatehouse.common.policy.hazards import hazards
from gatehouse.common.policy.legacy import (
    SubPolicy,
    route_policy,
    with_client_certificate_rule,
)
from gatehouse.common.policy.parser import parse_policy
from gatehouse.common.session.idp_id import idp_id

_GITHUB_VERSION: Final = 1
_PATH_KEYS: Final = ("path", "prefix", "regex")
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}
_POLICY_KEYS: Final = (
    *("policy", "sub_policies", "allow_any_authenticated_user"),
    *("allowed_users", "allowed_domains", "allowed_idp_claims"),
)

# Global keys that shape what authorize answers; a change makes every remembered answer stale.
_DECISION_KEYS: Final = (
    *("cookie_name", "authenticate_service_url", "bearer_token_format", "identity_providers"),
    *("idp_access_token_allowed_audiences", "jwt_claims_headers", "jwt_issuer_format"),
    "jwt_groups_filter",
    *("pass_identity_headers", "runtime_flags", "idp_provider", "idp_provider_url"),
    *("idp_client_id", "xff_num_trusted_hops", "skip_xff_append"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteResolver:
    """Resolves all routes of one configuration."""

    settings: Settings
    services: frozenset[ServiceName]
    provider: IdentityProviderSettings | None
    shared_secrets: tuple[bytes, ...]
    signing_keys: tuple[SigningKey, ...]
    downstream_mtls: tuple[bytes | None, bytes | None]
    inputs: Inputs
    memory: RouteMemory = field(default_factory=RouteMemory)
    stored_authorities: tuple[str, ...] = ()  # that routes of the databroker name, as written
    # As ResolvedSettings.refuses_bad_certificates will be, before there is one.
    adds_certificate_rule: bool = field(init=False)
    grpc_hosts: frozenset[str] = field(init=False)  # where Envoy passes gRPC on to this process

    def __post_init__(self) -> None:
        # Once: every route asks for them, and the first looks at every route.
        object.__setattr__(self, "adds_certificate_rule", self._adds_certificate_rule())
        hosts = derive.shared_grpc_hosts(self.settings, self.services)
        object.__setattr__(self, "grpc_hosts", hosts)

    def resolve(self) -> tuple[ResolvedRoute, ...]:
        """`policy`, then `routes`, each in file order; what is wrong is reported and left out."""
        decision = self.decision_settings()
        resolved: list[ResolvedRoute] = []
        seen: dict[tuple[str, str], KeyPath] = {}
        known = self.memory.known(self._basis(decision))
        for path, route in self._written():
            made = self._known(known.get(id(route))) or self._new(path, route, decision)
            if made is None or not self.inputs.is_whole(path):
                continue
            other = seen.setdefault((route.name, made.id), path)
            if other != path:
                self.inputs.report(
                    Severity.ERROR,
                    (*path, "from"),
                    f"route {route.name or made.id} is not unique: "
                    f"{other[0]}[{other[1]}] has the same name, match and destination",
                    "remove one of them, or name them",
                )
                continue
            resolved.append(made)
        self._shadowed(resolved)
        return tuple(resolved)

    def _basis(self, decision: bytes) -> object:
        """All that a route resolves to depends on, besides itself and its files."""
        return (
            self.settings.without_routes(),
            self.services,
            self.provider,
            self.shared_secrets,
            tuple(key.kid for key in self.signing_keys),
            self.downstream_mtls,
            self.adds_certificate_rule,
            decision,
            self.inputs.dropped,
        )

    def _known(self, known: KnownRoute | None) -> ResolvedRoute | None:
        """What a route resolved to the last time, wherever it stood."""
        if known is None:
            return None
        self.memory.resolved[id(known.route)] = known
        return known.resolved

    def _new(self, path: KeyPath, route: Route, decision: bytes) -> ResolvedRoute | None:
        remarks = len(self.inputs.errors) + len(self.inputs.warnings)
        made = self.resolve_one(path, route, decision)
        if (
            made is not None
            and remarks == len(self.inputs.errors) + len(self.inputs.warnings)
            and not reads_files(route)
        ):
            self.memory.resolved[id(route)] = KnownRoute(route, made)
        return made

    def _written(self) -> Iterator[tuple[KeyPath, Route]]:
        for key in ("policy", "routes"):
            for index, route in enumerate(getattr(self.settings, key)):
                if (key, index) not in self.inputs.dropped:
                    yield (key, index), route

    def decision_settings(self) -> bytes:
        """What of the global keys shapes every decision; part of each route's checksum."""
        dumped = self.settings.model_dump(mode="json", include=set(_DECISION_KEYS))
        mtls = self.settings.downstream_mtls
        dumped["mtls"] = [
            mtls.enforcement,
            [dict(entry) for entry in mtls.match_subject_alt_names],
            mtls.max_verify_depth,
            *(hashlib.sha256(part or b"").hexdigest() for part in self.downstream_mtls),
        ]
        if self.adds_certificate_rule and self.downstream_mtls[0] is None:
            dumped["mtls"].append("rule")  # the authority of one route brings it to all of them
        dumped["keys"] = [key.kid for key in self.signing_keys]
        dumped["secrets"] = [self._keyed(secret.hex()) for secret in self.shared_secrets]
        account = self.settings.google_cloud_serverless_authentication_service_account
        dumped["google"] = self._keyed(account.get_secret_value())
        return json.dumps(dumped, sort_keys=True).encode()

    def _keyed(self, secret: str) -> str:
        """A stand-in for a secret: equal in every service, of no use to who reads it."""
        return hmac.new(self.shared_secrets[0], secret.encode(), hashlib.sha256).hexdigest()

    def resolve_one(self, path: KeyPath, route: Route, decision: bytes) -> ResolvedRoute | None:
        """One route, or None after its mistakes were reported."""
        sound = True

        def error(key: KeyPath, message: str, fix: str = "") -> None:
            nonlocal sound
            sound = False
            self.inputs.report(Severity.ERROR, (*path, *key), message, fix)

        from_url: FromURL | None = None
        try:
            from_url = parse_from(route.from_)
        except RouteURLError as problem:
            error(("from",), str(problem), problem.fix)
        upstreams: list[Upstream] = []
        for position, target in enumerate(route.to):
            try:
                upstreams.append(parse_to(target))
            except RouteURLError as problem:
                key: KeyPath = ("to", position) if len(route.to) > 1 else ("to",)
                error(key, str(problem), problem.fix)
        for finding in check_route(route, from_url, tuple(upstreams), self.settings):
            if finding.severity is Severity.ERROR:
                error(finding.path, finding.message, finding.fix)
            else:
                self.inputs.report(
                    finding.severity, (*path, *finding.path), finding.message, finding.fix
                )
        if from_url is not None and self._is_for_services(from_url):
            error(
                ("from",),
                f"{from_url.host} is the host of a service URL, and grpc_address is that of "
                "address: gRPC calls to it are for Gatehouse itself",
                "another host, or a grpc_address of its own",
            )
        for name, fix in unavailable_in_route(route, from_url):
            error((name,), MESSAGE, fix)
        policy = self._policy(route, error)
        if from_url is not None and self._is_passed_through(from_url):
            self._undecided(path, route, error)
        elif policy is not None:
            self._doubts(path, route, policy)
        if route.regex_priority_order is not None:
            self.inputs.warn(
                (*path, "regex_priority_order"),
                "has no effect in a file, whose routes are tried in the order they stand in",
                "put the route before those that it must come before",
            )
        if not sound or from_url is None or policy is None:
            return None
        return self._with_files(path, route, decision, from_url, tuple(upstreams), policy)

    def _is_for_services(self, from_url: FromURL) -> bool:
        """True when the route and our own services would be called by the same name.

        On whatever port: who sees a name in a certificate or a cookie does not see its port.
        """
        host = from_url.host.removesuffix(".")
        return from_url.scheme in _DEFAULT_PORTS and host in self.grpc_hosts

    def _is_passed_through(self, from_url: FromURL) -> bool:
        """True on the host of an authenticate service elsewhere, where the proxy decides nothing.

        Sign-in itself must be reachable without a sign-in.
        """
        if ServiceName.PROXY not in self.services or ServiceName.AUTHENTICATE in self.services:
            return False
        url = urlsplit(self.settings.authenticate_service_url)
        port = None if url.port == _DEFAULT_PORTS.get(url.scheme) else url.port
        is_plain = from_url.scheme in _DEFAULT_PORTS
        return is_plain and (from_url.host, from_url.port) == (url.hostname, port)

    def _undecided(self, path: KeyPath, route: Route, error: Any) -> None:
        """Nobody is kept out by a policy that is never asked."""
        given = [name for name in _POLICY_KEYS if getattr(route, name)]
        for name in given:
            error(
                (name,),
                "cannot hold here: on the host of authenticate_service_url nothing is decided, "
                "since users must reach it to sign in",
                "allow_public_unauthenticated_access: true alone; authenticate guards its pages",
            )
        if not given and not route.allow_public_unauthenticated_access:
            self.inputs.warn(
                (*path, "from"),
                "everybody may use this route: on the host of authenticate_service_url nothing is "
                "decided",
                "allow_public_unauthenticated_access: true, which says so",
            )

    def _doubts(self, path: KeyPath, route: Route, policy: Policy) -> None:
        """Warn of what the policy says and probably was not meant."""
        for_nobody = not any(_lets_in(rule) for rule in policy.rules)
        if for_nobody:
            self.inputs.warn(
                (*path, "from"),
                "nobody may use this route: every request is refused",
                "policy, allow_any_authenticated_user or allow_public_unauthenticated_access",
            )
        whole = with_client_certificate_rule(policy) if self.adds_certificate_rule else policy
        for hazard in hazards(whole):
            if hazard.path:
                self.inputs.warn((*path, "policy", *hazard.path), hazard.message, hazard.fix)
            elif not for_nobody:  # which says it all
                key = "allowed_idp_claims" if route.allowed_idp_claims else "from"
                self.inputs.warn((*path, key), hazard.named, hazard.fix)

    def _adds_certificate_rule(self) -> bool:
        of_routes = (
            route.tls_downstream_client_ca or route.tls_downstream_client_ca_file
            for route in self.settings.all_routes
        )
        return adds_certificate_rule(
            self.settings, (self.downstream_mtls[0], *self.stored_authorities, *of_routes)
        )

    def _policy(self, route: Route, error: Any) -> Policy | None:
        embedded: Policy | None = None
        failed = False
        if route.policy is not None:
            try:
                embedded = parse_policy(route.policy)
            except PolicyError as problem:
                failed = True
                for part in problem.problems:
                    error(("policy", *part.path), part.message)
        subs: list[SubPolicy] = []
        for index, sub in enumerate(route.sub_policies):
            written: Policy | None = None
            if sub.source_ppl:  # `rego` beside it is only what Pomerium made of it
                written = _written_policy(
                    sub.source_ppl, partial(error, ("sub_policies", index, "source_ppl"))
                )
                failed = failed or written is None
            elif sub.rego:
                failed = True
                error(("sub_policies", index, "rego"), MESSAGE, "source_ppl: the policy language")
            subs.append(
                SubPolicy(
                    policy=written,
                    allowed_users=sub.allowed_users,
                    allowed_domains=sub.allowed_domains,
                    allowed_idp_claims=sub.allowed_idp_claims,
                )
            )
        try:
            policy = route_policy(
                embedded=embedded,
                allow_public_unauthenticated_access=route.allow_public_unauthenticated_access,
                cors_allow_preflight=route.cors_allow_preflight,
                allow_any_authenticated_user=route.allow_any_authenticated_user,
                allowed_domains=route.allowed_domains,
                allowed_idp_claims=route.allowed_idp_claims,
                allowed_users=route.allowed_users,
                sub_policies=subs,
            )
        except PolicyError as problem:
            failed = True
            for part in problem.problems:
                steps = part.path or (
                    "allow_public_unauthenticated_access"
                    if route.allow_public_unauthenticated_access
                    else "allow_any_authenticated_user",
                )
                error(steps, part.message)
            return None
        return None if failed else policy

    def _with_files(
        self,
        path: KeyPath,
        route: Route,
        decision: bytes,
        from_url: FromURL,
        upstreams: tuple[Upstream, ...],
        policy: Policy,
    ) -> ResolvedRoute:
        files = self.inputs
        is_proxy = ServiceName.PROXY in self.services
        decides = bool(self.services & {ServiceName.PROXY, ServiceName.AUTHORIZE})
        custom_ca, client_pair, client_ca, token = None, None, None, None
        if is_proxy:
            custom_ca = files.authorities(
                (*path, "tls_custom_ca"), route.tls_custom_ca, route.tls_custom_ca_file
            )
            client_pair = self._client_certificate(path, route)
        if decides:
            client_ca = files.authorities(
                (*path, "tls_downstream_client_ca"),
                route.tls_downstream_client_ca,
                route.tls_downstream_client_ca_file,
            )
        if route.kubernetes_service_account_token is not None:
            token = route.kubernetes_service_account_token.get_secret_value().strip()
        elif route.kubernetes_service_account_token_file and decides:
            contents = files.read(
                (*path, "kubernetes_service_account_token_file"),
                route.kubernetes_service_account_token_file,
            )
            token = (contents or b"").decode("utf-8", "replace").strip()
            if contents is not None and not token:
                files.error(
                    (*path, "kubernetes_service_account_token_file"),
                    "the file is empty",
                    "the token of a service account",
                )
        provider = self._provider(route)
        extra = json.dumps(
            [
                hashlib.sha256(client_ca or b"").hexdigest(),
                self._keyed(token or ""),
                provider.id if provider is not None else "",
            ]
        ).encode()
        return ResolvedRoute(
            id=route_id(route),
            checksum=route_checksum(route, canonical(policy), decision, extra),
            settings=route,
            from_url=from_url,
            upstreams=upstreams,
            policy=policy,
            identity_provider=provider,
            tls_custom_ca_pem=custom_ca,
            tls_client_certificate=client_pair,
            tls_downstream_client_ca_pem=client_ca,
            kubernetes_service_account_token=token,
        )

    def _client_certificate(self, path: KeyPath, route: Route) -> CertificatePair | None:
        if route.tls_client_cert:
            key = route.tls_client_key
            certificate = self.inputs.either((*path, "tls_client_cert"), route.tls_client_cert, "")
            secret = "" if key is None else key.get_secret_value()
            key_pem = self.inputs.either((*path, "tls_client_key"), secret, "")
            return self.inputs.client_pair(certificate, key_pem, (*path, "tls_client_cert"))
        if route.tls_client_cert_file:
            certificate = self.inputs.either(
                (*path, "tls_client_cert"), "", route.tls_client_cert_file
            )
            key_pem = self.inputs.either((*path, "tls_client_key"), "", route.tls_client_key_file)
            return self.inputs.client_pair(certificate, key_pem, (*path, "tls_client_cert_file"))
        return None

    def _provider(self, route: Route) -> IdentityProviderSettings | None:
        if self.provider is None or not (route.idp_client_id or route.idp_client_secret):
            return self.provider
        client_id = route.idp_client_id or self.provider.client_id
        secret = route.idp_client_secret
        return replace(
            self.provider,
            id=idp_id(
                type=self.provider.type,
                url=self.provider.url,
                client_id=client_id,
                authenticate_service_url=self.settings.authenticate_service_url,
                version=_GITHUB_VERSION if self.provider.type == "github" else 0,
            ),
            client_id=client_id,
            client_secret=(
                self.provider.client_secret if secret is None else secret.get_secret_value()
            ),
        )

    def labels(self, routes: Sequence[ResolvedRoute]) -> list[str]:
        """How messages name each of these routes of the file."""
        places = self._places(routes)
        return [
            route_label(
                f"{place[0]}[{place[1]}]", route.settings, self.inputs.line_of((*place, "from"))
            )
            for place, route in zip(places, routes, strict=True)
        ]

    def shadows(self, routes: Sequence[ResolvedRoute]) -> Iterator[Shadow]:
        """What stands in the way of what among routes that are tried in this order."""
        return shadows(
            routes,
            sign_in_url=self.settings.authenticate_service_url,
            serves_sign_in=ServiceName.AUTHENTICATE in self.services,
        )

    def _places(self, routes: Sequence[ResolvedRoute]) -> list[KeyPath]:
        written = {id(route): path for path, route in self._written()}
        return [written[id(route.settings)] for route in routes]

    def _shadowed(self, routes: list[ResolvedRoute]) -> None:
        """Warn of routes that can never be reached, and of hosts that hide wildcards."""
        found = list(self.shadows(routes))
        if not found:
            return
        places, labels = self._places(routes), self.labels(routes)
        for shadow in found:
            remark = shadow_remark(shadow, labels)
            self.inputs.warn((*places[remark.route], "from"), remark.message, remark.fix)


def _written_policy(text: str, error: Callable[[str], None]) -> Policy | None:
    """A policy written as text, or None after its mistakes were reported."""
    try:
        value, _ = parse_yaml_value(text)
        return parse_policy(value)
    except DocumentError as problem:
        line = "" if problem.line is None else f"line {problem.line}: "
        error(f"{line}{problem}")
    except PolicyError as problem:
        for part in problem.problems:
            error(f"{format_path(part.path)}: {part.message}" if part.path else part.message)
    return None


def _lets_in(rule: Rule) -> bool:
    return rule.action == "allow" and bool(rule.and_ or rule.or_ or rule.not_ or rule.nor)


def route_label(place: str, settings: Route, line: int | None = None) -> str:
    """A route as messages about another one name it."""
    parts = [f"line {line}"] if line else []
    rules = (f"{key} {value}" for key in _PATH_KEYS if (value := getattr(settings, key)))
    parts += [settings.from_, *rules]
    return f"{place} ({', '.join(parts)})"
