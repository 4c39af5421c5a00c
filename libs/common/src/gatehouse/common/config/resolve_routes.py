"""What each route is built from: ids, checksums, policy trees and the contents of route files.

Part of `resolve`; mistakes go to the object that also reads the files.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from gatehouse.common.config.inputs import Inputs
from gatehouse.common.config.issues import Severity
from gatehouse.common.config.load import KeyPath
from gatehouse.common.config.model import MTLSEnforcement, Route, Settings
from gatehouse.common.config.resolved import (
    CertificatePair,
    FromURL,
    IdentityProviderSettings,
    ResolvedRoute,
    ServiceName,
    Upstream,
)
from gatehouse.common.config.route_checks import check_route
from gatehouse.common.config.routes import (
    RouteURLError,
    parse_from,
    parse_to,
    route_checksum,
    route_id,
)
from gatehouse.common.config.shadowing import Hiding, Shadow, shadows
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

# Global keys that shape what authorize answers; a change makes every remembered answer stale.
_DECISION_KEYS: Final = (
    *("cookie_name", "authenticate_service_url", "bearer_token_format", "identity_providers"),
    *("idp_access_token_allowed_audiences", "jwt_claims_headers", "jwt_issuer_format"),
    "jwt_groups_filter",
    *("pass_identity_headers", "runtime_flags", "idp_provider", "idp_provider_url"),
    *("idp_client_id",),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteResolver:
    """Resolves all routes of one configuration."""

    settings: Settings
    services: frozenset[ServiceName]
    provider: IdentityProviderSettings | None
    shared_secret: bytes
    signing_keys: tuple[SigningKey, ...]
    downstream_mtls: tuple[bytes | None, bytes | None]
    inputs: Inputs
    # True when authorize adds the default rule on client certificates to every route.
    asks_for_certificates: bool = field(init=False)

    def __post_init__(self) -> None:
        # Once: it looks at every route, and every route asks for it.
        object.__setattr__(self, "asks_for_certificates", self._asks_for_certificates())

    def resolve(self) -> tuple[ResolvedRoute, ...]:
        """`policy`, then `routes`, each in file order; what is wrong is reported and left out."""
        decision = self._decision_settings()
        resolved: list[ResolvedRoute] = []
        seen: dict[tuple[str, str], KeyPath] = {}
        for path, route in self._written():
            made = self._route(path, route, len(resolved), decision)
            if made is None:
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
            resolved.append(made)
        self._shadowed(resolved)
        return tuple(resolved)

    def _written(self) -> Iterator[tuple[KeyPath, Route]]:
        for key in ("policy", "routes"):
            for index, route in enumerate(getattr(self.settings, key)):
                if (key, index) not in self.inputs.dropped:
                    yield (key, index), route

    def _decision_settings(self) -> bytes:
        dumped = self.settings.model_dump(mode="json", include=set(_DECISION_KEYS))
        mtls = self.settings.downstream_mtls
        dumped["mtls"] = [
            mtls.enforcement,
            [dict(entry) for entry in mtls.match_subject_alt_names],
            mtls.max_verify_depth,
            *(hashlib.sha256(part or b"").hexdigest() for part in self.downstream_mtls),
        ]
        dumped["keys"] = [key.kid for key in self.signing_keys]
        account = self.settings.google_cloud_serverless_authentication_service_account
        dumped["google"] = self._keyed(account.get_secret_value())
        return json.dumps(dumped, sort_keys=True).encode()

    def _keyed(self, secret: str) -> str:
        """A stand-in for a secret: equal in every service, of no use to who reads it."""
        return hmac.new(self.shared_secret, secret.encode(), hashlib.sha256).hexdigest()

    def _route(
        self, path: KeyPath, route: Route, index: int, decision: bytes
    ) -> ResolvedRoute | None:
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
        for name, fix in unavailable_in_route(route, from_url):
            error((name,), MESSAGE, fix)
        policy = self._policy(route, error)
        if policy is not None:
            self._doubts(path, route, policy)
        if not sound or from_url is None or policy is None:
            return None
        return self._with_files(path, route, index, decision, from_url, tuple(upstreams), policy)

    def _doubts(self, path: KeyPath, route: Route, policy: Policy) -> None:
        """Warn of what the policy says and probably was not meant."""
        for_nobody = not any(_lets_in(rule) for rule in policy.rules)
        if for_nobody:
            self.inputs.warn(
                (*path, "from"),
                "nobody may use this route: every request is refused",
                "policy, allow_any_authenticated_user or allow_public_unauthenticated_access",
            )
        whole = with_client_certificate_rule(policy) if self.asks_for_certificates else policy
        for hazard in hazards(whole):
            if hazard.path:
                self.inputs.warn((*path, "policy", *hazard.path), hazard.message, hazard.fix)
            elif not for_nobody:  # which says it all
                key = "allowed_idp_claims" if route.allowed_idp_claims else "from"
                self.inputs.warn((*path, key), hazard.message, hazard.fix)

    def _asks_for_certificates(self) -> bool:
        routes = self.settings.all_routes
        return self.settings.downstream_mtls.enforcement is not MTLSEnforcement.POLICY and (
            self.downstream_mtls[0] is not None
            or any(r.tls_downstream_client_ca or r.tls_downstream_client_ca_file for r in routes)
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
            if sub.rego:
                failed = True
                error(("sub_policies", index, "rego"), MESSAGE, "write it in the policy language")
            if sub.source_ppl:
                failed = True
                error(("sub_policies", index, "source_ppl"), MESSAGE, "put it under policy")
            subs.append(
                SubPolicy(
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
        index: int,
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
        provider = self._provider(route)
        extra = json.dumps(
            [
                hashlib.sha256(client_ca or b"").hexdigest(),
                self._keyed(token or ""),
                provider.id if provider is not None else "",
            ]
        ).encode()
        return ResolvedRoute(
            index=index,
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

    def _shadowed(self, routes: list[ResolvedRoute]) -> None:
        """Warn of routes that can never be reached, and of hosts that hide wildcards."""
        written = {id(route): path for path, route in self._written()}
        places = [written[id(route.settings)] for route in routes]
        found = shadows(
            routes,
            sign_in_url=self.settings.authenticate_service_url,
            serves_sign_in=ServiceName.AUTHENTICATE in self.services,
        )
        for shadow in found:
            self.inputs.warn(
                *_shadow_warning(shadow, places, routes, self.inputs.line_of),
            )


def _lets_in(rule: Rule) -> bool:
    return rule.action == "allow" and bool(rule.and_ or rule.or_ or rule.not_ or rule.nor)


def _shadow_warning(
    shadow: Shadow,
    places: Sequence[KeyPath],
    routes: Sequence[ResolvedRoute],
    line_of: Callable[[KeyPath], int | None],
) -> tuple[KeyPath, str, str]:
    def named(index: int) -> str:
        top, position = places[index][:2]
        settings = routes[index].settings
        parts = [f"line {line}"] if (line := line_of((*places[index], "from"))) else []
        rules = (f"{key} {value}" for key in _PATH_KEYS if (value := getattr(settings, key)))
        parts += [settings.from_, *rules]
        return f"{top}[{position}] ({', '.join(parts)})"

    at = (*places[shadow.route], "from")
    if shadow.by is None:
        return (
            at,
            "can never be reached: Gatehouse itself answers these paths of every host",
            "another path; /.pomerium, /.well-known/pomerium, /ping and /healthz are taken",
        )
    by = named(shadow.by)
    if shadow.hiding is Hiding.SAME:
        return at, f"can never be reached: {by} before it has the same from and path", "keep one"
    if shadow.hiding is Hiding.WHOLE:
        return (
            at,
            f"can never be reached: {by} before it matches all of it",
            "put the narrower route first",
        )
    return (
        (*places[shadow.by], "from"),
        f"hides {named(shadow.route)} on {shadow.host}: all other paths there answer 404",
        f"add a route for {shadow.host} without path, if they are wanted",
    )
